"""The values that go in and come out: content, candidate sets, pair scores, embeddings.

`Content.parse` takes every form that users write (strings, dicts, Hugging Face structs, PIL images,
lists of them) and knows nothing about how media are read.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any
from urllib.parse import urlparse

import numpy as np
from PIL import Image as PILImage

from shardrank.actors.config import QueryOptions
from shardrank.actors.errors import EmptyQuery, InvalidContent, NonFiniteScore, RerankError
from shardrank.actors.families.family import Role

ImageSource = bytes | str | PILImage.Image
"""An encoded image, a path or URL, or a decoded image."""

CONTENT_FIELDS = ("text", "image", "video", "pdf", "page", "pages")
_Bytes = bytes | bytearray | memoryview

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tiff", ".svg"}
"""The suffixes by which the official scorer tells a list of frames from a list of files."""


@dataclass(frozen=True, slots=True)
class PdfPage:
    """One page of a PDF file, to be rendered to an image: by its number from 1; None is the only
    page of a file that has one.
    """

    source: bytes | str
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Video:
    """One video: an encoded file (`source`) or its `frames` in order; exactly one of the two.

    fps: for a file, frames sampled per second (None: as configured); for frames, the rate they
    were sampled at, which the timestamps of the prompt are made from (None: 2.0, as official).
    """

    source: bytes | str | None = None
    frames: tuple[ImageSource, ...] | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if (self.source is None) == (self.frames is None):
            raise InvalidContent("a video needs either bytes or a path, or frames")
        if self.fps is not None and not 0 < self.fps <= sys.float_info.max:
            raise InvalidContent(f"a video's fps must be above zero, got {self.fps!r}")


@dataclass(frozen=True, slots=True)
class Content:
    """One side of a pair: videos, then images, then texts, in the prompt's order.

    Of what says nothing, nothing at all is the official scorer's `NULL`, one empty text is empty.
    """

    texts: tuple[str, ...] = ()
    images: tuple[ImageSource | PdfPage, ...] = ()
    videos: tuple[Video, ...] = ()

    @property
    def has_media(self) -> bool:
        return bool(self.images or self.videos)

    @property
    def says_nothing(self) -> bool:
        return not self.has_media and not "".join(self.texts).strip()

    @classmethod
    def parse(cls, value: Any, field: str = "content") -> "Content":
        """Read a string, an image, or a mapping of `text`, `image`, `video` (each one or many) and
        `pdf` with its `page` or `pages`.

        Parts that are null or empty are left out. Raises InvalidContent that names `field` and
        what was wrong with it.
        """
        if isinstance(value, Content):
            return value
        if value is None:
            return cls()
        if isinstance(value, str):
            return cls(texts=(value,))
        if isinstance(value, _Bytes | PILImage.Image) or _is_media_struct(value):
            return cls(images=_images(value, field))
        if not isinstance(value, Mapping):
            raise InvalidContent(
                f"{field} must be a string, an image or a mapping of text, image, video and pdf, "
                f"got {_kind(value)}"
            )
        _check_fields(value, CONTENT_FIELDS, field)
        return cls(
            texts=_texts(value.get("text"), f"{field}.text"),
            images=_images(value.get("image"), f"{field}.image") + _pdf_pages(value, field),
            videos=_videos(value.get("video"), f"{field}.video"),
        )

    @classmethod
    def parse_query(cls, value: Any, field: str = "query") -> "Content":
        """Read a query like `parse`; None and {} raise EmptyQuery (officially: no score)."""
        if value is None or (isinstance(value, Mapping) and not value):
            raise EmptyQuery(f"{field} is {'null' if value is None else 'empty'}")
        return cls.parse(value, field)


@dataclass(frozen=True, slots=True)
class CandidateSet:
    """One query and its documents. A side that could not be parsed is its error.

    document_name: what messages call a document, by its index, or by its number where a caller
    has numbered them: the set may be a part of what was asked. role: of documents that are only
    embedded, where it is not the configured one.
    """

    query: Content | RerankError
    documents: tuple[Content | RerankError, ...]
    instruction: str | None = None
    options: QueryOptions = QueryOptions()
    document_name: str = "documents[{}]"
    numbers: tuple[int, ...] = ()
    role: Role | None = None

    def name_of(self, index: int) -> str:
        return self.document_name.format(self.numbers[index] if self.numbers else index)

    @classmethod
    def parse(
        cls,
        query: Any,
        documents: Sequence[Any],
        instruction: str | None = None,
        options: QueryOptions | None = None,
        document_name: str = "documents[{}]",
    ) -> "CandidateSet":
        """Parse both sides; what cannot be parsed becomes that document's error."""
        return cls(
            query=parse_or_error(Content.parse_query, query, "query"),
            documents=tuple(
                parse_or_error(Content.parse, document, document_name.format(index))
                for index, document in enumerate(documents)
            ),
            instruction=instruction,
            options=options or QueryOptions(),
            document_name=document_name,
        )


