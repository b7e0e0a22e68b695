"""Bytes behind a media path: local files under optional roots, s3:// and gs:// by pyarrow, and
http(s) where it is allowed.

Knows nothing about what the bytes mean.
"""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from shardrank.actors.errors import (
    MediaForbidden,
    MediaNotFound,
    MediaTooLarge,
    MediaUnreachable,
    UnknownScheme,
)
from shardrank.actors.fetch.web import WebMedia, WebReader
from shardrank.actors.fetch.web_url import shown

MAX_BYTES = 2 << 30
"""The most bytes of a file or object that is read into memory: local video files are not."""

SECRET_WORDS = r"key|token|secret|password|signature|credential|\bsig"
"""What a name in a URI's query has in it whose value nobody may read."""
_SECRET = re.compile(rf"((?:{SECRET_WORDS})[\w-]{{0,64}}=)[^&/\s]*", re.IGNORECASE)
_OBJECT_STORES = {"s3", "gs", "gcs"}
_BUCKET = re.compile("[A-Za-z0-9._-]+")
_WEB = {"http", "https"}


@dataclass(frozen=True, slots=True)
class _ObjectRoot:
    bucket_uri: str  # with the query and the credentials that configure the store
    prefix: str  # scheme://bucket/key, without them and without a / at its end

    @classmethod
    def parse(cls, root: str) -> "_ObjectRoot":
        location, mark, query = root.rstrip("/").partition("?")
        store, bucket, key = _split(location)
        prefix = f"{store}://{bucket.rpartition('@')[2]}/{key}".rstrip("/")
        return cls(f"{store}://{bucket}{mark}{query}", prefix)


class MediaReader:
    """Reads media by path; `roots` (a directory or an object-store prefix, or several) say where
    relative ones start, at the first, and no local path may lie outside all of them, symbolic
    links resolved: with none, () or "", no local path is read; with None any is. `web` None: no
    http(s); `local` False: nothing else. Safe to use from several threads.

    Where the first root is an object store's, no object may lie outside it, and its query and
    credentials configure the store. Else any object is read that the environment's credentials may
    read: give a root, or local=False, where paths come from strangers.
    """

    def __init__(
        self,
        roots: str | Sequence[str] | None = None,
        web: WebMedia | None = None,
        local: bool = True,
    ) -> None:
        self._web = WebReader(web) if web else None
        self._local = local
        given = [roots] if isinstance(roots, str) else list(roots or ())
        is_remote = bool(given) and is_object_store(given[0])
        self._object_root = _ObjectRoot.parse(given.pop(0)) if is_remote else None
        self._local_roots = None
        if roots is not None:
            self._local_roots = [_as_local(root).resolve() for root in given if root]

    def read(self, path: str) -> bytes:
        """Raises a MediaError: of no file, none that may be read, none that can, or too much."""
        opened = self.open_local(path)
        if opened is None and self._web is not None and _scheme(path) in _WEB:
            return self._web.read(path)
        if opened is None:
            return _read_object(*self._bucket_and_place(path), name_of(path))
        try:
            with opened as file:
                _check_size(os.fstat(file.fileno()).st_size, name_of(path))
                return file.read()
        except OSError as error:
            raise _unreachable(path, error) from error

    def open_local(self, path: str) -> BinaryIO | None:
        """The local file behind `path`, or None where `read` has to fetch it.

        It is opened, and only then checked to be a file inside the roots: a link or a pipe may have
        been put in its place since its path was looked at.
        """
        local = self.local_path(path)
        if local is None:
            return None
        try:
            file = open(local.absolute(), "rb", opener=_at_once)  # noqa: SIM115  (given)
        except OSError as error:
            raise _unreachable(path, error) from error
        opened = Path(f"/proc/self/fd/{file.fileno()}")
        place = Path(os.readlink(opened)) if opened.is_symlink() else local.resolve()
        roots = self._local_roots
        is_inside = roots is None or any(place.is_relative_to(root) for root in roots)
        if is_inside and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
        raise MediaNotFound(f"{name_of(path)}: no such file any more")

    def local_path(self, path: str) -> Path | None:
        """The existing local file behind `path`, or None where `read` has to fetch it."""
        scheme = _scheme(path)
        self._check_kind(path, scheme)
        if scheme in _WEB:
            return None
        if "\0" in path:
            raise MediaNotFound(f"{path!r}: a path cannot hold a null character")
        if scheme in _OBJECT_STORES or (not scheme and self._object_root and path[:1] != "/"):
            return None
        if scheme not in {"", "file"}:
            raise UnknownScheme(
                f"{name_of(path)}: unknown scheme {scheme!r}; use a path, file://, s3:// or gs://"
            )
        return self._existing(path)

    def _check_kind(self, path: str, scheme: str) -> None:
        if scheme in _WEB and self._web is None:
            raise MediaForbidden(f"{shown(path)}: media over http(s) are not allowed")
        if scheme not in _WEB and not self._local:
            raise MediaForbidden(f"{name_of(path)}: media by path are not allowed")

    def _existing(self, path: str) -> Path:
        try:
            local = _as_local(path)
            if self._local_roots is not None:
                local = self._inside_roots(local, self._local_roots, path)
            if local.is_file():
                return local
        except (OSError, RuntimeError, ValueError) as error:  # ValueError: no name for a file
            raise MediaNotFound(f"{name_of(path)}: {_redacted(str(error))}") from error
        raise MediaNotFound(f"{name_of(path)}: no such file")

    def _inside_roots(self, local: Path, roots: Sequence[Path], path: str) -> Path:
        if not roots:
            raise MediaForbidden(
                f"{name_of(path)}: a local path, outside any media root (--media-root)"
            )
        resolved = (roots[0] / local).resolve()
        if not any(resolved.is_relative_to(root) for root in roots):
            named = ", ".join(map(str, roots))
            raise MediaForbidden(f"{name_of(path)}: outside the media root {named}")
        return resolved

    def _bucket_and_place(self, path: str) -> tuple[str, str]:
        """The bucket's URI, which the root alone configures, and bucket/key."""
        root = self._object_root
        if _scheme(path):
            location, bucket_uri = _object_location(path)
        else:
            assert root is not None, "without one it is a local path"
            location, bucket_uri = f"{root.prefix}/{path}", root.bucket_uri
        if ".." in path.split("/"):  # curl, which pyarrow calls, would follow it to other buckets
            raise MediaForbidden(f"{name_of(path)}: an object's path cannot have .. in it")
        if root is not None and not location.startswith(f"{root.prefix}/"):
            raise MediaForbidden(f"{name_of(path)}: outside the media root {root.prefix}")
        return root.bucket_uri if root else bucket_uri, location.partition("://")[2]


