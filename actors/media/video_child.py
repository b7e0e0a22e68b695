"""The child process in which files are decoded: it answers one task after the other.

Whoever starts it has made it give up what it can (sandbox); each file's memory and time are limited
here.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np

from shardrank.actors.errors import RerankError
from shardrank.actors.media import sandbox
from shardrank.actors.media.depth import ImageDepth
from shardrank.actors.media.images import decode_image
from shardrank.actors.media.pdf import PdfFile
from shardrank.actors.media.pixels import video_file_pixels
from shardrank.actors.media.video import SampledVideo, VideoRequest, load_video
from shardrank.actors.media.video_frames import Progress

_MIN_BYTES = 4 << 30
_BYTES_PER_PIXEL = 32
"""What decoding one file may take, by the pixels that a frame may have: decord decodes ahead of
what it is asked for, and FFmpeg keeps up to 16 frames that later ones refer to.
"""
ALIVE_EVERY_S = 1.0
_POLL_EVERY_S = 1.0
_GRACE_S = 30
"""After which the child ends itself: its parent, if it lives, has long stopped it."""
_MAX_CPUS = 4
"""That decoding one file may keep busy: the child's CPU seconds are limited to so many times the
seconds that it has.
"""
ALIVE = None
"""What the child sends when it is ready, and then while packets or frames come."""


@dataclass(frozen=True, slots=True)
class Task:
    """A file to decode. decode takes the number of the open file, or None, and whom to tell of
    progress.

    name: in error sentences; key: the same in every process; silence_s: how long nothing may come.
    """

    name: str
    key: str
    decode: Callable[[int | None, Progress], Any]
    max_pixels: int
    timeout_s: float
    silence_s: float


def decoded_video(
    request: VideoRequest, max_tokens: float, file: int | None, progress: Progress
) -> SampledVideo:
    """The frames resized. file: what the request's path led to when it was checked."""
    source = request.source if file is None else Path(f"/dev/fd/{file}")
    try:
        return load_video(
            replace(request, source=source),
            lambda frames, count: video_file_pixels(frames, request.options, count, max_tokens),
            progress,
        )
    except RerankError as error:
        if file is None:
            raise
        raise type(error)(str(error).replace(str(source), str(request.source))) from error


def decoded_image(
    data: bytes, name: str, max_pixels: int, depth: ImageDepth, file: None, progress: Progress
) -> np.ndarray:
    return np.asarray(decode_image(data, name, max_pixels, depth))


def read_pdf(
    read: Callable[[PdfFile, str], Any],
    source: bytes | Path,
    name: str,
    file: int | None,
    progress: Progress,
) -> Any:
    """What `read` makes of a PDF and its name. file: as of decoded_video."""
    if file is None:
        assert isinstance(source, bytes)
        return read(source, name)
    with os.fdopen(file, "rb", closefd=False) as opened:
        return read(opened, name)


def serve(handle: int, parent: int, decodes_videos: int) -> None:
    """Answers tasks until the parent, a process's number, is gone. decodes_videos: 0 is no."""
    if decodes_videos:
        import torch  # noqa: F401 (before the first file's time begins)

    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection = Connection(handle)
    at_start = sandbox.data_bytes()
    alive = _Alive(connection)
    os.dup2(1, 2)  # to nowhere: FFmpeg writes a line for every damaged frame
    connection.send(ALIVE)
    while True:
        try:
            task, has_file = connection.recv()
            file = recv_handle(connection) if has_file else None
        except EOFError:
            return
        within = math.ceil(task.timeout_s) + _GRACE_S
        size_bytes = at_start + max(_MIN_BYTES, _BYTES_PER_PIXEL * task.max_pixels)
        sandbox.limit_work(size_bytes, within * _MAX_CPUS)
        signal.alarm(within)
        try:
            reply = task.decode(file, alive)
        except RerankError as error:
            reply = error
        signal.alarm(0)
        if file is not None:
            os.close(file)
        connection.send(reply)


class _Alive:
    """Tells the parent that packets or frames come, not more often than it needs to know."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told_at = 0.0

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._told_at >= ALIVE_EVERY_S:
            self._told_at = now
            self._connection.send(ALIVE)


def _end_with(parent: int) -> None:
    """While a file is decoded nobody sees that the pipe is closed.

    This thread runs meanwhile, as decord and PyAV decode without the GIL. A decoder that hangs and
    keeps it is ended by the alarm, which needs no Python. PR_SET_PDEATHSIG would not do: it comes
    when the thread that started the child ends, and its process may live on.
    """
    while os.getppid() == parent:
        time.sleep(_POLL_EVERY_S)
    os._exit(1)
