"""What a measured implementation and the benchmark say to each other, in lines of JSON.

A peer is a file of this package, started as `python -m bench.peers.NAME SETTINGS` with an
interpreter that may have nothing of ours installed: standard library only, here and at the top of
every peer that is not ours. It ends with

    if __name__ == "__main__":
        serve(make_peer)

where `make_peer(settings)` imports what it needs, loads the checkpoint and returns a Peer, or
raises Unavailable. It says, once, {"ready": true, "label", "versions", "work", "batch_sizes"} or
{"unavailable": sentence}; then for every line {"workload": path, "batch_size": int | null} it
answers {"seconds", "cpu_seconds", "scores", "peak_rss_bytes", "peak_device_bytes"} or
{"error": sentence}, and stays for the next. The end of stdin ends it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from bench.peers.usage import cpu_seconds, peak_rss_bytes

Content = dict[str, Any]
"""{"text"?: str, "image"?: path or paths, "video"?: path of a file, or {"frames": paths, "fps"}}"""
CandidateSet = dict[str, Any]
"""{"query": Content, "instruction": str | None, "documents": [Content, ...]}"""


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
    batch_size: int | None = None
    max_batch_tokens: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Peer(Protocol):
    """An implementation with its checkpoint loaded.

    work: what it computes, for the bound: "one_by_one" (each pair alone, nothing shared), "padded"
    (batches of `batch_size` pairs in input order, padded to their longest), "sorted_padded" (the
    same, by falling length), "prefix_cached" (the pairs' common prefixes once, by whole blocks of
    16 tokens), "needed" (ours). "padded:8" and "prefix_cached:32" name another batch's or block's
    size.
    Optional attributes: `batch_sizes`, a tuple of the sizes to try, of which the benchmark sets
    `batch_size` before each call of `score`; `forget()`, called before each, which drops what
    caches hold of earlier calls, because a workload is timed again; `peak_device_bytes()` where the
    device's memory is held by another process; `close()`, called at the end.
    """

    label: str
    versions: dict[str, str]
    work: str

    def score(self, sets: list[CandidateSet]) -> list[list[float]]:
        """One list a set, one score a document, in order, from strings and paths.

        This is what is timed. An exception is this workload's failure, and its last line is shown.
        """


class Unavailable(Exception):
    """The peer cannot run here, or not this workload; the message says in one sentence why."""


def serve(make_peer: Callable[[PeerSettings], Peer]) -> None:
    """The whole life of a peer's process. Nothing but the protocol reaches its stdout."""
    answers = _own_stdout()
    settings = PeerSettings(**json.loads(sys.argv[1]))
    _limit_threads(settings)
    try:
        peer = make_peer(settings)
    except (Unavailable, ImportError) as error:
        _say(answers, {"unavailable": _sentence(error)})
        return
    except Exception as error:  # any library's; the benchmark goes on with the other peers
        traceback.print_exc()
        _say(answers, {"unavailable": f"{type(error).__name__}: {_sentence(error)}"})
        return
    _say(answers, _introduction(peer, settings))
    for line in sys.stdin:
        _say(answers, _answer(peer, json.loads(line)))
    close = getattr(peer, "close", None)
    if close is not None:
        close()


def _own_stdout() -> TextIO:
    """The real stdout; what libraries print goes to stderr from now on."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _limit_threads(settings: PeerSettings) -> None:
    """For libraries that read the environment when they are imported, which is still to come.

    On a CPU also as many cores as threads, for the process and those that it starts: some peers
    share their work among processes, and would have more of the machine than the others.
    """
    if settings.threads is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(settings.threads)
    if settings.device == "cpu" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-settings.threads :])


def _introduction(peer: Peer, settings: PeerSettings) -> dict[str, Any]:
    sizes = tuple(getattr(peer, "batch_sizes", ()))
    if settings.batch_size is not None and sizes:
        sizes = (settings.batch_size,)
    return {
        "ready": True,
        "label": peer.label,
        "versions": peer.versions,
        "work": peer.work,
        "batch_sizes": sizes,
    }


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    sets = json.loads(Path(request["workload"]).read_text(encoding="utf-8"))["sets"]
    if request.get("batch_size") is not None:
        peer.batch_size = request["batch_size"]  # type: ignore[attr-defined]
    forget = getattr(peer, "forget", None)
    if forget is not None:
        forget()
    gc.collect()
    _reset_device_peak()
    cpu_before, before = cpu_seconds(), time.perf_counter()
    try:
        scores = peer.score(sets)
        _synchronize()
    except Unavailable as error:
        return {"error": _sentence(error)}
    except Exception as error:  # any library's; the process stays for the next workload
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {_sentence(error)}"}
    seconds = time.perf_counter() - before
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu_before,
        "scores": scores,
        "peak_rss_bytes": peak_rss_bytes(),
        "peak_device_bytes": _peak_device_bytes(peer),
    }


def _cuda() -> Any:
    """torch.cuda where this process uses it, else None. Imports nothing."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _synchronize() -> None:
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()


def _reset_device_peak() -> None:
    cuda = _cuda()
    if cuda is not None:
        cuda.synchronize()
        cuda.reset_peak_memory_stats()


def _peak_device_bytes(peer: Peer) -> int | None:
    own = getattr(peer, "peak_device_bytes", None)
    if own is not None:
        return int(own())
    cuda = _cuda()
    return None if cuda is None else int(cuda.max_memory_reserved())


def _sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)
