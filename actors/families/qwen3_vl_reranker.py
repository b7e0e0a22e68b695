"""Qwen3-VL-Reranker (2B, 8B).

Source: QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_reranker.py.
"""

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
    cut_text,
    side_parts,
)

NULL = "NULL"
SYSTEM = (
    "system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)


def _instructed(given: str | None, default: str, _: Role) -> str:
    return given or default


def _prompt(instruction: str | None, sides: Sequence[Side]) -> Prompt:
    query, document = sides
    body = [
        IM_START,
        SYSTEM,
        IM_END,
        "\n",
        IM_START,
        f"user\n<Instruct>: {instruction}<Query>:",
        *side_parts(query, NULL),
        "\n<Document",
        BORDER,
        ">:",
        *side_parts(document, NULL),
        *CLOSING,
    ]
    return Prompt(body)


QWEN3_VL_RERANKER = Family(
    name="Qwen3-VL-Reranker",
    task="rerank",
    model_type="qwen3_vl",
    classes=frozenset({"Qwen3VLForConditionalGeneration", "Qwen3VLModel"}),
    takes_media=True,
    instruction="Given a search query, retrieve relevant candidates that answer the query.",
    max_length=10_240,
    instructed=_instructed,
    prompt=_prompt,
    cut=cut_text,
    appends=False,
    wording=f"{SYSTEM}\n{NULL}",
)
