"""Video files, PDFs and JPEG 2000 decoded in child processes: decoders crash, or hang, on damaged
files, and strangers may have made a file that takes a decoder over, or gigabytes.

Of 533 damaged MP4 files decord 0.6 died on 19, and a dead worker takes its whole unit with it. A
child lives as long as its parent and is started again after a file that killed it; such a file is
not tried again.
"""

import math
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import send_handle
from pathlib import Path
from queue import LifoQueue
from typing import Any, BinaryIO, Protocol

import numpy as np

from shardrank.actors.config import QueryOptions, VideoReader
from shardrank.actors.data import PdfPage, Video
from shardrank.actors.errors import (
    ImageDecodeError,
    PdfDecodeError,
    RerankError,
    VideoDecodeError,
)
from shardrank.actors.fetch.reader import MediaReader, name_of
from shardrank.actors.media import sandbox
from shardrank.actors.media.depth import ImageDepth
from shardrank.actors.media.pdf import PdfFile, num_pages, page_pixels, page_text
from shardrank.actors.media.video import VideoRequest
from shardrank.actors.media.video_child import (
    ALIVE,
    Task,
    decoded_image,
    decoded_video,
    read_pdf,
)

TIMEOUT_S = 300.0
"""The time for one file. Sampling 64 frames of an hour of video takes seconds."""
PDF_TIMEOUT_S = 60.0
"""The time for one page of a PDF: few bytes can ask for any number of strokes."""
SILENCE_S = 30.0
"""Without a packet or a frame a decoder hangs."""
MAX_PROCESSES = 4
"""The most processes of one Preprocessor. One thread alone never starts a second."""
_MAX_LOST = 10_000
"""Files that one process keeps in mind of which a decoder died or hung."""
_STARTUP = (
    "import sys; from shardrank.actors.media.sandbox import enter; enter(); "
    "from shardrank.actors.media.video_child import serve; serve(*map(int, sys.argv[1:]))"
)


class DecoderLost(VideoDecodeError):
    """A file hung its decoder or killed it; trying again would cost as much."""


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection

    @classmethod
    def start(cls, decodes_videos: bool) -> "_Child":
        ours, theirs = Pipe()
        packages = str(Path(__file__).absolute().parents[3])
        path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
        environment = sandbox.environment(os.environ)
        arguments = theirs.fileno(), os.getpid(), int(decodes_videos)
        process = subprocess.Popen(
            [sys.executable, "-c", _STARTUP, *map(str, arguments)],
            pass_fds=[theirs.fileno()],
            env=environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # until it is ready
            start_new_session=True,  # Ctrl-C is for the job: here it would look like a bad file
        )
        theirs.close()
        assert process.stderr is not None
        child = cls(process, ours)
        with suppress(EOFError, OSError):
            if ours.poll(TIMEOUT_S):
                ours.recv()
                process.stderr.close()
                return child
        child.stop()
        why = child._last_words() or "it says nothing"
        raise VideoDecodeError(f"the process that decodes media does not start: {why}")

    def _last_words(self) -> str:
        """What it wrote last; whoever else has its pipe is not waited for."""
        assert self.process.stderr is not None
        with self.process.stderr as written, suppress(BlockingIOError):
            os.set_blocking(written.fileno(), False)
            lines = os.read(written.fileno(), 1 << 16).decode("utf-8", "replace").split("\n")
            return next((line[:300] for line in reversed(lines) if line.strip()), "")
        return ""

    def stop(self) -> None:
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class VideoProcess:
    """A child that decodes one file after the other, for one thread at a time."""

    def __init__(self, decodes_videos: bool = True) -> None:
        self._decodes_videos = decodes_videos
        self._child: _Child | None = None

    def answer(self, task: Task, file: BinaryIO | None) -> Any:
        """What the task decodes. Raises its RerankError, DecoderLost where the child dies of the
        file or is too slow. file: what the task's path leads to.
        """
        # Killed by the file, or by somebody else: a second child tells.
        reply = self._ask(task, file) or self._ask(task, file)
        if reply is None:
            raise DecoderLost(f"{task.name}: the decoder's process died of it, twice")
        if isinstance(reply[0], RerankError):
            raise reply[0]
        return reply[0]

    def _ask(self, task: Task, file: BinaryIO | None) -> tuple[Any] | None:
        """The child's reply, an error where it is too slow; None where it died. A child that has
        not replied ends, also on Ctrl-C: what it still sends would pass for the next file's.
        """
        if self._child is None:
            self._child = _Child.start(self._decodes_videos)
            self._cleanup = weakref.finalize(self, self._child.stop)
        connection, ends = self._child.connection, time.monotonic() + task.timeout_s
        has_replied = False
        try:
            connection.send((task, file is not None))
            if file is not None:
                send_handle(connection, file.fileno(), self._child.process.pid)
            while connection.poll(min(task.silence_s, max(0.0, ends - time.monotonic()))):
                reply = connection.recv()
                if reply is not ALIVE:
                    has_replied = True
                    return (reply,)
            said = f"not decoded within {task.timeout_s:.0f} s"
            if time.monotonic() < ends:
                said = f"the decoder hung, with no packet and no frame for {task.silence_s:.0f} s"
            return (DecoderLost(f"{task.name}: {said}"),)
        except (EOFError, OSError):
            return None
        finally:
            if not has_replied:
                self._cleanup()
                self._child = None


