"""Queries and documents in every form that clients send, to the engine's Content.

A string; an object of `text`, `image`, `video` (each one or many) and `pdf` with its `page` or
`pages`; an object of `content`; a list of content parts, as OpenAI's and vLLM's. URLs stay strings,
to be fetched later; data: URLs and base64 become bytes. Parts that are null or empty are left out,
which may leave nothing. Half of a surrogate pair, which is no character, is U+FFFD. What has the
wrong shape is InvalidRequest, which names the field; a number, pages that are none, and what has
the right shape and does not decode, is InvalidContent, an error of that side alone.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from shardrank.actors.data import Content, ImageSource, PdfPage, Video
from shardrank.actors.errors import InvalidContent, RerankError
from shardrank.serve.errors import InvalidRequest

_CONTENT_FIELDS = ("text", "image", "video")
_PDF_FIELDS = ("pdf", "page", "pages")
_MAX_PAGES = 100
"""Of one side: their numbers take two bytes each, and the request's media are counted later."""
_NOT_CONTENT = {"instruction", "instruct", "id", "role", "type"}
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(slots=True)
class Parsed:
    """One side as it came: content, its own instruction, and the fields that nobody reads."""

    content: Content | RerankError
    instruction: str | None = None
    ignored: list[str] = field(default_factory=list)

    @property
    def texts(self) -> tuple[str, ...]:
        return self.content.texts if isinstance(self.content, Content) else ()

    @property
    def text(self) -> str | None:
        """Its texts, joined by newlines; None: it has none."""
        return "\n".join(self.texts) if self.texts else None


def whole(text: str) -> str:
    """The text as Unicode has it: half of a surrogate pair is the replacement character."""
    return _HALF_A_PAIR.sub("\ufffd", text)


def listed(documents: Any) -> Any:
    """vLLM's clients may send one document, or an object whose content is a list of them."""
    if isinstance(documents, str):
        return [documents]
    if not isinstance(documents, Mapping):
        return documents
    parts = documents.get("content")
    if not isinstance(parts, list):
        return [documents]
    return [{**documents, "content": [part]} for part in parts]


def parse_side(value: Any, name: str, rank_fields: Sequence[str] | None = None) -> Parsed:
    """`name` is what messages call it. rank_fields: of an object of texts, those that count."""
    if isinstance(value, str):
        return Parsed(Content(texts=(_text(value, name),)))
    if isinstance(value, list):
        return Parsed(_from_parts(value, name))
    if value is None:
        return Parsed(Content())
    if not isinstance(value, Mapping):
        raise _refused(value, name, "a string, an object or a list of content parts")
    instruction = value.get("instruction") or value.get("instruct")
    if instruction is not None and not isinstance(instruction, str):
        raise InvalidRequest(f"{name}.instruction must be a string", param=f"{name}.instruction")
    parsed = _from_object(value, name, rank_fields)
    parsed.instruction = instruction and _text(instruction, f"{name}.instruction")
    return parsed


def _from_object(value: Mapping[str, Any], name: str, rank_fields: Sequence[str] | None) -> Parsed:
    media = _content_fields(value)[1:]
    if rank_fields and not any(value.get(key) for key in (*media, "content")):
        chosen = {key: value[key] for key in rank_fields if key in value}
        return Parsed(_from_fields({key: _in_words(each) for key, each in chosen.items()}, name))
    if "page_content" in value and not {"text", "content"} & value.keys():  # LangChain's
        value = {"text" if key == "page_content" else key: each for key, each in value.items()}
    content = value.get("content")
    fields = _content_fields(value)
    has_others = not all(_is_nothing(value.get(key)) for key in fields)
    if content is not None and not (has_others and _is_nothing(content)):
        known = {"content"}
        if isinstance(content, str):
            parsed = Content(texts=(_text(content, f"{name}.content"),))
        elif isinstance(content, list):
            parsed = _from_parts(content, f"{name}.content")
        else:
            raise _refused(content, f"{name}.content", "a string or a list of parts")
    elif any(key in value for key in fields):
        known = set(fields)
        parsed = Content(
            texts=tuple(
                _text(text, f"{name}.text")
                for text in _as_list(value.get("text"))
                if text is not None
            ),
            images=tuple(
                image_of(image, f"{name}.image")
                for image in _as_list(value.get("image"))
                if not _is_nothing(image)
            )
            + _pdf_pages(value if "pdf" in fields else {}, name),
            videos=_videos(value.get("video"), f"{name}.video"),
        )
    elif isinstance(value.get("type"), str) and value["type"] in _PARTS:
        return Parsed(_from_parts([value], name))
    else:  # Cohere's object of any fields: all of them, named, as Cohere advises to write YAML
        own = {key: text for key, text in value.items() if key not in ("instruction", "instruct")}
        return Parsed(_from_fields(own, name))
    return Parsed(parsed, ignored=[key for key in value if key not in known | _NOT_CONTENT])


