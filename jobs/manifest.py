"""manifest.json: which job an output directory belongs to, and what the job did.

Its `job` part is the fingerprint: a directory is gone on with only by the job that began it.
"""

import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

from actors.config import RerankerConfig
from jobs.errors import UsageError
from jobs.inputs import OpenedInput
from jobs.outputs import MANIFEST, Output
from jobs.storage import list_files, read_bytes, write_atomically
from jobs.tables import data_files
from jobs.units import Plan

_PACKAGES = ("shardrank", "torch", "transformers", "tokenizers", "ray", "pyarrow", "pillow")
_NOT_IN_SCORES = ("model", "revision", "device", "num_threads", "max_batch_tokens")
"""Config that may differ between the runs of one job; the model is there by its weights' hash."""

Manifest = dict[str, Any]


def job_fingerprint(
    opened: OpenedInput,
    plan: Plan,
    config: RerankerConfig,
    model: Mapping[str, Any],
    with_rankings: bool,
) -> Manifest:
    """Everything that decides what the score files hold."""
    options = {k: v for k, v in asdict(config).items() if k not in _NOT_IN_SCORES}
    options.pop("feature_cache_bytes", None)
    return {
        "model": dict(model),
        "options": options,
        "form": opened.form,
        "columns": {table.name: table.columns for table in opened.tables},
        "input": _input_files(opened),
        "num_units": len(plan.units),
        "units_sha256": plan.fingerprint,
        "rankings": with_rankings,
    }


def _input_files(opened: OpenedInput) -> list[Manifest]:
    from jobs.storage import Location

    files = [(table.name, file) for table in opened.tables for file in table.files]
    if opened.run is not None:
        files += [("run", file) for file in data_files(Location.parse(opened.run))]
    return [
        {
            "table": name,
            "path": str(file.location),
            "size_bytes": file.size_bytes,
            "mtime_ns": file.mtime_ns,
        }
        for name, file in files
    ]


def read_manifest(output: Output) -> Manifest | None:
    """None for a new directory. Raises UsageError for one that holds something else."""
    place = output.directory.child(MANIFEST)
    if not place.exists():
        if list_files(output.directory):
            raise UsageError(
                f"--output {output.directory} is not empty and has no {MANIFEST}: "
                "it is not the output of a job; name an empty or a new directory"
            )
        return None
    try:
        return json.loads(read_bytes(place))
    except ValueError as error:
        raise UsageError(f"{place} is not a manifest: {error}") from error


def check_same_job(output: Output, manifest: Manifest, job: Manifest) -> None:
    """Raises UsageError that names what differs from the job that began this directory."""
    before, now = manifest.get("job", {}), json.loads(json.dumps(job))
    differing = [name for name in now if before.get(name) != now[name]]
    if differing:
        name = differing[0]
        raise UsageError(
            f"--output {output.directory} belongs to another job: {name} was "
            f"{_shown(before.get(name), now[name])}; name another directory or use the same {name}"
        )


def _shown(before: Any, now: Any) -> str:
    """The first difference inside two values, short enough for a sentence."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now | before:
            if before.get(key) != now.get(key):
                return f"{key} {_shown(before.get(key), now.get(key))}"
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for one, other in zip(before, now, strict=True):
            if one != other:
                name = one.get("path", "") if isinstance(one, dict) else ""
                return f"{name} {_shown(one, other)}".strip()
    return f"{_short(before)} and is now {_short(now)}"


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
