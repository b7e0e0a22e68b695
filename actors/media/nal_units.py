"""H.264 and HEVC: the picture of a packet, by the headers of its NAL units. Nothing is decoded.

Fields, scaling lists and HEVC's long-term pictures are not understood, on purpose: they are rare.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
    order: tuple[int, int] | None = None  # pictures are shown in it; None: as they are decoded


Parse = Callable[[memoryview], Picture | None]
"""Asked of each packet once, in order. None for one that is not exactly one picture that is shown,
or that does not follow on the one before.
"""


class _Bits:
    """Reads bits, emulation prevention bytes taken out. Raises IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        plain = data.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(plain, "big"), 8 * len(plain)

    def bits(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("the bits end early")
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        rest = self._value & (1 << self._left) - 1
        zeros = self._left - rest.bit_length()
        self._left -= zeros
        return self.bits(zeros + 1) - 1

    def skip_golombs(self, count: int) -> None:
        for _ in range(count):
            self.golomb()


@dataclass(slots=True)
class _Count:
    """A picture order count whose low bits alone are in the stream (H.264 8.2.1.1, H.265 8.3.1)."""

    log2_size: int
    before: int = 0  # of the last picture that counts

    def of(self, low: int, before: int) -> int:
        size = 1 << self.log2_size
        count = before - before % size + low
        if count - before >= size // 2:
            return count - size
        return count + size if before - count > size // 2 else count


_HEADER_BYTES = 64
"""The bytes that are taken of a slice: more than is read of its header."""


def _units(data: memoryview, length_bytes: int) -> Iterator[memoryview]:
    """NAL units that have their length before them. Raises IndexError where the lengths are off."""
    at, end = 0, len(data)
    while at < end:
        start = at + length_bytes
        at = start + int.from_bytes(data[at:start], "big")
        if at > end or at < start + 2:
            raise IndexError("a NAL unit ends outside of its packet, or is empty")
        yield data[start:at]


def _sized(data: bytes, at: int, count: int) -> tuple[list[bytes], int]:
    """Parameter sets that have two bytes of length before them, and where they end."""
    found = []
    for _ in range(count):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        found.append(data[at + 2 : end])
        at = end
    return found, at


# H.264: ITU-T H.264 7.3 and 7.4, ISO 14496-15 5.3.3

_H264_HIGH = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
_H264_SLICE, _H264_IDR, _H264_SPS, _H264_PPS = 1, 5, 7, 8


def h264(extradata: bytes) -> Parse | None:
    if extradata[:1] != b"\1":
        return None  # start codes, in AVI and MPEG streams
    sequences, at = _sized(extradata, 6, extradata[5] & 31)
    pictures, _ = _sized(extradata, at + 1, extradata[at])
    if len(sequences) != 1:
        return None
    sizes = _h264_sizes(sequences[0])
    return sizes and _H264((extradata[4] & 3) + 1, {*sequences, *pictures}, *sizes).parse


def _h264_sizes(sps: bytes) -> tuple[int, _Count | None] | None:
    """log2 of the frame numbers and, where pictures are not shown as decoded, their order counts.

    None unless all pictures are whole frames whose numbers have no gaps.
    """
    bits = _Bits(sps[1:])
    profile = bits.bits(24) >> 16
    bits.golomb()
    if profile in _H264_HIGH:
        if bits.golomb() == 3 and bits.bits(1):  # 4:4:4 in separate planes
            return None
        bits.skip_golombs(2)
        if bits.bits(2) & 1:
            return None  # scaling matrices, which are not read here
    log2_frame_num = bits.golomb() + 4
    kind = bits.golomb()
    if kind == 1:
        return None  # pictures that nothing refers to count in it
    count = _Count(bits.golomb() + 4) if kind == 0 else None
    bits.golomb()
    has_gaps = bits.bits(1)
    bits.skip_golombs(2)  # size
    is_frames = bits.bits(1)
    return (log2_frame_num, count) if is_frames and not has_gaps else None


@dataclass(slots=True)
class _H264:
    length_bytes: int
    known: set[bytes]
    log2_frame_num: int
    count: _Count | None
    frame_num: int = 0
    period: int = 0
    place: int = 0

    def parse(self, data: memoryview) -> Picture | None:
        slices = []
        for unit in _units(data, self.length_bytes):
            kind = unit[0] & 31
            if kind in (_H264_SLICE, _H264_IDR):
                if unit[1] & 0x80:  # its first macroblock is the picture's first
                    slices.append(unit)
            elif 2 <= kind <= 4:
                return None  # a slice's data in parts
            elif kind in (_H264_SPS, _H264_PPS) and bytes(unit) not in self.known:
                return None
        return self._picture(slices[0]) if len(slices) == 1 else None

    def _picture(self, unit: memoryview) -> Picture | None:
        is_idr, is_reference = unit[0] & 31 == _H264_IDR, bool(unit[0] & 0x60)
        bits = _Bits(bytes(unit[1:_HEADER_BYTES]))
        bits.skip_golombs(3)
        frame_num = bits.bits(self.log2_frame_num)
        expected = 0 if is_idr else (self.frame_num + 1) % (1 << self.log2_frame_num)
        if frame_num != expected:
            return None  # pictures are missing
        if is_idr:
            bits.golomb()
            self.period += 1
        if is_reference:
            self.frame_num = frame_num
        entry = Entry.ALL if is_idr else Entry.NONE
        return Picture(entry, is_reference, (self.period, self._order(bits, is_idr, is_reference)))

    def _order(self, bits: _Bits, is_idr: bool, is_reference: bool) -> int:
        if self.count is None:
            self.place += 1
            return self.place
        before = 0 if is_idr else self.count.before
        order = self.count.of(bits.bits(self.count.log2_size), before)
        self.count.before = order if is_reference else before
        return order


# HEVC: ITU-T H.265 7.3 and 7.4, ISO 14496-15 8.3.3

_LEADING = range(6, 10)
_RASL = (8, 9)
_BLA_OR_RESERVED = (16, 17, 18, 22, 23)
_IDR = (19, 20)
_CRA = 21
_SPS, _PPS = 33, 34
_PARAMETER_SETS = (32, _SPS, _PPS)
_ENDS = (36, 37)  # of a sequence, of the stream

_References = list[int]
"""Pictures to keep for this one and later ones, as differences of order counts: earlier ones from
the nearest on, then later ones from the nearest on.
"""


def hevc(extradata: bytes) -> Parse | None:
    if extradata[:1] != b"\1":
        return None
    known, at = [], 23
    for _ in range(extradata[22]):
        count = int.from_bytes(extradata[at + 1 : at + 3], "big")
        found, at = _sized(extradata, at + 3, count)
        known += found
    sequences = [unit for unit in known if unit[0] >> 1 & 63 == _SPS]
    pictures = {_hevc_slice_bits(unit) for unit in known if unit[0] >> 1 & 63 == _PPS}
    if len(sequences) != 1 or len(pictures) != 1 or None in pictures:
        return None
    sequence, num_extra = _hevc_sequence(sequences[0]), pictures.pop() or 0
    return sequence and _Hevc((extradata[21] & 3) + 1, set(known), num_extra, *sequence).parse


def _hevc_sequence(sps: bytes) -> tuple[_Count, list[_References]] | None:
    """None for what is seldom used and not read here."""
    bits = _Bits(sps[2:])
    num_sub_layers = bits.bits(8) >> 1 & 7
    bits.bits(96)  # general profile and level
    present = [bits.bits(2) for _ in range(8 if num_sub_layers else 0)][:num_sub_layers]
    for flags in present:
        bits.bits(88 * (flags >> 1) + 8 * (flags & 1))
    bits.golomb()
    if bits.golomb() == 3 and bits.bits(1):  # 4:4:4 in separate planes
        return None
    bits.skip_golombs(2)  # size
    if bits.bits(1):
        bits.skip_golombs(4)  # conformance window
    bits.skip_golombs(2)  # bit depths
    count = _Count(bits.golomb() + 4)
    bits.skip_golombs(3 * (num_sub_layers + 1 if bits.bits(1) else 1))
    bits.skip_golombs(6)  # block sizes
    if bits.bits(1):
        return None  # scaling lists
    if bits.bits(3) & 1:  # PCM
        bits.bits(8)
        bits.skip_golombs(2)
        bits.bits(1)
    num_sets = bits.golomb()
    sets: list[_References] = []
    for index in range(min(num_sets, 64)):
        sets.append(_hevc_references(bits, sets, index, num_sets))
    return None if bits.bits(1) else (count, sets)  # long-term pictures


def _hevc_references(
    bits: _Bits, sets: list[_References], index: int, num_sets: int
) -> _References:
    """H.265 7.3.7 and 7.4.8; a slice's own set has the index num_sets."""
    if index and bits.bits(1):
        back = bits.golomb() + 1 if index == num_sets else 1
        if back > index:
            raise IndexError("a reference picture set refers to one that is not there")
        sign, size = bits.bits(1), bits.golomb() + 1
        step = -size if sign else size
        found = {step + each for each in [*sets[index - back], 0] if bits.bits(1) or bits.bits(1)}
        found.discard(0)
    else:
        found, counts = set(), (bits.golomb(), bits.golomb())
        for direction, count in zip((-1, 1), counts, strict=True):
            at = 0
            for _ in range(count):
                at += direction * (bits.golomb() + 1)
                bits.bits(1)
                found.add(at)
    return sorted((each for each in found if each < 0), reverse=True) + sorted(
        each for each in found if each > 0
    )


def _hevc_slice_bits(pps: bytes) -> int | None:
    """Extra bits in slice headers; None where pictures may say that they are not shown."""
    bits = _Bits(pps[2:])
    bits.skip_golombs(2)
    may_hide, num_extra = bits.bits(2) & 1, bits.bits(3)
    return None if may_hide else num_extra


@dataclass(slots=True)
class _Hevc:
    length_bytes: int
    known: set[bytes]
    num_extra_bits: int
    count: _Count
    sets: list[_References]
    kept: set[int] = field(default_factory=set)  # that may be referred to, by their order counts
    num_entries: int = 0
    period: int = 0

    def parse(self, data: memoryview) -> Picture | None:
        slices = []
        for unit in _units(data, self.length_bytes):
            kind = unit[0] >> 1 & 63
            if unit[0] & 1 or unit[1] >> 3:
                continue  # another layer's, which is not decoded
            if kind < _PARAMETER_SETS[0] and unit[2] & 0x80:
                slices.append(unit)
            elif kind in _ENDS or (kind in _PARAMETER_SETS and bytes(unit) not in self.known):
                return None
        return self._picture(slices[0]) if len(slices) == 1 else None

    def _picture(self, unit: memoryview) -> Picture | None:
        kind, temporal_id = unit[0] >> 1 & 63, (unit[1] & 7) - 1
        if kind in _BLA_OR_RESERVED or (kind in _RASL and self.num_entries < 2):
            return None  # the stream was cut before it: what refers further back is not shown
        bits = _Bits(bytes(unit[2:_HEADER_BYTES]))
        bits.bits(1)
        is_entry = kind in (*_IDR, _CRA)
        if is_entry and bits.bits(1):
            return None  # pictures that still wait are not shown
        self.num_entries += is_entry
        bits.golomb()
        bits.bits(self.num_extra_bits)
        bits.golomb()
        order, references = 0, set()
        if kind in _IDR:
            self.period += 1
        else:
            order = self.count.of(bits.bits(self.count.log2_size), self.count.before)
            references = {order + each for each in self._slice_references(bits)}
        if not references <= self.kept and not is_entry:
            return None  # pictures are missing
        self.kept = references & self.kept | {order}
        if temporal_id == 0 and kind not in _LEADING and (kind >= 16 or kind % 2):
            self.count.before = order  # odd kinds below 16 are referred to by their own layer
        entry = Entry.ALL if kind in _IDR else Entry.TRAILING if kind == _CRA else Entry.NONE
        return Picture(entry, order=(self.period, order))

    def _slice_references(self, bits: _Bits) -> _References:
        count = len(self.sets)
        if not bits.bits(1):
            return _hevc_references(bits, self.sets, count, count)
        return self.sets[bits.bits((count - 1).bit_length())]
