"""The frames of an opened video file by their place in presentation order, with PyAV.

What a sequential decode shows is the rule. Only where the packets' own bits prove that decoding
from a key frame gives the same, what lies between is not decoded. Knows nothing of sampling rules.
"""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shardrank.actors.errors import ImageTooLarge, VideoDecodeError
from shardrank.actors.media.nal_units import Entry, Parse, Picture
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


class _Shown(NamedTuple):
    """A presented frame: from when on, in ticks, and for how long."""

    pts: int | None
    duration: int | None


class _Packet(NamedTuple):
    pts: int
    picture: Picture
    is_hidden: bool  # by an edit list


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
        self._packets: list[_Packet] | None = None
        with self._opened() as (container, stream):
            self._declared = (stream.average_rate, stream.base_rate)
            self._tick_s = Fraction(stream.time_base)
            self._look(container, stream)
        if self._packets is None and self.num_frames < 2:
            with suppress(LookAgain), self._opened() as (container, stream):
                list(self._sequential(container, stream, ()))

    def _set(self, shown: Sequence[_Shown], goes_back: bool = False) -> None:
        self.num_frames = len(shown)
        seconds = None if goes_back else _seconds(shown, self._tick_s)
        self.fps = _rate(self.num_frames, seconds, self._tick_s, self._declared)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        with open_container(self._source) as container:
            stream = video_stream(container)
            # What a frame refers to and the file lacks is made up, by frame threads another way.
            stream.thread_type = "SLICE" if self._packets is None else "AUTO"
            stream.thread_count = _THREADS
            yield container, stream

    def _look(self, container: Any, stream: Any) -> None:
        """What is presented, by the packets alone, and the packets where that is proved."""
        context, parse = stream.codec_context, None
        if any(name in container.format.name for name in _SEEKABLE):
            parse = parser_of(context.name, context.extradata or b"")
        shown: list[_Shown] = []
        packets: list[_Packet] = []
        for packet in _demuxed(container, stream):
            self._progress()
            if not packet.size:
                continue
            if not packet.is_discard:
                shown.append(_Shown(packet.pts, packet.duration))
            noted = parse and _noted(packet, parse)
            if noted is None:
                parse = None
            else:
                packets.append(noted)
        if parse is not None and _is_in_order(packets, context.reorder_depth):
            self._packets = packets
        self._set(shown)

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
        """Every frame is decoded: their number was a guess until now.

        Where their times go back, a file joined to another say, they do not tell how long it lasts.
        """
        shown: list[_Shown] = []
        for frame in self._decoded(container, stream):
            shown.append(_Shown(frame.pts, frame.duration))
            if times := indices.count(len(shown) - 1):
                yield frame, times
        counted = self.num_frames, self.fps
        dated = [each.pts for each in shown if each.pts is not None]
        self._set(shown, goes_back=dated != sorted(dated))
        if counted != (self.num_frames, self.fps):
            raise LookAgain

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        for packet in _demuxed(container, stream):
            self._progress()
            for frame in _decode(stream.codec_context, packet if packet.size else None):
                self._progress()
                yield frame

    def _from_entries(
        self, container: Any, stream: Any, indices: Sequence[int], packets: Sequence[_Packet]
    ) -> Iterator[tuple[Any, int]]:
        """What no wanted frame needs is not decoded."""
        hidden = {packet.pts for packet in packets if packet.is_hidden}
        shown = sorted({packet.pts for packet in packets} - hidden)
        wanted = [shown[index] for index in indices]
        runs = iter(_runs(packets, sorted(set(wanted))))
        run, remaining = next(runs), len(set(wanted))
        context = stream.codec_context
        depth = max(context.reorder_depth, _reorder_depth(packets))
        for place, packet in enumerate(p for p in _demuxed(container, stream) if p.size):
            self._progress()
            if place >= len(packets) or packet.pts != packets[place].pts:
                break  # the file has changed
            is_unused = not packets[place].picture.is_reference
            if place < run.first or (is_unused and packet.pts not in run.wanted):
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


def _seconds(shown: Sequence[_Shown], tick_s: Fraction) -> Fraction | None:
    """How long they are shown, if they are dated and two at least; a last one without a duration
    lasts as long as the others on average.
    """
    dated = [(each.pts, each.duration) for each in shown if each.pts is not None]
    if len(dated) < max(2, len(shown)):
        return None
    last, duration = max(dated, key=itemgetter(0))
    span = Fraction(last - min(dated, key=itemgetter(0))[0])
    return (span + (duration or span / (len(dated) - 1))) * tick_s


def _rate(
    num_frames: int,
    seconds: Fraction | None,
    tick_s: Fraction,
    declared: Sequence[Fraction | None],
) -> float:
    """Frames a second; the file's own number where the times agree with it.

    Times are rounded to ticks, milliseconds in Matroska: 6 s may end at 5.999 s.
    """
    rates = [rate for rate in declared if rate]
    if not seconds:
        return float(rates[0]) if rates else 0.0
    fitting = (rate for rate in rates if abs(num_frames / rate - seconds) <= 2 * tick_s)
    return float(next(fitting, num_frames / seconds))


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


def _noted(packet: Any, parse: Parse) -> _Packet | None:
    """None where the packet leaves no room for a proof."""
    with suppress(IndexError):
        picture = parse(memoryview(packet))
        if picture is not None and packet.pts is not None and not packet.is_corrupt:
            return _Packet(packet.pts, picture, packet.is_discard)
    return None


def _is_in_order(packets: Sequence[_Packet], reorder_depth: int) -> bool:
    """Whether the pictures' times are in the order in which the decoder shows them.

    It waits for as many pictures as the stream says; one that comes too late it drops.
    """
    if not packets or packets[0].picture.entry is Entry.NONE:
        return False
    by_time = sorted(
        (packet.pts, packet.picture.order or (place, 0)) for place, packet in enumerate(packets)
    )
    return _reorder_depth(packets) <= reorder_depth and all(
        time < later and order < following
        for (time, order), (later, following) in pairwise(by_time)
    )


def _reorder_depth(packets: Sequence[_Packet]) -> int:
    """The most pictures that are decoded before one that is shown before them."""
    depth = 0
    later: list[int] = []
    for packet in packets:
        place = bisect_right(later, packet.pts)
        depth = max(depth, len(later) - place)
        later.insert(place, packet.pts)
        del later[: max(0, len(later) - 32)]  # decoders keep 16 at most
    return depth


def _runs(packets: Sequence[_Packet], times: Sequence[int]) -> list[_Run]:
    places = {packet.pts: place for place, packet in enumerate(packets)}
    entries = [at for at, each in enumerate(packets) if each.picture.entry is not Entry.NONE]
    runs: list[_Run] = []
    for time in times:
        place = places[time]
        entry = _entry_for(packets, entries, place)
        if runs and entry <= runs[-1].last + 1:
            runs[-1].last = max(runs[-1].last, place)
            runs[-1].wanted.add(time)
        else:
            runs.append(_Run(entry, place, {time}))
    return runs


def _entry_for(packets: Sequence[_Packet], entries: Sequence[int], place: int) -> int:
    """The last entry that gives the picture right; the first always does."""
    for index in range(bisect_right(entries, place) - 1, 0, -1):
        entry = packets[entries[index]]
        if entry.picture.entry is Entry.ALL or entry.pts <= packets[place].pts:
            return entries[index]
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
