"""Splits of a data set (train, dev, test), known by its files' names: ids of two are not one's."""

import re
from collections.abc import Sequence

from shardrank.jobs.errors import UsageError
from shardrank.jobs.storage import Location

_NAMES = ("train", "dev", "test", "validation", "valid", "val", "eval")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.")
"""What `datasets` writes: the split's name, whatever it is, before the number of the shard."""


def check_one_split(what: str, files: Sequence[Location]) -> None:
    """Raises UsageError that names the splits where the files are of more than one."""
    splits: dict[str, Location] = {}
    for file in files:
        splits.setdefault(_split_of(file, files), file)
    named = sorted(set(splits) - {""})
    if len(named) > 1:
        raise UsageError(
            f"{what}: {_folder(files)} holds the splits {', '.join(named)}: "
            f"name the one that is meant, such as {splits[named[0]]} (or a quoted glob)"
        )


def _split_of(file: Location, files: Sequence[Location]) -> str:
    """The shard's split, or the first word of the path below the files' folder that is one."""
    shard = _SHARD.match(file.name)
    if shard:
        return shard[1]
    words = re.split(r"[^a-z]+", file.path.removeprefix(_folder(files)).lower())
    return next((word for word in words if word in _NAMES), "")


def _folder(files: Sequence[Location]) -> str:
    """The part of the paths that all files share, up to a slash."""
    first, last = min(file.path for file in files), max(file.path for file in files)
    shared = next(
        (i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other),
        len(first),
    )
    return first[: first.rfind("/", 0, shared) + 1]
