"""Published data sets: how they name their tables and columns, and which parts and splits of one
lie in a folder, by their names. Opens no table.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.discovery import JSON_LINES, PARQUET, TSV, kind_of
from shardrank.jobs.storage import Location, child_names, list_files, plain_name


@dataclass(frozen=True, slots=True)
class Preset:
    """columns: table -> the job's name -> the data set's names, the first that is there counts.
    parts: table -> names inside INPUT. tsv: table -> number of columns -> the data set's names.

    input_is_run: INPUT is the run itself, and --queries and --corpus name the tables.
    """

    columns: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tsv: dict[str, dict[int, tuple[str, ...]]] = field(default_factory=dict)
    input_is_run: bool = False


_RANKED: dict[str, tuple[str, ...]] = {"query_id": ("query-id",), "doc_ids": ("corpus-ids",)}
_PAGES = Preset(
    columns={
        "queries": {"query_id": ("query-id", "query_id", "id")},
        "corpus": {"doc_id": ("corpus-id", "corpus_id", "id")},
        "run": _RANKED,
    },
    parts={"run": ("run", "top_ranked")},
)

PRESETS: dict[str, Preset] = {
    "beir": Preset(columns={"queries": {"query_id": ("_id",)}, "corpus": {"doc_id": ("_id",)}}),
    "mteb": Preset(
        columns={
            "queries": {"query_id": ("id", "_id")},
            "corpus": {"doc_id": ("id", "_id")},
            "run": _RANKED,
            "instructions": {"query_id": ("query-id",)},
        },
        parts={"run": ("top_ranked",), "instructions": ("instruction",)},
    ),
    "nanobeir": Preset(
        columns={
            "queries": {"query_id": ("_id",)},
            "corpus": {"doc_id": ("_id",)},
            "run": _RANKED,
        },
        parts={"run": ("run", "bm25")},
    ),
    "vidore": _PAGES,
    "jinavdr": _PAGES,
    "msmarco": Preset(
        columns={
            "input": {"query_id": ("qid",), "doc_id": ("pid",), "doc": ("passage",)},
            "queries": {"query_id": ("qid",)},
            "corpus": {"doc_id": ("pid", "docid"), "doc": ("passage",), "text": ("body",)},
        },
        parts={"corpus": ("corpus", "collection", "msmarco-docs")},
        tsv={
            "input": {4: ("qid", "pid", "query", "passage")},
            "queries": {2: ("qid", "query")},
            "corpus": {2: ("pid", "passage"), 4: ("docid", "url", "title", "body")},
        },
    ),
    "miracl": Preset(columns={"corpus": {"doc_id": ("docid",)}}),
    "trec": Preset(input_is_run=True),
}


def find_parts(uri: str, preset: Preset, given: dict[str, str]) -> dict[str, str]:
    """Part -> URI: what INPUT is or, as a directory, contains, and what is given without it."""
    if preset.input_is_run:
        return _with_run(uri, given)
    found = {
        name: part
        for name in ("queries", "corpus", "run", "instructions")
        if (part := find_part(uri, preset.parts.get(name, (name,))))
    }
    if found.keys() & {"queries", "corpus"} and {"queries", "corpus"} <= (found | given).keys():
        return found | given
    missing = [name for name in ("queries", "corpus") if name not in given]
    inside = _subsets(Location.parse(uri), missing) if missing else []
    if len(inside) > 1:
        raise UsageError(
            f"{uri} holds the subsets {', '.join(inside)}: name one, such as "
            f"{uri.rstrip('/')}/{inside[0]}"
        )
    if inside:
        return find_parts(f"{uri.rstrip('/')}/{inside[0]}", preset, given)
    return _with_run(uri, given) if given else {"input": uri}


def _with_run(uri: str, given: dict[str, str]) -> dict[str, str]:
    """INPUT is the run. Raises UsageError where all three tables are given without it: a shell may
    have made two arguments of a glob.
    """
    if {"run", "queries", "corpus"} <= given.keys():
        raise UsageError(
            f"INPUT {uri} is not read beside --run, --queries and --corpus: leave it out, or quote "
            "the glob that it comes from"
        )
    return {"run": uri} | given


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


def _subsets(directory: Location, parts: Sequence[str]) -> list[str]:
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


_SPLITS = ("train", "dev", "test", "validation", "valid", "val", "eval")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.")
"""What `datasets` writes: the split's name, whatever it is, before the number of the shard."""


def check_one_split(what: str, files: Sequence[Location]) -> None:
    """Raises UsageError that names the splits where the files are of more than one."""
    splits = {_split_of(file, files): file for file in reversed(files)}
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
    return next((word for word in words if word in _SPLITS), "")


def _folder(files: Sequence[Location]) -> str:
    """The part of the paths that all files share, up to a slash."""
    shared = os.path.commonprefix([file.path for file in files])
    return shared[: shared.rfind("/") + 1]
