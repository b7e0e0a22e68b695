import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardrank.actors.data import Video
from shardrank.actors.errors import (
    ImageDecodeError,
    ImageTooLarge,
    MediaError,
    MediaNotFound,
    VideoTooShort,
)
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.media.images import chosen_frames, image_size, load_image
from shardrank.actors.media.video_process import VideoProcesses

MEDIA = Path(__file__).parents[1] / "golden" / "media"
READER = MediaReader()
LIMIT = 178_956_970


def load(source: Any, max_pixels: int = LIMIT) -> Image.Image:
    return load_image(source, READER, max_pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def one_colour(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (3, 2), colour)


def palette_with_transparency() -> bytes:
    image = one_colour("P", 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return encoded(image, transparency=1)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(one_colour("RGB", (1, 2, 3))), (1, 2, 3)),
        (encoded(one_colour("L", 77)), (77, 77, 77)),
        (encoded(one_colour("1", 1)), (255, 255, 255)),
        (encoded(one_colour("LA", (77, 0))), (77, 77, 77)),
        (encoded(one_colour("RGBA", (9, 9, 9, 0))), (255, 255, 255)),
        (encoded(one_colour("RGBA", (9, 9, 9, 255))), (9, 9, 9)),
        (encoded(one_colour("RGBA", (0, 100, 200, 51))), (204, 224, 244)),  # a fifth over white
        (palette_with_transparency(), (200, 100, 50)),
        (encoded(one_colour("CMYK", (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
    ],
    ids=["RGB", "L", "1", "LA", "clear", "opaque", "fifth", "palette", "CMYK"],
)
def test_every_mode_becomes_rgb_by_the_official_rule(
    data: bytes, colour: tuple[int, int, int]
) -> None:
    image = load(data)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert image.getpixel((1, 1)) == colour


@pytest.mark.parametrize("name", ["grey", "pal_transp", "la", "i16", "p320x240"])
def test_only_rgba_is_officially_more_than_a_plain_conversion(name: str) -> None:
    path = MEDIA / f"{name}.png"
    with Image.open(path) as image:
        officially = load_image(str(path), READER, LIMIT, "official")
        assert np.array_equal(officially, image.convert("RGB"))
        assert np.array_equal(load(str(path)), officially) == (name != "i16")


def test_rgba_is_laid_on_white_by_its_alpha() -> None:
    with Image.open(MEDIA / "rgba.png") as image:
        pixels = np.asarray(image).astype(float)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(load(str(MEDIA / "rgba.png"))) - expected).max() <= 1


def test_exif_does_not_rotate() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).size == (30, 20)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = load(data).getpixel((4, 4))  # type: ignore[misc]
    assert red > 250 and max(green, blue) < 5


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_an_image_can_be_one_pixel(mode: str) -> None:
    assert load(encoded(Image.new(mode, (1, 1)))).size == (1, 1)


def test_a_decoded_image_is_taken_as_it_is() -> None:
    assert load(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("is_decoded", [False, True])
def test_an_image_over_the_pixel_limit_is_refused(is_decoded: bool) -> None:
    image = Image.new("L", (20, 10))
    source = image if is_decoded else encoded(image)
    assert load(source, 200).size == (20, 10)
    with pytest.raises(ImageTooLarge, match="20 x 10 pixels, over the limit of 199"):
        load(source, 199)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    header = encoded(Image.new("1", (1, 1)), "PPM").replace(b"1 1", b"60000 60000")
    with pytest.raises(ImageTooLarge, match="an image of [0-9]+ bytes: "):
        load(header, 10**12)


PHOTO = (MEDIA / "exif6.jpg").read_bytes()
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "data",
    [PHOTO[:3_000], PHOTO[:100], b"", b"\0" * 100, b"not an image at all", b"<svg/>", EPS],
    ids=["truncated", "head", "empty", "zeros", "text", "svg", "eps"],
)
def test_what_is_no_whole_picture_does_not_decode(data: bytes) -> None:
    with pytest.raises(ImageDecodeError, match=f"^an image of {len(data)} bytes: "):
        load(data)


def test_no_ghostscript_is_looked_for() -> None:
    opened = Image.open(io.BytesIO(EPS))
    assert opened.format == "EPS"  # Pillow would start it on decoding
    with pytest.raises(ImageDecodeError, match="; JPEG, PNG, .* are read$"):
        load(EPS)
    with pytest.raises(ImageDecodeError, match="EPS is not decoded: it starts a program$"):
        load(opened)


@pytest.mark.parametrize("kind", ["TGA", "PCX", "DDS", "QOI", "SGI", "ICNS", "IM", "SPIDER"])
def test_only_what_pictures_are_kept_in_is_read(kind: str) -> None:
    with pytest.raises(ImageDecodeError, match="; JPEG, PNG, .* are read$"):
        load(encoded(Image.new("RGB" if kind != "SPIDER" else "F", (16, 16)), kind))


def with_scans(num_scans: int) -> bytes:
    """A progressive JPEG of 64 x 64 pixels whose first component is refined so many times."""
    baseline = encoded(Image.new("RGB", (64, 64)), "JPEG", subsampling=0)
    frame, scan = baseline.index(b"\xff\xc0"), baseline.index(b"\xff\xda")
    first = bytes.fromhex("ffda 000c 03 0100 0211 0311 000000")
    again = bytes.fromhex("ffda 0008 01 0100 013f00")
    head = baseline[:frame] + b"\xff\xc2" + baseline[frame + 2 : scan]
    return head + first + again * (num_scans - 1) + b"\xff\xd9"


def with_exif_segments(num_segments: int) -> bytes:
    whole = encoded(Image.new("RGB", (64, 64)), "JPEG")
    return whole[:2] + b"\xff\xe1\0\x0aExif\0\0.." * num_segments + whole[2:]


def with_comments(num_comments: int) -> bytes:
    return b"P3 2 1 255\n" + b"#\n" * num_comments + b"1 2 3 4 5 6\n"


@pytest.mark.parametrize(
    ("most", "over"),
    [
        (with_scans(100), with_scans(101)),
        (with_exif_segments(9_900), with_exif_segments(10_001)),
        (with_comments(1_000), with_comments(1_001)),
    ],
    ids=["scans", "segments", "comments"],
)
def test_a_file_made_to_keep_pillow_busy_is_refused(most: bytes, over: bytes) -> None:
    assert load(most).mode == "RGB"
    with pytest.raises(ImageDecodeError, match="an image of [0-9]+ bytes: a (JPEG|PPM) of over 1"):
        load(over)


def test_what_follows_a_picture_in_its_file_is_no_part_of_it() -> None:
    assert load(PHOTO + b"\xff\xda\0\x02" * 30_000).mode == "RGB"  # a phone's short video


def test_the_picture_within_an_icon_is_measured_before_it_is_decoded() -> None:
    inner = encoded(Image.new("RGB", (300, 300)))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    icon = struct.pack("<HHH", 0, 1, 1) + entry + inner
    assert load(icon, 90_000).size == (300, 300)
    with pytest.raises(ImageTooLarge, match="300 x 300 pixels, over the limit of 89999"):
        load(icon[:200], 89_999)  # most of it is missing, which decoding would find


def test_a_path_is_named_in_the_sentence(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("words")
    with pytest.raises(ImageDecodeError, match=r"note\.txt: this is text; JPEG, PNG, .* are read$"):
        load(str(tmp_path / "note.txt"))
    with pytest.raises(MediaNotFound, match=r"gone\.png: no such file$"):
        load(str(tmp_path / "gone.png"))


def test_an_opened_image_whose_file_is_broken_does_not_decode() -> None:
    with pytest.raises(ImageDecodeError, match="^an image: OSError: .*truncated"):
        load(Image.open(io.BytesIO(PHOTO[:3_000])))


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 5)), Image.new("La", (2, 2))])
def test_a_decoded_image_without_rgb_pixels_is_refused(image: Image.Image) -> None:
    with pytest.raises(ImageDecodeError, match="^an image: "):
        load(image)


