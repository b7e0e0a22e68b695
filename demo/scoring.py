"""One row a query: the prompt and query once, then its documents, blind to each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from prompts import NUM_VISUAL_TOKENS, Side, document_ids, query_ids
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration


@dataclass(frozen=True, slots=True)
class Candidates:
    query: Side
    documents: Sequence[Side]


@dataclass(frozen=True, slots=True)
class PackedRows:
    input_ids: torch.Tensor  # (R, T)
    position_ids: torch.Tensor  # (3, R, T)
    mask: torch.Tensor  # (R, 1, T, T) bool, what each token sees
    visuals: torch.Tensor  # (V,) numbers in the visual bank, in order of row and place
    last: torch.Tensor  # (R, D) place of each document's last token


def positions(
    ids: Sequence[int], start: int, visual_ids: tuple[int, int]
) -> list[tuple[int, int, int]]:
    """Interleaved M-RoPE: text advances all three axes; a 2x2 visual block advances by 2."""
    placed: list[tuple[int, int, int]] = []
    inside = 0
    for token in ids:
        if token in visual_ids:
            row, column = divmod(inside, 2)
            placed.append((start, start + row, start + column))
            inside += 1
            if inside == NUM_VISUAL_TOKENS:
                start, inside = start + 2, 0
        else:
            placed.append((start, start, start))
            start += 1
    return placed


def num_tokens(tokenizer: Tokenizer, candidates: Candidates) -> int:
    tails = (document_ids(tokenizer, document) for document in candidates.documents)
    return len(query_ids(tokenizer, candidates.query)) + sum(len(tail) for tail in tails)


def pack(tokenizer: Tokenizer, sets: Sequence[Candidates]) -> PackedRows:
    """All rows need the same number of documents."""
    visual_ids = (tokenizer.token_to_id("<|image_pad|>"), tokenizer.token_to_id("<|video_pad|>"))
    rows = []
    for candidates in sets:
        head = query_ids(tokenizer, candidates.query)
        ids, branch = list(head), [0] * len(head)
        place = positions(head, 0, visual_ids)
        start = max(place[-1]) + 1
        last = []
        for number, document in enumerate(candidates.documents, start=1):
            tail = document_ids(tokenizer, document)
            ids += tail
            branch += [number] * len(tail)
            place += positions(tail, start, visual_ids)
            last.append(len(ids) - 1)
        rows.append((ids, branch, place, last))
    length = max(len(ids) for ids, *_ in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    branches = torch.full((len(rows), length), -1)
    position_ids = torch.zeros(3, len(rows), length, dtype=torch.long)
    for number, (ids, branch, place, _) in enumerate(rows):
        input_ids[number, : len(ids)] = torch.tensor(ids)
        branches[number, : len(ids)] = torch.tensor(branch)
        position_ids[:, number, : len(ids)] = torch.tensor(place).T
    seen = (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    mask = (seen & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    visuals = [v for c in sets for side in (c.query, *c.documents) for v in side.visuals]
    return PackedRows(
        input_ids,
        position_ids,
        mask,
        torch.tensor(visuals, dtype=torch.long),
        torch.tensor([row[3] for row in rows]),
    )


def forward(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    rows: PackedRows,
    bank: torch.Tensor,
) -> torch.Tensor:
    """(R, D) logits of "yes" over "no"; the bank is (1 + deepstack layers, N, 4, hidden)."""
    text = model.model.language_model
    is_visual = (rows.input_ids == tokenizer.token_to_id("<|image_pad|>")) | (
        rows.input_ids == tokenizer.token_to_id("<|video_pad|>")
    )
    features = bank[:, rows.visuals].flatten(1, 2)
    hidden = text.embed_tokens(rows.input_ids).masked_scatter(is_visual[..., None], features[0])
    rotary = text.rotary_emb(hidden, rows.position_ids)
    for number, layer in enumerate(text.layers):
        hidden = layer(hidden, attention_mask=rows.mask, position_embeddings=rotary)
        if number + 1 < len(features):
            added = torch.zeros_like(hidden).masked_scatter(
                is_visual[..., None], features[number + 1]
            )
            hidden = hidden + added
    last = torch.gather(hidden, 1, rows.last[..., None].expand(-1, -1, hidden.shape[-1]))
    weight = text.embed_tokens.weight
    direction = weight[tokenizer.token_to_id("yes")] - weight[tokenizer.token_to_id("no")]
    return text.norm(last) @ direction
