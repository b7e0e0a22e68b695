"""Our packed tower and decoder against transformers' own modules, on the same random weights."""

from functools import cache

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from shardrank.actors.model.architecture import own_name, read_architecture
from shardrank.actors.model.vision import VisionTower, _by_size, _varlen, patchify
from tests.actors.test_attention import plain_varlen
from tests.support.engine import TINY


def tiny_tower():
    """The tower of the tiny checkpoint's weights."""
    sizes = read_architecture(TINY)
    weights = {
        name: weight.float() for name, weight in load_file(TINY / "model.safetensors").items()
    }
    return VisionTower({own_name(name): weights[name] for name in weights}, sizes.vision)


@cache
def transformers_visual():
    model = Qwen3VLForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
    return model.model.visual.requires_grad_(False)


def random_pixels(*sizes, frames=1):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (frames, h, w, 3), dtype=np.uint8) for h, w in sizes]


def transformers_features(pixels):
    patches = torch.cat([patchify(torch.from_numpy(p), torch.float32) for p in pixels])
    grids = torch.tensor([[1, p.shape[1] // 16, p.shape[2] // 16] for p in pixels])
    encoded = transformers_visual()(patches, grid_thw=grids)
    return torch.stack([encoded.pooler_output, *encoded.deepstack_features], dim=1)


def test_packed_images_of_all_shapes_equal_transformers_own_features():
    pixels = random_pixels((64, 64), (32, 416), (96, 64), (96, 64), (224, 160))
    features = tiny_tower().encode(pixels)
    assert [len(f) for f in features] == [4, 13, 6, 6, 35]
    torch.testing.assert_close(
        torch.cat(features), transformers_features(pixels), atol=2e-5, rtol=1e-4
    )


def test_frame_pairs_equal_transformers_own_features():
    pixels = random_pixels((128, 96), (64, 64), frames=2)
    features = torch.cat(tiny_tower().encode(pixels))
    torch.testing.assert_close(features, transformers_features(pixels), atol=2e-5, rtol=1e-4)


def test_an_images_features_do_not_depend_on_its_neighbours():
    pixels = random_pixels((64, 96), (128, 64), (64, 96))
    tower = tiny_tower()
    together = tower.encode(pixels)
    for image, features in zip(pixels, together, strict=True):
        torch.testing.assert_close(tower.encode([image])[0], features, atol=1e-5, rtol=1e-5)


def test_one_launch_for_all_visuals_attends_as_each_apart():
    """The CUDA form, with a slow stand-in for its kernel."""
    lengths = [16, 16, 4, 52]
    query, key, value = torch.randn(3, sum(lengths), 4, 8)
    apart = _by_size(lengths)(query, key, value)
    together = _varlen(lengths, torch.device("cpu"), plain_varlen)(query, key, value)
    torch.testing.assert_close(together, apart, atol=2e-6, rtol=1e-5)