@dataclass(frozen=True, slots=True)
class PairScore:
    """The result of one pair: a score in [0, 1] and its logit, or an error.

    num_tokens counts what the model reads for this pair alone, visual tokens included.
    """

    score: float | None = None
    logit: float | None = None
    num_tokens: int = 0
    num_visual_tokens: int = 0
    is_truncated: bool = False
    error: RerankError | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """The result of one text, image or video: a unit vector (D,) float32, or an error."""

    embedding: np.ndarray | None = None
    num_tokens: int = 0
    num_visual_tokens: int = 0
    is_truncated: bool = False
    error: RerankError | None = None

    def cut(self, dimensions: int | None) -> "Embedding":
        """The same in its first so many dimensions (MRL), a unit vector again."""
        if self.embedding is None or dimensions is None or dimensions >= len(self.embedding):
            return self
        short = self.embedding[:dimensions]
        length = np.linalg.norm(short)
        if not length:
            error = NonFiniteScore(f"the vector's first {dimensions} dimensions are zero")
            return replace(self, embedding=None, error=error)
        return replace(self, embedding=short / length)


def parse_or_error(parse: Any, value: Any, field: str) -> Content | RerankError:
    """What `parse` makes of a value, or its error; a value may be its error already."""
    if isinstance(value, RerankError):
        return value
    try:
        return parse(value, field)
    except RerankError as error:
        return error