class LostVideos(Protocol):
    """The files that a decoder was lost to, each by its key and with the reason."""

    def lost_video(self, key: str) -> str | None: ...
    def lose_video(self, key: str, why: str) -> None: ...


class _LostHere:
    """Those of this process, the latest of them."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def lost_video(self, key: str) -> str | None:
        return self._reasons.get(key)

    def lose_video(self, key: str, why: str) -> None:
        self._reasons[key] = why
        if len(self._reasons) > _MAX_LOST:
            del self._reasons[next(iter(self._reasons))]


class VideoProcesses:
    """Several processes behind one `frames`: a file that hangs a decoder holds up one thread alone,
    and once: it is kept in mind, and who asks for it meanwhile waits without a process.

    Each starts its child when all before it are busy. `lost` may be replaced by a memory that other
    processes share. decodes_videos: False starts them in a tenth of the time.
    """

    def __init__(
        self,
        num_processes: int = MAX_PROCESSES,
        decoder: VideoReader = "pyav",
        silence_s: float = SILENCE_S,
        timeout_s: float = TIMEOUT_S,
        decodes_videos: bool = True,
    ) -> None:
        self._decoder: VideoReader = decoder
        self._silence_s, self._timeout_s = silence_s, timeout_s
        self._idle: LifoQueue[VideoProcess] = LifoQueue()
        for _ in range(num_processes):
            self._idle.put(VideoProcess(decodes_videos))
        self.lost: LostVideos = _LostHere()
        self._in_work: set[str] = set()
        self._changed = threading.Condition()

    def frames(
        self,
        video: Video,
        reader: MediaReader,
        options: QueryOptions,
        max_pixels: int,
        max_seconds: float | None = None,
        max_tokens: float = math.inf,
    ) -> tuple[np.ndarray, list[float]]:
        """Resized frames (T, H, W, 3) uint8, T even, and the time of each in seconds, by an idle
        process, or the next to be. Raises a MediaError. max_tokens: see video_file_pixels.
        """
        assert video.source is not None
        with _local(video.source, reader, "a video") as (source, name, file):
            request = VideoRequest(
                source, name, options, max_pixels, video.fps, max_seconds, self._decoder
            )
            decode = partial(decoded_video, request, max_tokens)
            limits = max_pixels, self._timeout_s, self._silence_s
            return self._answer(Task(name, _key(source), decode, *limits), file)

    def image(self, data: bytes, name: str, max_pixels: int, depth: ImageDepth) -> np.ndarray:
        """(H, W, 3) uint8: load_image in a child. Raises a MediaError."""
        decode = partial(decoded_image, data, name, max_pixels, depth)
        limits = max_pixels, TIMEOUT_S, TIMEOUT_S  # its decoder says nothing until it is done
        try:
            return self._answer(Task(name, _key(data), decode, *limits))
        except DecoderLost as error:
            raise ImageDecodeError(str(error)) from error

    def pdf_page(
        self,
        page: PdfPage,
        reader: MediaReader,
        options: QueryOptions,
        max_pages: int,
        max_pixels: int,
        max_tokens: float = math.inf,
    ) -> np.ndarray:
        """(H, W, 3) uint8: page_pixels in a child. Raises a MediaError."""
        read = partial(
            page_pixels,
            number=page.number,
            options=options,
            max_pages=max_pages,
            max_pixels=max_pixels,
            max_tokens=max_tokens,
        )
        return self._pdf(page.source, reader, read, f"page {page.number}", max_pixels)

    def pdf_text(self, page: PdfPage, reader: MediaReader, max_pages: int, max_chars: int) -> str:
        """page_text in a child. Raises a RerankError."""
        read = partial(page_text, number=page.number, max_pages=max_pages, max_chars=max_chars)
        return self._pdf(page.source, reader, read, f"text {page.number}")

    def num_pdf_pages(self, source: bytes | str, reader: MediaReader, max_pages: int) -> int:
        """num_pages in a child. Raises a MediaError."""
        return self._pdf(source, reader, partial(num_pages, max_pages=max_pages), "pages")

    def _pdf(
        self,
        source: bytes | str,
        reader: MediaReader,
        read: Callable[[PdfFile, str], Any],
        what: str,
        max_pixels: int = 0,
    ) -> Any:
        """what: is asked of the file: a page that its reader is lost to is no other's error."""
        with _local(source, reader, "a PDF") as (data, name, file):
            decode = partial(read_pdf, read, data, name)
            limit_s = min(self._timeout_s, PDF_TIMEOUT_S)
            key = f"{_key(data)} {what}"
            try:
                return self._answer(Task(name, key, decode, max_pixels, limit_s, limit_s), file)
            except DecoderLost as error:
                raise PdfDecodeError(str(error)) from error

    def _answer(self, task: Task, file: BinaryIO | None = None) -> Any:
        with self._alone(task):
            process = self._idle.get()
            try:
                return process.answer(task, file)
            finally:
                self._idle.put(process)

    @contextmanager
    def _alone(self, task: Task) -> Iterator[None]:
        """Nobody else decodes the file meanwhile. Raises DecoderLost where one was lost to it."""
        with self._changed:
            self._changed.wait_for(lambda: task.key not in self._in_work)
            why = self.lost.lost_video(task.key)
            if why is not None:
                raise DecoderLost(f"{task.name}: {why} (not tried again)")
            self._in_work.add(task.key)
        try:
            yield
        except DecoderLost as error:
            self.lost.lose_video(task.key, str(error).removeprefix(f"{task.name}: "))
            raise
        finally:
            with self._changed:
                self._in_work.discard(task.key)
                self._changed.notify_all()


def _key(source: bytes | Path) -> str:
    """One a file, in every process and whatever it is called in an error: of its content, or of
    which version it is.
    """
    if isinstance(source, Path):
        version: tuple[str | int, ...] = (str(source),)
        with suppress(OSError):  # it went just now, which its reader says
            status = os.stat(source)
            version = str(source), status.st_size, status.st_mtime_ns
        source = repr(version).encode("utf-8", "surrogateescape")
    return blake2b(source, digest_size=16).hexdigest()


@contextmanager
def _local(
    source: bytes | str, reader: MediaReader, what: str
) -> Iterator[tuple[bytes | Path, str, BinaryIO | None]]:
    """The file as bytes or an absolute path, its name in error sentences, and what is open of it:
    the path may lead elsewhere by the time that it is decoded.
    """
    if isinstance(source, bytes):
        yield source, f"{what} of {len(source)} bytes", None
    elif (file := reader.open_local(source)) is None:
        yield reader.read(source), name_of(source), None
    else:
        with file:
            yield Path(file.name), name_of(source), file
