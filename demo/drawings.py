"""The committed drawings as tensors, and the augmentation that stands in for unseen designs."""

import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image

DATA = Path(__file__).resolve().parent / "data"
TRAIN_DESIGNS = (
    "noto",
    "noto-v1",
    "fluent",
    "fluent-flat",
    "fluent-high-contrast",
    "fxemoji",
    "streamline",
)
DEV_DESIGN = "twemoji"  # held out while the recipe was chosen
TEST_DESIGN = "emojitwo"  # used for nothing but the figures in the model card
SIZE = 64


@dataclass(frozen=True, slots=True)
class Drawings:
    objects: list[str]  # in the order of names.json
    names: list[dict[str, str]]  # of each object, by language
    pixels: torch.Tensor  # (N, 4, 64, 64) uint8 RGBA
    labels: torch.Tensor  # (N,) index into objects
    designs: np.ndarray  # (N,) design of each drawing

    def rows(self, designs: Iterable[str]) -> np.ndarray:
        """Indices of these designs' drawings, in order of object."""
        found = np.flatnonzero(np.isin(self.designs, list(designs)))
        return found[np.argsort(self.labels.numpy()[found], kind="stable")]


def load_drawings() -> Drawings:
    named = json.loads((DATA / "names.json").read_text(encoding="utf-8"))
    table = pq.read_table(DATA / "renderings.parquet").to_pydict()
    index = {name: number for number, name in enumerate(named)}
    arrays = [np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")) for png in table["png"]]
    return Drawings(
        objects=list(named),
        names=[entry["names"] for entry in named.values()],
        pixels=torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor([index[name] for name in table["object"]]),
        designs=np.array(table["design"]),
    )


def on_white(rgba: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W) uint8 -> (B, 3, H, W) float in [0, 255], rounded as a PNG holds it."""
    alpha = rgba[:, 3:].float() / 255
    return (rgba[:, :3].float() * alpha + 255 * (1 - alpha)).round()


def uniform(generator: torch.Generator, count: int, low: float, high: float) -> torch.Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def chance(generator: torch.Generator, count: int, probability: float) -> torch.Tensor:
    """(B, 1, 1, 1) mask."""
    return (torch.rand(count, generator=generator) < probability).view(-1, 1, 1, 1)


def affine(generator: torch.Generator, count: int) -> torch.Tensor:
    """(B, 2, 3) sampling matrices: mirror, turn, scale, shear, shift."""
    turn = uniform(generator, count, -0.35, 0.35)
    scale = torch.exp(uniform(generator, count, math.log(0.75), math.log(1.35)))
    stretch = torch.exp(uniform(generator, count, -0.15, 0.15))
    shear = uniform(generator, count, -0.2, 0.2)
    mirror = 1 - 2 * (torch.rand(count, generator=generator) < 0.5).float()
    cos, sin = torch.cos(turn) * scale, torch.sin(turn) * scale
    shift_x, shift_y = uniform(generator, count, -0.2, 0.2), uniform(generator, count, -0.2, 0.2)
    top = torch.stack([cos * stretch * mirror, shear - sin, shift_x], dim=1)
    bottom = torch.stack([sin * mirror, cos / stretch, shift_y], dim=1)
    return torch.stack([top, bottom], dim=1)


def recolour(rgb: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Hue, saturation, contrast, brightness; some drawings lose their colour, some change it."""
    count = len(rgb)
    angle = torch.randn(count, generator=generator) * 0.25
    angle = torch.where(torch.rand(count, generator=generator) < 0.08, angle * 6, angle)
    saturation = uniform(generator, count, 0.5, 1.4)
    saturation = torch.where(torch.rand(count, generator=generator) < 0.1, 0.0, saturation)
    luma = torch.tensor([0.299, 0.587, 0.114])
    to_yiq = torch.stack(
        [luma, torch.tensor([0.596, -0.274, -0.322]), torch.tensor([0.211, -0.523, 0.312])]
    )
    zero, one = torch.zeros(count), torch.ones(count)
    cos, sin = torch.cos(angle) * saturation, torch.sin(angle) * saturation
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    rgb = torch.einsum("bij,bjhw->bihw", matrix, rgb)
    gain = uniform(generator, count * 3, 0.8, 1.2).view(-1, 3, 1, 1)
    contrast = uniform(generator, count, 0.6, 1.4).view(-1, 1, 1, 1)
    lift = uniform(generator, count, -0.12, 0.12).view(-1, 1, 1, 1)
    return ((rgb * gain - 0.5) * contrast + 0.5 + lift).clamp(0, 1)


def blur(image: torch.Tensor) -> torch.Tensor:
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    kernel = (kernel[:, None] * kernel / 256).expand(image.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), kernel, groups=image.shape[1])


