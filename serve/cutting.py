"""Texts cut to a number of tokens of their own, from either end, before they join a prompt."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from shardrank.actors.data import Content


class TextCutter:
    """With a checkpoint's own tokenizer. Thread-safe."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def count(self, text: str) -> int:
        return len(self._offsets(text))

    def cut(self, content: Content, max_tokens: int, keeps_the_end: bool) -> tuple[Content, bool]:
        """The content with at most max_tokens of text, and whether something was cut away.

        Of several texts the first ones go first (the last ones, where the end is kept). Media are
        not counted.
        """
        texts = content.texts[::-1] if keeps_the_end else content.texts
        left = max_tokens
        kept = []
        for text in texts:
            offsets = self._offsets(text)
            if len(offsets) > left:
                text = _piece(text, offsets, left, keeps_the_end)
            left = max(0, left - len(offsets))
            kept.append(text)
        cut = tuple(kept[::-1] if keeps_the_end else kept)
        return replace(content, texts=cut), cut != content.texts

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        return self._tokenizer.encode(text, add_special_tokens=False).offsets


def _piece(text: str, offsets: list[tuple[int, int]], size: int, keeps_the_end: bool) -> str:
    if not size:
        return ""
    return text[offsets[-size][0] :] if keeps_the_end else text[: offsets[size - 1][1]]
