"""Where a video stream may be decoded from, told by its packets' own bits, without decoding.

A container's key frame flag does not prove it: open groups of pictures, recovery points and frames
that are never shown all carry it, or upset the count. Knows nothing of containers or of PyAV.
"""

from collections.abc import Iterator
from contextlib import suppress

from shardrank.actors.media.nal_units import Entry, Parse, Picture, h264, hevc


def parser_of(codec: str, extradata: bytes) -> Parse | None:
    """None where nothing can be proved of the stream: it is to be decoded from its first packet."""
    parsers = {"vp9": _vp9, "av1": _av1, "libdav1d": _av1}
    with suppress(IndexError):  # the extradata end early
        if codec in ("h264", "hevc"):
            return h264(extradata) if codec == "h264" else hevc(extradata)
    return parsers.get(codec)


_PLAIN = Picture()
_KEY = Picture(Entry.ALL)

# VP9: bitstream specification 0.6, 7.2 and annex B


def _vp9(data: memoryview) -> Picture | None:
    frames = [_vp9_flags(bytes(data[at : at + 2]).ljust(2, b"\0")) for at in _vp9_frames(data)]
    is_shown = [bool(flags & 0xA000) for flags in frames]
    if sum(is_shown) != 1 or not is_shown[-1]:
        return None
    return _PLAIN if frames[0] & 0xC000 else _KEY


def _vp9_frames(data: memoryview) -> list[int]:
    """Where its frames start: a superframe ends with their sizes between two equal bytes."""
    mark = data[-1]
    size_bytes, count = (mark >> 3 & 3) + 1, (mark & 7) + 1
    index = 2 + size_bytes * count
    if mark & 0xE0 != 0xC0 or len(data) < index or data[-index] != mark:
        return [0]
    starts = [0]
    for at in range(len(data) - index + 1, len(data) - 1 - size_bytes, size_bytes):
        starts.append(starts[-1] + int.from_bytes(data[at : at + size_bytes], "little"))
    return starts


def _vp9_flags(header: bytes) -> int:
    """show_existing_frame, frame_type, show_frame and what follows, from the highest bit on."""
    has_reserved = header[0] >> 4 & 3 == 3  # profile 3
    return int.from_bytes(header, "big") << (5 if has_reserved else 4) & 0xFFFF


# AV1: bitstream specification 5.3 to 5.9

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME, _TILE_LIST = 1, 3, 6, 8


def _av1(data: memoryview) -> Picture | None:
    num_shown, picture = 0, _PLAIN
    has_sequence, is_first = False, True
    for kind, content in _av1_units(data):
        if kind == _SEQUENCE_HEADER:
            if content[0] & 0x08:
                return None  # a still picture's short headers
            has_sequence = True
        elif kind in (_FRAME, _FRAME_HEADER):
            is_shown, frame_type = content[0] & 0x90, content[0] >> 5 & 3
            if is_first and has_sequence and content[0] & 0xF0 == 0x10:  # a key frame, shown
                picture = _KEY
            elif is_shown and not content[0] & 0x80 and frame_type == 0:
                return None
            num_shown += bool(is_shown)
            is_first = False
        elif kind == _TILE_LIST:
            return None
    return picture if num_shown == 1 else None


def _av1_units(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Kind and content of its OBUs. Raises IndexError where they end outside of it."""
    at = 0
    while at < len(data):
        header, at = data[at], at + 1
        if header & 4:  # an extension
            at += 1
        size = len(data) - at
        if header & 2:
            size, shift = 0, 0
            while True:
                byte, at = data[at], at + 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
        if at + size > len(data):
            raise IndexError("an OBU ends outside of its packet")
        yield header >> 3 & 15, data[at : at + size]
        at += size
