"""The frames of an opened video file by their place in presentation order, with PyAV.

What a sequential decode shows is the rule. Only where the packets' own bits prove that decoding
from a key frame gives the same, what lies between is not decoded. Knows nothing of sampling rules.
"""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from shardrank.actors.errors import ImageTooLarge, VideoDecodeError
from shardrank.actors.media.pictures import Entry, Parse
from shardrank.actors.media.random_access import parser_of

CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "flv", "ogg", "asf")
"""FFmpeg's names of the demuxers that are used."""
CODECS = (
    *("h264", "hevc", "vp8", "vp9", "libdav1d", "av1"),
    *("mpeg4", "msmpeg4v2", "msmpeg4", "mpeg1video", "mpeg2video", "h263", "flv"),
    *("wmv1", "wmv2", "wmv3", "vc1", "mjpeg", "prores", "dnxhd"),
)
"""FFmpeg's names of the decoders that are used: no other one sees a byte of a file. It has some two
hundred more for video, of which most see little use and less scrutiny.
"""

PIXELS_AT_ONCE = 1 << 27
"""Decoded before they are resized: 64 frames of full HD, one of the largest."""
_THREADS = 2
_SEEKABLE = ("mov", "matroska")

Progress = Callable[[], None]
"""Called after each packet and each frame."""


class LookAgain(Exception):
    """The file was not what its packets said: `frames` is to be asked again, by the new count."""


@dataclass(slots=True)
class _Span:
    """Presented frames: how many, and from when to when in ticks, as far as they are dated."""

    num_frames: int = 0
    first: int | None = None
    last: int | None = None
    last_duration: int = 0
    is_dated: bool = True

    def add(self, pts: int | None, duration: int | None) -> None:
        self.num_frames += 1
        if pts is None:
            self.is_dated = False
            return
        if self.first is None or pts < self.first:
            self.first = pts
        if self.last is None or pts > self.last:
            self.last, self.last_duration = pts, duration or 0

    def add_shown(self, pts: int | None, duration: int | None) -> None:
        """Frames as they are shown: where their times go back, a file joined to another say, they
        do not tell how long it all lasts.
        """
        goes_back = pts is not None and self.last is not None and pts < self.last
        self.add(pts, duration)
        self.is_dated = self.is_dated and not goes_back

    def seconds(self, tick_s: Fraction) -> Fraction | None:
        """A last frame without a duration lasts as long as the others on average."""
        if not self.is_dated or self.first is None or self.last is None or self.num_frames < 2:
            return None
        shown = Fraction(self.last - self.first)
        return (shown + (self.last_duration or shown / (self.num_frames - 1))) * tick_s

    def rate(self, tick_s: Fraction, declared: Sequence[Fraction | None]) -> float:
        """Frames a second; the file's own number where the times agree with it.

        Times are rounded to ticks, milliseconds in Matroska: 6 s may end at 5.999 s.
        """
        rates = [rate for rate in declared if rate]
        seconds = self.seconds(tick_s)
        if not seconds:
            return float(rates[0]) if rates else 0.0
        for rate in rates:
            if abs(self.num_frames / rate - seconds) <= 2 * tick_s:
                return float(rate)
        return float(self.num_frames / seconds)


@dataclass(slots=True)
class _Packets:
    """A stream's packets in the order of decoding."""

    pts: list[int] = field(default_factory=list)
    orders: list[tuple[int, int]] = field(default_factory=list)  # in which they are shown
    unused: set[int] = field(default_factory=set)  # places of those that nothing refers to
    entries: list[int] = field(default_factory=list)  # places that decoding may start from
    trailing: set[int] = field(default_factory=set)  # of these: right for later times alone
    hidden: set[int] = field(default_factory=set)  # times that an edit list hides


@dataclass(slots=True)
class _Run:
    """Packets to decode one after the other: from an entry to the last wanted one's."""

    first: int
    last: int
    wanted: set[int]  # times