def _object_location(path: str) -> tuple[str, str]:
    """scheme://bucket/key of a row, and its bucket's URI.

    Raises MediaForbidden for more than that: a row that chose the endpoint or the credentials could
    send the job's own, or what it reads, anywhere.
    """
    store, bucket, key = _split(path)
    if "?" in path or not _BUCKET.fullmatch(bucket):
        raise MediaForbidden(
            f"{name_of(path)}: not a bucket and a key alone; the media root (--media-root) or the "
            "environment configure the store"
        )
    return f"{store}://{bucket}/{key}", f"{store}://{bucket}"


def _split(location: str) -> tuple[str, str, str]:
    """(store, bucket with any credentials, key)"""
    scheme, _, place = location.partition("://")
    bucket, _, key = place.partition("/")
    return scheme.lower().replace("gcs", "gs"), bucket, key


def name_of(path: str) -> str:
    """What messages call a media path: a URL's query and credentials may be secret."""
    if _scheme(path) in _WEB:
        return shown(path)
    if _scheme(path) in _OBJECT_STORES:
        scheme, _, place = path.partition("://")
        bucket, slash, key = place.partition("/")
        path = f"{scheme}://{bucket.rpartition('@')[2]}{slash}{key}"
    return _redacted(path)


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _unreachable(path: str, error: OSError) -> MediaUnreachable:
    return MediaUnreachable(f"{name_of(path)}: {error.strerror or error}")


def _redacted(text: str) -> str:
    return _SECRET.sub(r"\1***", text)


def is_object_store(path: str) -> bool:
    return _scheme(path) in _OBJECT_STORES


def _scheme(path: str) -> str:
    head, separator, _ = path.partition("://")
    return head.lower() if separator and head.replace("+", "").isalnum() else ""


def _as_local(path: str) -> Path:
    if _scheme(path) == "file":
        return Path(unquote(urlsplit(path).path))
    return Path(path)


def _check_size(num_bytes: int, name: str) -> None:
    if num_bytes > MAX_BYTES:
        raise MediaTooLarge(f"{name}: {num_bytes:,} bytes, over the limit of {MAX_BYTES:,}")


def _read_object(bucket_uri: str, place: str, name: str) -> bytes:
    """Errors give the name, not the URI: its query may hold the root's secret key."""
    from shardrank.actors.fetch import object_store  # pyarrow, which only object stores need

    try:
        with object_store.open_object(object_store.filesystem(bucket_uri), place) as stream:
            _check_size(stream.size(), name)
            return stream.read()
    except FileNotFoundError as error:
        raise MediaNotFound(f"{name}: no such object") from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise MediaUnreachable(f"{name}: {_redacted(str(error))}") from error
