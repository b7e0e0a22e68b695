"""The parts of a data set that lie in one folder, by their names; not what is in them."""

import os
import re
from collections.abc import Sequence

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.discovery import JSON_LINES, PARQUET, TSV, kind_of
from shardrank.jobs.inputs.lines import plain_name
from shardrank.jobs.storage import Location, child_names, list_files


def find_part(uri: str, names: Sequence[str]) -> str | None:
    """The URI of the first of `names` that is a file or directory with files inside INPUT, or,
    where INPUT itself is none, that it begins: `DIR/english` has `DIR/english-corpus`.

    Raises UsageError where a name stands for two of them, which may differ.
    """
    base, mark, query = uri.partition("?")
    folder, start, join = Location.parse(uri), "", "/"
    if not folder.exists():
        folder, start, join = folder.parent, f"{folder.name}-", "-"
    children = child_names(folder)
    for name in names:
        parts = [
            f"{base.rstrip('/')}{join}{child.removeprefix(start)}{mark}{query}"
            for child in children
            if _is_named(child, f"{start}{name}")
        ]
        found = [part for part in parts if list_files(Location.parse(part))]
        if len(found) > 1:
            raise UsageError(
                f"{found[0]} and {found[1]} could both be the {name} of {uri}: leave one there"
            )
        if found:
            return found[0]
    return None


def _is_named(child: str, name: str) -> bool:
    """Whether it is a folder of that name, or a table's file."""
    if not child.startswith(name):
        return False
    ending = f"x{child[len(name) :]}"
    is_table = kind_of(ending) in (PARQUET, JSON_LINES, TSV)
    return child == name or (is_table and os.path.splitext(plain_name(ending))[0] == "x")


def subsets(directory: Location, parts: Sequence[str]) -> list[str]:
    """The subsets in a directory that have all parts: `de` of `de/corpus`, `english` of
    `english-corpus`.
    """
    found: dict[str, set[str]] = {}
    for file, _ in list_files(directory):
        path = file.path.removeprefix(f"{directory.path}/")
        match = re.match(rf"([^/]+?)[-/]({'|'.join(parts)})(/|\.[a-z])", path)
        if match:
            found.setdefault(match[1], set()).add(match[2])
    return sorted(name for name, has in found.items() if has == set(parts))
