"""What a row says under the job's names: contents that the engine parses, and the first stage's
ranks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from shardrank.actors.errors import InvalidContent
from shardrank.jobs.inputs.columns import PDF_COLUMNS


def document_value(row: Mapping[str, Any]) -> Any:
    """What the engine parses, or an error. A title goes before its text, joined by a space, as in
    BEIR; `doc` is the whole text, and images and videos beside it are added.
    """
    media = ("image", "video", *(PDF_COLUMNS if "pdf" in row else ()))
    if "doc" in row:
        return _merged("doc", row["doc"], {name: row.get(name) for name in media})
    content = {name: row[name] for name in ("text", *media) if name in row}
    title = row.get("title")
    if title is None or title == "":
        return content
    if not isinstance(title, str):
        return InvalidContent(f"title must be a string, got {type(title).__name__}")
    return content | {"text": _titled(title, row.get("text"))}


def query_value(row: Mapping[str, Any]) -> Any:
    """The same for a query, whose media an input table has as `query_image` and `query_video`."""
    media = {
        name: row.get(name) if row.get(f"query_{name}") is None else row[f"query_{name}"]
        for name in ("image", "video")
    }
    if "query" in row:
        return _merged("query", row["query"], media)
    if "text" in row:
        media = {"text": row["text"], **media}
    return {name: value for name, value in media.items() if name in row or f"query_{name}" in row}


def _titled(title: str, text: Any) -> Any:
    """The text, of several the first, after its title; what is no text is left for its parser."""
    if isinstance(text, list):
        return [_titled(title, text[0]), *text[1:]] if text else title
    return f"{title} {text or ''}".strip() if isinstance(text, str | None) else text


def _merged(name: str, whole: Any, media: Mapping[str, Any]) -> Any:
    """The content of a column with what the columns for media beside it add. A medium that both
    give is an error: two sources of one thing have no order.
    """
    added = _given(media)
    if not added:
        return whole
    if not isinstance(whole, Mapping) or (whole and set(whole) <= {"bytes", "path"}):
        whole = {"text" if isinstance(whole, str) else "image": whole}
    own = _given(whole)
    twice = sorted(own.keys() & added.keys())
    if twice:
        return InvalidContent(f"{name} and the column beside it both give {_A[twice[0]]}")
    return own | added


def _given(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something: a null, an empty list or a struct of nulls does not."""

    def says_nothing(value: Any) -> bool:
        is_void = isinstance(value, Mapping) and not any(v is not None for v in value.values())
        return value is None or value == [] or is_void

    return {name: value for name, value in content.items() if not says_nothing(value)}


_A = {"image": "an image", "video": "a video", "pdf": "a PDF", "page": "a page", "pages": "pages"}


def settled_ranks(queries: np.ndarray, ranks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) ranks, NaN for none: those of a query whose ranks tie or have a fraction, or that has
    scores alone, are its places by rank, then by score, the best first, then as the input has them.

    queries: (N,) integers; ranks and scores: (N,) float64, NaN for null.
    """
    order = np.lexsort((-scores, ranks, queries))
    query, rank = queries[order], ranks[order]
    is_tied = np.zeros(int(queries.max(initial=-1)) + 1, bool)
    is_tied[query[1:][(query[1:] == query[:-1]) & (rank[1:] == rank[:-1])]] = True
    is_tied[queries[np.isfinite(ranks) & (ranks != np.rint(ranks))]] = True
    has_rank, has_score = np.zeros_like(is_tied), np.ones_like(is_tied)
    has_rank[queries[~np.isnan(ranks)]] = True
    has_score[queries[np.isnan(scores)]] = False
    firsts = np.searchsorted(query, query)
    places = np.empty(len(order), np.float64)
    places[order] = np.arange(len(order)) - firsts + 1
    is_scored = (has_score & ~has_rank)[queries]
    return np.where(is_scored | (is_tied[queries] & ~np.isnan(ranks)), places, ranks)
