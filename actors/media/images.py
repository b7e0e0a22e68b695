"""Decoding images to RGB with Pillow, by the official rules.

Every failure is a MediaError with a sentence; nothing is substituted. Knows nothing about the
sizes that the model wants.
"""

import io
import re
import sys
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from PIL.IcoImagePlugin import IcoFile
from PIL.ImageFile import ImageFile

from shardrank.actors.data import ImageSource, PdfPage, Video
from shardrank.actors.errors import ImageDecodeError, ImageTooLarge, MediaError, VideoTooShort
from shardrank.actors.fetch.reader import MediaReader, name_of
from shardrank.actors.media.depth import ImageDepth, is_deep, to_eight_bits
from shardrank.actors.media.kinds import READ, kind_of

# For the process, since filters within a block are not safe beside other threads: Pillow's size
# warning (the limit is ours), and what it says about files that are a little wrong.
warnings.filterwarnings("ignore", category=PILImage.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")

PILImage.init()  # registers every format; without it Pillow knows the five commonest
_FORMATS = ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
"""What pictures are kept in. Of the other 30 that Pillow opens some start a program (EPS starts
Ghostscript), some take seconds for a few bytes (XPM, FITS), and TGA takes nearly anything for one.
"""
_PROGRAMS = {"EPS", "WMF", "GRIB", "HDF5", "BUFR", "MPEG"}

_GUARDED = "JPEG2000"
"""A Guard decodes it: 2 kB take 3.4 s and 1.2 GB where others of the same pixels take a second and
0.2 to 1 GB; and its decoder has a past.
"""

Permit = Callable[[], None]
"""Asked before each medium is decoded: what it raises ends the reading."""
Guard = Callable[[bytes, str, int, ImageDepth], np.ndarray]
"""Decodes an image's bytes elsewhere: load_image's data, name, max_pixels and depth."""


def permit_all() -> None:
    """A Permit."""


_MAX_JPEG_SCANS = 100  # libtiff's limit; for each of a few bytes every pixel is gone through again
_MAX_JPEG_SEGMENTS = 10_000  # before each that has Exif data, Pillow copies all before it
_MAX_PPM_COMMENTS = 1_000  # for each, Pillow copies a megabyte
_JPEG_MARKER = re.compile(rb"\xff([^\0\x01\xd0-\xd8\xff])")  # no stuffing, restart or fill byte
_START_OF_SCAN, _END_OF_IMAGE = b"\xda", b"\xd9"
_ICON = b"\0\0\1\0"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}


def load_image(
    source: ImageSource,
    reader: MediaReader,
    max_pixels: int,
    depth: ImageDepth = "scale",
    permit: Permit = permit_all,
    guard: Guard | None = None,
) -> PILImage.Image:
    """An RGB image of any source, by the official rules.

    Mode RGBA alone is laid on white; grey of more than eight bits is scaled, unless `depth` is
    "official"; every other mode goes through Pillow's `convert("RGB")`. EXIF rotation is not
    applied; of an animation the first frame counts. `guard` decodes JPEG 2000.
    """
    if isinstance(source, PILImage.Image):
        name = "an image"
    else:
        name = name_of(source) if isinstance(source, str) else f"an image of {len(source)} bytes"
    data = reader.read(source) if isinstance(source, str) else source
    return decode_image(data, name, max_pixels, depth, permit, guard)


