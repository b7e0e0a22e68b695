"""Grey pictures of more than eight bits, scaled to eight by the range that their samples have.

Pillow's own conversion, which the official scorer takes, clips them at 255: of 16 bits nearly every
pixel becomes white, of fractions black. Colour pictures of 16 bits Pillow scales itself.
"""

from typing import Literal

import numpy as np
from PIL import Image as PILImage
from PIL import ImageChops

from shardrank.actors.errors import ImageDecodeError

ImageDepth = Literal["scale", "official"]

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO, _SIGNED = 0, 2
_BAND = 256  # rows that are looked at together


def is_deep(image: PILImage.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_eight_bits(image: PILImage.Image, name: str) -> PILImage.Image:
    """A grey image of mode L, scaled as if its range were 0 to 255.

    The range is 0 to 65535 of 16 bits, or what a TIFF says of its samples (12 bits, 16 with a
    sign). Of 32-bit integers: the first of 0 to 255, 0 to 65535 and 0 to 2^31 - 1 that holds every
    value, but the last only if one is 2^24 or more. Of fractions: 0 to 1 if none is greater, 0 to
    255 if one is 16 or more. Raises ImageDecodeError on values that none of these fits: they would
    be another picture, or a nearly black one.
    """
    image.load()
    tags = getattr(image, "tag_v2", {})
    is_short = image.mode.startswith("I;16") or image.format == "PPM"  # which Pillow scales to 16
    if image.mode not in ("I", "F", "I;16"):
        image = image.convert("I")  # other byte orders can neither be looked at nor scaled
    if image.mode == "F":
        highest = _of_fractions(image, name)
    else:
        (bits,) = tags.get(_BITS_PER_SAMPLE, (16 if is_short else 32,))
        is_signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
        highest = _of_integers(image, bits - is_signed, name)
    if highest != 255:
        scale = 255 / highest
        image = image.point(lambda value: value * scale + 0.5)
    grey = image.convert("L")
    return ImageChops.invert(grey) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _of_integers(image: PILImage.Image, bits: int, name: str) -> int:
    low, high = _extrema(image)
    if low < 0:
        raise ImageDecodeError(f"{name}: its samples go from {low} to {high}; grey has no sign")
    if bits <= 16:
        return int(2**bits) - 1
    for highest in (255, 65_535):
        if high <= highest:
            return highest
    if high < 2**24:
        raise ImageDecodeError(
            f"{name}: its 32-bit samples go up to {high}, which is the range of no picture"
        )
    return 2**31 - 1


def _of_fractions(image: PILImage.Image, name: str) -> int:
    low, high = _extrema(image)
    if _is_finite(image) and low >= 0:
        if high <= 1:
            return 1
        if 16 <= high <= 255:
            return 255
    raise ImageDecodeError(
        f"{name}: its samples are fractions from {low:g} to {high:g}; 0 to 1 and 0 to 255 are read"
    )


def _extrema(image: PILImage.Image) -> tuple[float, float]:
    low, high = image.getextrema()
    assert isinstance(low, int | float) and isinstance(high, int | float), "one channel"
    return low, high


def _is_finite(image: PILImage.Image) -> bool:
    """Pillow's extrema skip what is no number."""
    width, height = image.size
    return all(
        np.isfinite(np.asarray(image.crop((0, top, width, min(top + _BAND, height))))).all()
        for top in range(0, height, _BAND)
    )
