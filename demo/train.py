"""Trains the demo's reranker from the committed drawings and names, on one thread.

Phase 1 gives drawings and names a common space; phase 2 trains the text model to rank, from the
start that designed.py sketches. The steps are fixed and all draws are seeded.
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from checkpoint import HIDDEN, new_model, save_checkpoint
from designed import CONTENT, ONE, set_up
from drawings import DATA, DEV_DESIGN, Drawings, augment, load_drawings
from evaluate_model import evaluate, summary
from prompts import encode, train_tokenizer
from scoring import Candidates, forward, num_tokens, pack
from tasks import Drawer
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration
from vision import patchify, vision_forward

logger = logging.getLogger("demo.train")

VOCAB_SIZE = 12288  # an upper limit: the names run out of pieces to merge before
BATCH_IMAGES, BATCH_PAIRS = 48, 16  # phase 1: still drawings, and pairs of frames of a moving one
BATCH_ROWS, NUM_DOCUMENTS = 12, 8  # phase 2
VISUAL_NORM, DEEPSTACK_NORM = 0.7, 0.5

# Phase 2's share of each task.
SHARES = {
    "text-to-image": 0.22,
    "image-to-text": 0.2,
    "image-to-image": 0.2,
    "text-to-text": 0.05,
    "text-to-video": 0.1,
    "video-to-text": 0.05,
    "text-to-mixed": 0.1,
    "mixed-to-image": 0.04,
    "image-to-mixed": 0.04,
}
# Designs by one hand: a query and its documents take theirs from different hands.
HANDS = (
    ("noto",),
    ("noto-v1",),
    ("fluent", "fluent-flat", "fluent-high-contrast"),
    ("fxemoji",),
    ("streamline",),
)
DEV_HAND = (DEV_DESIGN,)  # held out while the recipe was chosen, trained on in the final model


class Shelf:
    """The training designs' drawings of each object, by hand."""

    def __init__(
        self, drawings: Drawings, hands: Sequence[tuple[str, ...]], rng: np.random.Generator
    ) -> None:
        self.drawings, self.hands, self.rng = drawings, hands, rng
        labels = drawings.labels.numpy()
        self.by_hand = [
            [rows[labels[rows] == thing] for thing in range(len(drawings.objects))]
            for rows in (drawings.rows(hand) for hand in hands)
        ]

    def pick(self, thing: int, hands: list[int]) -> int:
        rows = np.concatenate([self.by_hand[hand][thing] for hand in hands])
        if not len(rows):  # streamline does not draw everything
            rows = np.concatenate([hand[thing] for hand in self.by_hand])
        return int(self.rng.choice(rows))


