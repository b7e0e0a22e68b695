"""`python -m bench`: the command line of the benchmark, the same as `shardrank bench`.

argparse, because a bare machine with a GPU has torch and transformers, and nothing for the job.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.presets import NAMES, PRESETS
from bench.settings import OTHERS, PEERS, SCORED, BenchSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 where our scores differ from plain transformers'; 2 for a wrong command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="shardrank-bench-") as temporary:
        try:
            settings = _settings(options, Path(options.workdir or temporary).resolve())
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        from bench.run import run_bench  # torch: seconds, which --help does not need

        return run_bench(settings, ["shardrank", "bench", *arguments])


def _settings(options: argparse.Namespace, workdir: Path) -> BenchSettings:
    device = _device(options.device)
    default_dtype = "bfloat16" if device.startswith("cuda") else "float32"
    threads = options.threads or (None if device.startswith("cuda") else 1)
    return BenchSettings(
        workdir=workdir,
        preset=options.preset,
        model=options.model,
        workloads=_names(options.workloads, (*SCORED, *OTHERS)),
        peers=_names(options.peers, PEERS),
        peer_pythons=dict(map(_pair, options.peer_python)),
        official=options.official,
        device=device,
        dtype=options.dtype or default_dtype,
        threads=threads,
        max_batch_tokens=options.max_batch_tokens,
        engine={name: _value(text) for name, text in map(_pair, options.engine)},
        rounds=options.rounds,
        scale=options.scale,
        page_tokens=options.page_tokens or PRESETS[options.preset].page_tokens,
        seed=options.seed,
        time_limit_s=options.time_limit_s,
        alone=device.startswith("cuda") if options.alone is None else options.alone,
        profile=options.profile,
        json_file=options.json,
    )


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _names(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    if text == "all":
        return known
    return tuple(name for name in text.split(",") if name and name != "none")


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not value:
        raise ValueError(f"--peer-python and --engine must be NAME=VALUE, got {text!r}")
    return name, value


def _value(text: str) -> Any:
    """A number, true, false or null as JSON has them; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shardrank bench",
        description="Time this engine and every other implementation that is installed, in turns, "
        "each in its own process, on a random checkpoint and workloads made here. Prints a table "
        "a workload; the last line is one JSON object. Scores are compared as they are timed: "
        "exit code 1 where ours are more than 1e-4 off plain transformers in float32.",
    )
    add = parser.add_argument
    add("--preset", default="mid", choices=NAMES, help="shapes of the checkpoint (default: mid)")
    add("--model", help="a local checkpoint in place of the preset's random one")
    add(
        "--workloads",
        default=",".join((*SCORED, "job")),
        help=f"comma-separated: {', '.join((*SCORED, *OTHERS))}; or all (default: %(default)s)",
    )
    add(
        "--peers",
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
        action="append",
        default=[],
        help="another setting of our engine, a field of RerankerConfig",
    )
    add(
        "--rounds",
        type=int,
        default=3,
        help="timed rounds, of which the median counts (default: 3)",
    )
    add("--scale", type=float, default=1.0, help="size of the workloads (default: 1)")
    add("--page-tokens", type=int, help="visual tokens of a page (default: the preset's)")
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
    add("--profile", metavar="WORKLOAD", help="also profile our engine on one workload")
    add("--workdir", help="keeps checkpoints, images and logs for the next time (default: none)")
    add("--json", metavar="FILE", help="write the JSON object here too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
