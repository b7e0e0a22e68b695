"""`python -m bench.bound`: what a million pairs would take on GPUs, computed; none is used.

The FLOPs and bytes of a workload at a data sheet's rates (roofline.py), over the share of them that
a run is assumed to reach, times a price that is yours.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.bound.flops import Flops, ModelShape
from bench.bound.roofline import GPUS, Gpu, model_seconds
from bench.bound.work import count, flops_of
from bench.checkpoints.build import write_outline
from bench.checkpoints.presets import PRESETS
from bench.settings import SCORED, names_of
from bench.workloads import Drawing, build_workload

# Beside them those of machines in cluster.yaml and deploy/, from NVIDIA's data sheets of the L40S
# and the L4: half of the rates that these give with sparsity.
RENTED = (*GPUS, Gpu("L40S", 362e12, 0.864e12), Gpu("L4", 121e12, 0.3e12))
_MILLION = 1_000_000
_TITLES = {
    "tflop_per_pair": "TFLOP a pair",
    "visual_tflop_per_pair": "of them encoding images",
    "bound_hours": "GPU-hours at the full rates",
    "hours": "GPU-hours",
    "cost": "cost at your price",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    prices = dict(options.gpu_hour_price)
    rows = [
        row | _cost(row, options.efficiency, prices.get(row["gpu"]))
        for preset in options.presets
        for row in _bounds(preset, options.workloads, options.scale)
    ]
    share = f"{options.efficiency:.0%} of the data sheets' rates"
    print(f"a model, not measured; GPU-hours are of a million pairs at {share}, which is assumed")
    print("  ".join(("model", f"{'workload':<11}", "GPU ", *_TITLES.values())))
    for row in rows:
        print(_line(row))
    print(json.dumps({"efficiency": options.efficiency, "prices": prices, "rows": rows}))
    return 0


def _bounds(preset: str, workloads: Sequence[str], scale: float) -> Iterator[dict[str, Any]]:
    """Each workload with each GPU: the hours of a million pairs at the data sheet's rates."""
    with tempfile.TemporaryDirectory(prefix="shardrank-bound-") as temporary:
        checkpoint = Path(temporary) / preset
        write_outline(preset, checkpoint)
        shape = ModelShape.of(checkpoint)
        pages = PRESETS[preset].page_tokens
        for name in workloads:
            drawing = Drawing.of(checkpoint, checkpoint / "media", scale=scale, page_tokens=pages)
            counted = count(build_workload(name, drawing), checkpoint)
            num_pairs, num_tokens = len(counted.pairs), counted.num_distinct_tokens
            needed, visual = flops_of("needed", counted, shape), Flops()
            for patches in counted.patches:
                shape.vision.add_visual(visual, patches)
            for gpu in RENTED:
                seconds = model_seconds(needed, shape, num_tokens, gpu) / num_pairs
                yield {
                    "model": preset,
                    "workload": name,
                    "gpu": gpu.name,
                    "tflop_per_pair": round(needed.total / num_pairs / 1e12, 3),
                    "visual_tflop_per_pair": round(visual.total / num_pairs / 1e12, 3),
                    "bound_hours": round(seconds * _MILLION / 3_600, 3),
                }


def _cost(row: dict[str, Any], efficiency: float, price: float | None) -> dict[str, float]:
    hours = round(row["bound_hours"] / efficiency, 2)
    return {"hours": hours} | ({} if price is None else {"cost": round(hours * price, 2)})


def _line(row: dict[str, Any]) -> str:
    cells = [f"{row['model']:>5}  {row['workload']:<11}  {row['gpu']:<4}"]
    cells += [f"{row[name]:>{len(title)}}" for name, title in _TITLES.items() if name in row]
    return "  ".join(cells)


def _price(text: str) -> tuple[str, float]:
    name, _, price = text.partition("=")
    known = [gpu.name for gpu in RENTED]
    if name not in known:
        raise argparse.ArgumentTypeError(f"unknown {name!r}; known: {', '.join(known)}")
    return name, float(price)


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return float(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.bound",
        description="Compute what a million pairs of a workload would take on GPUs, by data sheets "
        "and an assumed share of their rates. Nothing is measured. The last line is a JSON object.",
    )
    add = parser.add_argument
    add("--presets", type=names_of(*PRESETS), default="2b,8b", help="default: %(default)s")
    add("--workloads", type=names_of(*SCORED), default="text,pages", help="default: %(default)s")
    add(
        "--efficiency",
        type=_share,
        default=0.5,
        help="share of the data sheets' rates that a run reaches, an assumption (default: 0.5)",
    )
    add(
        "--gpu-hour-price",
        metavar="GPU=PRICE",
        type=_price,
        action="append",
        default=[],
        help="yours, such as L4=0.80, to state a cost",
    )
    add("--scale", type=float, default=1.0, help="size of the workloads (default: 1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