class TrainingGallery:
    """Notes down which drawings a batch needs, then augments and encodes them all at once."""

    def __init__(self, shelf: Shelf, generator: torch.Generator) -> None:
        self.shelf, self.generator = shelf, generator
        self.still: list[tuple[int, int]] = []  # (number in the bank, drawing)
        self.moving: list[tuple[int, int]] = []
        self.size = 0
        self.next_row()

    def next_row(self) -> None:
        hands = self.shelf.rng.permutation(len(self.shelf.hands)).tolist()
        self.query_hands = hands[:2]
        self.document_hands = hands[2:3] if self.shelf.rng.random() < 0.5 else hands[2:]

    def pick(self, thing: int, is_query: bool) -> int:
        return self.shelf.pick(thing, self.query_hands if is_query else self.document_hands)

    def image(self, thing: int, *, is_query: bool) -> int:
        self.still.append((self.size, self.pick(thing, is_query)))
        self.size += 1
        return self.size - 1

    def video(self, thing: int, *, is_query: bool) -> tuple[int, int]:
        self.moving.append((self.size, self.pick(thing, is_query)))
        self.size += 2
        return self.size - 2, self.size - 1

    @torch.no_grad()
    def bank(self, model: Qwen3VLForConditionalGeneration) -> torch.Tensor:
        pixels = self.shelf.drawings.pixels
        bank = torch.zeros(2, self.size, 4, HIDDEN)
        for entries, num_frames in ((self.still, 1), (self.moving, 4)):
            if entries:
                places, chosen = map(torch.tensor, zip(*entries, strict=True))
                frames = augment(pixels[chosen], self.generator, num_frames=num_frames)
                for pair in range(max(1, num_frames // 2)):
                    two = frames[:, 2 * pair : 2 * pair + 2]
                    bank[:, places + pair] = vision_forward(model.model.visual, patchify(two))
        self.still, self.moving, self.size = [], [], 0
        return bank


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@dataclass(slots=True)
class Progress:
    phase: str
    steps: int
    every: int
    losses: list[float] = field(default_factory=list)

    def log(self, step: int, loss: torch.Tensor) -> None:
        self.losses.append(loss.item())
        if (step + 1) % self.every == 0:
            recent, seconds = np.mean(self.losses[-self.every :]), time.process_time()
            place = f"{self.phase} step {step + 1} of {self.steps}"
            logger.info("%s: loss %.3f, CPU %.0f s", place, recent, seconds)


def update(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, clipped: list[torch.nn.Parameter]
) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(clipped, 1.0)
    optimizer.step()


def draw_pictures(shelf: Shelf, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 2, 3, 64, 64) frame pairs of B different objects, and which ones they are (B,)."""
    drawings, hands = shelf.drawings, list(range(len(shelf.hands)))
    count = BATCH_IMAGES + BATCH_PAIRS
    things = shelf.rng.choice(len(drawings.objects), count, replace=False)
    chosen = [shelf.pick(int(thing), hands) for thing in things]
    still = augment(drawings.pixels[chosen[:BATCH_IMAGES]], generator).expand(-1, 2, -1, -1, -1)
    moving = augment(drawings.pixels[chosen[BATCH_IMAGES:]], generator, num_frames=2)
    return torch.cat([still, moving]), drawings.labels[chosen]


def pointing_loss(
    tokens: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Tokens (layers, B, 4, CONTENT) are told apart by cosine: a picture's together, and each."""
    unit, targets = F.normalize(tokens, dim=-1), F.normalize(vectors, dim=-1)
    each = unit @ targets.T * scale  # (layers, B, 4, objects)
    pooled = F.normalize(unit.sum(0).mean(1), dim=-1) @ targets.T * scale
    of_each = labels.view(1, -1, 1).expand(each.shape[:3])
    loss = F.cross_entropy(pooled, labels, label_smoothing=0.05)
    return loss + 0.5 * F.cross_entropy(each.flatten(0, 2), of_each.flatten())


def train_vision(
    model: Qwen3VLForConditionalGeneration, shelf: Shelf, steps: int, generator: torch.Generator
) -> torch.Tensor:
    """Visual tokens learn to point at their object's vector; returns these (objects, CONTENT)."""
    tower, num_objects = model.model.visual, len(shelf.drawings.objects)
    with torch.no_grad():
        kernel = tower.patch_embed.proj.weight
        kernel[:, :, 1] = kernel[:, :, 0]  # both frames of a pair count the same
    random = torch.randn(num_objects, CONTENT, generator=generator)
    vectors = torch.nn.Parameter(F.normalize(random, dim=-1))
    log_scale = torch.nn.Parameter(torch.tensor(math.log(16.0)))
    weights = [*tower.parameters(), vectors]
    groups = [
        {"params": weights, "weight_decay": 0.05},
        {"params": [log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
    progress = Progress("phase 1", steps, every=200)
    for step in range(steps):
        set_rate(optimizer, 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps))
        pictures, labels = draw_pictures(shelf, generator)
        tokens = vision_forward(tower, patchify(pictures))[..., :CONTENT]
        loss = pointing_loss(tokens, vectors, labels, log_scale.exp())
        update(optimizer, loss, weights)
        progress.log(step, loss)
    settle_vision(model, shelf, generator)
    return F.normalize(vectors.detach(), dim=-1)


@torch.no_grad()
def settle_vision(
    model: Qwen3VLForConditionalGeneration, shelf: Shelf, generator: torch.Generator
) -> None:
    """Brings visual tokens to the embeddings' length and clears what is beyond CONTENT."""
    tower = model.model.visual
    designs = [design for hand in shelf.hands for design in hand]
    pixels = shelf.drawings.pixels[shelf.drawings.rows(designs)]
    tokens = vision_forward(tower, patchify(augment(pixels, generator)))[..., :CONTENT]
    lengths = tokens.norm(dim=-1).mean(dim=(1, 2))
    mergers = (tower.merger, tower.deepstack_merger_list[0])
    for merger, length, norm in zip(mergers, lengths, (VISUAL_NORM, DEEPSTACK_NORM), strict=True):
        merger.linear_fc2.weight.mul_(norm / length)
        merger.linear_fc2.bias.mul_(norm / length)
        merger.linear_fc2.weight[CONTENT:] = 0
        merger.linear_fc2.bias[CONTENT:] = 0
    tower.merger.linear_fc2.bias[ONE] = 1


def train_names(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    drawings: Drawings,
    vectors: torch.Tensor,
) -> None:
    """The mean embedding of a name's tokens learns to point at its object's vector."""
    names = [
        (name, thing)
        for thing, by_language in enumerate(drawings.names)
        for name in by_language.values()
    ]
    ids = [encode(tokenizer, name) for name, _ in names]
    flat = torch.tensor([token for row in ids for token in row])
    offsets = torch.tensor([0, *np.cumsum([len(row) for row in ids])[:-1].tolist()])
    labels = torch.tensor([thing for _, thing in names])
    embeddings = model.model.language_model.embed_tokens.weight
    content = torch.nn.Parameter(embeddings.detach()[:, :CONTENT].clone())
    optimizer = torch.optim.Adam([content], lr=0.01)
    for step in range(200):
        set_rate(optimizer, 0.01 * (1 - step / 200))
        means = F.embedding_bag(flat, content, offsets, mode="mean")
        loss = F.cross_entropy(F.normalize(means, dim=-1) @ vectors.T * 12, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        used = flat.unique()
        length = F.embedding_bag(flat, content, offsets, mode="mean").norm(dim=-1).mean()
        embeddings[used, :CONTENT] = content[used] / length
    logger.info("names: loss %.3f", loss.item())


def draw_batch(gallery: TrainingGallery, drawer: Drawer) -> tuple[list[Candidates], torch.Tensor]:
    """Candidate sets of random tasks, and (rows,) which document of each is the right one."""
    rng = drawer.rng
    sets, right = [], []
    for _ in range(BATCH_ROWS):
        gallery.next_row()
        task = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        thing = int(rng.integers(len(drawer.names)))
        language = drawer.pick(drawer.languages)
        things = drawer.things(thing, NUM_DOCUMENTS)
        query = drawer.query(task, thing, language)
        documents = [drawer.document(task, other, language) for other in things]
        sets.append(Candidates(query, documents))
        right.append(things.index(thing))
    return sets, torch.tensor(right)


def ranking_loss(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Listwise, and a little pairwise so that a score means something by itself."""
    truth = F.one_hot(right, NUM_DOCUMENTS).float()
    pairwise = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=torch.tensor(3.0))
    return F.cross_entropy(logits, right) + 0.3 * pairwise


def train_ranking(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    shelf: Shelf,
    steps: int,
    generator: torch.Generator,
) -> None:
    """One of NUM_DOCUMENTS documents is of the query's object. The vision tower stays as it is."""
    gallery = TrainingGallery(shelf, generator)
    drawer = Drawer(shelf.drawings.names, gallery, shelf.rng)
    weights = list(model.model.language_model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    progress = Progress("phase 2", steps, every=50)
    for step in range(steps):
        set_rate(optimizer, 1e-3 * min(1, (step + 1) / 20, (1 - step / steps) / 0.6))
        sets, right = draw_batch(gallery, drawer)
        bank = gallery.bank(model)
        loss = ranking_loss(score_by_length(model, tokenizer, sets, bank), right)
        update(optimizer, loss, weights)
        progress.log(step, loss)


def score_by_length(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    sets: list[Candidates],
    bank: torch.Tensor,
) -> torch.Tensor:
    """(rows, documents) logits; rows of like length share a batch, so that little is padding."""
    order = sorted(range(len(sets)), key=lambda number: num_tokens(tokenizer, sets[number]))
    groups = [
        [sets[number] for number in order[start : start + 3]] for start in range(0, len(order), 3)
    ]
    parts = [forward(model, tokenizer, pack(tokenizer, group), bank) for group in groups]
    return torch.cat(parts)[torch.tensor(order).argsort()]


def seeded(
    drawings: Drawings, hands: Sequence[tuple[str, ...]], seed: int
) -> tuple[Shelf, torch.Generator]:
    """Each phase starts its random numbers anew: phase 2 depends on phase 1's weights alone."""
    torch.manual_seed(seed)
    shelf = Shelf(drawings, hands, np.random.default_rng(seed))
    return shelf, torch.Generator().manual_seed(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps1", type=int, default=1600)
    parser.add_argument("--steps2", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=DATA.parent / "model", help="checkpoint to write"
    )
    parser.add_argument(
        "--hold-out-dev", action="store_true", help=f"do not train on {DEV_DESIGN}, report on it"
    )
    options = parser.parse_args()
    hands = HANDS if options.hold_out_dev else (*HANDS, DEV_HAND)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    drawings = load_drawings()
    names = (name for by_language in drawings.names for name in by_language.values())
    tokenizer = train_tokenizer(names, VOCAB_SIZE)
    shelf, generator = seeded(drawings, hands, options.seed)
    model = new_model(tokenizer, options.out)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%d parameters, %d tokens", num_parameters, tokenizer.get_vocab_size())
    vectors = train_vision(model, shelf, options.steps1, generator)
    shelf, generator = seeded(drawings, hands, options.seed)
    set_up(model, tokenizer)
    train_names(model, tokenizer, drawings, vectors)
    train_ranking(model, tokenizer, shelf, options.steps2, generator)
    save_checkpoint(options.out, model.eval(), tokenizer)
    if options.hold_out_dev:
        logger.info("dev: %s", summary(evaluate(model, tokenizer, drawings, DEV_DESIGN, 0, 96)))


if __name__ == "__main__":
    main()
