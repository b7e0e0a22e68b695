"""manifest.json: which job an output directory belongs to, and what the job did.

Its `job` part is the fingerprint: a directory is gone on with only by the job that began it.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shardrank.actors.config import QueryOptions, RerankerConfig
from shardrank.actors.prompt import NULL, SYSTEM
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions, OpenedInput
from shardrank.jobs.inputs.tables import CANDIDATES, Table
from shardrank.jobs.outputs.files import MANIFEST, Output
from shardrank.jobs.outputs.input_files import input_change, input_files
from shardrank.jobs.secrets import redacted_argument
from shardrank.jobs.storage import (
    list_directory,
    read_bytes,
    write_atomically,
)
from shardrank.jobs.units.growth import Held
from shardrank.jobs.units.plan import Plan

_PACKAGES = ("shardrank", "torch", "transformers", "tokenizers", "ray", "pyarrow", "pillow", "av")
_NOT_IN_SCORES = (
    "model",
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
    "local_media": True,
    "batch_invariant": False,
    "max_video_s": None,
    "empty": "official",
    "image_depth": "official",
    "video_reader": "decord",
    "max_visual_tokens": 32_768,
}
"""Left out at the value that had been the rule, so that a job of that time can be gone on with."""

Manifest = dict[str, Any]


def job_fingerprint(
    opened: OpenedInput,
    plan: Plan,
    config: RerankerConfig,
    model: Mapping[str, Any],
    unit_pairs: int,
    with_rankings: bool,
    known_files: Sequence[Manifest] | None = None,
) -> Manifest:
    """Everything that decides what the score files hold. known_files: the input as an earlier run
    has it, for which a file that was only touched is still the same.
    """
    return {
        "model": dict(model),
        "prompt_sha256": hashlib.sha256(f"{SYSTEM}\n{NULL}".encode()).hexdigest(),
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


def _options(config: RerankerConfig) -> Manifest:
    options = asdict(config) | {"media_root": _kept_roots(config.media_root)}
    return {
        name: value
        for name, value in options.items()
        if name not in _NOT_IN_SCORES and not (name in _CAME_LATER and value == _CAME_LATER[name])
    }


def config_of(manifest: Manifest, model: str | None = None) -> RerankerConfig:
    """The config that the job's scores are of. model: where the checkpoint is now, if elsewhere."""
    options = _CAME_LATER | manifest["job"]["options"]
    roots = options["media_root"]
    options["media_root"] = tuple(roots) if isinstance(roots, list) else roots
    options["options"] = QueryOptions.from_mapping(options["options"])
    options["dtype"] = manifest.get("dtype", options["dtype"])
    known = {name: options[name] for name in options if name not in _NOT_IN_SCORES}
    kept = manifest["model"]
    revision = kept["revision"] if model is None else None
    return RerankerConfig(model=model or kept["name"], revision=revision, **known)


