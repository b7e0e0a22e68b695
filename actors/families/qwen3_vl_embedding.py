"""Qwen3-VL-Embedding (2B, 8B). Source: QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py.

The report pools an `<|endoftext|>` that the code never appends: a tokenizer that appends one gives
the one, a tokenizer without gives the other.
"""

import unicodedata
from collections.abc import Sequence

from shardrank.actors.families.family import (
    CLOSING,
    IM_END,
    IM_START,
    Family,
    Prompt,
    Role,
    Side,
    cut_end,
    side_parts,
)

NULL = "NULL"
_DEFAULT = "Represent the user's input."


def _instructed(given: str | None, default: str, _: Role) -> str:
    """The stripped instruction with a full stop, unless it ends in punctuation of any script."""
    instruction = (given or "").strip() or default.strip() or _DEFAULT
    is_closed = unicodedata.category(instruction[-1]).startswith("P")
    return instruction if is_closed else f"{instruction}."


def _prompt(instruction: str | None, sides: Sequence[Side]) -> Prompt:
    (side,) = sides
    opening = (IM_START, f"system\n{instruction}", IM_END, "\n", IM_START, "user\n")
    return Prompt([*opening, *side_parts(side, NULL), *CLOSING])


QWEN3_VL_EMBEDDING = Family(
    name="Qwen3-VL-Embedding",
    task="embed",
    model_type="qwen3_vl",
    classes=frozenset({"Qwen3VLForConditionalGeneration", "Qwen3VLModel"}),
    takes_media=True,
    instruction=_DEFAULT,
    max_length=8_192,
    instructed=_instructed,
    prompt=_prompt,
    cut=cut_end,
    appends=True,
    reads_placeholders=True,
    wording=f"system\n{{}}\nuser\n{NULL}\nassistant\n",
)
