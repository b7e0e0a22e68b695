"""Qwen3-Reranker (0.6B, 4B, 8B), for texts. Source: QwenLM/Qwen3-Embedding, README.md."""

from collections.abc import Sequence

from shardrank.actors.families.family import (
    BORDER,
    CLOSING,
    IM_END,
    IM_START,
    Family,
    Prompt,
    Role,
    Side,
    Special,
    cut_end,
    text_of,
)
from shardrank.actors.families.qwen3_vl_reranker import SYSTEM

NULL = "None"
"""As Python's format has what is not there."""
_HEAD = (IM_START, SYSTEM, IM_END, "\n", IM_START, "user\n")
_THOUGHT = (Special("<think>"), "\n\n", Special("</think>"), "\n\n")
_TAIL = (*CLOSING, *_THOUGHT)


def _instructed(given: str | None, default: str, _: Role) -> str:
    return default if given is None else given


def _prompt(instruction: str | None, sides: Sequence[Side]) -> Prompt:
    query, document = (text_of(side, NULL) for side in sides)
    asked = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document"
    return Prompt([asked, BORDER, f">: {document}"], _HEAD, _TAIL)


QWEN3_RERANKER = Family(
    name="Qwen3-Reranker",
    task="rerank",
    model_type="qwen3",
    classes=frozenset({"Qwen3ForCausalLM", "Qwen3Model", "Qwen3ForSequenceClassification"}),
    takes_media=False,
    instruction="Given a web search query, retrieve relevant passages that answer the query",
    max_length=8_192,
    instructed=_instructed,
    prompt=_prompt,
    cut=cut_end,
    appends=True,
    wording=f"{_HEAD}\n<Instruct>: \n<Query>: \n<Document>: {NULL}\n{_TAIL}",
)