def decode_image(
    data: bytes | PILImage.Image,
    name: str,
    max_pixels: int,
    depth: ImageDepth,
    permit: Permit = permit_all,
    guard: Guard | None = None,
) -> PILImage.Image:
    """Decode an image like load_image; messages say `name`."""
    permit()
    try:
        if isinstance(data, PILImage.Image):  # possibly opened only: its file is read from now on
            return _to_rgb(data, name, max_pixels, depth)
        _check_work(data, name, max_pixels)
        with _opened(_without_metadata(data)) as image:
            if guard is not None and image.format == _GUARDED:
                _check_size(image, name, max_pixels)
                return PILImage.fromarray(guard(data, name, max_pixels, depth))
            return _to_rgb(image, name, max_pixels, depth)
    except PILImage.DecompressionBombError as error:
        raise ImageTooLarge(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        what = kind_of(data) if isinstance(data, bytes) else "no picture"
        raise ImageDecodeError(f"{name}: this is {what}; {READ} are read") from error
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise ImageDecodeError(f"{name}: {type(error).__name__}: {error}") from error


def _to_rgb(image: PILImage.Image, name: str, max_pixels: int, depth: ImageDepth) -> PILImage.Image:
    _check_size(image, name, max_pixels)
    if image.format in _PROGRAMS and isinstance(image, ImageFile) and image.tile:  # not decoded yet
        raise ImageDecodeError(f"{name}: {image.format} is not decoded: it starts a program")
    if image.mode == "RGB":
        image.load()
        return image
    if depth == "scale" and is_deep(image):
        return to_eight_bits(image, name).convert("RGB")
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = PILImage.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def image_size(source: ImageSource | PdfPage) -> tuple[int, int] | None:
    """(height, width) by the header alone; None where it says none, of a path or a page."""
    if isinstance(source, PILImage.Image):
        return source.height, source.width
    if isinstance(source, str | PdfPage):
        return None
    try:
        _check_work(source, "", sys.maxsize)
        is_icon = source[:4] == _ICON
        with _first_of_icon(source) if is_icon else _opened(source) as image:
            return image.height, image.width
    except Exception:  # as in load_image, which says what is wrong
        return None


def _check_size(image: PILImage.Image, name: str, max_pixels: int) -> None:
    if not image.width or not image.height:
        raise ImageDecodeError(f"{name}: has no pixels")
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"{name}: {image.width} x {image.height} pixels, over the limit of {max_pixels}"
        )


def _without_metadata(data: bytes) -> bytes:
    """A PNG without its texts and colour profile, of which Pillow refuses a picture that has over
    a megabyte, unpacked. No pixel depends on them.
    """
    if not data.startswith(_PNG) or not any(kind in data for kind in _PNG_METADATA):
        return data
    kept: list[bytes] = []
    start = place = len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in _PNG_METADATA and end <= len(data):
            kept.append(data[start:place])
            start = end
        place = end
    return b"".join([_PNG, *kept, data[start:]])


def _check_work(data: bytes, name: str, max_pixels: int) -> None:
    """Refuses files made to keep Pillow busy: a few of their bytes cost as much as a picture."""
    if data[:3] == b"\xff\xd8\xff":
        _check_jpeg(data, name)
    elif data[:2] in (b"P1", b"P2", b"P3") and data.count(b"#") > _MAX_PPM_COMMENTS:
        raise ImageDecodeError(f"{name}: a PPM of over {_MAX_PPM_COMMENTS} comments")
    elif data[:4] == _ICON:  # it is decoded when it is opened
        with _first_of_icon(data) as image:
            _check_size(image, name, max_pixels)


def _opened(data: bytes) -> PILImage.Image:
    return PILImage.open(io.BytesIO(data), formats=_FORMATS)


def _first_of_icon(data: bytes) -> PILImage.Image:
    first = IcoFile(io.BytesIO(data)).entry[0]
    return PILImage.open(io.BytesIO(data[first.offset :]), formats=["PNG", "DIB"])


def _check_jpeg(data: bytes, name: str) -> None:
    place = num_segments = num_scans = 0
    while marker := _JPEG_MARKER.search(data, place):
        if marker[1] == _END_OF_IMAGE:
            return
        num_segments += 1
        num_scans += marker[1] == _START_OF_SCAN
        if num_scans > _MAX_JPEG_SCANS or num_segments > _MAX_JPEG_SEGMENTS:
            raise ImageDecodeError(
                f"{name}: a JPEG of over {_MAX_JPEG_SCANS} scans or {_MAX_JPEG_SEGMENTS} segments"
            )
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        place = marker.end() + max(2, length)


def chosen_frames(video: Video, max_frames: int) -> tuple[ImageSource, ...]:
    """The frames of a frame list, thinned to max_frames as the official sample_frames does."""
    if not video.frames:
        raise VideoTooShort("a video's list of frames is empty")
    if len(video.frames) <= max_frames:
        return video.frames
    kept = np.linspace(0, len(video.frames) - 1, max_frames, dtype=int)
    return tuple(video.frames[index] for index in kept)
