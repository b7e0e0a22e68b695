"""Video files and JPEG 2000 decoded in a child process: decoders crash, or hang, on damaged files,
and strangers may have made a file that takes a decoder over, or gigabytes.

Of 533 damaged MP4 files decord 0.6 died on 19, and a dead worker takes its whole unit with it. The
child lives as long as its parent and is started again after a file that killed it; such a file is
not tried again.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from queue import LifoQueue
from typing import Any, BinaryIO, Protocol

import numpy as np

from shardrank.actors.config import QueryOptions, VideoReader
from shardrank.actors.data import Video
from shardrank.actors.errors import ImageDecodeError, RerankError, VideoDecodeError
from shardrank.actors.fetch.reader import MediaReader, name_of
from shardrank.actors.media import sandbox
from shardrank.actors.media.depth import ImageDepth
from shardrank.actors.media.images import decode_image
from shardrank.actors.media.pixels import video_file_pixels
from shardrank.actors.media.video import load_video

TIMEOUT_S = 300.0
"""The time for one file. Sampling 64 frames of an hour of video takes seconds."""
SILENCE_S = 30.0
"""Without a packet or a frame a decoder hangs."""
MAX_PROCESSES = 4
"""The most processes of one Preprocessor. One thread alone never starts a second."""

_MAX_LOST = 10_000
"""Files that one process keeps in mind of which a decoder died or hung."""
_MIN_BYTES = 4 << 30
_BYTES_PER_PIXEL = 32
"""What decoding one file may take, by the pixels that a frame may have: decord decodes ahead of
what it is asked for, and FFmpeg keeps up to 16 frames that later ones refer to.
"""

_ALIVE_EVERY_S = 1.0
_POLL_EVERY_S = 1.0
_GRACE_S = 30
"""After which the child ends itself: its parent, if it lives, has long stopped it."""
_MAX_CPUS = 4
"""That decoding one file may keep busy: the child's CPU seconds are limited to so many times the
seconds that it has.
"""

_ALIVE = None
"""What the child sends when it is ready, and then while packets or frames come."""

_STARTUP = (
    "import sys; from shardrank.actors.media.sandbox import enter; enter(); "
    "from shardrank.actors.media.video_process import serve; "
    "serve(*map(int, sys.argv[1:]))"
)


class DecoderLost(VideoDecodeError):
    """A file hung its decoder or killed it; trying again would cost as much."""


@dataclass(frozen=True, slots=True)
class _Request:
    video: Video  # its source is bytes or an absolute path
    name: str
    options: QueryOptions
    max_pixels: int
    max_seconds: float | None
    decoder: VideoReader
    timeout_s: float
    max_tokens: float = math.inf

    @property
    def key(self) -> str:
        """One a file, in every process and whatever it is called in an error: of its content, or
        of which version it is.
        """
        source = self.video.source
        assert source is not None
        if not isinstance(source, bytes):
            version: tuple[str | int, ...] = (source,)
            with suppress(OSError):  # it went just now, which its reader says
                status = os.stat(source)
                version = source, status.st_size, status.st_mtime_ns
            source = repr(version).encode("utf-8", "surrogateescape")
        return blake2b(source, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _ImageRequest:
    """Its decoder says nothing until it is done."""

    data: bytes
    name: str
    max_pixels: int
    depth: ImageDepth
    timeout_s: float = TIMEOUT_S

    @property
    def key(self) -> str:
        return blake2b(self.data, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection

    @classmethod
    def start(cls) -> "_Child":
        ours, theirs = Pipe()
        packages = str(Path(__file__).absolute().parents[3])
        path = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
        environment = sandbox.environment(os.environ)
        process = subprocess.Popen(
            [sys.executable, "-c", _STARTUP, str(theirs.fileno()), str(os.getpid())],
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
        try:
            if ours.poll(TIMEOUT_S):
                ours.recv()
                process.stderr.close()
                return child
        except (EOFError, OSError):
            pass
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
    """Samples and resizes video files in a child process; safe to call from several threads."""

    def __init__(
        self,
        timeout_s: float = TIMEOUT_S,
        silence_s: float = SILENCE_S,
        decoder: VideoReader = "pyav",
    ) -> None:
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._decoder: VideoReader = decoder
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._cleanup: Any = None

    def frames(
        self,
        video: Video,
        reader: MediaReader,
        options: QueryOptions,
        max_pixels: int,
        max_seconds: float | None = None,
    ) -> tuple[np.ndarray, list[float]]:
        """Resized frames (T, H, W, 3) uint8, T even, and the time of each in seconds.

        Raises a MediaError, DecoderLost where the child dies of the file or is too slow.
        """
        with _local(video, reader) as (local, name, file):
            return self.answer(
                _Request(
                    local, name, options, max_pixels, max_seconds, self._decoder, self._timeout_s
                ),
                file,
            )

    def answer(self, request: _Request | _ImageRequest, file: BinaryIO | None = None) -> Any:
        """What `frames` returns, or an image's pixels. file: what the request's path leads to."""
        with self._lock:
            reply = self._ask(request, file)
            if reply is None:  # killed by the file, or by somebody else: a second child tells
                reply = self._ask(request, file) or DecoderLost(
                    f"{request.name}: the decoder's process died of it, twice"
                )
        if isinstance(reply, RerankError):
            raise reply
        return reply

    def _ask(self, request: _Request | _ImageRequest, file: BinaryIO | None) -> Any:
        """The child's reply, an error where it is too slow, None where it died."""
        child = self._running()
        ends = time.monotonic() + request.timeout_s
        silence_s = self._silence_s if isinstance(request, _Request) else request.timeout_s
        try:
            child.connection.send(request)
            if file is not None:
                send_handle(child.connection, file.fileno(), child.process.pid)
            while child.connection.poll(min(silence_s, max(0.0, ends - time.monotonic()))):
                reply = child.connection.recv()
                if reply is not _ALIVE:
                    return reply
        except (EOFError, OSError):
            self._stop()
            return None
        self._stop()
        if time.monotonic() < ends:
            return DecoderLost(
                f"{request.name}: the decoder hung, with no packet and no frame for "
                f"{self._silence_s:.0f} s"
            )
        return DecoderLost(f"{request.name}: not decoded within {request.timeout_s:.0f} s")

    def _running(self) -> _Child:
        if self._child is None:
            self._child = _Child.start()
            self._cleanup = weakref.finalize(self, self._child.stop)
        return self._child

    def _stop(self) -> None:
        assert self._child is not None
        self._child.stop()
        self._cleanup.detach()
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
        while len(self._reasons) > _MAX_LOST:
            del self._reasons[next(iter(self._reasons))]


