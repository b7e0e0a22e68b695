"""Page images and video frames, drawn with Pillow, the same for the same seed."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

_TOKEN_SIDE = 32  # pixels: a visual token covers 32 x 32
_PAGE_RATIO = 2**0.5
_FRAME_GRID = (12, 12)  # visual tokens of a frame pair, over the official floor of 128
_LETTERS = "etaoinshrdlu" + 3 * " "


def page_size(num_tokens: int) -> tuple[int, int]:
    """(width, height) in pixels of a page of about num_tokens visual tokens, upright like A4."""
    columns = max(1, round((num_tokens / _PAGE_RATIO) ** 0.5))
    return columns * _TOKEN_SIDE, max(1, round(num_tokens / columns)) * _TOKEN_SIDE


def write_page(path: Path, seed: str, num_tokens: int) -> str:
    """A page of lines of words and a figure, its size a few pixels off what the model reads.

    So it has to be resized, as pages have. The suffix chooses PNG or JPEG.
    """
    if not path.exists():
        rng = random.Random(seed)
        width, height = (side + rng.randint(-12, 12) for side in page_size(num_tokens))
        image = Image.new("RGB", (width, height), (250, 250, 246))
        margin = width // 12
        lines = ["".join(rng.choices(_LETTERS, k=width // 8)) for _ in range(height // 14)]
        ink = ImageDraw.Draw(image)
        ink.multiline_text((margin, margin), "\n".join(lines), fill=(20, 20, 40))
        _draw_figure(image, rng)
        _save(image, path)
    return str(path)


def write_frames(directory: Path, seed: str, num_frames: int) -> list[str]:
    """The frames of a video in which a shape moves over a still background."""
    rng = random.Random(seed)
    width, height = (side * _TOKEN_SIDE for side in _FRAME_GRID)
    background, shape = (tuple(rng.randbytes(3)) for _ in range(2))
    still = Image.new("RGB", (width, height), background)
    _draw_figure(still, rng)
    paths = [directory / f"{index:04}.jpg" for index in range(num_frames)]
    for index, path in enumerate(paths):
        if not path.exists():
            frame, left = still.copy(), 12 * index
            ImageDraw.Draw(frame).ellipse((left, left, left + 60, left + 60), fill=shape)
            _save(frame, path)
    return [str(path) for path in paths]


def _draw_figure(image: Image.Image, rng: random.Random) -> None:
    """A patch of noise enlarged smoothly: a photograph, to a codec and to a vision tower."""
    side = max(8, min(image.size) // 3)
    noise = Image.frombytes("RGB", (16, 16), rng.randbytes(16 * 16 * 3))
    place = rng.randrange(image.width - side), rng.randrange(image.height - side)
    image.paste(noise.resize((side, side), Image.Resampling.BICUBIC), place)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90) if path.suffix == ".jpg" else image.save(path)