class PyAvVideo:
    """A file's presentable frames. Raises a MediaError where it is not read."""

    def __init__(self, source: bytes | Path, progress: Progress = lambda: None) -> None:
        self._source = source
        self._progress = progress
        self._packets: _Packets | None = None
        with self._opened() as (container, stream):
            self._declared = (stream.average_rate, stream.base_rate)
            self._tick_s = Fraction(stream.time_base)
            span, self._packets = self._look(container, stream)
        self._set(span)
        if self._packets is None and self.num_frames < 2:
            self._count()

    def _set(self, span: _Span) -> None:
        self.num_frames = span.num_frames
        self.fps = span.rate(self._tick_s, self._declared)

    def _count(self) -> None:
        span = _Span()
        with self._opened() as (container, stream):
            for frame in self._decoded(container, stream):
                span.add_shown(frame.pts, frame.duration)
        self._set(span)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        with open_container(self._source) as container:
            stream = video_stream(container)
            # What a frame refers to and the file lacks is made up, by frame threads another way.
            stream.thread_type = "SLICE" if self._packets is None else "AUTO"
            stream.thread_count = _THREADS
            yield container, stream

    def _look(self, container: Any, stream: Any) -> tuple[_Span, _Packets | None]:
        """What is presented, by the packets alone, and the packets where that is proved."""
        parse = None
        if any(name in container.format.name for name in _SEEKABLE):
            context = stream.codec_context
            parse = parser_of(context.name, context.extradata or b"")
        span, packets, is_proved = _Span(), _Packets(), parse is not None
        for packet in _demuxed(container, stream):
            self._progress()
            if not packet.size:
                continue
            if not packet.is_discard:
                span.add(packet.pts, packet.duration)
            is_proved = is_proved and parse is not None and _note(packets, packet, parse)
        is_proved = is_proved and _is_in_order(packets, stream.codec_context.reorder_depth)
        return span, packets if is_proved else None

    def frames(self, indices: Sequence[int], max_pixels: int) -> Iterator[np.ndarray]:
        """(t, H, W, 3) uint8, some frames after the other, so that not all are held at once.

        Indices ascend; one that is asked for twice comes twice. Raises LookAgain at the end.
        """
        with self._opened() as (container, stream):
            check_size(stream.height, stream.width, max_pixels)
            if self._packets is None:
                found = self._sequential(container, stream, indices)
            else:
                found = self._from_entries(container, stream, indices, self._packets)
            yield from _in_chunks(found, max_pixels)

    def _sequential(
        self, container: Any, stream: Any, indices: Sequence[int]
    ) -> Iterator[tuple[Any, int]]:
        """Every frame is decoded: their number was a guess until now."""
        span = _Span()
        for index, frame in enumerate(self._decoded(container, stream)):
            span.add_shown(frame.pts, frame.duration)
            if times := indices.count(index):
                yield frame, times
        counted = self.num_frames, self.fps
        self._set(span)
        if counted != (self.num_frames, self.fps):
            raise LookAgain

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        for packet in _demuxed(container, stream):
            self._progress()
            for frame in _decode(stream.codec_context, packet if packet.size else None):
                self._progress()
                yield frame

    def _from_entries(
        self, container: Any, stream: Any, indices: Sequence[int], packets: _Packets
    ) -> Iterator[tuple[Any, int]]:
        """What no wanted frame needs is not decoded."""
        shown = sorted(set(packets.pts) - packets.hidden)
        wanted = [shown[index] for index in indices]
        runs = _runs(packets, sorted(set(wanted)))
        run, remaining = next(runs), len(set(wanted))
        context = stream.codec_context
        depth = max(context.reorder_depth, _reorder_depth(packets.pts))
        for place, packet in enumerate(p for p in _demuxed(container, stream) if p.size):
            self._progress()
            if place >= len(packets.pts) or packet.pts != packets.pts[place]:
                break  # the file has changed
            if place < run.first or (place in packets.unused and packet.pts not in run.wanted):
                continue
            frames = _decode(context, packet)
            if place == run.last:
                frames += _decode(context, None)
            for frame in frames:
                self._progress()
                if frame.pts in run.wanted:
                    remaining -= 1
                    yield frame, wanted.count(frame.pts)
            if place == run.last:
                if (following := next(runs, None)) is None:
                    break
                run = following
                context.flush_buffers()
                context.reorder_depth = depth
        if remaining:
            self._packets = None
            raise LookAgain


