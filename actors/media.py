"""Decoding images to RGB with Pillow, by the official rules.

Every failure is a MediaError with a sentence; nothing is substituted. Knows nothing about the
sizes that the model wants.
"""

import io
import warnings

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from actors.data import ImageSource, Video
from actors.errors import ImageDecodeError, ImageTooLarge, MediaError, VideoTooShort
from actors.fetch import MediaReader, name_of

# For the process, since filters within a block are not safe beside other threads: Pillow's size
# warning (the limit is ours), and what it says about files that are a little wrong.
warnings.filterwarnings("ignore", category=PILImage.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")

PILImage.init()  # registers every format; without it Pillow knows the five commonest
_PROGRAMS_OR_NO_PICTURES = {"EPS", "WMF", "MPEG", "GRIB", "HDF5", "BUFR"}
_FORMATS = sorted(set(PILImage.OPEN) - _PROGRAMS_OR_NO_PICTURES)
"""What Pillow decodes by itself: EPS would start Ghostscript."""


def load_image(source: ImageSource, reader: MediaReader, max_pixels: int) -> PILImage.Image:
    """An RGB image of any source, by the official rules.

    Mode RGBA alone is laid on white; every other mode goes through Pillow's `convert("RGB")`.
    EXIF rotation is not applied; of an animation the first frame counts.
    """
    if isinstance(source, PILImage.Image):
        name = "an image"
    else:
        name = name_of(source) if isinstance(source, str) else f"an image of {len(source)} bytes"
    data = reader.read(source) if isinstance(source, str) else source
    try:
        if isinstance(data, PILImage.Image):  # possibly opened only: its file is read from now on
            return _to_rgb(data, name, max_pixels)
        with PILImage.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _to_rgb(image, name, max_pixels)
    except PILImage.DecompressionBombError as error:
        raise ImageTooLarge(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageDecodeError(f"{name}: not an image that can be read") from error
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise ImageDecodeError(f"{name}: {type(error).__name__}: {error}") from error


def _to_rgb(image: PILImage.Image, name: str, max_pixels: int) -> PILImage.Image:
    if not image.width or not image.height:
        raise ImageDecodeError(f"{name}: has no pixels")
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"{name}: {image.width} x {image.height} pixels, over the limit of {max_pixels}"
        )
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = PILImage.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def load_frames(
    video: Video, reader: MediaReader, max_frames: int, max_pixels: int
) -> list[PILImage.Image]:
    """The RGB frames of a frame list, thinned to max_frames as the official sample_frames does."""
    assert video.frames is not None
    if not video.frames:
        raise VideoTooShort("a video's list of frames is empty")
    chosen = video.frames
    if len(chosen) > max_frames:
        kept = np.linspace(0, len(chosen) - 1, max_frames, dtype=int)
        chosen = tuple(chosen[index] for index in kept)
    return [load_image(frame, reader, max_pixels) for frame in chosen]
