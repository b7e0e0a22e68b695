"""Every form of a query or document that clients send."""

import asyncio
import base64

import pytest

from shardrank.actors.data import Content, PdfPage, Video
from shardrank.actors.errors import InvalidContent, MediaForbidden
from shardrank.serve.dialects.contents import parse_side
from shardrank.serve.errors import InvalidRequest
from shardrank.serve.sides.fetching import MediaFetcher

PNG = b"\x89PNG bytes"
PACKED = base64.b64encode(PNG).decode()
DATA_URL = f"data:image/png;base64,{PACKED}"
URL = "https://host/page.png"


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ("a text", Content(texts=("a text",))),
        ("", Content(texts=("",))),
        ("half of a pair: \ud800", Content(texts=("half of a pair: \ufffd",))),
        ({"page_content": "t", "metadata": {"page": 1}}, Content(texts=("t",))),
        ({"text": "t"}, Content(texts=("t",))),
        ({"text": ["a", "b"]}, Content(texts=("a", "b"))),
        ({"image": DATA_URL}, Content(images=(PNG,))),
        ({"image": PACKED}, Content(images=(PNG,))),
        ({"image": PACKED.rstrip("=")}, Content(images=(PNG,))),
        ({"image": URL, "text": None, "video": None}, Content(images=(URL,))),
        ({"image": {"url": URL}}, Content(images=(URL,))),
        ({"image": [URL, DATA_URL], "text": "t"}, Content(texts=("t",), images=(URL, PNG))),
        ({"image": "data:text/plain,%41b"}, Content(images=(b"Ab",))),
        ({"pdf": DATA_URL}, Content(images=(PdfPage(PNG),))),
        ({"pdf": URL, "pages": [3, 1]}, Content(images=(PdfPage(URL, 3), PdfPage(URL, 1)))),
        (
            {"pdf": {"url": URL}, "page": 2, "text": "t", "id": "x"},
            Content(texts=("t",), images=(PdfPage(URL, 2),)),
        ),
        (
            [{"type": "pdf", "pdf": PACKED, "page": 2}, {"pdf": URL, "page": 1}, "t"],
            Content(texts=("t",), images=(PdfPage(PNG, 2), PdfPage(URL, 1))),
        ),
        ({"text": "t", "pdf": "a.pdf", "title": "from a file"}, Content(texts=("t",))),
        ({"title": "t", "pdf": "a.pdf"}, Content(texts=("title: t\npdf: a.pdf",))),
        ({"text": "t", "page": 7}, Content(texts=("t",))),
        ({"video": URL}, Content(videos=(Video(source=URL),))),
        ({"video": {"url": DATA_URL, "fps": 2}}, Content(videos=(Video(source=PNG, fps=2),))),
        ({"video": [URL, DATA_URL]}, Content(videos=(Video(frames=(URL, PNG)),))),
        (
            {"video": {"frames": [DATA_URL], "fps": 4.0}},
            Content(videos=(Video(frames=(PNG,), fps=4.0),)),
        ),
        (
            {"video": [{"frames": [URL]}, {"frames": [DATA_URL]}]},
            Content(videos=(Video(frames=(URL,)), Video(frames=(PNG,)))),
        ),
        ({"content": "t"}, Content(texts=("t",))),
        (
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "t"},
                    {"type": "image_url", "image_url": {"url": DATA_URL}},
                    {"type": "video_url", "video_url": {"url": URL}},
                ],
            },
            Content(texts=("t",), images=(PNG,), videos=(Video(source=URL),)),
        ),
        ([{"type": "text", "text": "t"}, {"type": "image", "image": URL}], Content(("t",), (URL,))),
        ([{"text": "t"}], Content(texts=("t",))),
        ({"type": "text", "text": "t"}, Content(texts=("t",))),
        ({"type": "image_base64", "image_base64": DATA_URL}, Content(images=(PNG,))),
        (
            {"title": "Moby-Dick", "snippet": "Call me Ishmael."},
            Content(texts=("title: Moby-Dick\nsnippet: Call me Ishmael.",)),
        ),
    ],
)
def test_a_side_comes_in_many_forms(value, content):
    assert parse_side(value, "documents[0]").content == content


def test_rank_fields_choose_what_counts():
    document = {"title": "T", "body": "B", "price": "3"}
    side = parse_side(document, "documents[0]", rank_fields=["body", "title"])
    assert side.content.texts == ("body: B\ntitle: T",)


def test_a_document_has_its_own_instruction():
    side = parse_side({"text": "t", "instruction": "Find the opposite."}, "documents[0]")
    assert side.instruction == "Find the opposite." and not side.ignored