def open_container(source: bytes | Path) -> AbstractContextManager[Any]:
    """Raises VideoDecodeError; ImportError without PyAV."""
    import av

    options = {
        "format_whitelist": ",".join(CONTAINERS),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "file",
    }
    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source.absolute())
    try:
        return av.open(opened, container_options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoDecodeError(f"does not open as a video file: {_words(error)}") from error


def video_stream(container: Any) -> Any:
    """The one that FFmpeg holds for the main one, as decord does."""
    videos = [
        stream
        for stream in container.streams.video
        if not stream.disposition & stream.disposition.attached_pic
    ]
    if not videos:
        is_cover = bool(container.streams.video)
        held = sorted({str(each.type) for each in container.streams if each.type != "video"})
        held += ["a cover picture"] if is_cover else [] if held else ["no stream"]
        raise VideoDecodeError(f"holds no video, but {' and '.join(held)}")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    check_codec(stream)
    return stream


def check_codec(stream: Any) -> None:
    name = stream.codec_context.name if stream.codec_context else "unknown"
    if name not in CODECS:
        raise VideoDecodeError(
            f"its video codec is {name}, which is not read: H.264, HEVC, AV1, VP8, VP9, MPEG-1, -2 "
            "and -4, H.263, WMV, VC-1, MJPEG, ProRes and DNxHD are"
        )


def check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageTooLarge(f"frames of {width} x {height} pixels, over the limit of {max_pixels}")


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _demuxed(container: Any, stream: Any) -> Iterator[Any]:
    import av

    try:
        yield from container.demux(stream)
    except av.error.FFmpegError as error:
        raise VideoDecodeError(f"its packets end early: {_words(error)}") from error


def _decode(context: Any, packet: Any) -> list[Any]:
    """None gives what the decoder still holds."""
    import av

    try:
        frames: list[Any] = context.decode(packet)
    except av.error.FFmpegError as error:
        raise VideoDecodeError(f"a frame does not decode: {_words(error)}") from error
    for frame in frames:
        if frame.is_corrupt:  # no two decoders make up the same for what is missing in it
            raise VideoDecodeError(f"the frame at {frame.time} s is damaged")
    return frames


def _note(packets: _Packets, packet: Any, parse: Parse) -> bool:
    """Whether the packet leaves room for a proof."""
    try:
        picture = parse(memoryview(packet))
    except IndexError:
        return False
    if picture is None or packet.pts is None or packet.is_corrupt:
        return False
    place = len(packets.pts)
    packets.pts.append(packet.pts)
    packets.orders.append(picture.order or (place, 0))
    if packet.is_discard:
        packets.hidden.add(packet.pts)
    if picture.entry is not Entry.NONE:
        packets.entries.append(place)
    if picture.entry is Entry.TRAILING:
        packets.trailing.add(place)
    if not picture.is_reference:
        packets.unused.add(place)
    return True


def _is_in_order(packets: _Packets, reorder_depth: int) -> bool:
    """Whether the pictures' times are in the order in which the decoder shows them.

    It waits for as many pictures as the stream says; one that comes too late it drops.
    """
    pts, orders = packets.pts, packets.orders
    if not pts or packets.entries[:1] != [0] or _reorder_depth(pts) > reorder_depth:
        return False
    by_time = sorted(range(len(pts)), key=pts.__getitem__)
    return all(
        pts[place] < pts[following] and orders[place] < orders[following]
        for place, following in pairwise(by_time)
    )


def _reorder_depth(pts: Sequence[int]) -> int:
    """The most pictures that are decoded before one that is shown before them."""
    depth = 0
    later: list[int] = []
    for time in pts:
        place = bisect_right(later, time)
        depth = max(depth, len(later) - place)
        later.insert(place, time)
        del later[: max(0, len(later) - 32)]  # decoders keep 16 at most
    return depth


def _runs(packets: _Packets, times: Sequence[int]) -> Iterator[_Run]:
    places = {time: place for place, time in enumerate(packets.pts)}
    run: _Run | None = None
    for time in times:
        place = places[time]
        entry = _entry_for(packets, place, time)
        if run is not None and entry <= run.last + 1:
            run.last = max(run.last, place)
            run.wanted.add(time)
            continue
        if run is not None:
            yield run
        run = _Run(entry, place, {time})
    if run is not None:
        yield run


def _entry_for(packets: _Packets, place: int, time: int) -> int:
    """The last one that gives the picture right; the first always does."""
    for index in range(bisect_right(packets.entries, place) - 1, 0, -1):
        entry = packets.entries[index]
        if entry not in packets.trailing or packets.pts[entry] <= time:
            return entry
    return 0


def _in_chunks(found: Iterator[tuple[Any, int]], max_pixels: int) -> Iterator[np.ndarray]:
    chunk: list[np.ndarray] = []
    for frame, times in found:
        check_size(frame.height, frame.width, max_pixels)
        pixels = _upright(frame)
        if chunk and pixels.shape != chunk[0].shape:
            raise VideoDecodeError("its frames have different sizes")
        chunk += [pixels] * times
        if len(chunk) * pixels.size // 3 >= PIXELS_AT_ONCE:
            yield np.stack(chunk)
            chunk = []
    if chunk:
        yield np.stack(chunk)


def _upright(frame: Any) -> np.ndarray:
    """Turned as the file says, which decord does by itself: phones turn their videos so. What is
    mirrored too, a selfie, is said by the display matrix alone; its rotation would be another.
    """
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        across, along, _, back, down = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        is_turned = not across and not down  # by a quarter
        if is_turned or not (along or back):
            pixels = pixels.transpose(1, 0, 2) if is_turned else pixels
            is_flipped = (down < 0 or along < 0, across < 0 or back < 0)
            return np.flip(pixels, tuple(axis for axis in (0, 1) if is_flipped[axis]))
    quarters = frame.rotation / 90
    return np.rot90(pixels, int(quarters)) if quarters.is_integer() else pixels