def _content_fields(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of an object that are content. `pdf` is none beside fields that nobody knows: there it
    says where a text comes from.
    """
    fields = (*_CONTENT_FIELDS, *_PDF_FIELDS)
    is_content = "pdf" in value and value.keys() <= {*fields, "content"} | _NOT_CONTENT
    return fields if is_content else _CONTENT_FIELDS


def _pdf_pages(value: Mapping[str, Any], name: str) -> tuple[PdfPage, ...]:
    """The pages that an object, or a part, names by `pdf` and its `page` or `pages`."""
    given = {key: value.get(key) for key in _PDF_FIELDS}
    if _is_nothing(given["pdf"]):
        given["pdf"] = None
    else:
        given["pdf"] = image_of(given["pdf"], f"{name}.pdf")
    if isinstance(given["pages"], list) and len(given["pages"]) > _MAX_PAGES:
        raise _too_many_pages(name)
    pages = Content.parse(given, name).images
    return tuple(page for page in pages if isinstance(page, PdfPage))


def _too_many_pages(name: str) -> InvalidContent:
    return InvalidContent(f"{name} has more than {_MAX_PAGES} pages of PDF files")


def _from_fields(values: Mapping[str, Any], name: str) -> Content:
    values = {key: value for key, value in values.items() if value is not None}
    if not values:
        return Content()
    for key, value in values.items():
        if not isinstance(value, str):
            raise _refused(value, f"{name}.{key}", "a string")
    if list(values) == ["text"]:
        return Content(texts=(_text(values["text"], f"{name}.text"),))
    if not any(value.strip() for value in values.values()):
        return Content(texts=("",))
    lines = [f"{key}: {value}" for key, value in values.items()]
    return Content(texts=(_text("\n".join(lines), name),))


def _from_parts(parts: Sequence[Any], name: str) -> Content:
    texts: list[str] = []
    images: list[ImageSource | PdfPage] = []
    videos: list[Video] = []
    for index, part in enumerate(parts):
        place = f"{name}[{index}]"
        if part is None or part == {}:
            continue
        holds, value = ("text", part) if isinstance(part, str) else _part(part, place)
        if holds == "text" and value is not None:
            texts.append(_text(value, place if value is part else f"{place}.text"))
        elif holds == "image" and not _is_nothing(value):
            images.append(image_of(value, place))
        elif holds == "pdf":
            images += _pdf_pages(part, place)
            if sum(isinstance(image, PdfPage) for image in images) > _MAX_PAGES:
                raise _too_many_pages(name)
        elif holds == "video":
            videos += _videos(value, place)
    return Content(tuple(texts), tuple(images), tuple(videos))


_PARTS = {
    "text": ("text", "text"),
    "input_text": ("text", "text"),
    "image": ("image", "image"),
    "image_url": ("image", "image_url"),
    "input_image": ("image", "image_url"),
    "image_base64": ("image", "image_base64"),
    "video": ("video", "video"),
    "video_url": ("video", "video_url"),
    "video_base64": ("video", "video_base64"),
    "pdf": ("pdf", "pdf"),
}
"""A part's type: what it holds, and in which field (OpenAI's, vLLM's, Qwen's and Voyage's)."""
_NOT_ECHOED = {"content", "instruction", "instruct", "role", "type"} | {
    field for holds, field in _PARTS.values() if holds != "text"
}


def _part(part: Any, place: str) -> tuple[str, Any]:
    if not isinstance(part, Mapping):
        raise _refused(part, place, "an object")
    name = part.get("type")
    if name is None:  # {"text": ...} alone says what it is
        present = sorted((key for key in _PARTS if key in part), key=lambda key: part[key] is None)
        name = present[0] if present else None
    if not isinstance(name, str) or name not in _PARTS:
        known = ", ".join(_PARTS)
        raise InvalidRequest(f"{place}.type must be one of {known}, got {name!r}", param=place)
    holds, key = _PARTS[name]
    if key not in part:
        raise InvalidRequest(f"{place}.{key} is missing", param=f"{place}.{key}")
    return holds, part[key]


def image_of(value: Any, name: str) -> bytes | str:
    """An image's or video's bytes, or its http(s) URL."""
    if isinstance(value, Mapping):
        value = value.get("url") or value.get("base64") or value.get("data")
    if not isinstance(value, str) or not value:
        raise _refused(value, name, "an http(s) URL, a data: URL or base64")
    head = value[:8].lower()
    if head.startswith(("http://", "https://")):
        return _text(value, name)
    data = _from_data_url(value, name) if head[:5] == "data:" else _from_base64(value, name)
    if not data:
        raise InvalidContent(f"{name} is empty")
    return data


def _videos(value: Any, name: str) -> tuple[Video, ...]:
    """One video (URL, bytes, list of frames, object), or a list of URLs or objects."""
    if _is_nothing(value):
        return ()
    if isinstance(value, list):
        if all(isinstance(each, Mapping) and "frames" in each for each in value):
            return tuple(_video(each, f"{name}[{i}]") for i, each in enumerate(value))
        return (_video({"frames": value}, name),)
    return (_video(value, name),)


def _video(value: Any, name: str) -> Video:
    if not isinstance(value, Mapping):
        return Video(source=image_of(value, name))
    fps = value.get("fps")
    is_number = isinstance(fps, int | float) and not isinstance(fps, bool)
    if fps is not None and not (is_number and 0 < fps < float("inf")):
        raise InvalidRequest(f"{name}.fps must be a number above zero", param=f"{name}.fps")
    frames = value.get("frames")
    if frames is None:
        return Video(source=image_of(value, name), fps=fps)
    if not isinstance(frames, list) or not frames:
        raise InvalidRequest(f"{name}.frames must be a list of images", param=f"{name}.frames")
    images = tuple(image_of(frame, f"{name}.frames[{i}]") for i, frame in enumerate(frames))
    return Video(frames=images, fps=fps)


def _from_data_url(value: str, name: str) -> bytes:
    header, comma, data = value.partition(",")
    if not comma:
        raise InvalidContent(f"{name} is a data: URL without a comma")
    if header.lower().endswith(";base64"):
        return _from_base64(data, name)
    return unquote_to_bytes(_text(data, name))


def _from_base64(value: str, name: str) -> bytes:
    packed = "".join(value.split()).translate(_STANDARD)
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidContent(
            f"{name} is neither an http(s) URL nor a data: URL nor base64"
        ) from error


_STANDARD = str.maketrans("-_", "+/")
"""URL-safe base64 to the standard alphabet."""


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _refused(value, name, "a string")
    return whole(value)


def _refused(value: Any, name: str, rule: str) -> InvalidRequest | InvalidContent:
    """A table's cell that is a number is common enough to cost no more than its document."""
    if _is_number(value):
        return InvalidContent(f"{name} must be a string, got a number: {value}")
    return InvalidRequest(f"{name} must be {rule}, got {_kind(value)}", param=name)


def _in_words(value: Any) -> Any:
    return json.dumps(value) if _is_number(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_nothing(value: Any) -> bool:
    """Whether a part is there and empty; an object of media by its sources."""
    if isinstance(value, Mapping) and not value.get("frames"):
        sources = [value[key] for key in ("url", "base64", "data") if key in value]
        return not value or (bool(sources) and not any(sources))
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def echo_of(value: Any, text: str) -> dict[str, str]:
    """A side with a text as answers show it: an object keeps its strings, as Cohere's v1 promises.

    Never media. `text` is what was read, where the object has no such field.
    """
    if not isinstance(value, Mapping) or value.get("content") is not None:
        return {"text": text}
    strings = {whole(key): whole(each) for key, each in value.items() if isinstance(each, str)}
    return {"text": text} | {key: strings[key] for key in strings if key not in _NOT_ECHOED}


def _kind(value: Any) -> str:
    """A JSON value's type, as messages call it."""
    names: dict[Any, str] = {dict: "an object", list: "a list", bool: "a boolean"}
    names |= {str: "an empty string", type(None): "null"}
    return names.get(type(value), "a number")