class VideoProcesses:
    """Several of them behind one `frames`: a file that hangs a decoder holds up one thread alone,
    and once: it is kept in mind, and who asks for it meanwhile waits without a process.

    Each starts its child when all before it are busy. `lost` may be replaced by a memory that other
    processes share.
    """

    def __init__(
        self,
        num_processes: int = MAX_PROCESSES,
        decoder: VideoReader = "pyav",
        silence_s: float = SILENCE_S,
    ) -> None:
        self._decoder: VideoReader = decoder
        self._idle: LifoQueue[VideoProcess] = LifoQueue()
        for _ in range(num_processes):
            self._idle.put(VideoProcess(silence_s=silence_s, decoder=decoder))
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
        """Frames by an idle VideoProcess, or the next to be. max_tokens: see video_file_pixels."""
        limits = max_pixels, max_seconds
        with _local(video, reader) as (local, name, file):
            request = _Request(local, name, options, *limits, self._decoder, TIMEOUT_S, max_tokens)
            return self._answer(request, file)

    def image(self, data: bytes, name: str, max_pixels: int, depth: ImageDepth) -> np.ndarray:
        """(H, W, 3) uint8: load_image in a child. Raises a MediaError."""
        try:
            return self._answer(_ImageRequest(data, name, max_pixels, depth))
        except DecoderLost as error:
            raise ImageDecodeError(str(error)) from error

    def _answer(self, request: _Request | _ImageRequest, file: BinaryIO | None = None) -> Any:
        with self._alone(request):
            process = self._idle.get()
            try:
                return process.answer(request, file)
            finally:
                self._idle.put(process)

    @contextmanager
    def _alone(self, request: _Request | _ImageRequest) -> Iterator[None]:
        """Nobody else decodes the file meanwhile. Raises DecoderLost where one was lost to it."""
        key = request.key
        with self._changed:
            self._changed.wait_for(lambda: key not in self._in_work)
            why = self.lost.lost_video(key)
            if why is not None:
                raise DecoderLost(f"{request.name}: {why} (not tried again)")
            self._in_work.add(key)
        try:
            yield
        except DecoderLost as error:
            self.lost.lose_video(key, str(error).removeprefix(f"{request.name}: "))
            raise
        finally:
            with self._changed:
                self._in_work.discard(key)
                self._changed.notify_all()


