"""What the preprocessor hands to the scorer: token ids and pixels of a candidate set's pairs."""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from shardrank.actors.errors import RerankError
from shardrank.actors.media.pixels import merged_grid


@dataclass(frozen=True, slots=True)
class Visual:
    """The pixels of one image or one pair of video frames, and a hash of content and size."""

    pixels: np.ndarray  # (1 or 2, H, W, 3) uint8
    key: bytes

    @property
    def num_tokens(self) -> int:
        height, width = merged_grid(self.pixels)
        return height * width

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Visual":
        pixels = np.ascontiguousarray(pixels)
        digest = blake2b(repr(pixels.shape).encode(), digest_size=16)
        digest.update(pixels.data)
        return cls(pixels, digest.digest())


class VisualTable:
    """The distinct visuals of several pairs, by content, and the index of each."""

    def __init__(self) -> None:
        self._found: dict[bytes, tuple[int, Visual]] = {}

    def __len__(self) -> int:
        return len(self._found)

    @property
    def visuals(self) -> tuple[Visual, ...]:
        return tuple(visual for _, visual in self._found.values())

    def add(self, visual: Visual) -> int:
        return self._found.setdefault(visual.key, (len(self), visual))[0]

    def forget_after(self, mark: int) -> None:
        while len(self) > mark:
            self._found.popitem()


@dataclass(frozen=True, slots=True)
class PreparedPair:
    """One pair as the model reads it.

    visual_index[i] is the index in the set's visuals that token i is part of, -1 for text.
    """

    input_ids: np.ndarray  # (L,) int32
    position_ids: np.ndarray  # (3, L) int32
    visual_index: np.ndarray  # (L,) int32
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_visual_tokens(self) -> int:
        return int((self.visual_index >= 0).sum())


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """A candidate set's pairs in document order, failed ones as their error; picklable."""

    pairs: tuple[PreparedPair | RerankError, ...]
    visuals: tuple[Visual, ...]

    @property
    def num_pairs(self) -> int:
        return len(self.pairs)

    def only(self, index: int) -> "PreparedSet":
        """One pair as a set of its own."""
        return PreparedSet((self.pairs[index],), self.visuals)

    @property
    def size_bytes(self) -> int:
        """About what the set takes on its way to the scorer."""
        tokens = sum(pair.num_tokens for pair in self.pairs if isinstance(pair, PreparedPair))
        return 20 * tokens + sum(visual.pixels.nbytes for visual in self.visuals)
