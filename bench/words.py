"""Texts of invented words, the same for the same seed, of exact lengths in tokens."""

import random
from collections.abc import Callable
from functools import cache
from itertools import accumulate

NUM_WORDS = 3_000
_ONSETS = ("b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "l", "m")
_MORE_ONSETS = ("n", "p", "pl", "r", "s", "sh", "st", "t", "tr", "v", "w")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
_CODAS = ("", "", "l", "m", "n", "nd", "r", "s", "st", "t")
_ZIPF_SHIFT = 20
"""Word number n has weight 1 / (n + shift): a common word comes often, a rare one does come."""


@cache
def vocabulary() -> tuple[str, ...]:
    """Distinct words of two to four syllables, the commonest first."""
    rng = random.Random("vocabulary")
    words: dict[str, None] = {}
    while len(words) < NUM_WORDS:
        syllables = (
            rng.choice(_ONSETS + _MORE_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
            for _ in range(rng.choice((2, 2, 3, 3, 4)))
        )
        words["".join(syllables)] = None
    return tuple(words)


@cache
def cumulative_weights() -> list[float]:
    return list(accumulate(1 / (rank + _ZIPF_SHIFT) for rank in range(NUM_WORDS)))


def draw(rng: random.Random, number: int) -> list[str]:
    return rng.choices(vocabulary(), cum_weights=cumulative_weights(), k=number)


class WordSource:
    """Draws texts. count: how many tokens a string has, alone, to the checkpoint's tokenizer.

    Words stand behind a space, which a pre-tokenizer like Qwen's splits at, so a text has as many
    tokens as its words have.
    """

    def __init__(self, seed: str, count: Callable[[str], int]) -> None:
        self.rng = random.Random(seed)
        self._count = cache(count)

    def text(self, num_tokens: int) -> str:
        """A text of exactly num_tokens tokens."""
        text, left = "", num_tokens
        while left > 0:
            (word,) = draw(self.rng, 1)
            piece = f" {word}" if text else word
            if left <= 3:  # where words of several tokens may not fit any more
                piece = " a" if text else "a"
            if self._count(piece) <= left:
                text += piece
                left -= self._count(piece)
        return text