@contextmanager
def _local(video: Video, reader: MediaReader) -> Iterator[tuple[Video, str, BinaryIO | None]]:
    """The video as bytes or an absolute path, its name in error sentences, and what is open of it:
    the path may lead elsewhere by the time that it is decoded.
    """
    source = video.source
    assert source is not None
    if isinstance(source, bytes):
        yield video, f"a video of {len(source)} bytes", None
        return
    file = reader.open_local(source)
    if file is None:
        yield Video(reader.read(source), fps=video.fps), name_of(source), None
        return
    with file:
        yield Video(str(file.name), fps=video.fps), name_of(source), file


def serve(handle: int, parent: int) -> None:
    """The child: answer requests until the parent, a process's number, is gone."""
    import torch  # noqa: F401 (before the first file's time begins)

    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection = Connection(handle)
    reader = MediaReader()
    at_start = _data_bytes()
    alive = _Alive(connection)
    os.dup2(1, 2)  # to nowhere: FFmpeg writes a line for every damaged frame
    connection.send(_ALIVE)
    while True:
        try:
            request = connection.recv()
            file = recv_handle(connection) if _has_path(request) else None
        except EOFError:
            return
        _limit_memory(at_start + max(_MIN_BYTES, _BYTES_PER_PIXEL * request.max_pixels))
        within = math.ceil(request.timeout_s) + _GRACE_S
        sandbox.limit_cpu(within * _MAX_CPUS)
        signal.alarm(within)
        reply = _answer(request, file, reader, alive)
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
        if now - self._told_at >= _ALIVE_EVERY_S:
            self._told_at = now
            self._connection.send(_ALIVE)


def _end_with(parent: int) -> None:
    """While a file is decoded nobody sees that the pipe is closed.

    This thread runs meanwhile, as decord and PyAV decode without the GIL. A decoder that hangs and
    keeps it is ended by the alarm, which needs no Python. PR_SET_PDEATHSIG would not do: it comes
    when the thread that started the child ends, and its process may live on.
    """
    while os.getppid() == parent:
        time.sleep(_POLL_EVERY_S)
    os._exit(1)


def _data_bytes() -> int:
    """What _limit_memory limits, as of now; Linux alone counts it."""
    if sys.platform != "linux":
        return 0
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _limit_memory(size_bytes: int) -> None:
    """Beyond it allocations fail, of which the decoder dies: sooner it than the whole machine."""
    if sys.platform == "linux":
        import resource  # no such module on Windows

        _, hardest = resource.getrlimit(resource.RLIMIT_DATA)
        within = size_bytes if hardest == resource.RLIM_INFINITY else min(size_bytes, hardest)
        resource.setrlimit(resource.RLIMIT_DATA, (within, hardest))


def _has_path(request: _Request | _ImageRequest) -> bool:
    """Then the open file follows the request."""
    return isinstance(request, _Request) and isinstance(request.video.source, str)


def _answer(
    request: _Request | _ImageRequest, file: int | None, reader: MediaReader, alive: _Alive
) -> np.ndarray | tuple[np.ndarray, list[float]] | RerankError:
    if isinstance(request, _ImageRequest):
        try:
            limits = request.max_pixels, request.depth
            return np.asarray(decode_image(request.data, request.name, *limits))
        except RerankError as error:
            return error
    options, video = request.options, request.video
    assert options.fps is not None and options.max_frames is not None
    if file is not None:
        video = Video(f"/dev/fd/{file}", fps=video.fps)
    try:
        sampled = load_video(
            video,
            reader,
            options.fps,
            options.max_frames,
            request.max_pixels,
            request.name,
            request.max_seconds,
            lambda frames, num_frames: video_file_pixels(
                frames, options, num_frames, request.max_tokens
            ),
            request.decoder,
            alive,
        )
        return sampled.frames, sampled.times_s
    except RerankError as error:
        if file is None:
            return error
        return type(error)(str(error).replace(str(video.source), str(request.video.source)))
