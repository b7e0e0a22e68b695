"""Files on local disks, S3 and Google Cloud Storage, all through pyarrow's filesystems.

A `Location` can be pickled and sent to any worker, which opens its own connection once. How often
an object store is asked again is said in actors/fetch/object_store.py.
"""

import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs
from wcmatch import glob

from shardrank.actors.fetch import object_store
from shardrank.jobs.errors import JobError, UsageError

_SCHEMES = ("file", "s3", "gs", "gcs")
_GLOB = re.compile(r"[*?\[{]")
_GLOB_FLAGS = glob.GLOBSTAR | glob.BRACE | glob.CASE | glob.FORCEUNIX
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_SPOOLED_BYTES = 64 << 20

T = TypeVar("T")


class StorageError(JobError, OSError):
    """A place that cannot be listed, read, written or deleted; says which, and why."""


class NoSuchFile(StorageError, FileNotFoundError):
    pass


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A file or directory: `path` inside the filesystem that `root` names ("" is local)."""

    root: str
    path: str

    @classmethod
    def parse(cls, uri: str) -> "Location":
        if uri.startswith("file:"):
            return cls("", _path_of_file_uri(uri))
        if "://" not in uri:
            return cls("", os.path.abspath(os.path.expanduser(uri)))
        parts = urlsplit(uri, allow_fragments=False)  # `#` is a character like others of a key
        if parts.scheme not in _SCHEMES:
            raise UsageError(
                f"{uri}: unknown scheme {parts.scheme!r}; known: {', '.join(_SCHEMES)}"
            )
        bucket = parts.netloc.rpartition("@")[2]
        if not bucket:
            raise UsageError(f"{uri}: the bucket is missing")
        query = f"?{parts.query}" if parts.query else ""
        root = f"{parts.scheme}://{parts.netloc}{query}"
        return cls(root, f"{bucket}{parts.path}".rstrip("/"))

    @property
    def filesystem(self) -> fs.FileSystem:
        """The root's filesystem; `?endpoint_override=...&region=...` is honoured."""
        if self.is_local:
            return fs.LocalFileSystem()
        try:
            return object_store.filesystem(self.root)
        except (OSError, ValueError) as error:
            bucket = str(Location(self.root, self.path.partition("/")[0]))
            raise UsageError(f"cannot open {bucket}: {error}") from error

    @property
    def is_local(self) -> bool:
        return not self.root

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        return Location(self.root, self.path.rpartition("/")[0])

    def child(self, name: str) -> "Location":
        return Location(self.root, f"{self.path}/{name}")

    def info(self) -> fs.FileInfo:
        return self._asked("looked at", lambda: self.filesystem.get_file_info(self.path))

    def exists(self) -> bool:
        return self.info().type != fs.FileType.NotFound

    @property
    def is_file(self) -> bool:
        return self.info().type == fs.FileType.File

    def _asked(self, done: str, operation: Callable[[], T]) -> T:
        """What `operation` returns, retried where that can help."""
        with self._errors(done):
            return operation() if self.is_local else object_store.retried(operation)

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        """Every OSError becomes a StorageError."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            kind = NoSuchFile if isinstance(error, FileNotFoundError) else StorageError
            reason = str(error.strerror or error).rpartition("Detail: ")[2]  # else named twice
            raise kind(f"{self} cannot be {done}: {reason}") from error

    def __str__(self) -> str:
        """The URI without its query, which may hold credentials."""
        return self.path if self.is_local else f"{urlsplit(self.root).scheme}://{self.path}"


def _path_of_file_uri(uri: str) -> str:
    """RFC 8089's `file:///path`, `file://localhost/path` and `file:/path`; `%20` is a space."""
    path = uri.removeprefix("file:")
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise UsageError(f"{uri}: a file of another host, {host!r}; write file:///{host}/...")
        path = slash + path
    return os.path.abspath(unquote(path))


COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def compression(name: str) -> str | None:
    """The ending of a compressed file's name, None of another's."""
    return next((ending for ending in COMPRESSIONS if name.lower().endswith(ending)), None)


def plain_name(name: str) -> str:
    """A file's name in lower case without the ending of a compression."""
    return name.lower().removesuffix(compression(name) or "")


