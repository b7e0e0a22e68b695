"""How well-known data sets name their files and columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from shardrank.jobs.storage import Location, list_files

_SUFFIXES = ("", ".parquet", ".jsonl", ".jsonl.gz")


@dataclass(frozen=True, slots=True)
class Preset:
    """columns: table -> the job's name -> the data set's. parts: table -> names inside INPUT.

    input_is_run: INPUT is the run itself, and --queries and --corpus name the tables.
    """

    columns: dict[str, dict[str, str | tuple[str, ...]]] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    input_is_run: bool = False


_PAGES = Preset(
    columns={
        "queries": {"query_id": "query-id"},
        "corpus": {"doc_id": "corpus-id"},
    }
)

PRESETS: dict[str, Preset] = {
    "beir": Preset(columns={"queries": {"query_id": "_id"}, "corpus": {"doc_id": "_id"}}),
    "mteb": Preset(
        columns={
            "queries": {"query_id": ("id", "_id")},
            "corpus": {"doc_id": ("id", "_id")},
            "run": {"query_id": "query-id", "doc_ids": "corpus-ids"},
            "instructions": {"query_id": "query-id"},
        },
        parts={"run": ("top_ranked",), "instructions": ("instruction",)},
    ),
    "vidore": _PAGES,
    "jinavdr": _PAGES,
    "msmarco": Preset(
        columns={"input": {"query_id": "qid", "doc_id": "pid", "doc": "passage"}},
    ),
    "trec": Preset(input_is_run=True),
}


def find_part(uri: str, directory: Location, names: Sequence[str]) -> str | None:
    """The URI of the first of `names` that is a file or directory with files inside INPUT."""
    base, _, query = uri.partition("?")
    for name in names:
        for suffix in _SUFFIXES:
            if list_files(directory.child(name + suffix)):
                return f"{base.rstrip('/')}/{name}{suffix}" + (f"?{query}" if query else "")
    return None
