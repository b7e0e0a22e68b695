from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardrank.actors.config import QueryOptions
from shardrank.actors.data import CandidateSet, Content, Video
from shardrank.actors.errors import EmptyQuery, InvalidContent, RerankError

PICTURE = Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        ({"text": "a"}, ("a",)),
        ({"text": ""}, ("",)),
        ({"text": ["a", "b"]}, ("a", "b")),
        ({"text": ("a", "b")}, ("a", "b")),
        ({"text": None}, ()),
        ({"text": []}, ()),
        ({}, ()),
        ({"text": None, "image": None, "video": None}, ()),
        (None, ()),
        ({"text": ["a", None]}, ("a",)),
        ({"image": [], "video": []}, ()),
        ({"image": [None, "", {}]}, ()),
        ({"image": {"bytes": None, "path": ""}}, ()),
        ({"bytes": None, "path": None}, ()),
        ({"video": {}}, ()),
        ({"video": [None, {"bytes": None, "path": "", "frames": None, "fps": 2.0}]}, ()),
        ({"text": "a", "image": ""}, ("a",)),
        ({"text": "a", "image": {"bytes": None, "path": None}, "video": " "}, ("a",)),
    ],
)
def test_texts_come_as_one_or_many_or_none(value: Any, texts: tuple[str, ...]) -> None:
    assert Content.parse(value) == Content(texts=texts)


@pytest.mark.parametrize(
    ("value", "image"),
    [
        (b"png", b"png"),
        (bytearray(b"png"), b"png"),
        (memoryview(b"png"), b"png"),
        (PICTURE, PICTURE),
        ({"bytes": b"png", "path": None}, b"png"),
        ({"bytes": b"png", "path": "a.png"}, b"png"),
        ({"bytes": None, "path": "a.png"}, "a.png"),
        ({"path": "a.png"}, "a.png"),
        ({"path": Path("d/a.png")}, "d/a.png"),
        ({"image": "a.png"}, "a.png"),
        ({"image": b"png"}, b"png"),
        ({"image": Path("d/a.png")}, "d/a.png"),
        ({"image": PICTURE}, PICTURE),
        ({"image": [PICTURE]}, PICTURE),
        ({"image": {"bytes": b"png", "path": None}}, b"png"),
        (OrderedDict(image="a.png"), "a.png"),
    ],
)
def test_one_image_comes_in_many_forms(value: Any, image: Any) -> None:
    assert Content.parse(value) == Content(images=(image,))


def test_images_keep_their_order() -> None:
    images = ["b.png", b"a", {"bytes": None, "path": "c.png"}, PICTURE]
    assert Content.parse({"image": images}).images == ("b.png", b"a", "c.png", PICTURE)


@pytest.mark.parametrize(
    ("value", "videos"),
    [
        ("a.mp4", (Video("a.mp4"),)),
        (b"mp4", (Video(b"mp4"),)),
        (Path("a.mp4"), (Video("a.mp4"),)),
        ({"bytes": b"mp4", "path": "a.mp4"}, (Video(b"mp4"),)),
        ({"path": "a.mp4", "fps": 2}, (Video("a.mp4", fps=2),)),
        ({"bytes": None, "path": "a.mp4", "frames": None, "fps": None}, (Video("a.mp4"),)),
        ({"bytes": b"mp4", "path": None, "frames": [], "fps": None}, (Video(b"mp4"),)),
        (["a.mp4", "b.mp4"], (Video("a.mp4"), Video("b.mp4"))),
        ([{"path": "a.mp4"}, b"mp4"], (Video("a.mp4"), Video(b"mp4"))),
        (Video("a.mp4"), (Video("a.mp4"),)),
        ([], ()),
        (None, ()),
    ],
)
def test_video_files_come_in_many_forms(value: Any, videos: tuple[Video, ...]) -> None:
    assert Content.parse({"video": value}) == Content(videos=videos)


@pytest.mark.parametrize(
    "frames",
    [
        ("1.png", "2.png"),
        ("1.JPG", "2.JPG"),
        ("http://h/1.webp?size=2", "x"),
        (PICTURE, "2.png"),
    ],
)
def test_a_list_that_starts_with_an_image_is_one_video(frames: tuple[Any, ...]) -> None:
    assert Content.parse({"video": list(frames)}).videos == (Video(frames=frames),)


@pytest.mark.parametrize("kind", [Path, PurePosixPath])
def test_paths_of_any_kind_can_be_frames(kind: Any) -> None:
    video = Content.parse({"video": [kind("1.png"), kind("2.png")]}).videos
    assert video == (Video(frames=("1.png", "2.png")),)


def test_frames_come_as_a_struct_or_a_nested_list() -> None:
    frames = [{"bytes": b"png", "path": None}, "2.png"]
    struct = {"bytes": None, "path": None, "frames": frames, "fps": 4.0}
    videos = Content.parse({"video": [struct, frames, "a.mp4"]}).videos
    assert videos == (
        Video(frames=(b"png", "2.png"), fps=4.0),
        Video(frames=(b"png", "2.png")),
        Video("a.mp4"),
    )