def redraw(
    rgb: torch.Tensor, alpha: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Another hand: softer or sharper, inner edges inked, an outline of some grey and width."""
    count = len(rgb)
    soft = blur(rgb)
    amount = uniform(generator, count, -1.0, 1.0).view(-1, 1, 1, 1)
    changed = torch.where(
        amount > 0, rgb + amount * (soft - rgb), rgb + 1.5 * amount * (soft - rgb)
    ).clamp(0, 1)
    rgb = torch.where(chance(generator, count, 0.6), changed, rgb)
    edge = (blur(soft) - soft).abs().amax(1, keepdim=True).mul(8).clamp(0, 1)
    ink = uniform(generator, count, 0.0, 0.4).view(-1, 1, 1, 1)
    rgb = torch.where(chance(generator, count, 0.2), rgb + edge * (ink - rgb), rgb)
    wide = F.max_pool2d(alpha, 3, 1, 1)
    wide = torch.where(chance(generator, count, 0.5), wide, F.max_pool2d(wide, 3, 1, 1))
    outlined = rgb * alpha + ink * (1 - alpha)
    has_outline = chance(generator, count, 0.25)
    return torch.where(has_outline, outlined, rgb), torch.where(has_outline, wide, alpha)


def ground(count: int, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, 64, 64): mostly white, else a colour, else a gradient between two."""
    first = torch.rand(count, 3, 1, 1, generator=generator) * 0.7 + 0.3
    second = torch.rand(count, 3, 1, 1, generator=generator) * 0.7 + 0.3
    ramp = torch.linspace(0, 1, SIZE).view(1, 1, SIZE, 1).expand(count, 3, SIZE, SIZE)
    shaded = torch.where(chance(generator, count, 0.5), first + ramp * (second - first), first)
    return torch.where(chance(generator, count, 0.65), torch.ones(1, 1, 1, 1), shaded)


def augment(rgba: torch.Tensor, generator: torch.Generator, *, num_frames: int = 1) -> torch.Tensor:
    """(B, 4, 64, 64) uint8 -> (B, num_frames, 3, 64, 64) float in [0, 255]; frames drift slowly."""
    count = len(rgba)
    drawing = rgba.float() / 255
    matrix = affine(generator, count)
    drift = torch.zeros(count, 2, 3)
    drift[:, :, 2] = torch.rand(count, 2, generator=generator) * 0.3 - 0.15
    drift[:, :, :2] = matrix[:, :, :2] * uniform(generator, count, -0.12, 0.12).view(-1, 1, 1)
    premultiplied = torch.cat([drawing[:, :3] * drawing[:, 3:], drawing[:, 3:]], dim=1)
    frames = []
    for number in range(num_frames):
        grid = F.affine_grid(matrix + number * drift, [count, 4, SIZE, SIZE], align_corners=False)
        frames.append(F.grid_sample(premultiplied, grid, align_corners=False))
    moved = torch.cat(frames)  # (num_frames * B, 4, 64, 64), frame-major
    alpha = moved[:, 3:]
    rgb = moved[:, :3] / alpha.clamp(min=1e-3)
    states = generator.get_state()
    painted = []
    for frame_rgb, frame_alpha in zip(rgb.split(count), alpha.split(count), strict=True):
        generator.set_state(states)  # every frame of a clip gets the same paint and ground
        new_rgb, new_alpha = redraw(recolour(frame_rgb, generator), frame_alpha, generator)
        painted.append(new_rgb * new_alpha + ground(count, generator) * (1 - new_alpha))
    return torch.stack(painted, dim=1).mul(255)


def clip(rgba: np.ndarray, rng: np.random.Generator, num_frames: int = 4) -> np.ndarray:
    """(num_frames, 64, 64, 3) uint8: a drawing slides over a pale ground and grows or shrinks."""
    colour = (
        (255, 255, 255) if rng.random() < 0.5 else tuple(int(x) for x in rng.integers(200, 256, 3))
    )
    drawing = Image.fromarray(rgba, "RGBA")
    side, growth = rng.uniform(44, 58), rng.uniform(-2.5, 2.5)
    x, y = rng.uniform(-4, 4, 2)
    dx, dy = rng.uniform(-3, 3, 2)
    frames = []
    for number in range(num_frames):
        size = round(side + growth * number)
        scaled = drawing.resize((size, size), Image.Resampling.BICUBIC)
        frame = Image.new("RGB", (SIZE, SIZE), colour)
        corner = (
            round((SIZE - size) / 2 + x + dx * number),
            round((SIZE - size) / 2 + y + dy * number),
        )
        frame.paste(scaled, corner, scaled)
        frames.append(np.asarray(frame))
    return np.stack(frames)
