"""Which job an output belongs to: its fingerprint, everything that decides what the scores are.

A directory is gone on with only by the job that began it.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shardrank.actors.config import EmbeddingOptions, QueryOptions, RerankerConfig
from shardrank.actors.families.family import Family
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions, OpenedInput
from shardrank.jobs.inputs.tables import CANDIDATES, Table
from shardrank.jobs.outputs.input_files import Entry, Job, input_change, input_files
from shardrank.jobs.secrets import redacted_argument
from shardrank.jobs.storage import Location
from shardrank.jobs.units.plan import Plan

_NOT_IN_SCORES = (
    "model",
    "adapter",
    "revision",
    "device",
    "num_threads",
    "max_batch_tokens",
    "feature_cache_bytes",
    "host_feature_cache_bytes",
    "compile",
    "web_media",
)
"""Config that may differ between the runs of one job; the model is there by its weights' hash, and
what may be fetched decides on what is still to do alone.
"""
_CAME_LATER = {
    "embedding": None,
    "local_media": True,
    "batch_invariant": False,
    "max_video_s": None,
    "empty": "official",
    "image_depth": "official",
    "video_reader": "decord",
    "max_visual_tokens": 32_768,
    "max_pdf_pages": 1_000,
    "pdf_text": False,
}
"""Left out at the value that had been the rule, so that a job of that time can be gone on with."""


def job_fingerprint(
    opened: OpenedInput,
    plan: Plan,
    config: RerankerConfig,
    family: Family,
    model: Mapping[str, Any],
    unit_pairs: int,
    with_rankings: bool,
    known_files: Sequence[Entry] | None = None,
) -> Job:
    """Everything that decides what the score files hold. known_files: the input as an earlier run
    has it, for which a file that was only touched is still the same.
    """
    return {
        "model": dict(model),
        "prompt_sha256": hashlib.sha256(family.wording.encode()).hexdigest(),
        "options": _options(config),
        "form": opened.form,
        "order": plan.choice.order,
        "columns": {each.table.name: _columns(each.table) for each in opened.tables},
        "input": input_files(opened, known_files or (), with_digests=known_files is None),
        "unit_pairs": unit_pairs,
        "rankings": with_rankings,
        "num_units": len(plan.units),
        "units_sha256": plan.fingerprint,
        "id_types": [str(plan.input.query_id_type), str(plan.input.doc_id_type)],
    }


def _options(config: RerankerConfig) -> dict[str, Any]:
    options = asdict(config) | {"media_root": _kept_roots(config.media_root)}
    return {
        name: value
        for name, value in options.items()
        if name not in _NOT_IN_SCORES and not (name in _CAME_LATER and value == _CAME_LATER[name])
    }


def config_of(
    job: Job, name: str, revision: str | None, adapter: str | None, dtype: str | None
) -> RerankerConfig:
    """The config that the job's scores are of, with the checkpoint at `name`."""
    options = _CAME_LATER | job["options"]
    roots = options["media_root"]
    options["media_root"] = tuple(roots) if isinstance(roots, list) else roots
    options["options"] = QueryOptions.from_mapping(options["options"])
    options["dtype"] = dtype or options["dtype"]
    options["embedding"] = options["embedding"] and EmbeddingOptions(**options["embedding"])
    known = {each: options[each] for each in options if each not in _NOT_IN_SCORES}
    return RerankerConfig(model=name, revision=revision, adapter=adapter, **known)


def _kept_roots(roots: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    return tuple(map(_absolute, roots)) if isinstance(roots, tuple) else roots and _absolute(roots)


def _columns(table: Table) -> dict[str, str]:
    fields = table.candidate_fields.items()
    return table.columns | {f"{CANDIDATES}{name}": path for name, path in fields}


def check_same_job(directory: Location, before: Job, now: Job) -> None:
    """Raises UsageError that names what differs from the job that began this directory."""
    change = input_change(before.get("input", []), now["input"])
    if change is not None:
        raise UsageError(
            f"--output {directory} is of another input: {change}; name another directory, "
            "or put the input back as it was"
        )
    then, today = _comparable(before, before), _comparable(now, before)
    differing = _difference(then, as_kept(today))
    if differing is not None:
        name, was, is_now = differing
        raise UsageError(
            f"--output {directory} belongs to another job: {name} was {_short(was)} "
            f"and is now {_short(is_now)}; name another directory, or run the command as it was"
        )


def as_kept(job: Job) -> Job:
    """The job as it comes back from its file: tuples are lists there."""
    return json.loads(json.dumps(job))


def _comparable(job: Job, before: Job) -> Job:
    """A job without its input's files, and without what is compared in only one of two versions."""
    options = {k: v for k, v in job.get("options", {}).items() if k not in _NOT_IN_SCORES}
    others = {name: value for name, value in job.items() if name != "input"}
    if "id_types" not in before:
        others.pop("id_types", None)
    return others | {"options": options}


def check_same_input(directory: Location, job: Job, opened: OpenedInput, plan: Plan) -> None:
    """Raises UsageError if these are not the units, of the files, that the job read."""
    change = input_change(job["input"], input_files(opened, job["input"]))
    if change is None and job["units_sha256"] != plan.fingerprint:
        change = "its files are cut into other units"
    if change is not None:
        raise UsageError(f"{directory} was made of another input: {change}")


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """(dotted name, then, now) of the first value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [(key, before.get(key), now.get(key)) for key in now | before]
    else:
        return None if before == now else (name, before, now)
    found = (_difference(one, other, f"{name}.{key}".strip(".")) for key, one, other in parts)
    return next((each for each in found if each is not None), None)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def kept_input(options: InputOptions) -> dict[str, Any]:
    """What the command said about the input, for any working directory and without credentials."""
    places = ("input", "run", "queries", "corpus")
    return {
        name: _absolute(value) if name in places and value is not None else value
        for name, value in asdict(options).items()
    }


def _absolute(uri: str) -> str:
    return redacted_argument(uri) if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def kept_command(arguments: Sequence[str]) -> dict[str, Any]:
    return {"directory": os.getcwd(), "arguments": [redacted_argument(each) for each in arguments]}