NESTED: dict[str, Any] = {"path": "a.png"}
for _ in range(5_000):
    NESTED = {"path": NESTED}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (3, "doc must be .* got int"),
        (["a", "b"], "doc must be .* got list"),
        ({"txt": "a"}, "doc has an unknown field 'txt'; known fields: text, image, video"),
        ({"bytes": b"", "text": "a"}, "doc has an unknown field 'bytes'"),
        ({None: 1}, "doc has an unknown field of the type null"),
        ({10**5_000: 1}, "doc has an unknown field of the type int"),
        ({"text": 3}, "doc.text must be .* got int"),
        ({"text": b"a"}, "doc.text must be .* got bytes"),
        ({"image": 3}, "doc.image must be an image.* got int"),
        ({"image": [["a.png"]]}, "doc.image must be an image.* got list"),
        ({"image": {"bytes": "a.png"}}, "doc.image.bytes must be bytes, got str"),
        ({"image": {"bytes": 0}}, "doc.image.bytes must be bytes, got int"),
        ({"image": {"path": b"a.png"}}, "doc.image.path must be a string, got bytes"),
        ({"image": NESTED}, "doc.image.path must be a string, got dict"),
        (NESTED, "doc.path must be a string, got dict"),
        ({"image": {"url": "a.png"}}, "doc.image must be an image.* got dict"),
        ({"video": 3}, "doc.video must be a video.* got int"),
        ({"video": {"frames": ["1.png", None]}}, "doc.video.frames must be an image.* got null"),
        ({"video": ["1.png", ""]}, "doc.video has an empty path"),
        ({"video": ["//[1.png", 3]}, "doc.video must be a video.* got int"),
        ({"video": {"path": "a.mp4", "start": 1}}, "doc.video has an unknown field 'start'"),
        ({"video": {"path": "a.mp4", "fps": "2"}}, "doc.video.fps must be a number, got str"),
        ({"video": {"path": "a.mp4", "fps": True}}, "doc.video.fps must be a number, got bool"),
        ({"video": {"path": "a.mp4", "fps": 0}}, "doc.video.fps must be above zero, got 0"),
        ({"video": {"path": "a.mp4", "fps": 10**400}}, "doc.video.fps must be below infinity"),
        ({"video": {"path": "a.mp4", "fps": float("nan")}}, "doc.video.fps .* above zero"),
        ({"video": {"path": "a.mp4", "frames": ["1.png"]}}, "doc.video has both a file and"),
        ({"video": {"frames": ["1.png", 3]}}, "doc.video.frames must be an image.* got int"),
        ({"video": ["1.png", 3]}, "doc.video must be an image.* got int"),
    ],
)
def test_a_refusal_names_the_field(value: Any, sentence: str) -> None:
    with pytest.raises(InvalidContent, match=f"^{sentence}"):
        Content.parse(value, "doc")


@pytest.mark.parametrize("settings", [{}, {"source": "a.mp4", "frames": ("1.png",)}])
def test_a_video_is_either_a_file_or_frames(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidContent, match="either bytes or a path, or frames"):
        Video(**settings)


@pytest.mark.parametrize(("query", "what"), [(None, "null"), ({}, "empty")])
def test_a_query_of_nothing_is_empty(query: Any, what: str) -> None:
    with pytest.raises(EmptyQuery, match=f"^query is {what}$"):
        Content.parse_query(query)


@pytest.mark.parametrize(
    ("content", "says_nothing"),
    [
        (Content(), True),
        (Content(texts=("",)), True),
        (Content(texts=(" ", "\n\u3000")), True),
        (Content(texts=("", "a")), False),
        (Content(texts=("\u200b\ufeff",)), False),  # tokens like others, and scored officially
        (Content(images=(b"",)), False),  # a damaged file
        (Content(videos=(Video(frames=()),)), False),
        (Content(texts=(" ",), images=("a.png",)), False),
    ],
)
def test_blanks_say_nothing_and_media_always_something(
    content: Content, says_nothing: bool
) -> None:
    assert content.says_nothing == says_nothing


def test_a_bad_document_leaves_the_others() -> None:
    parsed = CandidateSet.parse("q", ["a", 3, {"text": "b"}])
    assert (parsed.query, parsed.documents[0], parsed.documents[2]) == (
        Content(("q",)),
        Content(("a",)),
        Content(("b",)),
    )
    assert str(parsed.documents[1]).startswith("documents[1] must be ")


def test_parsed_content_and_options_pass_through() -> None:
    content, options = Content(("a",)), QueryOptions(fps=2.0)
    parsed = CandidateSet.parse(content, [content], "why", options)
    assert parsed == CandidateSet(content, (content,), "why", options)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=4)
    | st.text(max_size=6)
    | st.text("[]/:.png\ud800\0", max_size=10)
)
KEYS = st.sampled_from(["text", "image", "video", "bytes", "path", "frames", "fps", "other"])
JSON_LIKE = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON_LIKE, st.lists(JSON_LIKE, max_size=3))
def test_parsing_never_raises(query: Any, documents: list[Any]) -> None:
    parsed = CandidateSet.parse(query, documents)
    assert len(parsed.documents) == len(documents)
    assert all(
        isinstance(side, Content | RerankError) for side in (parsed.query, *parsed.documents)
    )
