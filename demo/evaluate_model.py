"""nDCG@10 of a checkpoint on one design's drawings: random lists of 20, one relevant.

`python demo/evaluate_model.py --design emojitwo --model demo/model`, or several models.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from checkpoint import load_model
from drawings import (
    DATA,
    DEV_DESIGN,
    TEST_DESIGN,
    TRAIN_DESIGNS,
    Drawings,
    clip,
    load_drawings,
    on_white,
)
from scoring import Candidates, forward, pack
from tasks import TASKS, Drawer
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration
from vision import patchify, vision_forward

NUM_CANDIDATES = 20
ROWS_A_BATCH = 6
# task -> of each query: its language, nDCG@10 of the list as it came, nDCG@10 as ranked
Results = dict[str, list[tuple[str, float, float]]]
REPORTED = [task for task in TASKS if task != "image-to-mixed"]


class HeldOutGallery:
    """Pictures of one design; on request a query's are of a design that training saw."""

    def __init__(self, drawings: Drawings, design: str, rng: np.random.Generator) -> None:
        self.drawings, self.design, self.rng = drawings, design, rng
        self.is_query_trained_design = False
        self.pairs: list[torch.Tensor] = []  # each (2, 3, 64, 64) in [0, 255]

    def pick(self, thing: int, is_query: bool) -> torch.Tensor:
        designs = TRAIN_DESIGNS if is_query and self.is_query_trained_design else (self.design,)
        rows = self.drawings.rows(designs)
        rows = rows[self.drawings.labels.numpy()[rows] == thing]
        return self.drawings.pixels[int(self.rng.choice(rows))]

    def image(self, thing: int, *, is_query: bool) -> int:
        picture = on_white(self.pick(thing, is_query)[None])
        self.pairs.append(picture.expand(2, -1, -1, -1))
        return len(self.pairs) - 1

    def video(self, thing: int, *, is_query: bool) -> tuple[int, int]:
        rgba = self.pick(thing, is_query).permute(1, 2, 0).numpy()
        frames = torch.from_numpy(clip(rgba, self.rng)).permute(0, 3, 1, 2).float()
        self.pairs += [frames[:2], frames[2:]]
        return len(self.pairs) - 2, len(self.pairs) - 1

    def bank(self, model: Qwen3VLForConditionalGeneration) -> torch.Tensor:
        if not self.pairs:
            return torch.zeros(2, 0, 4, 128)
        patches = patchify(torch.stack(self.pairs))
        parts = [vision_forward(model.model.visual, part) for part in patches.split(256)]
        return torch.cat(parts, dim=1)


def reciprocal_log_rank(scores: np.ndarray, relevant: int) -> float:
    """nDCG@10 with one relevant document; ties count as half above."""
    target = scores[relevant]
    rank = 1 + (scores > target).sum() + ((scores == target).sum() - 1) / 2
    return float(1 / np.log2(rank + 1)) if rank <= 10 else 0.0


@torch.inference_mode()
def evaluate_task(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    drawings: Drawings,
    design: str,
    task: str,
    draw: int,
    num_queries: int,
) -> list[tuple[str, float, float]]:
    rng = np.random.default_rng([draw, REPORTED.index(task)])
    gallery = HeldOutGallery(drawings, design, rng)
    gallery.is_query_trained_design = task in ("image-to-image", "mixed-to-image")
    drawer = Drawer(drawings.names, gallery, rng)
    order = np.resize(rng.permutation(len(drawings.objects)), num_queries)
    results = []
    for start in range(0, num_queries, ROWS_A_BATCH):
        sets, relevant, languages = [], [], []
        gallery.pairs = []
        for number in range(start, min(start + ROWS_A_BATCH, num_queries)):
            thing = int(order[number])
            language = drawer.languages[number % len(drawer.languages)]
            candidates = drawer.things(thing, NUM_CANDIDATES)
            query = drawer.query(task, thing, language)
            sets.append(
                Candidates(query, [drawer.document(task, other, language) for other in candidates])
            )
            relevant.append(candidates.index(thing))
            languages.append(language)
        logits = forward(model, tokenizer, pack(tokenizer, sets), gallery.bank(model)).numpy()
        for row, place, language in zip(logits, relevant, languages, strict=True):
            before = reciprocal_log_rank(-np.arange(NUM_CANDIDATES), place)
            results.append((language, before, reciprocal_log_rank(row, place)))
    return results


def evaluate(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Tokenizer,
    drawings: Drawings,
    design: str,
    draw: int,
    num_queries: int,
) -> Results:
    return {
        task: evaluate_task(model, tokenizer, drawings, design, task, draw, num_queries)
        for task in REPORTED
    }


def summary(results: Results) -> str:
    return "  ".join(
        f"{task} {np.mean([r[2] for r in rows]):.3f}" for task, rows in results.items()
    )


def print_tables(columns: dict[str, Results]) -> None:
    """One column a model, then how text -> image fares by the query's language, over all models."""
    print("| " + " | ".join(["task", "random order", *columns, "mean"]) + " |")
    print("|---|---|" + "---|" * (len(columns) + 1))
    for task in REPORTED:
        means = [
            float(np.mean([after for _, _, after in column[task]])) for column in columns.values()
        ]
        before = np.mean([before for column in columns.values() for _, before, _ in column[task]])
        cells = [f"{value:.3f}" for value in (before, *means, np.mean(means))]
        print("| " + " | ".join([task, *cells]) + " |")
    by_language: dict[str, list[float]] = defaultdict(list)
    for column in columns.values():
        for language, _, after in column["text-to-image"]:
            by_language[language].append(after)
    listed = (f"{language} {np.mean(values):.2f}" for language, values in by_language.items())
    print("\ntext-to-image by language: " + ", ".join(listed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, nargs="+", default=[DATA.parent / "model"])
    parser.add_argument("--design", default=TEST_DESIGN, choices=(TEST_DESIGN, DEV_DESIGN))
    parser.add_argument("--draw", type=int, default=0, help="seed of the random lists")
    parser.add_argument("--queries", type=int, default=192, help="queries a task")
    options = parser.parse_args()
    torch.set_num_threads(1)
    drawings = load_drawings()
    print(f"{options.design}: {options.queries} queries a task, 1 of {NUM_CANDIDATES} relevant\n")
    columns = {}
    for folder in options.model:
        model, tokenizer = load_model(folder)
        columns[folder.name] = evaluate(
            model, tokenizer, drawings, options.design, options.draw, options.queries
        )
    print_tables(columns)


if __name__ == "__main__":
    main()
