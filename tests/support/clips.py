"""Small video files that the tests encode themselves, and what a sequential decode shows."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, RATE = 96, 64, 25

_FORMATS = {"mkv": "matroska", "wmv": "asf"}
_PIXELS = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}

ENCODINGS = (
    *(("libx264", name) for name in ("mp4", "mov", "mkv", "flv", "avi", "wmv")),
    *(("libx265", name) for name in ("mp4", "mov", "mkv")),
    *(("mpeg4", name) for name in ("mp4", "mkv", "avi", "wmv")),
    *(("mpeg2video", name) for name in ("mkv", "avi")),
    *(("libvpx", name) for name in ("webm", "avi")),
    *(("libvpx-vp9", name) for name in ("webm", "mp4")),
    *(("libsvtav1", name) for name in ("webm", "mp4")),
    *(("wmv2", "wmv"), ("mjpeg", "avi"), ("prores_ks", "mov"), ("flv", "flv")),
)


@dataclass(frozen=True)
class Clip:
    """How a clip is made. parts: of it, as (start, length) in frames, copied one after the other
    without encoding them again, as `ffmpeg -ss -t -c copy` does; (): all.
    """

    codec: str = "libx264"
    container: str = "mp4"
    num_frames: int = 40
    gop: int = 12
    is_open: bool = False
    b_frames: int = 2
    is_variable: bool = False
    x264: str = ""  # more of its parameters
    parts: tuple[tuple[int, int], ...] = ()


@lru_cache(maxsize=256)
def encoded(clip: Clip) -> bytes:
    if clip.parts:
        return _copied(encoded(replace(clip, parts=())), clip)
    return _written(clip)


def pictures(num_frames: int) -> list[np.ndarray]:
    """No two alike, and enough in motion that a frame shows which one it is."""
    ramp = np.arange(WIDTH)[None, :, None] * (1, 2, 3) + np.arange(HEIGHT)[:, None, None] * 2
    frames = []
    for index in range(num_frames):
        frame = ((ramp + 5 * index) % 256).astype(np.uint8)
        at = 3 * index % (WIDTH - 16)
        frame[8:24, at : at + 16] = 255 * (index % 2)
        frames.append(frame)
    return frames


@contextmanager
def _priority_kept() -> Iterator[None]:
    """SVT-AV1 gives the thread that opens it, where it may (as root), real-time priority: before
    everything else on the machine, and inherited by every process that is started afterwards.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _written(clip: Clip) -> bytes:
    file = io.BytesIO()
    with (
        _priority_kept(),
        av.open(file, "w", format=_FORMATS.get(clip.container, clip.container)) as container,
    ):
        stream: Any = container.add_stream(clip.codec, rate=RATE)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = _PIXELS.get(clip.codec, "yuv420p")
        stream.options = _options(clip)
        if clip.is_variable:
            stream.codec_context.time_base = Fraction(1, 4 * RATE)
        for index, picture in enumerate(pictures(clip.num_frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if clip.is_variable:
                frame.pts, frame.time_base = 4 * index + index % 3, Fraction(1, 4 * RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _options(clip: Clip) -> dict[str, str]:
    gop, b_frames = str(clip.gop), str(clip.b_frames)
    match clip.codec:
        case "libx264":
            extra = f"open-gop={clip.is_open:d}:keyint={gop}:min-keyint={gop}:scenecut=0:threads=1"
            extra += f":{clip.x264}" if clip.x264 else ""
            return {"preset": "veryfast", "bf": b_frames, "x264-params": extra}
        case "libx265":
            extra = f"open-gop={clip.is_open:d}:keyint={gop}:min-keyint={gop}:bframes={b_frames}"
            return {
                "preset": "ultrafast",
                "x265-params": f"{extra}:scenecut=0:log-level=none:pools=none:frame-threads=1",
            }
        case "mpeg4" | "mpeg2video":
            return {"g": gop, "bf": b_frames}
        case "libvpx" | "libvpx-vp9":
            lag = {"auto-alt-ref": "1", "lag-in-frames": "12"} if b_frames != "0" else {}
            return {"g": gop, "deadline": "realtime", "cpu-used": "8", "threads": "1"} | lag
        case "libsvtav1":
            return {"g": gop, "preset": "13", "svtav1-params": "lp=1"}
    return {"g": gop}


def _copied(source: bytes, clip: Clip) -> bytes:
    """Each part from the key frame before its start on. The first one's frames before its start get
    negative times: MP4 and QuickTime hide those with an edit list, other containers show them.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=_FORMATS.get(clip.container, clip.container)) as container:
        stream, offset, latest = None, 0, None
        for start, length in clip.parts:
            with av.open(io.BytesIO(source)) as opened:
                video: Any = opened.streams.video[0]
                if stream is None:
                    stream = container.add_stream_from_template(video)
                tick = round(1 / (RATE * video.time_base))
                packets = _cut(list(opened.demux(video)), start * tick, (start + length) * tick)
                if not packets:
                    continue
                hides = clip.container in ("mp4", "mov") and latest is None
                shift = offset - (start * tick if hides else _time(packets[0]))
                if latest is not None and packets[0].dts is not None:
                    shift = max(shift, latest + 1 - packets[0].dts)
                for packet in packets:
                    packet.pts = None if packet.pts is None else packet.pts + shift
                    packet.dts = None if packet.dts is None else packet.dts + shift
                    latest = packet.dts
                    packet.stream = stream
                    container.mux(packet)
                offset = (start + length) * tick + shift
    return file.getvalue()


def _cut(packets: list[Any], start: int, end: int) -> list[Any]:
    packets = [packet for packet in packets if packet.size]
    keys = [
        place
        for place, packet in enumerate(packets)
        if packet.is_keyframe and _time(packet) <= start
    ]
    return [packet for packet in packets[max(keys, default=0) :] if _time(packet) < end]


def _time(packet: Any) -> int:
    return packet.dts if packet.pts is None else packet.pts


def sequential(data: bytes) -> list[tuple[int | None, int, np.ndarray]]:
    """Time and duration in ticks and pixels of each frame, in the order of presentation."""
    with av.open(io.BytesIO(data)) as container:
        return [
            (frame.pts, frame.duration, frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        ]


def tick_s(data: bytes) -> Fraction:
    with av.open(io.BytesIO(data)) as container:
        time_base = container.streams.video[0].time_base
        assert time_base is not None
        return time_base