def only_an_image_or_a_media_error(data: bytes) -> None:
    try:
        assert load(data, 1_000_000).mode == "RGB"
    except MediaError as error:
        assert str(error).startswith(f"an image of {len(data)} bytes: ")


SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "WEBP",
    "BMP",
    "TIFF",
    "ICO",
    "PPM",
    "JPEG2000",
    "AVIF",
]
SEEDS = [encoded(SMALL, kind) for kind in FORMATS]
SEEDS.append(encoded(SMALL, "TIFF", compression="tiff_lzw"))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_an_image_or_a_media_error(data: bytes) -> None:
    only_an_image_or_a_media_error(data)


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 3_000),
)
@settings(max_examples=500, deadline=None)
def test_damaged_files_give_an_image_or_a_media_error(
    seed: bytes, damage: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(seed)
    for place, value in damage:
        data[place % len(data)] = value
    only_an_image_or_a_media_error(bytes(data[:length] if length < len(data) else data))


@pytest.mark.parametrize(
    ("count", "max_frames", "kept"),
    [
        (3, 4, [0, 1, 2]),
        (4, 4, [0, 1, 2, 3]),
        (7, 4, [0, 2, 4, 6]),
        (10, 4, [0, 3, 6, 9]),
        (6, 4, [0, 1, 3, 5]),  # 1.67 and 3.33 are cut, not rounded
        (9, 1, [0]),
    ],
)
def test_a_long_frame_list_is_thinned_by_truncated_steps(
    count: int, max_frames: int, kept: list[int]
) -> None:
    frames = tuple(Image.new("L", (2, 2), index) for index in range(count))
    assert chosen_frames(Video(frames=frames), max_frames) == tuple(frames[each] for each in kept)


def test_an_empty_frame_list_is_too_short() -> None:
    with pytest.raises(VideoTooShort, match="list of frames is empty"):
        chosen_frames(Video(frames=()), 4)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BIG = zlib.compress(b"word " * 700_000)  # 3.5 MB
METADATA = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + BIG),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BIG),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + BIG),
    "tEXt": chunk(b"tEXt", b"Comment\0" + b"word " * 14_000_000),  # over all that Pillow takes
    "a broken text": chunk(b"zTXt", b"Comment\0\0" + b"not deflated"),
    "a broken profile": chunk(b"iCCP", b"profile\0\7" + BIG),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("what", METADATA)
