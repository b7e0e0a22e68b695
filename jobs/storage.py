"""Files on local disks, S3 and Google Cloud Storage, all through pyarrow's filesystems.

A `Location` can be pickled and sent to any worker, which opens its own connection once.
"""

import fnmatch
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs

from jobs.errors import UsageError

_SCHEMES = ("file", "s3", "gs", "gcs")
_GLOB = re.compile(r"[*?\[]")


@lru_cache(maxsize=64)
def _filesystem(root: str) -> fs.FileSystem:
    """The filesystem of a URI without its path; `?endpoint_override=...&region=...` is honoured."""
    if urlsplit(root).scheme in ("", "file"):
        return fs.LocalFileSystem()
    try:
        return fs.FileSystem.from_uri(_with_endpoint(root))[0]
    except (OSError, pa.ArrowInvalid) as error:
        raise UsageError(f"cannot open {root}: {error}") from error


def _with_endpoint(root: str) -> str:
    """An S3 URI with the endpoint and the region of the usual AWS variables, unless it has its own.

    Without a region pyarrow asks amazonaws.com for the bucket's, whatever the endpoint is.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not root.startswith("s3:") or not endpoint or "endpoint_override=" in root:
        return root
    parts = urlsplit(endpoint)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    given = dict(parse_qsl(urlsplit(root).query))
    chosen = {"region": region, "scheme": parts.scheme, "endpoint_override": parts.netloc} | given
    query = "&".join(f"{name}={value}" for name, value in chosen.items())
    return f"{root.split('?')[0]}?{query}"


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A file or directory: `path` inside the filesystem that `root` names ("" is local)."""

    root: str
    path: str

    @classmethod
    def parse(cls, uri: str) -> "Location":
        parts = urlsplit(uri)
        if "://" not in uri:
            return cls("", os.path.abspath(os.path.expanduser(uri)))
        if parts.scheme not in _SCHEMES:
            raise UsageError(
                f"{uri}: unknown scheme {parts.scheme!r}; known: {', '.join(_SCHEMES)}"
            )
        if parts.scheme == "file":
            return cls("", parts.path)
        bucket = parts.netloc.rpartition("@")[2]
        if not bucket:
            raise UsageError(f"{uri}: the bucket is missing")
        query = f"?{parts.query}" if parts.query else ""
        root = f"{parts.scheme}://{parts.netloc}{query}"
        return cls(root, f"{bucket}{parts.path}".rstrip("/"))

    @property
    def filesystem(self) -> fs.FileSystem:
        return _filesystem(self.root)

    @property
    def is_local(self) -> bool:
        return not self.root

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def child(self, name: str) -> "Location":
        return Location(self.root, f"{self.path}/{name}")

    def info(self) -> fs.FileInfo:
        return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        return self.info().type != fs.FileType.NotFound

    def __str__(self) -> str:
        """The URI without its query, which may hold credentials."""
        return self.path if self.is_local else f"{urlsplit(self.root).scheme}://{self.path}"


def list_files(location: Location) -> list[tuple[Location, fs.FileInfo]]:
    """The file, the directory's files at any depth, or the glob's matches, sorted by path.

    Names that start with `.` or `_` are not data. A place that does not exist has no files.
    """
    if _GLOB.search(location.path):
        return _glob(location)
    info = location.info()
    if info.type == fs.FileType.File:
        return [(location, info)]
    return _walk(location)


def _walk(directory: Location) -> list[tuple[Location, fs.FileInfo]]:
    selector = fs.FileSelector(directory.path, recursive=True, allow_not_found=True)
    found = [
        (Location(directory.root, info.path), info)
        for info in directory.filesystem.get_file_info(selector)
        if info.type == fs.FileType.File and not _is_hidden(info.path, directory.path)
    ]
    return sorted(found, key=lambda pair: pair[0].path)


def _is_hidden(path: str, parent: str) -> bool:
    parts = path[len(parent) :].strip("/").split("/")
    return any(part.startswith((".", "_")) for part in parts)


def _glob(pattern: Location) -> list[tuple[Location, fs.FileInfo]]:
    fixed = _GLOB.split(pattern.path)[0].rpartition("/")[0]
    files = _walk(Location(pattern.root, fixed))
    return [pair for pair in files if fnmatch.fnmatch(pair[0].path, pattern.path)]


@contextmanager
def open_input(location: Location) -> Iterator[Any]:
    with location.filesystem.open_input_file(location.path) as stream:
        yield stream


def read_bytes(location: Location) -> bytes:
    with open_input(location) as stream:
        return stream.read()


def write_atomically(location: Location, content: bytes | pa.Buffer) -> None:
    """Write all or nothing: temporary name, fsync and rename locally; one completed PUT elsewhere.

    Writing the same file twice is harmless, so a retry and a late orphan may both do it.
    """
    write_stream(location, [content])


def write_stream(location: Location, parts: Iterable[bytes | pa.Buffer]) -> None:
    """As write_atomically, part by part; where making a part fails nothing is left."""
    if location.is_local:
        _write_local(location.path, parts)
        return
    with location.filesystem.open_output_stream(location.path) as stream:
        try:
            for part in parts:
                stream.write(part)
        except BaseException:
            stream.close()  # completes the object: pyarrow has no way to abandon one
            location.filesystem.delete_file(location.path)
            raise


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


def remove_leftovers(directory: Location) -> None:
    """Delete temporary files that a killed writer left behind on a local disk."""
    if not directory.is_local or not os.path.isdir(directory.path):
        return
    for name in os.listdir(directory.path):
        if name.startswith(".") and name.endswith(".tmp"):
            os.unlink(os.path.join(directory.path, name))


def remove_directory(directory: Location) -> None:
    """Delete a directory with everything in it, if it is there; on an object store, its prefix."""
    if directory.exists():
        directory.filesystem.delete_dir(directory.path)
