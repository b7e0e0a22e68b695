"""Frames of a video file, sampled as the official scorer does, with decord or PyAV.

decord is what the official scores were made with; it has wheels for x86-64 only, so PyAV stands in
elsewhere. Every failure is a MediaError with a sentence.
"""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from shardrank.actors.data import Video
from shardrank.actors.errors import (
    ImageTooLarge,
    MediaError,
    MediaUnreachable,
    VideoDecodeError,
    VideoReaderMissing,
    VideoTooLong,
    VideoTooShort,
)
from shardrank.actors.fetch.reader import MediaReader, name_of

MIN_FRAMES = 4
_EVEN = 2
_PIXELS_AT_ONCE = 1 << 27
"""Decoded before they are resized: 64 frames of full HD, one of the largest."""

_PROBED_BYTES = 1 << 20  # FFmpeg's probe looks no further (PROBE_BUF_MAX)
_CONTAINERS = re.compile(
    rb"""(?sx)
    ....(ftyp|moov|mdat|wide|free|skip)       # MP4, QuickTime
    | \x1aE\xdf\xa3                           # Matroska, WebM
    | RIFF....AVI[ ] | FLV\x01 | OggS\0
    | 0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel  # ASF, WMV
    """
)
_PLAYLISTS = re.compile(rb"(?i)#EXTM3U|c=IN IP")
_XML_PLAYLISTS = re.compile(rb"(?i)<MPD|<CompositionPlaylist")
"""What FFmpeg knows HLS and SDP by, and DASH and IMF, before the first null byte. Looking further
would find `<MPD`, in one case or the other, in the data of one honest video in 500.
"""


@dataclass(frozen=True, slots=True)
class SampledVideo:
    """Frames of a video file, as resized, and the time of each in seconds."""

    frames: np.ndarray  # (T, H, W, 3) uint8, T even
    times_s: list[float]


class _OpenVideo(Protocol):
    num_frames: int
    fps: float

    def frames(self, indices: Sequence[int], max_pixels: int) -> Iterator[np.ndarray]:
        """(t, H, W, 3) uint8, some frames after the other, so that not all are held at once."""
        ...


Resize = Callable[[np.ndarray, int], np.ndarray]
"""Some of a video's frames (t, H0, W0, 3) uint8 and the number of all to (t, H, W, 3)."""


def _as_decoded(frames: np.ndarray, num_frames: int) -> np.ndarray:
    return frames


def load_video(
    video: Video,
    reader: MediaReader,
    fps: float,
    max_frames: int,
    max_pixels: int,
    name: str | None = None,
    max_seconds: float | None = None,
    resize: Resize = _as_decoded,
) -> SampledVideo:
    """Sample a video file at `fps` (its own fps first), at most max_frames, an even number.

    Decoders may crash on damaged files, which VideoProcess keeps away from its caller. `name` is
    what error sentences say, instead of the path.
    """
    source: bytes | Path
    if isinstance(video.source, str):
        name = name or name_of(video.source)
        source = reader.local_path(video.source) or reader.read(video.source)
    else:
        assert video.source is not None
        name, source = name or f"a video of {len(video.source)} bytes", video.source
    try:
        _check_container(source)
        opened = _open(source)
        if opened.num_frames <= 0 or not 0 < opened.fps < math.inf:
            raise VideoTooShort(f"{name}: has no frames")
        seconds = opened.num_frames / opened.fps
        if max_seconds is not None and seconds > max_seconds:
            raise VideoTooLong(f"{name}: {seconds:.0f} s, over the limit of {max_seconds:.0f} s")
        indices = frame_indices(opened.num_frames, opened.fps, video.fps or fps, max_frames)
        if not indices:
            raise VideoTooShort(
                f"{name}: {opened.num_frames} frames, at most {max_frames} wanted: fewer than two"
            )
        frames = np.concatenate(
            [resize(some, len(indices)) for some in opened.frames(indices, max_pixels)]
        )
    except MediaError as error:
        raise type(error)(str(error) if name in str(error) else f"{name}: {error}") from error
    except Exception as error:  # the decoders raise many kinds on damaged files
        lines = str(error).strip().splitlines() or [""]
        raise VideoDecodeError(f"{name}: {type(error).__name__}: {lines[-1][:300]}") from error
    return SampledVideo(frames, [index / opened.fps for index in indices])


