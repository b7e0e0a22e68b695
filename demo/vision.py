"""Qwen3-VL's vision tower on batches of 64x64 frame pairs, as transformers computes it."""

import torch
import torch.nn.functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionModel,
    apply_rotary_pos_emb_vision,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

GRID = torch.tensor([[1, 4, 4]])  # one 64x64 frame pair: 4 x 4 patches, 2 x 2 visual tokens
NUM_TOKENS = 4


def patchify(frames: torch.Tensor) -> torch.Tensor:
    """(B, T, 3, 64, 64) in [0, 255], T 1 or 2 -> (B, 16, 1536), in 2x2 merge-block order."""
    pixels = (frames / 255 - 0.5) / 0.5
    if pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 2, -1, -1, -1)
    blocks = pixels.reshape(
        len(pixels), 2, 3, 2, 2, 16, 2, 2, 16
    )  # b t c | row: block, in block, pixel | column
    return blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(len(pixels), 16, -1)


def vision_forward(tower: Qwen3VLVisionModel, patches: torch.Tensor) -> torch.Tensor:
    """(B, 16, 1536) -> (1 + number of deepstack layers, B, 4, hidden size of the text model)."""
    heads = tower.config.num_heads
    weight = tower.patch_embed.proj.weight
    hidden = F.linear(patches, weight.flatten(1), tower.patch_embed.proj.bias)
    index, share = get_vision_interpolation_indices_and_weights(
        GRID,
        num_grid_per_side=tower.num_grid_per_side,
        mode="bilinear",
        align_corners=True,
        spatial_merge_size=2,
    )
    hidden = hidden + (tower.pos_embed(index) * share[:, :, None]).sum(1)
    cos, sin = tower.rotary_pos_emb(hidden, get_vision_position_ids(GRID, 2))
    deepstack = []
    for number, block in enumerate(tower.blocks):
        qkv = block.attn.qkv(block.norm1(hidden)).view(len(patches), 16, 3, heads, -1)
        query, key, value = qkv.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        mixed = F.scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in (query, key, value))
        )
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
        if number in tower.deepstack_visual_indexes:
            merger = tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(number)]
            deepstack.append(merger(hidden.reshape(-1, hidden.shape[-1])))
    merged = tower.merger(hidden.reshape(-1, hidden.shape[-1]))
    return torch.stack([merged, *deepstack]).view(1 + len(deepstack), len(patches), NUM_TOKENS, -1)