def test_metadata_of_any_size_leave_a_png_as_it_is(what: str, place: str) -> None:
    image = Image.effect_noise((20, 10), 50).convert("P")
    data = encoded(image, transparency=3)
    cut = 33 if place == "before" else len(data) - 12
    with_metadata = data[:cut] + METADATA[what] + data[cut:]
    assert np.array_equal(load(with_metadata), load(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_colour_profile_of_megabytes_is_no_hindrance(kind: str) -> None:
    image = Image.effect_noise((20, 10), 50).convert("RGB")
    profile = bytes(3_000_000)
    assert np.array_equal(
        load(encoded(image, kind, icc_profile=profile)), load(encoded(image, kind))
    )


def test_metadata_that_are_cut_off_are_a_damaged_picture() -> None:
    data = encoded(Image.new("L", (20, 10)))
    with pytest.raises(ImageDecodeError):
        load(data[:33] + METADATA["zTXt"][:-9])


def test_jpeg_2000_is_decoded_elsewhere_and_equally() -> None:
    """2 kB of it can take seconds and gigabytes: the child has limits, and may be killed."""
    seen = []
    videos = VideoProcesses(1)

    def guard(data: bytes, name: str, *limits: Any) -> np.ndarray:
        seen.append(name)
        return videos.image(data, name, *limits)

    photo = Image.open(io.BytesIO(PHOTO)).convert("RGB").resize((40, 30))
    data = encoded(photo, "JPEG2000")
    for source in (data, encoded(photo)):
        guarded = load_image(source, READER, LIMIT, guard=guard)
        assert np.array_equal(np.asarray(guarded), np.asarray(load(source)))
    broken = data[: len(data) // 3]
    with pytest.raises(ImageDecodeError, match=f"^an image of {len(broken)} bytes: "):
        load_image(broken, READER, LIMIT, guard=guard)
    with pytest.raises(ImageTooLarge):
        load_image(data, READER, 40 * 30 - 1, guard=guard)
    assert seen == [f"an image of {len(each)} bytes" for each in (data, broken)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "JPEG2000"])
def test_a_size_is_known_by_the_header(kind: str) -> None:
    assert image_size(encoded(Image.new("RGB", (48, 32)), kind, sizes=[(48, 32)])) == (32, 48)


@pytest.mark.parametrize(
    "source", [b"", b"\0\0\1\0", b"broken", "a path", b"P2\n" + b"#\n" * 1_001 + b"1 1\n255\n0"]
)
def test_what_has_no_header_has_no_size(source: Any) -> None:
    assert image_size(source) is None
