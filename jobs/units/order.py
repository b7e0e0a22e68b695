"""Whether a job goes through its pairs query by query or document by document, and why."""

from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.types as pt

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import OpenedInput

Order = Literal["query", "document"]
WantedOrder = Literal["auto", "query", "document"]

MIN_PAIRS_A_DOCUMENT = 2
"""Mean number of pairs from which on reading each document once outweighs the second pass."""

_FORMS = {
    "sets": "candidate sets carry their documents with each query",
    "pairs": "pairs carry their document in each row",
    "texts": "each text is embedded by itself",
}


@dataclass(frozen=True, slots=True)
class Choice:
    order: Order
    reason: str

    def __str__(self) -> str:
        return f"{self.order}-major: {self.reason}"


def check_order(opened: OpenedInput, wanted: WantedOrder) -> None:
    """Raises UsageError for an order that the input's form cannot have."""
    if wanted not in get_args(WantedOrder):
        raise UsageError(f"--order must be auto, query or document, got {wanted!r}")
    if wanted == "document" and opened.form != "run":
        raise UsageError(
            f"--order document needs a corpus, as in --run with --queries and --corpus: "
            f"{_FORMS[opened.form]}"
        )


def settled_order(opened: OpenedInput, wanted: WantedOrder) -> Choice | None:
    """Query-major where nothing about the pairs could change it, else None: see shared_order."""
    if opened.form != "run":
        return Choice("query", _FORMS[opened.form])
    if wanted == "query":
        return Choice("query", "asked for")
    if wanted == "auto" and not has_media(opened):
        return Choice("query", "the corpus has texts alone, and a query's pairs share its tokens")
    return None


def shared_order(wanted: WantedOrder, num_pairs: int, num_documents: int) -> Choice:
    """The order that the share of distinct documents suggests; both counts are of pairs to be
    scored.
    """
    pairs = f"{num_pairs:,} pairs name {num_documents:,} distinct documents"
    if wanted == "auto" and num_pairs < MIN_PAIRS_A_DOCUMENT * max(1, num_documents):
        return Choice("query", f"{pairs}, too few share one")
    return Choice("document", f"{pairs}, each is read and encoded once")


_MEDIA = ("image", "video", "pdf")


def has_media(opened: OpenedInput) -> bool:
    """Whether the corpus has images or videos, by its mapped columns; JSON lines have no types,
    so there `doc` alone says nothing.
    """
    corpus = opened.corpus
    if not any(corpus.footers):
        return any(map(corpus.table.has, _MEDIA))
    columns = corpus.types
    if "doc" in columns and _is_media_content(columns["doc"]):
        return True
    return any(name in columns and not pt.is_null(columns[name]) for name in _MEDIA)


def _is_media_content(kind: pa.DataType) -> bool:
    """Bytes, a struct of bytes and path, or a struct with a field for images or videos."""
    if pt.is_large_binary(kind):
        return True
    fields = {field.name: field.type for field in kind} if pt.is_struct(kind) else {}
    return any(name in fields and not pt.is_null(fields[name]) for name in (*_MEDIA, "bytes"))
