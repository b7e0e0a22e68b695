"""What a measured implementation and the benchmark say to each other, in lines of JSON.

A peer is a class of this package, started as `python -m bench.peers MODULE:CLASS SETTINGS` with an
interpreter that may have nothing of ours installed: standard library only, here and at the top of
every peer that is not ours. It says, once, {"label", "versions", "work", "batch_sizes"}; then for
every line {"call": method, "argument", "batch_size"} it answers {"result", "seconds",
"cpu_seconds", "peak_rss_bytes", "peak_device_bytes"}, and stays for the next. What goes wrong is
{"error": sentence}. The end of stdin ends it.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from bench.peers.usage import cpu_seconds, peak_rss_bytes

# {"text": str}, {"image": path}, or {"video": {"frames": paths, "fps": float}}
Content = dict[str, Any]
# {"query": Content, "documents": [Content, ...]}, for the default instruction
CandidateSet = dict[str, Any]


@dataclass(frozen=True)
class PeerSettings:
    """How a peer is to run. Defaults of None are the peer's own choice.

    model: a checkpoint directory. dtype: "float32" or "bfloat16". extra: options of one peer,
    such as the path of the official script.
    """

    model: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = 1
    max_batch_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Unavailable(Exception):
    """The peer cannot run here, or not this workload; the message says in one sentence why."""


class Peer:
    """An implementation with its checkpoint loaded by __init__(settings).

    work: what it computes, for the bound: "one_by_one" (each pair alone, nothing shared), "padded"
    (batches of `batch_size` pairs in input order, padded to their longest), "sorted_padded" (the
    same, by falling length), "prefix_cached" (the pairs' common prefixes once, by whole blocks of
    16 tokens), "needed" (ours). "padded:8" and "prefix_cached:32" name another batch's or block's
    size. batch_sizes: those to try, of which the benchmark sets `batch_size` before each call.
    """

    label = ""
    work = "one_by_one"
    packages: tuple[str, ...] = ("torch", "transformers")
    batch_sizes: tuple[int, ...] = ()
    batch_size: int | None = None

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        """One list a set, one score a document, in order, from strings and paths.

        This is what is timed. An exception is this workload's failure, and its last line is shown.
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what caches hold of earlier calls, because a workload is timed again."""

    def close(self) -> None:
        """Called at the end."""


def main() -> None:
    """The whole life of a peer's process. Nothing but the protocol reaches its stdout."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr
    settings = PeerSettings(**json.loads(sys.argv[2]))
    _keep_to_cores(settings)
    peer = Peer()

    def start() -> dict[str, Any]:
        nonlocal peer
        module, _, name = sys.argv[1].partition(":")
        peer = getattr(import_module(module), name)(settings)
        versions = {package: importlib.metadata.version(package) for package in peer.packages}
        own = {name: getattr(peer, name) for name in ("label", "work", "batch_sizes")}
        return own | {"versions": versions}

    print(json.dumps(_tried(start)), file=answers, flush=True)
    for line in sys.stdin:
        answer = _tried(partial(_measured, peer, **json.loads(line)))
        print(json.dumps(answer), file=answers, flush=True)
    peer.close()


def _tried(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return run()
    except ModuleNotFoundError as error:
        return {"error": f"{error.name} is not installed here"}
    except Unavailable as error:
        return {"error": str(error)}
    except Exception as error:  # any library's; the process stays for the next workload
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"error": ": ".join([type(error).__name__, *lines[-1:]])[:300]}


def _measured(peer: Peer, call: str, argument: Any, batch_size: int | None) -> dict[str, Any]:
    peer.batch_size = batch_size
    peer.forget()
    gc.collect()
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
    cpu_before, before = cpu_seconds(), time.perf_counter()
    result = getattr(peer, call)(argument)
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()
    return {
        "result": result,
        "seconds": time.perf_counter() - before,
        "cpu_seconds": cpu_seconds() - cpu_before,
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_device_bytes": None if cuda is None else int(cuda.max_memory_reserved()),
    }


def _cuda() -> Any:
    """torch.cuda where this process uses it, else None. Imports nothing."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _keep_to_cores(settings: PeerSettings) -> None:
    """On a CPU as many cores as threads, for the process and those that it starts: some peers
    share their work among processes, and would have more of the machine than the others.
    """
    if settings.threads and settings.device == "cpu" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-settings.threads :])