Files = list[tuple[Location, fs.FileInfo]]


def list_files(location: Location) -> Files:
    """The file, the directory's files at any depth, or the glob's matches, sorted by path.

    Names that start with `.` or `_` are not data. A place that does not exist has no files; one
    that does is no glob, whatever its name. In a glob `*` stays in its folder, `**` is any depth
    and `{a,b}` is either. Raises UsageError for a link that leads nowhere or in a circle.
    """
    return list_with_hidden(location)[0]


def list_with_hidden(location: Location) -> tuple[Files, Files]:
    """What list_files gives, and all that the directory holds in which it looked."""
    info = location.info()
    if info.type == fs.FileType.File:
        return [(location, info)], []
    is_glob = info.type == fs.FileType.NotFound and bool(_GLOB.search(location.path))
    directory = _before_glob(location) if is_glob else location
    dead_links = _find_dead_links(directory)
    everything = _list_everything(directory)
    files = _without_hidden(everything, directory)
    if is_glob:
        return _matching(location, files, dead_links), everything
    _check_links(location, dead_links)
    return files, everything


def fixed_folder(location: Location) -> Location:
    """The directory itself, or of a glob the one in which it looks."""
    return location if location.exists() else _before_glob(location)


def _before_glob(location: Location) -> Location:
    return Location(location.root, _GLOB.split(location.path)[0].rpartition("/")[0])


def would_read(location: Location, output: Location) -> bool:
    """Whether what a job writes into the directory `output` would be among the files of `location`,
    a directory or a glob. Links are followed.
    """
    kind = location.info().type
    if location.root != output.root or kind == fs.FileType.File:
        return False
    real = os.path.realpath if location.is_local else str
    fixed, rest = location.path, "/**"
    if kind == fs.FileType.NotFound:
        fixed = _GLOB.split(location.path)[0].rpartition("/")[0]
        rest = location.path[len(fixed) :]
    below = f"{real(output.path)}/scores/part-000000.parquet"
    patterns = [f"{glob.escape(real(fixed))}{ending}" for ending in (rest, f"{rest}/**")]
    is_matched = any(glob.globmatch(below, wanted, flags=_GLOB_FLAGS) for wanted in patterns)
    return is_matched and not _is_hidden(below, real(fixed))


def list_directory(directory: Location) -> Files:
    """The files of what is a directory or nothing, and never a glob: a job's output."""
    return _without_hidden(_list_everything(directory), directory)


def child_names(directory: Location) -> list[str]:
    """The names of the files and folders directly in it; of what is no directory, none."""
    if directory.info().type != fs.FileType.Directory:
        return []
    return sorted(info.base_name for info in _listed(directory, recursive=False))


def _listed(directory: Location, *, recursive: bool) -> list[fs.FileInfo]:
    selector = fs.FileSelector(directory.path, recursive=recursive, allow_not_found=True)
    return directory._asked("listed", lambda: directory.filesystem.get_file_info(selector))


def _list_everything(directory: Location) -> Files:
    infos = sorted(_listed(directory, recursive=True), key=lambda info: info.path)
    files = (info for info in infos if info.type == fs.FileType.File)
    return [(Location(directory.root, info.path), info) for info in files]


def _without_hidden(files: Files, directory: Location) -> Files:
    return [pair for pair in files if not _is_hidden(pair[0].path, directory.path)]


def _is_hidden(path: str, parent: str) -> bool:
    parts = path[len(parent) :].strip("/").split("/")
    return any(part.startswith((".", "_")) for part in parts)


def _matching(pattern: Location, files: Files, dead_links: Sequence[str]) -> Files:
    """The files that match or, where none does, those within the directories that match."""
    for wanted in (pattern.path, f"{pattern.path}/**"):
        try:
            matches = glob.compile(wanted, flags=_GLOB_FLAGS).match
        except Exception as error:  # more than 1,000 alternatives: wcmatch keeps its error private
            raise UsageError(f"{pattern}: {error}") from error
        _check_links(pattern, [link for link in dead_links if matches(link)])
        found = [pair for pair in files if matches(pair[0].path)]
        if found:
            return found
    return []


