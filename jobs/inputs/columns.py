"""The columns of the input's tables, under the job's names: which table may have which, and of
which types each may be.
"""

from collections.abc import Callable
from dataclasses import fields

import pyarrow as pa
import pyarrow.types as pt

from shardrank.actors.config import QueryOptions

OPTION_COLUMNS = tuple(each.name for each in fields(QueryOptions))
QUERY_COLUMNS = ("query", "text", "image", "video", "instruction", *OPTION_COLUMNS)
PDF_COLUMNS = ("pdf", "page", "pages")
DOCUMENT_COLUMNS = ("doc", "title", "text", "image", "video", *PDF_COLUMNS)
CANDIDATES = "candidates."
INPUT_QUERY_COLUMNS = ("query", "query_image", "query_video", "instruction", *OPTION_COLUMNS)
"""What an `input` table has of a query; its `image` and `video` are a document's."""
CANDIDATE_COLUMNS = ("doc_id", *DOCUMENT_COLUMNS, "rank", "score")

TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    "input": ("query_id", "doc_id", "candidates", "rank", "score")
    + (*INPUT_QUERY_COLUMNS, *DOCUMENT_COLUMNS),
    "queries": ("query_id", *QUERY_COLUMNS),
    "corpus": ("doc_id", *DOCUMENT_COLUMNS),
    "run": ("query_id", "doc_id", "rank", "score", "doc_ids"),
    "instructions": ("query_id", "instruction"),
}
"""What `--map TABLE.COLUMN=NAME` may name."""

IDS = {"queries": "query_id", "corpus": "doc_id"}
"""The id of a table that one can embed."""

IN_EVERY_FILE = ("query_id", "doc_id", "doc_ids", "candidates")
"""Each file must have what the table has of these; other columns are null where it lacks them."""
CONTENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "input": (("query", "query_image", "query_video"),),
    "pairs": (("query", "query_image", "query_video"), ("doc", "text", "image", "video", "pdf")),
    "queries": (("query", "text", "image", "video"),),
    "corpus": (("doc", "text", "image", "video", "pdf"),),
    "instructions": (("instruction",),),
}
"""At least one of those of each group that the table has must be in each file."""
SCANNED = ("query_id", "doc_id", "rank", "score", "doc_ids")
"""Columns that the driver reads of all rows."""

Kinds = tuple[Callable[[pa.DataType], bool], ...]

_ID: Kinds = (pt.is_large_string, pt.is_integer)
_TEXT: Kinds = (pt.is_null, pt.is_large_string)
_NUMBER: tuple[str, Kinds, Kinds] = (
    "a number",
    (pt.is_null, pt.is_integer, pt.is_floating),
    (),
)
_CONTENT: Kinds = (*_TEXT, pt.is_large_binary, pt.is_struct)
_ONE_ID = ("a string or an integer", _ID, ())
_ONE_CONTENT = ("a string, an image or a struct of text, image and video", _CONTENT, ())
_IMAGES = (
    "bytes, a path, a struct of both, or a list of them",
    (*_CONTENT, pt.is_large_list),
    (),
)
_VIDEOS = ("bytes, a path, a struct, or a list of them", (*_CONTENT, pt.is_large_list), ())
EXPECTED: dict[str, tuple[str, Kinds, Kinds]] = {
    "query_id": _ONE_ID,
    "doc_id": _ONE_ID,
    "doc_ids": ("a list of ids", (), _ID),
    "query": _ONE_CONTENT,
    "doc": _ONE_CONTENT,
    "text": ("a string or a list of strings", _TEXT, _TEXT),
    "title": ("a string", _TEXT, ()),
    "image": _IMAGES,
    "video": _VIDEOS,
    "pdf": ("bytes, a path or a struct of both", _CONTENT, ()),
    "page": _NUMBER,
    "pages": ("a list of numbers", (pt.is_null,), (pt.is_integer, pt.is_floating)),
    "instruction": ("a string", _TEXT, ()),
    "rank": _NUMBER,
    "score": _NUMBER,
    "candidates": (
        "a list of structs with doc_id and doc (or text, image, video)",
        (),
        (pt.is_struct,),
    ),
    "query_image": _IMAGES,
    "query_video": _VIDEOS,
    **dict.fromkeys(OPTION_COLUMNS, _NUMBER),
}
"""Column -> what a message calls it, the plain types that it may be of, and those of the values of
a list that it may be instead.
"""
