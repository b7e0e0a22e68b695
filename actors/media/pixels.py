"""From decoded images to the uint8 pixels that the model reads.

Plain PIL and torch: the official preprocessing without torchvision or a processor class. Sizes are
in pixels; a token covers 32 x 32 of them (patches of 16, merged 2 x 2).
"""

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image as PILImage

from shardrank.actors.config import QueryOptions
from shardrank.actors.errors import AspectRatio, ImageTooLarge, TooManyVisualTokens

PATCH_SIZE = 16
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
FACTOR = PATCH_SIZE * MERGE_SIZE
MAX_ASPECT_RATIO = 200
MAX_FRAME_LIST_PIXELS = 16_384 * (2 * FACTOR) ** 2
MIN_FRAME_LIST_PIXELS = 4 * (2 * FACTOR) ** 2
MODEL_PIXELS = 0.9 * 128_000 * FACTOR**2
"""qwen_vl_utils 0.0.14: all frames of a file together, where total_pixels is not given."""
MAX_RESIZED_PIXELS = 178_956_970
"""The most pixels of an image, or of all frames of a video: more than any model reads. Only a
query's own options can ask for so much.
"""


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: float
) -> tuple[int, int]:
    """(height, width) divisible by `factor`, the area within the limits, the aspect ratio near.

    Raises AspectRatio over 200. Source: qwen_vl_utils 0.0.14 vision_process.smart_resize; Python's
    round() to even, and never less than one factor, are part of it.
    """
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise AspectRatio(
            f"an aspect ratio of {ratio:.1f} ({width} x {height} pixels) is over {MAX_ASPECT_RATIO}"
        )
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        new_height = math.floor(height / beta / factor) * factor
        new_width = math.floor(width / beta / factor) * factor
    elif new_height * new_width < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    if not new_height or not new_width:
        raise AspectRatio(
            f"an image of {width} x {height} pixels has no size within {max_pixels:.0f} pixels"
        )
    return new_height, new_width


def image_pixels(image: PILImage.Image, options: QueryOptions) -> np.ndarray:
    """(1, H, W, 3) uint8 of one RGB image, resized by PIL's bicubic as the official scorer does."""
    assert options.image_min_pixels is not None and options.image_max_pixels is not None
    height, width = smart_resize(
        image.height, image.width, FACTOR, options.image_min_pixels, options.image_max_pixels
    )
    _check_resized((height, width))
    return np.asarray(image.resize((width, height), PILImage.Resampling.BICUBIC))[None]


def frame_list_pixels(
    frames: Iterable[PILImage.Image],
    count: int,
    options: QueryOptions,
    max_tokens: float = math.inf,
) -> np.ndarray:
    """(T, H, W, 3) uint8 of a video given as RGB frames, T even (the last one is repeated).

    frames: `count` of them, each taken when the one before is resized: all may not fit in memory.
    Two resizes, as the official scorer does: by PIL with twice the factor, then, under the total
    limit, by torch. Raises AspectRatio, also where sizes differ, and TooManyVisualTokens before a
    second frame is decoded.
    """
    assert options.video_total_pixels is not None and options.video_min_pixels is not None
    total_pixels = float(options.video_total_pixels)
    num_missing = count % TEMPORAL_PATCH_SIZE
    limits = min(MIN_FRAME_LIST_PIXELS, options.video_min_pixels), MAX_FRAME_LIST_PIXELS
    sizes = set()
    resized = []
    for frame in frames:
        height, width = smart_resize(frame.height, frame.width, 2 * FACTOR, *limits)
        sizes.add((width, height))
        if len(sizes) > 1:
            raise AspectRatio(f"the frames of one video must have one size, got {sorted(sizes)}")
        first = np.asarray(frame.resize((width, height), PILImage.Resampling.BICUBIC))[None]
        limit = count + num_missing, options, total_pixels, max_tokens
        resized.append(_resize_frames(first, *limit))
    return np.concatenate(resized + resized[-1:] * num_missing)


def video_file_pixels(
    frames: np.ndarray,
    options: QueryOptions,
    num_frames: int | None = None,
    max_tokens: float = math.inf,
) -> np.ndarray:
    """(T, H, W, 3) uint8 of frames sampled from a file, (T, H0, W0, 3) uint8.

    num_frames: how many there are in all, an even number, where these are some of them. Raises
    TooManyVisualTokens where all of them have more.
    """
    return _resize_frames(frames, num_frames or len(frames), options, MODEL_PIXELS, max_tokens)


def _resize_frames(
    frames: np.ndarray,
    num_frames: int,
    options: QueryOptions,
    total_pixels: float,
    max_tokens: float,
) -> np.ndarray:
    assert options.video_min_pixels is not None and options.video_max_pixels is not None
    height, width = frames.shape[1:3]
    share = total_pixels / num_frames * TEMPORAL_PATCH_SIZE
    max_pixels = max(min(options.video_max_pixels, share), int(options.video_min_pixels * 1.05))
    size = smart_resize(height, width, FACTOR, options.video_min_pixels, max_pixels)
    _check_resized(size, num_frames)
    check_tokens(num_frames // TEMPORAL_PATCH_SIZE * tokens_of(size), max_tokens)
    if size == (height, width):
        return frames
    resized = np.empty((len(frames), *size, 3), dtype=np.uint8)
    for index, channel in np.ndindex(len(frames), 3):
        resized[index, ..., channel] = _antialiased_bicubic(frames[index, ..., channel], size)
    return resized


def _check_resized(size: tuple[int, int], num_frames: int = 1) -> None:
    height, width = size
    if num_frames * height * width > MAX_RESIZED_PIXELS:
        raise ImageTooLarge(
            f"{num_frames} x {width} x {height} pixels after resizing, over the limit of "
            f"{MAX_RESIZED_PIXELS}: the query's options ask for too many"
        )


def tokens_of(size: tuple[int, int]) -> int:
    """Visual tokens of one image, or of a pair of frames, of a size that was resized to."""
    return size[0] // FACTOR * (size[1] // FACTOR)


def check_tokens(num_tokens: int, max_tokens: float) -> None:
    """Raises TooManyVisualTokens."""
    if num_tokens > max_tokens:
        raise TooManyVisualTokens(
            f"{num_tokens:,} visual tokens, over the limit of {max_tokens:,} of a pair: fewer or "
            "smaller media, or fewer frames, have less (max_pixels, fps, max_frames)"
        )


def image_tokens(height: int, width: int, options: QueryOptions) -> int:
    """An image's visual tokens; 0 where it is refused for its shape."""
    assert options.image_min_pixels is not None and options.image_max_pixels is not None
    try:
        limits = options.image_min_pixels, options.image_max_pixels
        return tokens_of(smart_resize(height, width, FACTOR, *limits))
    except AspectRatio:
        return 0


def _antialiased_bicubic(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """torchvision's resize of uint8 frames, of one channel: in float32, clamped, rounded half to
    even.
    """
    import torch  # seconds to import, and texts and images do without

    floats = torch.from_numpy(plane.astype(np.float32))[None, None]
    resized = torch.nn.functional.interpolate(
        floats, size=size, mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp_(0, 255).round_().to(torch.uint8)[0, 0].numpy()


def merged_grid(pixels: np.ndarray) -> tuple[int, int]:
    """(height, width) in visual tokens of (T, H, W, 3) pixels."""
    return pixels.shape[1] // FACTOR, pixels.shape[2] // FACTOR
