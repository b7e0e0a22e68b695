"""Made-up pairs that meet every function of the network in each of its forms, to be scored before
anybody waits: torch.compile and the choice of kernels are then behind.
"""

import numpy as np

from shardrank.actors.prepared import PreparedPair, PreparedSet, Visual

BATCH_TOKENS = 256
"""The tokens of a plan: pairs that share need more than one then, so that a prefix is kept."""
_SHARED, _OWN, _VISUAL = 40, 60, 20
_SIZES = ((64, 64), (64, 96))
"""Height and width of images in pixels: two, so that their number and size are not compiled in."""


def sample_sets(*, with_images: bool) -> list[list[PreparedSet]]:
    """One pair; three; more than a plan holds, all of one query; images."""
    texts = [[_texts(1)], [_texts(3)], [_texts(5)]]
    images = [_image(height, width) for height, width in _SIZES]
    return [*texts, images] if with_images else texts


def _texts(num_pairs: int) -> PreparedSet:
    """Pairs of the same query. Token ids are small numbers, which every vocabulary has."""
    ids = [np.arange(_SHARED + _OWN) for _ in range(num_pairs)]
    for number, own in enumerate(ids):
        own[_SHARED:] += 1 + number
    return PreparedSet(tuple(_pair(own, np.full(len(own), -1)) for own in ids), ())


def _image(height: int, width: int) -> PreparedSet:
    visual = Visual.of(np.zeros((1, height, width, 3), dtype=np.uint8))
    visual_index = np.full(2 * _VISUAL + visual.num_tokens, -1)
    visual_index[_VISUAL:-_VISUAL] = 0
    return PreparedSet((_pair(np.arange(len(visual_index)), visual_index),), (visual,))


def _pair(input_ids: np.ndarray, visual_index: np.ndarray) -> PreparedPair:
    positions = np.tile(np.arange(len(input_ids), dtype=np.int32), (3, 1))
    ids, index = input_ids.astype(np.int32), visual_index.astype(np.int32)
    return PreparedPair(ids, positions, index, is_truncated=False)
