import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardrank.actors.config import OFFICIAL_OPTIONS, QueryOptions
from shardrank.actors.errors import AspectRatio, ImageTooLarge
from shardrank.actors.media.pixels import (
    frame_list_pixels,
    image_pixels,
    merged_grid,
    smart_resize,
    video_file_pixels,
)
from shardrank.actors.model.vision import patchify

torch.set_num_threads(1)

MAX = 1_843_200


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((240, 320), (256, 320)),  # 7.5 rows round to 8, the even one
        ((80, 80), (64, 64)),  # 2.5 rows round to 2, the even one
        ((112, 112), (128, 128)),  # 3.5 rows round to 4
        ((64, 64), (64, 64)),
        ((1, 1), (64, 64)),  # grown to 4,096 pixels
        ((32, 64), (64, 96)),  # under them: 45.3 and 90.5 rounded up
        ((4, 796), (32, 800)),  # a strip keeps one factor
        ((4, 800), (32, 800)),  # an aspect ratio of exactly 200
        ((1100, 1300), (1088, 1312)),
        ((1344, 1376), (1312, 1344)),  # 6,144 pixels over the limit
        ((3000, 2000), (1632, 1088)),
    ],
)
def test_sizes_are_the_official_ones(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert smart_resize(*size, 32, 4_096, MAX) == expected


@pytest.mark.parametrize("size", [(4, 804), (804, 4), (1, 201)])
def test_an_aspect_ratio_over_200_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(AspectRatio, match=f"ratio of 201.0 \\({size[1]} x {size[0]} pixels\\)"):
        smart_resize(*size, 32, 4_096, MAX)


def test_a_strip_without_a_size_under_the_limit_is_refused() -> None:
    with pytest.raises(AspectRatio, match="6400 x 32 pixels has no size within 20480 pixels"):
        smart_resize(32, 6_400, 32, 4_096, 20_480)


@settings(deadline=None)
@given(st.integers(1, 4_000), st.integers(1, 4_000))
def test_sizes_are_whole_tokens_within_the_limit(height: int, width: int) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    new_height, new_width = smart_resize(height, width, 32, 4_096, MAX)
    assert new_height % 32 == new_width % 32 == 0
    assert 4_096 <= new_height * new_width <= MAX or min(new_height, new_width) == 32


def test_an_image_is_resized_by_pillow() -> None:
    image = Image.fromarray(noise(75, 100))
    pixels = image_pixels(image, OFFICIAL_OPTIONS)
    assert pixels.shape == (1, 64, 96, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels[0], image.resize((96, 64), Image.Resampling.BICUBIC))


def test_an_image_obeys_its_own_limits() -> None:
    options = QueryOptions(image_min_pixels=1_024, image_max_pixels=65_536).over(OFFICIAL_OPTIONS)
    image = Image.fromarray(noise(600, 600))
    assert image_pixels(image, options).shape == (1, 256, 256, 3)
    assert image_pixels(image.resize((20, 20)), options).shape == (1, 32, 32, 3)


def of_list(frames: list[Image.Image], options: QueryOptions = OFFICIAL_OPTIONS) -> np.ndarray:
    return frame_list_pixels(iter(frames), len(frames), options)


def flat(height: int, width: int, value: int) -> Image.Image:
    return Image.new("RGB", (width, height), (value, value, value))


def test_frames_are_resized_to_64_by_pillow_and_then_to_the_floor() -> None:
    frame = Image.fromarray(noise(100, 150))
    first = frame.resize((128, 128), Image.Resampling.BICUBIC)  # 2.34 -> 2, 1.56 -> 2
    planes = torch.from_numpy(np.array(first)).permute(2, 0, 1)[None].double()
    resized = torch.nn.functional.interpolate(
        planes, size=(384, 384), mode="bicubic", antialias=True
    )
    expected = resized.clamp(0, 255).round()[0].permute(1, 2, 0).numpy()
    pixels = of_list([frame, frame])
    assert pixels.shape == (2, 384, 384, 3)  # 128 tokens: 362.04 rounded up to 384
    assert np.abs(pixels[0] - expected).max() <= 1  # float32 may round another way
    assert (pixels[0] != expected).mean() < 1e-3


@pytest.mark.parametrize(("count", "padded"), [(1, 2), (2, 2), (3, 4), (7, 8)])
def test_the_last_of_an_odd_number_of_frames_is_repeated(count: int, padded: int) -> None:
    frames = [flat(384, 384, 10 * index) for index in range(count)]
    pixels = of_list(frames)
    values = [10 * min(index, count - 1) for index in range(padded)]
    assert pixels[:, 0, 0, 0].tolist() == values


def test_a_list_is_bound_by_the_total_limit_and_a_file_is_not() -> None:
    options = QueryOptions(video_total_pixels=20 * 131_072).over(OFFICIAL_OPTIONS)
    shape = of_list([flat(1024, 1024, 0)] * 20, options).shape
    assert shape == (20, 512, 512, 3)  # 2 x 131,072 pixels each
    shape = video_file_pixels(np.zeros((20, 1024, 1024, 3), np.uint8), options).shape
    assert shape == (20, 864, 864, 3)  # 786,432 pixels: 886.8 floored to 864


def test_small_frames_of_a_file_are_enlarged_to_the_floor() -> None:
    frames = np.zeros((2, 96, 128, 3), dtype=np.uint8)
    pixels = video_file_pixels(frames, OFFICIAL_OPTIONS)
    assert merged_grid(pixels) == (10, 14)  # 313.5 and 418.05, 9.8 and 13.06 tokens, rounded up


def test_frames_of_several_sizes_are_refused() -> None:
    frames = [flat(128, 128, 0), flat(128, 256, 0)]
    with pytest.raises(AspectRatio, match="must have one size"):
        of_list(frames)


def test_frames_that_have_their_size_are_left_alone() -> None:
    frames = np.stack([noise(384, 384, seed) for seed in range(2)])
    assert np.array_equal(video_file_pixels(frames, OFFICIAL_OPTIONS), frames)


def test_resizing_in_chunks_equals_resizing_at_once() -> None:
    frames = np.stack([noise(100, 90, seed) for seed in range(6)])
    together = video_file_pixels(frames, OFFICIAL_OPTIONS)
    alone = [video_file_pixels(frames[i : i + 2], OFFICIAL_OPTIONS) for i in (0, 2, 4)]
    assert np.array_equal(together, np.concatenate(alone))


def patches_slowly(pixels: np.ndarray) -> np.ndarray:
    """(x / 255 - 0.5) / 0.5, blocks of 2 x 2 patches in reading order, patches within a block."""
    scaled = (pixels.astype(np.float64) / 255 - 0.5) / 0.5
    first, second = scaled[0], scaled[-1]
    height, width, _ = first.shape
    patches = []
    for top in range(0, height, 32):
        for left in range(0, width, 32):
            for y, x in ((0, 0), (0, 16), (16, 0), (16, 16)):
                rows = slice(top + y, top + y + 16)
                columns = slice(left + x, left + x + 16)
                planes = [
                    frame[rows, columns, channel].ravel()
                    for channel in range(3)
                    for frame in (first, second)
                ]
                patches.append(np.concatenate(planes))
    return np.stack(patches)


@pytest.mark.parametrize("num_frames", [1, 2])
def test_patches_are_those_of_a_slow_loop(num_frames: int) -> None:
    pixels = np.stack([noise(64, 96, seed) for seed in range(num_frames)])
    patches = patchify(torch.from_numpy(pixels), torch.float32)
    assert patchify(torch.from_numpy(pixels), torch.bfloat16).dtype == torch.bfloat16
    assert patches.shape == (24, 1_536)
    assert np.abs(patches.numpy() - patches_slowly(pixels)).max() < 1e-6


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_size_that_no_memory_holds_is_refused(kind: str) -> None:
    least = QueryOptions(**{f"{kind}_min_pixels": 10**12, f"{kind}_max_pixels": 10**13})
    options = least.over(OFFICIAL_OPTIONS)
    with pytest.raises(ImageTooLarge, match="after resizing, over the limit of 178956970"):
        if kind == "image":
            image_pixels(flat(64, 64, 0), options)
        else:
            of_list([flat(64, 64, 0)] * 2, options)