def test_fields_that_nobody_reads_are_named():
    assert parse_side({"text": "t", "page": 3, "type": "x"}, "documents[0]").ignored == ["page"]


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (True, "documents[4]"),
        ({"text": ["a", {}]}, "documents[4].text"),
        ({"image": True}, "documents[4].image"),
        ({"image": {"path": "/etc/passwd"}}, "documents[4].image"),
        ({"video": {"frames": []}}, "documents[4].video.frames"),
        ({"video": {"url": URL, "fps": 0}}, "documents[4].video.fps"),
        ({"video": {"url": URL, "fps": True}}, "documents[4].video.fps"),
        ({"content": True}, "documents[4].content"),
        ({"content": [{"type": "audio"}]}, "documents[4].content[0]"),
        ({"content": [{"type": "text"}]}, "documents[4].content[0].text"),
        ({"title": True}, "documents[4].title"),
        ({"title": ["a"]}, "documents[4].title"),
        ({"instruction": 3, "text": "t"}, "documents[4].instruction"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(value, field):
    with pytest.raises(InvalidRequest) as refused:
        parse_side(value, "documents[4]")
    assert refused.value.param == field and str(refused.value).startswith(field)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [],
        "",
        " \n",
        {"text": None},
        {"text": []},
        {"text": ""},
        {"image": []},
        {"image": ""},
        {"image": [None, "", {"url": ""}, {}]},
        {"video": {"url": None}},
        {"content": None},
        {"content": ""},
        {"content": []},
        {"content": "", "text": " "},
        {"content": [{"type": "text", "text": None}, {}, None, {"image": ""}]},
        {"type": "image_url", "image_url": {"url": "", "detail": "low"}},
        {"title": None, "body": ""},
    ],
)
def test_a_side_can_say_nothing(value):
    assert parse_side(value, "documents[0]").content.says_nothing


@pytest.mark.parametrize("fields", [["title"], ["price"], ["title", "price"]])
def test_a_document_without_its_rank_fields_says_nothing(fields):
    document = {"body": "B", "title": None, "price": " "}
    assert parse_side(document, "documents[0]", fields).content.says_nothing


@pytest.mark.parametrize(
    "value",
    [
        {"text": "t", "image": ""},
        {"text": ["t", None], "image": {"url": ""}, "video": {}},
        {"text": "t", "content": ""},
        {"text": "t", "content": []},
        [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": ""}}, None],
    ],
)
def test_an_empty_part_beside_a_real_one_is_left_out(value):
    assert parse_side(value, "documents[0]").content == Content(texts=("t",))


def test_numbers_in_rank_fields_are_words():
    side = parse_side({"title": "T", "year": 1931, "stars": 4.5}, "d", ["title", "year", "stars"])
    assert side.content.texts == ("title: T\nyear: 1931\nstars: 4.5",)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (3, "documents[4]"),
        (0.5, "documents[4]"),
        ([3], "documents[4][0]"),
        ({"text": 3}, "documents[4].text"),
        ({"text": ["a", 3]}, "documents[4].text"),
        ({"image": 3}, "documents[4].image"),
        ({"content": 3}, "documents[4].content"),
        ({"title": "A film", "year": 1931}, "documents[4].year"),
    ],
)
def test_a_number_elsewhere_is_that_documents_own_error(value, place):
    with pytest.raises(InvalidContent) as refused:
        parse_side(value, "documents[4]")
    assert str(refused.value).startswith(f"{place} must be a string, got a number: ")


@pytest.mark.parametrize("image", ["data:image/png", "data:;base64,!", "/etc/passwd.png", "data:,"])
def test_what_does_not_decode_is_that_sides_own_error(image):
    with pytest.raises(InvalidContent, match=r"documents\[4\].image"):
        parse_side({"image": image}, "documents[4]")


@pytest.mark.parametrize(
    "value",
    [
        {"pdf": PACKED, "page": 0},
        {"pdf": PACKED, "pages": []},
        {"pdf": PACKED, "page": 1, "pages": [1]},
        {"pdf": PACKED, "pages": [1] * 101},
        {"pdf": "/etc/a.pdf"},
        {"pdf": None, "page": 1},
        [{"pdf": PACKED, "pages": [1] * 60}, {"pdf": URL, "pages": [1] * 60}],
    ],
)
def test_pages_that_are_none_or_too_many_are_that_sides_own_error(value):
    with pytest.raises(InvalidContent):
        parse_side(value, "documents[0]")


def test_a_pdfs_bytes_count_once_and_its_url_is_fetched_where_that_is_allowed():
    data = b"%PDF-" + bytes(95)
    side = Content(images=(PdfPage(data, 1), PdfPage(data, 2)))
    fetcher = MediaFetcher(None, 1, max_bytes=100)
    url = Content(images=(PdfPage("http://127.0.0.1/a.pdf", 1),))
    own, fetched = asyncio.run(fetcher.fetch([side, url], 1.0))
    assert own == side
    assert isinstance(fetched, MediaForbidden)
    fetcher.close()
