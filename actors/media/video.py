"""Frames of a video file, sampled as the official scorer does, with PyAV or decord.

PyAV gives the frames that a sequential decode shows. decord, which the official scores were made
with, gives others for edit lists, open groups of pictures, and B-frames in AVI and WMV.
Every failure is a MediaError with a sentence.
"""

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardrank.actors.config import QueryOptions, VideoReader
from shardrank.actors.errors import (
    MediaError,
    MediaUnreachable,
    VideoDecodeError,
    VideoReaderMissing,
    VideoTooLong,
    VideoTooShort,
)
from shardrank.actors.media.decord_frames import DecordVideo
from shardrank.actors.media.kinds import kind_of
from shardrank.actors.media.video_frames import LookAgain, Progress, PyAvVideo

MIN_FRAMES = 4
_EVEN = 2
_LOOKS = 3
"""At a file whose packets or key frames turn out to be other than they said."""

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


_OTHER_KINDS = {
    rb"G.{187}(G|\Z)": "an MPEG transport stream",
    rb"\x00\x00\x01\xba": "an MPEG program stream",
    rb"\x00\x00\x00?\x01": "a video stream without a container",
    rb"GIF8": "a GIF",
    rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP|BM|II\*\x00|MM\x00\*": "a picture",
    rb"ffconcat": "a playlist",
}


def missing_reader(decoder: VideoReader) -> str | None:
    """The sentence that says what is to be installed; None where all is there."""
    if find_spec("av") is None:
        return "reading video files needs PyAV: pip install av"
    if decoder == "decord" and find_spec("decord") is None:
        return "--video-reader decord needs decord (x86-64 alone): pip install 'shardrank[decord]'"
    return None


class SampledVideo(NamedTuple):
    """Frames of a video file, as resized, and the time of each in seconds."""

    frames: np.ndarray  # (T, H, W, 3) uint8, T even
    times_s: list[float]


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """A video file, and how it is sampled: at its own fps first, at the options' else.

    name: what error sentences say, instead of the path.
    """

    source: bytes | Path
    name: str
    options: QueryOptions
    max_pixels: int  # of a frame as it is encoded
    fps: float | None = None
    max_seconds: float | None = None
    decoder: VideoReader = "pyav"


Resize = Callable[[np.ndarray, int], np.ndarray]
"""Some of a video's frames (t, H0, W0, 3) uint8 and the number of all to (t, H, W, 3)."""


def load_video(
    request: VideoRequest,
    resize: Resize = lambda frames, num_frames: frames,
    progress: Progress = lambda: None,
) -> SampledVideo:
    """Sample a video file: at most max_frames, an even number.

    Decoders may crash on damaged files, or hang, which VideoProcess keeps away from its caller:
    `progress` is called as packets and frames come.
    """
    name = request.name
    try:
        _check_container(request.source)
        opened = _open(request, progress)
        for _ in range(_LOOKS):
            indices = _indices(opened, request)
            try:
                chunks = opened.frames(indices, request.max_pixels)
                frames = np.concatenate([resize(some, len(indices)) for some in chunks])
            except LookAgain:
                continue
            return SampledVideo(frames, [index / opened.fps for index in indices])
        raise VideoDecodeError("each look at it finds other frames")
    except MediaError as error:
        raise type(error)(str(error) if name in str(error) else f"{name}: {error}") from error
    except Exception as error:  # the decoders raise many kinds on damaged files
        lines = str(error).strip().splitlines() or [""]
        raise VideoDecodeError(f"{name}: {type(error).__name__}: {lines[-1][:300]}") from error


def _indices(opened: DecordVideo | PyAvVideo, request: VideoRequest) -> list[int]:
    options, most = request.options, request.max_seconds
    assert options.fps is not None and options.max_frames is not None
    if opened.num_frames <= 0 or not 0 < opened.fps < math.inf:
        raise VideoTooShort("has no frames")
    seconds = opened.num_frames / opened.fps
    if most is not None and seconds > most:
        raise VideoTooLong(f"{seconds:.0f} s, over the limit of {most:.0f} s")
    fps = request.fps or options.fps
    indices = frame_indices(opened.num_frames, opened.fps, fps, options.max_frames)
    if not indices:
        raise VideoTooShort(
            f"{opened.num_frames} frames, at most {options.max_frames} wanted: fewer than two"
        )
    return indices


def frame_indices(num_frames: int, video_fps: float, fps: float, max_frames: int) -> list[int]:
    """Which frames are read; empty where fewer than two would be.

    Source: qwen_vl_utils 0.0.14 smart_nframes and _read_video_decord.
    """
    wanted = max(num_frames / video_fps * fps, MIN_FRAMES)
    wanted = min(wanted, max_frames // _EVEN * _EVEN, num_frames)
    count = math.floor(wanted / _EVEN) * _EVEN
    if count < _EVEN:
        return []
    import torch  # its rounding; seconds to import

    return torch.linspace(0, num_frames - 1, count).round().long().tolist()


def _check_container(source: bytes | Path) -> None:
    """Raises VideoDecodeError for a file that does not hold its video itself, and for MPEG streams
    and GIF, which have no index of their frames.

    FFmpeg follows a playlist (HLS, SDP) to other hosts and to files outside the media root.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            head = file.read(_PROBED_BYTES)
    except OSError as error:
        raise MediaUnreachable(f"{error.strerror or error}") from error
    is_link = _PLAYLISTS.search(head) or _XML_PLAYLISTS.search(head.partition(b"\0")[0])
    if not _CONTAINERS.match(head) or is_link:
        named = (kind for start, kind in _OTHER_KINDS.items() if re.match(start, head, re.DOTALL))
        kind = "a playlist" if is_link else next(named, "") or kind_of(head)
        raise VideoDecodeError(
            f"{kind}, not a video file that is read: MP4, QuickTime, Matroska, WebM, AVI, FLV, Ogg "
            "or WMV"
        )


def _open(request: VideoRequest, progress: Progress) -> DecordVideo | PyAvVideo:
    reader = DecordVideo if request.decoder == "decord" else PyAvVideo
    try:
        return reader(request.source, progress)
    except ImportError as error:
        sentence = missing_reader(request.decoder) or str(error)
        raise VideoReaderMissing(sentence) from error