def _check_links(location: Location, links: Sequence[str]) -> None:
    if links:
        raise UsageError(f"{location}: the link {links[0]} leads nowhere; remove it or name files")


def _find_dead_links(directory: Location) -> list[str]:
    """pyarrow's listing skips them, and follows a circle 40 times: raises UsageError for that."""
    if not directory.is_local or not os.path.isdir(directory.path):
        return []
    with directory._errors("listed"):
        return sorted(_dead_links(directory.path, (os.path.realpath(directory.path),)))


def _dead_links(directory: str, above: tuple[str, ...]) -> Iterator[str]:
    """above: the real paths of the directories that led here, this one's last."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                yield entry.path
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if real in above:
                    raise UsageError(f"the link {entry.path} leads in a circle, to {real}")
                yield from _dead_links(entry.path, (*above, real))


@contextmanager
def open_input(location: Location) -> Iterator[Any]:
    """A file to read from; an object store's retries each read. See comes_from_storage."""
    filesystem, path = location.filesystem, location.path
    if location.is_local:
        opened = filesystem.open_input_file(path)
    else:
        opened = object_store.open_object(filesystem, path)
    with opened as stream:
        yield stream


def comes_from_storage(error: BaseException | None) -> bool:
    """Whether a file could not be read, and what it holds may be whole.

    pyarrow has OSErrors of both kinds; of a disk's, only the first kind has an errno.
    """
    if not isinstance(error, OSError):
        return False
    return error.errno is not None or isinstance(error, (StorageError, object_store.ReadError))


def read_bytes(location: Location) -> bytes:
    """Raises StorageError, of a file that is not there NoSuchFile."""
    with location._errors("read"), open_input(location) as stream:
        return stream.read()


def write_atomically(location: Location, content: bytes | pa.Buffer) -> None:
    """Write all or nothing: temporary name, fsync and rename locally; one completed PUT elsewhere.

    Writing the same file twice is harmless, so a retry and a late orphan may both do it. Raises
    StorageError.
    """
    write_stream(location, [content])


def write_stream(location: Location, parts: Iterable[bytes | pa.Buffer]) -> None:
    """Write as write_atomically does, part by part; where making a part fails nothing is left.

    For an object store the parts are gathered first, beyond 64 MiB in the temporary directory: a
    part cannot be made twice, and pyarrow cannot abandon an object that it began.
    """
    if location.is_local:
        location._asked("written", lambda: _write_local(location.path, parts))
        return
    with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as spooled:
        for part in parts:
            spooled.write(part)
        location._asked("written", lambda: _put(location, spooled))


def _put(location: Location, content: Any) -> None:
    """On a thread of its own: Ctrl-C would end it in the middle, and closing a stream that has half
    of its content makes that the object.
    """

    def put() -> None:
        content.seek(0)
        with location.filesystem.open_output_stream(location.path) as stream:
            shutil.copyfileobj(content, stream, 1 << 20)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(put).result()


def _write_local(path: str, parts: Iterable[bytes | pa.Buffer]) -> None:
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    temporary = os.path.join(directory, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def remove_leftovers(directory: Location, older_than_s: float | None = None) -> None:
    """Delete temporary files that a killed writer left behind on a local disk.

    A living writer's go too, unless they are younger than `older_than_s`.
    """
    if not directory.is_local or not os.path.isdir(directory.path):
        return
    for name in os.listdir(directory.path):
        path = os.path.join(directory.path, name)
        with suppress(FileNotFoundError):  # its writer lives, and has just renamed it
            if _TEMPORARY.fullmatch(name) and (
                older_than_s is None or time.time() - os.path.getmtime(path) > older_than_s
            ):
                os.unlink(path)


def delete_file(location: Location) -> None:
    """Delete a file, if it is there."""
    with suppress(NoSuchFile):
        location._asked("deleted", lambda: location.filesystem.delete_file(location.path))


def remove_directory(directory: Location) -> None:
    """Delete a directory with everything in it, if it is there; on an object store, its prefix."""
    if directory.exists():
        directory._asked("deleted", lambda: directory.filesystem.delete_dir(directory.path))