def _check_fields(value: Mapping[Any, Any], known: Sequence[str], field: str) -> None:
    for name in value:
        if name not in known:
            what = repr(name) if isinstance(name, str) else f"of the type {_kind(name)}"
            raise InvalidContent(
                f"{field} has an unknown field {what}; known fields: {', '.join(known)}"
            )


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _is_media_struct(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and set(value) <= {"bytes", "path"}


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return list(value)
    return [value]


def _texts(value: Any, field: str) -> tuple[str, ...]:
    texts = [text for text in _as_list(value) if text is not None]
    for text in texts:
        if not isinstance(text, str):
            raise InvalidContent(
                f"{field} must be a string or a list of strings, got {_kind(text)}"
            )
    return tuple(texts)


def _images(value: Any, field: str) -> tuple[ImageSource, ...]:
    return tuple(_image(image, field) for image in _as_list(value) if not _is_nothing(image))


_MAX_PAGE_NUMBER = 1 << 31


def _pdf_pages(value: Mapping[str, Any], field: str) -> tuple[PdfPage, ...]:
    """The pages of a mapping's `pdf` that its `page` or `pages` name, in that order."""
    given = [name for name in ("page", "pages") if value.get(name) is not None]
    if _is_nothing(value.get("pdf")):
        if given:
            raise InvalidContent(f"{field} has {given[0]}, and no pdf")
        return ()
    if len(given) > 1:
        raise InvalidContent(f"{field} has both page and pages; give one of them")
    source = _encoded(value["pdf"], f"{field}.pdf", "a PDF")
    if not given:
        return (PdfPage(source),)
    return tuple(PdfPage(source, number) for number in _page_numbers(value, given[0], field))


def _page_numbers(value: Mapping[str, Any], name: str, field: str) -> list[int]:
    """`page`, one number, or `pages`, a list of them. Raises InvalidContent for what is none."""
    numbers = value[name] if name == "pages" else [value[name]]
    if not isinstance(numbers, list | tuple) or not numbers:
        raise InvalidContent(f"{field}.pages must be a list of numbers, got {_kind(numbers)}")
    for number in numbers:
        is_whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
        if isinstance(number, bool) or not is_whole or not 1 <= number <= _MAX_PAGE_NUMBER:
            raise InvalidContent(f"{field}.{name}: pages are counted from 1, in whole numbers")
    return [int(number) for number in numbers]


def _frames(value: Any, field: str) -> tuple[ImageSource, ...]:
    """None can be left out: the others' times would be wrong."""
    return tuple(_image(image, field) for image in _as_list(value))


def _is_nothing(value: Any) -> bool:
    """Whether a place for an image or video is empty. Bytes never are: none of them is a damaged
    file; nor are frames: none of them is a broken list.
    """
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path", "frames", "fps"}:
        return all(_is_blank(each) for key, each in value.items() if key != "fps")
    return _is_blank(value)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _image(value: Any, field: str) -> ImageSource:
    if isinstance(value, PILImage.Image):
        return value
    return _encoded(value, field, "an image")


def _encoded(value: Any, field: str, what: str) -> bytes | str:
    """Bytes or a path out of bytes, str, Path or the struct {bytes, path}, where bytes win."""
    if _is_media_struct(value):
        return _from_struct(value, field)
    if isinstance(value, _Bytes):
        return bytes(value)
    if isinstance(value, str | PurePath):
        if not str(value):
            raise InvalidContent(f"{field} has an empty path")
        return str(value)
    raise InvalidContent(f"{field} must be {what}: bytes, a path or both, got {_kind(value)}")


def _from_struct(value: Mapping[str, Any], field: str) -> bytes | str:
    encoded, path = value.get("bytes"), value.get("path")
    if encoded is not None:
        if not isinstance(encoded, _Bytes):
            raise InvalidContent(f"{field}.bytes must be bytes, got {_kind(encoded)}")
        return bytes(encoded)
    if path is None:
        raise InvalidContent(f"{field} has neither bytes nor a path")
    if not isinstance(path, str | PurePath):
        raise InvalidContent(f"{field}.path must be a string, got {_kind(path)}")
    return _encoded(path, field, "a path")


def _videos(value: Any, field: str) -> tuple[Video, ...]:
    if isinstance(value, list | tuple) and not _is_frame_list(value):
        return tuple(_video(video, field) for video in value if not _is_nothing(video))
    return () if _is_nothing(value) else (_video(value, field),)


def _is_frame_list(value: Sequence[Any]) -> bool:
    """Whether a list is one video's frames: images, or paths with an image's suffix."""
    if not value:
        return False
    first = value[0]
    if isinstance(first, str | PurePath):
        return _url_suffix(str(first)) in _IMAGE_SUFFIXES
    return isinstance(first, PILImage.Image)


def _url_suffix(path: str) -> str:
    try:
        return PurePath(urlparse(path).path).suffix.lower()
    except ValueError:  # urlparse refuses what looks like a broken IPv6 host
        return ""


def _video(value: Any, field: str) -> Video:
    if isinstance(value, Video):
        return value
    if isinstance(value, list | tuple):
        return Video(frames=_frames(value, field))
    if not isinstance(value, Mapping):
        return Video(source=_encoded(value, field, "a video"))
    _check_fields(value, ("bytes", "path", "frames", "fps"), field)
    fps = _fps(value.get("fps"), field)
    encoded = {key: value[key] for key in ("bytes", "path") if not _is_blank(value.get(key))}
    if value.get("frames") is not None and not encoded:
        return Video(frames=_frames(value["frames"], f"{field}.frames"), fps=fps)
    if value.get("frames") and encoded:
        raise InvalidContent(f"{field} has both a file and frames; give one of them")
    return Video(source=_encoded(encoded or {"path": None}, field, "a video"), fps=fps)


def _fps(value: Any, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidContent(f"{field}.fps must be a number, got {_kind(value)}")
    try:
        fps = float(value)
    except OverflowError as error:  # an integer of over 308 digits
        raise InvalidContent(f"{field}.fps must be below infinity") from error
    if not 0 < fps < float("inf"):
        raise InvalidContent(f"{field}.fps must be above zero, got {fps!r}")
    return fps
