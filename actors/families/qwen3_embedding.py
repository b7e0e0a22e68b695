"""Qwen3-Embedding (0.6B, 4B, 8B), for texts.

Source: QwenLM/Qwen3-Embedding, examples/qwen3_embedding_transformers.py.
"""

from collections.abc import Sequence

from shardrank.actors.families.family import Family, Prompt, Role, Side, cut_end, text_of


def _instructed(given: str | None, default: str, role: Role) -> str | None:
    """A query's alone; a document is its bare text, whatever it is given."""
    if role == "document":
        return None
    return default if given is None else given


def _prompt(instruction: str | None, sides: Sequence[Side]) -> Prompt:
    (side,) = sides
    text = text_of(side, "")
    return Prompt([text if instruction is None else f"Instruct: {instruction}\nQuery:{text}"])


QWEN3_EMBEDDING = Family(
    name="Qwen3-Embedding",
    task="embed",
    model_type="qwen3",
    classes=frozenset({"Qwen3ForCausalLM", "Qwen3Model"}),
    takes_media=False,
    instruction="Given a web search query, retrieve relevant passages that answer the query",
    max_length=8_192,
    instructed=_instructed,
    prompt=_prompt,
    cut=cut_end,
    appends=True,
    wording="Instruct: \nQuery:",
)