def _kept_roots(roots: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    return tuple(map(_absolute, roots)) if isinstance(roots, tuple) else roots and _absolute(roots)


def _columns(table: Table) -> dict[str, str]:
    fields = table.candidate_fields.items()
    return table.columns | {f"{CANDIDATES}{name}": path for name, path in fields}


def read_manifest(output: Output) -> Manifest | None:
    """None for a new directory. Raises UsageError for one that holds something else."""
    place = output.directory.child(MANIFEST)
    if not place.exists():
        if list_directory(output.directory):
            raise UsageError(
                f"--output {output.directory} is not empty and has no {MANIFEST}: "
                "it is not the output of a job; name an empty or a new directory"
            )
        return None
    try:
        return json.loads(read_bytes(place))
    except ValueError as error:
        raise UsageError(f"{place} is not a manifest: {error}") from error


def read_held(output: Output, manifest: Manifest | None) -> Held | None:
    """What the output had when its input last grew; None for one that never did.

    A unit whose file is gone since has no scores to keep.
    """
    growth = (manifest or {}).get("growth")
    if growth is None:
        return None
    table = pq.read_table(pa.BufferReader(read_bytes(output.directory.child(growth["record"]))))
    if growth["is_open"] and "is_scored" in table.schema.names:
        is_there = pc.is_in(table["unit"], value_set=pa.array(output.numbers(), pa.int32()))
        column = table.schema.get_field_index("is_scored")
        is_scored = pc.and_(table["is_scored"], is_there)
        table = table.set_column(column, "is_scored", is_scored)
    return Held(table, growth["is_open"])


def check_same_job(output: Output, manifest: Manifest, job: Manifest) -> None:
    """Raises UsageError that names what differs from the job that began this directory."""
    before = manifest.get("job", {})
    change = input_change(before.get("input", []), job["input"])
    if change is not None:
        raise UsageError(
            f"--output {output.directory} is of another input: {change}; name another directory, "
            "or put the input back as it was"
        )
    then, now = _comparable(before, before), _comparable(job, before)
    differing = _difference(then, json.loads(json.dumps(now)))
    if differing is not None:
        name, was, is_now = differing
        raise UsageError(
            f"--output {output.directory} belongs to another job: {name} was {_short(was)} "
            f"and is now {_short(is_now)}; name another directory, or run the command as it was"
        )


def _comparable(job: Manifest, before: Manifest) -> Manifest:
    """A job without its input's files, and without what is compared in only one of two versions."""
    options = {k: v for k, v in job.get("options", {}).items() if k not in _NOT_IN_SCORES}
    others = {name: value for name, value in job.items() if name != "input"}
    if "id_types" not in before:
        others.pop("id_types", None)
    return others | {"options": options}


def check_same_dtype(output: Output, manifest: Manifest, dtype: str) -> None:
    """Raises UsageError if an earlier run scored in another one: `auto` goes by the device."""
    before = manifest.setdefault("dtype", dtype)
    if before != dtype:
        raise UsageError(
            f"--output {output.directory} was scored in {before} so far, and --dtype auto means "
            f"{dtype} on this device; go on with the --device that it had, or in another directory"
        )


def check_same_input(output: Output, manifest: Manifest, opened: OpenedInput, plan: Plan) -> None:
    """Raises UsageError if these are not the units, of the files, that the job read."""
    job = manifest["job"]
    change = input_change(job["input"], input_files(opened, job["input"]))
    if change is None and job["units_sha256"] != plan.fingerprint:
        change = "its files are cut into other units"
    if change is not None:
        raise UsageError(f"{output.directory} was made of another input: {change}")


def kept_input(options: InputOptions) -> Manifest:
    """What the command said about the input, for any working directory and without credentials."""
    places = ("input", "run", "queries", "corpus")
    return {
        name: _absolute(value) if name in places and value is not None else value
        for name, value in asdict(options).items()
    }


def _absolute(uri: str) -> str:
    return redacted_argument(uri) if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def kept_command(arguments: Sequence[str]) -> Manifest:
    return {"directory": os.getcwd(), "arguments": [redacted_argument(each) for each in arguments]}


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


def new_manifest(job: Manifest, config: RerankerConfig) -> Manifest:
    return {
        "status": "running",
        "job": json.loads(json.dumps(job)),
        "model": {"name": config.model, "revision": config.revision},
        "versions": _versions(),
        "started": _now(),
        "seconds": 0.0,
        "num_runs": 0,
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": sys.platform}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def save_manifest(output: Output, manifest: Manifest) -> None:
    manifest["updated"] = _now()
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_atomically(output.directory.child(MANIFEST), text.encode())


def add_lookups(manifest: Manifest, hits: int, misses: int) -> None:
    """Count the vision cache's lookups, over all runs of the job; a miss is a visual encoded.

    What a run that was killed looked up since it last saved the manifest is not in it.
    """
    hits += manifest.get("vision_cache_hits", 0)
    misses += manifest.get("num_visuals_encoded", 0)
    manifest["num_visuals_encoded"] = misses
    manifest["vision_cache_hits"] = hits
    if hits + misses:
        manifest["vision_cache_hit_rate"] = round(hits / (hits + misses), 6)
