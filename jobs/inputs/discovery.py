"""Which files of a place are a table's: by their endings, and the live ones of a Delta or Iceberg
table. Knows nothing of columns.
"""

import os
from dataclasses import dataclass, replace

from pyarrow import fs

from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs import lakes
from shardrank.jobs.inputs.lines import is_tsv
from shardrank.jobs.storage import (
    COMPRESSIONS,
    Files,
    Location,
    fixed_folder,
    list_files,
    list_with_hidden,
    open_input,
    plain_name,
)

PARQUET, JSON_LINES, TSV = "Parquet", "JSON lines", "tab-separated lines"
PDF = "PDF"
_KINDS = {
    ".parquet": PARQUET,
    ".parq": PARQUET,
    ".pq": PARQUET,
    ".jsonl": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".tsv": TSV,
    ".pdf": PDF,
}
_NOT_READ = (".csv", ".arrow", ".feather", ".orc", ".avro", ".lance")
"""Tables too: beside others they are not passed over."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class DataFile:
    """pdf_name: of a PDF its path in the folder that was named, or in which a glob begins."""

    location: Location
    size_bytes: int
    mtime_ns: int
    is_parquet: bool
    tsv_columns: tuple[str, ...] = ()
    pdf_name: str = ""

    @property
    def is_pdf(self) -> bool:
        return bool(self.pdf_name)

    def check_unchanged(self) -> None:
        """Raises UnreadableInput if it is no longer the file that the job was planned with.

        By size and time, of which an object store's may be known to the second alone.
        """
        info = self.location.info()
        if info.type == fs.FileType.NotFound:
            raise UnreadableInput(f"{self.location} is gone since the job was planned")
        unit = 1 if self.location.is_local else 10**9
        found = info.size, (info.mtime_ns or 0) // unit
        if found != (self.size_bytes, self.mtime_ns // unit):
            raise UnreadableInput(
                f"{self.location} has changed since the job was planned: {info.size:,} bytes, and "
                f"then {self.size_bytes:,}"
            )


def data_files(location: Location) -> list[DataFile]:
    """A place's files of one kind, none where no name tells that it is data; a file that is named
    itself is known by its first bytes where its name does not tell.

    Raises UsageError for files of two kinds, and for a table that cannot be read from its files.
    """
    found, everything = list_with_hidden(location)
    if [place for place, _ in found] == [location]:
        if kind_of(location.name) == PDF:
            return _pdfs(found, location.parent)
        return _files(found, _is_parquet(location))
    found = lakes.live_files(found, everything)
    kinds: dict[str, Files] = {}
    for place, info in found:
        kind = kind_of(place.name) or _bare_kind(place)
        if kind:
            kinds.setdefault(kind, []).append((place, info))
    if len(kinds) > 1:  # a table's PDFs may lie beside it
        kinds.pop(PDF, None)
    if len(kinds) > 1:
        shown = " and ".join(str(files[0][0]) for files in kinds.values())
        raise UsageError(f"{location} holds files of different kinds, {shown}: name one kind")
    ((kind, files),) = kinds.items() or [("", [])]
    if kind == PDF:
        return _pdfs(files, fixed_folder(location))
    return _files([] if kind in _NOT_READ else files, kind == PARQUET)


def _files(found: Files, is_parquet: bool) -> list[DataFile]:
    return [DataFile(place, info.size, info.mtime_ns or 0, is_parquet) for place, info in found]


def _pdfs(found: Files, folder: Location) -> list[DataFile]:
    start = len(folder.path.rstrip("/")) + 1
    return [replace(file, pdf_name=file.location.path[start:]) for file in _files(found, False)]


def kind_of(name: str) -> str | None:
    """What a file's name says that it is; an ending that is not read stands for itself."""
    ending = os.path.splitext(plain_name(name))[1]
    return ending if ending in _NOT_READ else _KINDS.get(ending)


def _bare_kind(file: Location) -> str | None:
    """The kind of lines in a compressed file without an ending of its own, as MS MARCO v2's are."""
    plain = plain_name(file.name)
    if plain == file.name.lower() or os.path.splitext(plain)[1]:
        return None
    return TSV if is_tsv(file) else JSON_LINES


def _is_parquet(file: Location) -> bool:
    kind = kind_of(file.name)
    if kind in _NOT_READ:
        raise UsageError(f"{file} is not read: {_counted()}")
    if kind is not None:
        return kind == PARQUET
    with open_input(file) as stream:
        return stream.read(4) in (b"PAR1", b"PARE")


def nothing_found(location: Location) -> str:
    """The end of a sentence about a place where data_files finds none."""
    names = [place.name for place, _ in list_files(location)]
    if not names:
        return f"no Parquet or JSON lines files at {location}"
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"no Parquet or JSON lines files at {location}, where there is {shown}; {_counted()}"


def _counted() -> str:
    endings = ", ".join(ending for ending, kind in _KINDS.items() if kind != PDF)
    return (
        f"files that end in {endings} are read, lines also with a further "
        f"{', '.join(COMPRESSIONS)}; convert others to Parquet"
    )
