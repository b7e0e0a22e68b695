"""Where a video stream may be decoded from, told by its packets' own bits, without decoding.

A container's key frame flag does not prove it: open groups of pictures, recovery points and frames
that are never shown all carry it, or upset the count. Knows nothing of containers or of PyAV.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum


class Entry(Enum):
    """What decoding that starts at a picture gives right."""

    NONE = 0
    TRAILING = 1  # what is shown after it
    ALL = 2  # what is decoded after it


@dataclass(frozen=True, slots=True)
class Picture:
    """The one picture of a packet, which is shown."""

    entry: Entry = Entry.NONE
    is_reference: bool = True  # False: nothing else needs it decoded


Parse = Callable[[memoryview], Picture | None]
"""None for a packet that is not exactly one picture that is shown, or that is not understood."""

_PLAIN = Picture()
_UNUSED = Picture(is_reference=False)
_TRAILING = Picture(Entry.TRAILING)
_ALL = Picture(Entry.ALL)


def parser_of(codec: str, extradata: bytes) -> Parse | None:
    """None where nothing can be proved of the stream: it is to be decoded from its first packet."""
    try:
        match codec:
            case "h264":
                return _h264(extradata)
            case "hevc":
                return _hevc(extradata)
            case "vp9":
                return _vp9
            case "av1" | "libdav1d":
                return _av1
    except IndexError:  # the extradata end early
        return None
    return None


class _Bits:
    """Reads a parameter set's bits, emulation prevention bytes taken out."""

    def __init__(self, data: bytes) -> None:
        self._data = data.replace(b"\0\0\3", b"\0\0")
        self._at = 0

    def bit(self) -> int:
        value = self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1
        self._at += 1
        return value

    def bits(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self.bit()
        return value

    def golomb(self) -> int:
        zeros = 0
        while not self.bit():
            zeros += 1
        return (1 << zeros) - 1 + self.bits(zeros)


def _units(data: memoryview, length_bytes: int) -> Iterator[memoryview]:
    """NAL units that have their length before them. Raises IndexError where the lengths are off."""
    at, end = 0, len(data)
    while at < end:
        start = at + length_bytes
        at = start + int.from_bytes(data[at:start], "big")
        if at > end or at < start + 2:
            raise IndexError("a NAL unit ends outside of its packet, or is empty")
        yield data[start:at]


# H.264: ITU-T H.264 7.3, ISO 14496-15 5.3.3

_H264_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_H264_SLICE, _H264_IDR, _H264_SPS, _H264_PPS = 1, 5, 7, 8


def _h264(extradata: bytes) -> Parse | None:
    if extradata[:1] != b"\1":
        return None  # start codes, in AVI and MPEG streams
    known, at = [], 6
    for count in (extradata[5] & 31, -1):
        if count < 0:
            count, at = extradata[at], at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            known.append(extradata[at + 2 : at + 2 + size])
            at += 2 + size
    if sum(unit[0] & 31 == _H264_SPS for unit in known) != 1 or not _is_frames(known[0]):
        return None
    length_bytes = (extradata[4] & 3) + 1

    def parse(data: memoryview) -> Picture | None:
        num_pictures, picture = 0, _PLAIN
        for unit in _units(data, length_bytes):
            kind = unit[0] & 31
            if kind in (_H264_SLICE, _H264_IDR):
                if unit[1] & 0x80:  # its first macroblock is the picture's first
                    num_pictures += 1
                    picture = _ALL if kind == _H264_IDR else _PLAIN if unit[0] & 0x60 else _UNUSED
            elif 2 <= kind <= 4 or (kind in (_H264_SPS, _H264_PPS) and bytes(unit) not in known):
                return None
        return picture if num_pictures == 1 else None

    return parse


def _is_frames(sps: bytes) -> bool:
    """Whether all its pictures are whole frames whose numbers have no gaps."""
    bits = _Bits(sps[1:])
    profile = bits.bits(24) >> 16
    bits.golomb()
    if profile in _H264_HIGH:
        if bits.golomb() == 3:  # 4:4:4
            bits.bit()
        bits.golomb(), bits.golomb(), bits.bit()
        if bits.bit():
            return False  # scaling matrices, which are not read here
    bits.golomb()
    order = bits.golomb()
    if order == 1:
        return False  # in which pictures that nothing refers to count
    if order == 0:
        bits.golomb()
    bits.golomb()
    has_gaps = bits.bit()
    bits.golomb(), bits.golomb()
    return bool(bits.bit()) and not has_gaps


# HEVC: ITU-T H.265 7.3, 7.4.2.2, ISO 14496-15 8.3.3

_RASL = (8, 9)
_BLA_OR_RESERVED = (16, 17, 18, 22, 23)
_IDR = (19, 20)
_CRA = 21
_PARAMETER_SETS = (32, 33, 34)
_PPS = 34
_ENDS = (36, 37)  # of a sequence, of the stream


def _hevc(extradata: bytes) -> Parse | None:
    if extradata[:1] != b"\1":
        return None
    known, at = [], 23
    for _ in range(extradata[22]):
        count, at = int.from_bytes(extradata[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            known.append(extradata[at + 2 : at + 2 + size])
            at += 2 + size
    kinds = [unit[0] >> 1 & 63 for unit in known]
    if not set(_PARAMETER_SETS) <= set(kinds):
        return None
    if any(map(_may_hide, (unit for unit, kind in zip(known, kinds, strict=True) if kind == _PPS))):
        return None
    length_bytes = (extradata[21] & 3) + 1
    num_entries = 0

    def parse(data: memoryview) -> Picture | None:
        nonlocal num_entries
        num_pictures, picture = 0, _PLAIN
        for unit in _units(data, length_bytes):
            kind = unit[0] >> 1 & 63
            if unit[0] & 1 or unit[1] >> 3:
                continue  # another layer's, which is not decoded
            if kind < 32 and unit[2] & 0x80:
                num_pictures += 1
                if kind in (*_IDR, _CRA):
                    num_entries += 1
                    picture = _TRAILING if kind == _CRA else _ALL
                    if unit[2] & 0x40:
                        return None  # pictures that still wait are not shown
                elif kind in _BLA_OR_RESERVED or (kind in _RASL and num_entries < 2):
                    return None  # the stream was cut before it: what refers further back goes
            elif kind in _ENDS or (kind in _PARAMETER_SETS and bytes(unit) not in known):
                return None
        return picture if num_pictures == 1 else None

    return parse


def _may_hide(pps: bytes) -> bool:
    bits = _Bits(pps[2:])
    bits.golomb(), bits.golomb(), bits.bit()
    return bool(bits.bit())


# VP9: bitstream specification 0.6, 7.2 and annex B


def _vp9(data: memoryview) -> Picture | None:
    headers = [bytes(data[at : at + 2]).ljust(2, b"\0") for at in _vp9_frames(data)]
    shown = [_vp9_is_shown(header) for header in headers]
    if sum(shown) != 1 or not shown[-1]:
        return None
    return _ALL if _vp9_is_key(headers[0]) else _PLAIN


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


def _vp9_is_shown(header: bytes) -> bool:
    flags = _vp9_flags(header)
    return bool(flags & 0x8000) or bool(flags & 0x2000)


def _vp9_is_key(header: bytes) -> bool:
    return not _vp9_flags(header) & 0xC000


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
                picture = _ALL
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
