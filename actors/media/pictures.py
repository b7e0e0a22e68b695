"""What a packet's own bits say of the picture in it. Knows nothing of codecs."""

from collections.abc import Callable
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
    order: tuple[int, int] | None = None  # pictures are shown in it; None: as they are decoded


Parse = Callable[[memoryview], Picture | None]
"""Asked of each packet once, in order. None for one that is not exactly one picture that is shown,
or that does not follow on the one before.
"""