def frame_indices(num_frames: int, video_fps: float, fps: float, max_frames: int) -> list[int]:
    """Which frames are read; empty where fewer than two would be.

    Source: qwen_vl_utils 0.0.14 smart_nframes and _read_video_decord.
    """
    wanted = max(num_frames / video_fps * fps, MIN_FRAMES)
    wanted = min(wanted, max_frames // _EVEN * _EVEN, num_frames)
    count = math.floor(wanted / _EVEN) * _EVEN
    if count < _EVEN:
        return []
    return torch.linspace(0, num_frames - 1, count).round().long().tolist()


def _check_container(source: bytes | Path) -> None:
    """Only files that hold their video themselves.

    FFmpeg follows a playlist (HLS, SDP) to other hosts and to files outside the media root. Left
    out: MPEG streams and GIF, of which decord 0.6 gives wrong frames without a word, or none.
    """
    if isinstance(source, bytes):
        head = source[:_PROBED_BYTES]
    else:
        try:
            with source.open("rb") as file:
                head = file.read(_PROBED_BYTES)
        except OSError as error:
            raise MediaUnreachable(f"{error.strerror or error}") from error
    is_link = _PLAYLISTS.search(head) or _XML_PLAYLISTS.search(head.partition(b"\0")[0])
    if not _CONTAINERS.match(head) or is_link:
        raise VideoDecodeError(
            "not a video file that is read: MP4, QuickTime, Matroska, WebM, AVI, FLV, Ogg or WMV"
        )


def _open(source: bytes | Path) -> _OpenVideo:
    try:
        return _DecordVideo(source)
    except ImportError:
        pass
    try:
        return _PyAvVideo(source)
    except ImportError as error:
        raise VideoReaderMissing(
            "reading video files needs decord (x86-64) or PyAV: pip install decord, or av"
        ) from error


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageTooLarge(f"frames of {width} x {height} pixels, over the limit of {max_pixels}")


def _file(source: bytes | Path) -> io.BytesIO | str:
    """What both readers open; absolute, because FFmpeg takes "a:b.mp4" for protocol a."""
    return io.BytesIO(source) if isinstance(source, bytes) else str(source.absolute())


class _DecordVideo:
    def __init__(self, source: bytes | Path) -> None:
        import decord

        self._reader: Any = decord.VideoReader(_file(source), num_threads=1)
        self.num_frames = len(self._reader)
        self.fps = float(self._reader.get_avg_fps())

    def frames(self, indices: Sequence[int], max_pixels: int) -> Iterator[np.ndarray]:
        height, width, _ = self._reader[0].shape
        _check_size(height, width, max_pixels)
        at_once = max(1, _PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(indices), at_once):
            frames = self._reader.get_batch(list(indices[start : start + at_once])).asnumpy()
            if start + at_once < len(indices):
                self._reader.seek(0)  # or it would decode ahead, without bound, until it is asked
            yield frames


class _PyAvVideo:
    def __init__(self, source: bytes | Path) -> None:
        import av

        self._av: Any = av
        self._source = source
        with self._container() as container:
            stream = self._stream(container)
            self.fps = float(stream.average_rate or 0)
            self.num_frames = sum(1 for packet in container.demux(stream) if packet.size)

    def _container(self) -> Any:
        return self._av.open(_file(self._source))

    def _stream(self, container: Any) -> Any:
        if not container.streams.video:
            raise VideoDecodeError("has no video stream")
        return container.streams.video[0]

    def frames(self, indices: Sequence[int], max_pixels: int) -> Iterator[np.ndarray]:
        """Indices ascend; one that is asked for twice comes twice."""
        remaining = list(reversed(indices))
        with self._container() as container:
            stream = self._stream(container)
            _check_size(stream.height, stream.width, max_pixels)
            for index, frame in enumerate(container.decode(stream)):
                _check_size(frame.height, frame.width, max_pixels)
                while remaining and remaining[-1] == index:
                    remaining.pop()
                    yield _upright(frame)[None]
                if not remaining:
                    return
        raise VideoDecodeError(f"{len(remaining)} of {len(indices)} sampled frames do not decode")


def _upright(frame: Any) -> np.ndarray:
    """Turned as the file says, which decord does by itself: phones turn their videos so."""
    quarters = getattr(frame, "rotation", 0) / 90  # not every PyAV 14 tells it
    pixels = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, int(quarters)) if quarters.is_integer() else pixels
