"""Grey pictures of more than eight bits: as files and as images, against numpy's own scaling."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import CandidateSet
from shardrank.actors.errors import ImageDecodeError
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.media.images import load_image
from shardrank.actors.prepared import PreparedPair
from shardrank.actors.preprocessor import Preprocessor

TINY = Path(__file__).parents[1] / "golden" / "tiny"
RAMP = np.arange(65_536).reshape(256, 256)
EIGHT = np.floor(RAMP / 257 + 0.5)
SIGNED, FLOAT = 2, 3


def grey(source: Any, depth: Any = "scale") -> np.ndarray:
    pixels = np.asarray(load_image(source, MediaReader(), 10**8, depth))
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    return pixels[..., 0]


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tiff(samples: np.ndarray, *, bits: int = 0, photometric: int = 1, kind: int = 1) -> bytes:
    """One strip of a grey TIFF in the samples' byte order. kind: their tag SampleFormat."""
    order = ">" if samples.dtype.byteorder == ">" else "<"
    data = samples.tobytes()
    (height, width), bits = samples.shape, bits or samples.itemsize * 8
    width = width * samples.itemsize * 8 // bits
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 138, 277: 1}
    tags |= {278: height, 279: len(data), 339: kind}
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return head + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4) + bytes(4) + data


def shorts(mode: str) -> Image.Image:
    order = ">u2" if mode == "I;16B" else "<u2"
    return Image.frombytes(mode, (256, 256), RAMP.astype(order).tobytes())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_scaled_in_every_format(kind: str) -> None:
    assert np.array_equal(grey(encoded(shorts("I;16"), kind)), EIGHT)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_are_scaled_in_every_byte_order(mode: str) -> None:
    assert np.array_equal(grey(shorts(mode)), EIGHT)


def test_a_dark_picture_of_sixteen_bits_stays_dark() -> None:
    image = Image.fromarray(np.full((4, 4), 200, np.uint16))
    assert grey(encoded(image, "PNG")).max() == 1
    assert grey(b"P5 4 4 65535\n" + bytes([0, 200]) * 16).max() == 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_says_which_bits_and_which_zero_it_means(order: str) -> None:
    short = RAMP.astype(f"{order}u2")
    assert np.array_equal(grey(tiff(short)), EIGHT)
    signed = (RAMP // 2).astype(f"{order}i2")
    assert np.abs(grey(tiff(signed, kind=SIGNED)) - EIGHT).max() <= 1
    fractions = (RAMP / 65_535).astype(f"{order}f4")
    assert np.array_equal(grey(tiff(fractions, kind=FLOAT)), EIGHT)
    inverted = tiff(fractions, kind=FLOAT, photometric=0)
    assert np.array_equal(grey(inverted), 255 - EIGHT)


def test_white_is_zero_of_sixteen_bits_is_inverted_and_twelve_bits_are_scaled() -> None:
    assert np.array_equal(grey(tiff(RAMP.astype("<u2"), photometric=0)), 255 - EIGHT)
    packed = np.frombuffer(bytes.fromhex("000fff800000"), np.uint8).reshape(1, 6)
    assert grey(tiff(packed, bits=12)).tolist() == [[0, 255, 128, 0]]


@pytest.mark.parametrize(
    ("highest", "scale"),
    [(255, 1), (9, 1), (65_535, 257), (300, 257), (2**31 - 1, (2**31 - 1) / 255)],
)
@pytest.mark.parametrize("is_file", [False, True])
def test_whole_numbers_of_32_bits_have_the_range_that_holds_them(
    highest: int, scale: float, is_file: bool
) -> None:
    samples = np.linspace(0, highest, 64).astype(np.int32).reshape(8, 8)
    image: Any = Image.fromarray(samples)
    scaled = grey(encoded(image, "TIFF") if is_file else image)
    assert np.array_equal(scaled, np.floor(samples / scale + 0.5))


@pytest.mark.parametrize("highest", [1.0, 0.25, 16.0, 255.0])
@pytest.mark.parametrize("is_file", [False, True])
def test_fractions_go_to_1_or_to_255(highest: float, is_file: bool) -> None:
    samples = np.linspace(0, highest, 64, dtype=np.float32).reshape(8, 8)
    image: Any = Image.fromarray(samples)
    scaled = grey(encoded(image, "TIFF") if is_file else image).astype(float)
    assert np.abs(scaled - samples * (255 if highest <= 1 else 1)).max() < 1


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        (np.array([[-1, 5]], np.int32), "its samples go from -1 to 5; grey has no sign"),
        (np.array([[0, 70_000]], np.int32), "its 32-bit samples go up to 70000, which is the ran"),
        (np.array([[0, 1.5]], np.float32), "its samples are fractions from 0 to 1.5; 0 to 1 and"),
        (np.array([[-0.1, 0.5]], np.float32), "fractions from -0.1 to 0.5; 0 to 1 and 0 to 255"),
        (np.array([[0, 4_000.0]], np.float32), "fractions from 0 to 4000; 0 to 1 and 0 to 255"),
        (np.array([[0.5], [np.nan]] * 200, np.float32), "its samples are fractions from 0.5 to"),
        (np.array([[0.5, np.inf]], np.float32), "its samples are fractions from 0.5 to inf"),
    ],
)
def test_samples_of_no_pictures_range_are_refused(samples: np.ndarray, sentence: str) -> None:
    with pytest.raises(ImageDecodeError, match=sentence):
        grey(encoded(Image.fromarray(samples), "TIFF"))


@pytest.mark.parametrize("samples", [RAMP.astype(np.uint16), (RAMP / 65_535).astype(np.float32)])
def test_the_official_result_can_be_had(samples: np.ndarray) -> None:
    image = Image.fromarray(samples)
    official = np.asarray(image.convert("RGB"))[..., 0]
    assert np.array_equal(grey(encoded(image, "TIFF"), "official"), official)
    assert not np.array_equal(grey(encoded(image, "TIFF")), official)


def test_colours_of_sixteen_bits_keep_their_upper_eight() -> None:
    colours = np.stack([RAMP, 65_535 - RAMP, RAMP], axis=-1).astype(">u2")
    data = b"P6 256 256 65535\n" + colours.tobytes()
    pixels = np.asarray(load_image(data, MediaReader(), 10**8))
    assert np.abs(pixels[..., 0] - EIGHT).max() <= 1
    assert np.abs(pixels[..., 1] - (255 - EIGHT)).max() <= 1


def test_the_preprocessor_scales_images_and_frames_unless_told_otherwise() -> None:
    deep, eight = (
        encoded(shorts("I;16"), "PNG"),
        encoded(Image.fromarray(EIGHT.astype("u1")), "PNG"),
    )

    def visuals(image: bytes, **settings: Any) -> list[bytes]:
        preprocessor = Preprocessor(RerankerConfig(str(TINY), **settings))
        frames = {"video": {"frames": [image] * 2}}
        prepared = preprocessor.prepare(CandidateSet.parse("q", [{"image": image}, frames]))
        assert all(isinstance(pair, PreparedPair) for pair in prepared.pairs)
        return [visual.key for visual in prepared.visuals]

    assert visuals(deep) == visuals(eight)
    assert set(visuals(deep, image_depth="official")).isdisjoint(visuals(eight))
