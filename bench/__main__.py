"""`python -m bench`: the command line of the benchmark, the same as `shardrank bench`.

argparse, because a bare machine with a GPU has torch and transformers, and nothing for the job.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.checkpoints.presets import PRESETS
from bench.settings import CLASSES, OTHERS, PEERS, SCORED, BenchSettings, names_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 where our scores differ from plain transformers'; 2 for a wrong command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = vars(_parser().parse_args(arguments))
    with tempfile.TemporaryDirectory(prefix="shardrank-bench-") as temporary:
        settings = _settings(options, temporary)
        from bench.run import run_bench  # torch: seconds, which --help does not need

        return run_bench(settings, ["shardrank", "bench", *arguments])


def _settings(options: dict[str, Any], temporary: str) -> BenchSettings:
    if options["device"] == "auto":
        import torch

        options["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    is_cuda = options["device"].startswith("cuda")
    defaults = {
        "workdir": temporary,
        "dtype": "bfloat16" if is_cuda else "float32",
        "threads": None if is_cuda else 1,
        "page_tokens": PRESETS[options["preset"]].page_tokens,
        "alone": is_cuda,
    }
    chosen = defaults | {name: value for name, value in options.items() if value is not None}
    for name in ("engine", "peer_python"):
        chosen[name] = dict(chosen[name])
    chosen["workdir"] = Path(chosen["workdir"]).resolve()
    return BenchSettings(**chosen)


def _checked(kind: Callable[[str], Any], holds: Callable[[Any], bool], rule: str) -> Any:
    def value(text: str) -> Any:
        if not holds(kind(text)):
            raise argparse.ArgumentTypeError(f"must be {rule}, got {text}")
        return kind(text)

    return value


_above_zero = partial(_checked, holds=lambda number: number > 0, rule="above zero")


def _pair(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is not JSON is a string."""
    name, _, value = text.partition("=")
    if not value:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _peer_python(text: str) -> tuple[str, str]:
    name, python = _pair(text)
    names_of(*CLASSES)(name)
    return name, python


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shardrank bench",
        description="Time this engine and every other implementation that is installed, in turns, "
        "each in its own process, on a random checkpoint and workloads made here. Prints a table "
        "a workload; the last line is one JSON object. Scores are compared as they are timed: "
        "exit code 1 where ours are more than 1e-4 off plain transformers in float32.",
    )
    add = parser.add_argument
    add("--preset", default="mid", choices=PRESETS, help="shapes of the checkpoint (default: mid)")
    add(
        "--model",
        type=_checked(str, os.path.isdir, "a local checkpoint directory"),
        help="a local checkpoint in place of the preset's random one",
    )
    add(
        "--workloads",
        type=names_of(*SCORED, *OTHERS),
        default=",".join((*SCORED, "job")),
        help=f"comma-separated: {', '.join((*SCORED, *OTHERS))}; or all (default: %(default)s)",
    )
    add(
        "--peers",
        type=names_of(*PEERS),
        default="all",
        help=f"comma-separated: {', '.join(PEERS)}; all, or none (default: all)",
    )
    add(
        "--official",
        metavar="PATH",
        help="the official qwen3_vl_reranker.py, for the peer official",
    )
    add(
        "--peer-python",
        metavar="PEER=PYTHON",
        type=_peer_python,
        action="append",
        default=[],
        help="an interpreter of its own for a peer, such as vllm=/opt/vllm/bin/python",
    )
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on CUDA, else float32")
    add("--threads", type=int, help="CPU threads of everybody (default: 1 on CPU)")
    add("--max-batch-tokens", type=int, help="tokens of one forward of ours")
    add(
        "--engine",
        metavar="NAME=VALUE",
        type=_pair,
        action="append",
        default=[],
        help="another setting of our engine, a field of RerankerConfig",
    )
    add(
        "--rounds",
        type=_above_zero(int),
        default=3,
        help="timed rounds, of which the median counts (default: 3)",
    )
    add("--scale", type=_above_zero(float), default=1.0, help="size of the workloads (default: 1)")
    add(
        "--page-tokens",
        type=_above_zero(int),
        help="visual tokens of a page (default: the preset's)",
    )
    add("--seed", type=int, default=0, help="of weights, texts and images (default: 0)")
    add(
        "--time-limit-s",
        type=float,
        help="about so long for a workload: fewer rounds, and peers that score pair by pair or in "
        "padded batches get a part of it, which the table says",
    )
    add(
        "--alone",
        action=argparse.BooleanOptionalAction,
        help="one implementation in memory at a time (default: on CUDA)",
    )
    add(
        "--profile",
        metavar="WORKLOAD",
        choices=SCORED,
        help="also profile our engine on one workload",
    )
    add("--workdir", help="keeps checkpoints, images and logs for the next time (default: none)")
    add("--json", metavar="FILE", help="write the JSON object here too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
