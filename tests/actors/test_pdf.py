"""PDF pages as images: what is rendered, and what files made to harm cost."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shardrank.actors.config import OFFICIAL_OPTIONS, QueryOptions, RerankerConfig
from shardrank.actors.data import CandidateSet, Content, PdfPage
from shardrank.actors.errors import (
    AspectRatio,
    ImageTooLarge,
    InvalidContent,
    MediaForbidden,
    MediaNotFound,
    MediaTooLarge,
    PdfDecodeError,
    RerankError,
    TextTooLarge,
    TooManyVisualTokens,
)
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.media.video_process import VideoProcesses
from shardrank.actors.preprocessor import Preprocessor
from tests.support.engine import TINY, tiny_reranker
from tests.support.pdfs import (
    SQUARES,
    Page,
    bomb,
    pdf,
    stream,
    text_page,
    truncated,
    with_password,
)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
LIMITS = 1_000, 10**8


@pytest.fixture(scope="module")
def processes() -> VideoProcesses:
    return VideoProcesses(1, timeout_s=10, decodes_videos=False)


def rendered(
    processes: VideoProcesses, source: bytes | str, number: int | None = None, **more: Any
) -> np.ndarray:
    reader, options = more.get("reader", MediaReader()), more.get("options", OFFICIAL_OPTIONS)
    limits = more.get("limits", LIMITS)
    return processes.pdf_page(PdfPage(source, number), reader, options, *limits)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Colours near the top left, top right, bottom left and bottom right."""
    height, width = pixels.shape[0] - 4, pixels.shape[1] - 4
    places = [(4, 4), (4, width), (height, 4), (height, width)]
    return [tuple(pixels[place].tolist()) for place in places]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("", [WHITE, BLUE, RED, WHITE]),
        ("/Rotate 90", [RED, WHITE, WHITE, BLUE]),
        ("/Rotate 180", [WHITE, RED, BLUE, WHITE]),
        ("/CropBox [0 0 50 50]", [RED, RED, RED, RED]),
        ("/CropBox [50 0 100 100]", [BLUE, BLUE, WHITE, WHITE]),
    ],
)
def test_a_page_is_shown_as_a_viewer_shows_it(processes, entries, expected):
    assert corners(rendered(processes, pdf(Page(entries=entries)))) == expected


def test_annotations_and_form_fields_are_drawn(processes):
    look = stream(b"0 1 0 rg 0 0 50 50 re f", "/Type /XObject /Subtype /Form /BBox [0 0 50 50]")
    note = b"<</Type /Annot /Subtype /Stamp /Rect [0 50 50 100] /F 4 /AP <</N 3 0 R>>>>"
    field = b"<</Type /Annot /Subtype /Widget /FT /Btn /Ff 65536 /T (b) /Rect [50 0 100 50] /F 4 "
    field += b"/AP <</N 3 0 R>>>>"
    page = Page(entries="/Annots [4 0 R 5 0 R]")
    data = pdf(page, objects=[look, note, field], catalog="/AcroForm <</Fields [5 0 R]>>")
    assert corners(rendered(processes, data)) == [(0, 255, 0), BLUE, RED, (0, 255, 0)]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (100, 100, (288, 288)),  # 278 pixels at 200 dots an inch, to the model's grid
        (595, 842, (1_600, 1_120)),
        (842, 595, (1_120, 1_600)),
        (14_400_000, 14_400_000, (1_344, 1_344)),
        (1, 1, (64, 64)),
    ],
)
def test_a_page_has_the_size_that_the_model_reads(processes, width, height, size):
    assert rendered(processes, pdf(Page(width=width, height=height))).shape[:2] == size


def test_a_querys_pixel_limit_is_the_pages(processes):
    options = QueryOptions(image_max_pixels=64 * 1_024).over(OFFICIAL_OPTIONS)
    assert rendered(processes, pdf(Page()), options=options).shape[:2] == (256, 256)


def test_a_page_scores_as_its_pixels_given_as_an_image(processes):
    data = pdf(Page(), text_page("The quick brown fox"))
    file = io.BytesIO()
    Image.fromarray(rendered(processes, data, 2)).save(file, "PNG")
    reranker = tiny_reranker()
    documents = [{"pdf": data, "page": 2}, file.getvalue(), {"pdf": data, "pages": [1, 2]}]
    page, image, both = reranker.score_sets([CandidateSet.parse("a fox", documents)])[0]
    assert page.error is image.error is both.error is None
    assert page.score == image.score != both.score
    assert both.num_visual_tokens > page.num_visual_tokens


def test_a_path_is_read_under_the_media_root_alone(processes, tmp_path):
    (tmp_path / "inside").mkdir()
    for name in ("inside/a.pdf", "b.pdf"):
        (tmp_path / name).write_bytes(pdf(Page()))
    reader = MediaReader(str(tmp_path / "inside"))
    assert rendered(processes, "a.pdf", reader=reader).shape == (288, 288, 3)
    with pytest.raises(MediaForbidden):
        rendered(processes, str(tmp_path / "b.pdf"), reader=reader)
    with pytest.raises(MediaNotFound, match="no page 2: the PDF has one page"):
        rendered(processes, "a.pdf", 2, reader=reader)


@pytest.mark.parametrize(
    ("data", "number", "kind", "sentence"),
    [
        (b"", 1, PdfDecodeError, "this is an empty file, not a PDF"),
        (b"<html>", 1, PdfDecodeError, "this is an HTML page, not a PDF"),
        (pdf(Page())[:-20], 1, PdfDecodeError, "its end is missing"),
        (pdf(), None, PdfDecodeError, "a PDF without pages"),
        (with_password(), 1, PdfDecodeError, "protected by a password"),
        (pdf(Page(), Page()), None, MediaNotFound, "a PDF of 2 pages: say which"),
        (pdf(Page(), Page()), 3, MediaNotFound, "no page 3: the PDF has 2 pages"),
        (pdf(*[Page()] * 10_000), 1, MediaTooLarge, "10,000 pages, over the limit of 1,000"),
        (pdf(Page(width=100_000, height=10)), 1, AspectRatio, "is over 200"),
    ],
)
def test_a_bad_file_is_its_own_error(processes, data, number, kind, sentence):
    with pytest.raises(kind, match=sentence):
        rendered(processes, data, number)
    assert rendered(processes, pdf(Page())).shape == (288, 288, 3)


def test_what_is_too_large_is_not_rendered(processes):
    with pytest.raises(ImageTooLarge):
        rendered(processes, pdf(Page()), limits=(10, 1_000))
    page = PdfPage(pdf(Page()))
    with pytest.raises(TooManyVisualTokens):
        processes.pdf_page(page, MediaReader(), OFFICIAL_OPTIONS, *LIMITS, max_tokens=80)


def test_a_file_that_was_cut_anywhere_is_an_error_or_a_page(processes):
    data = pdf(text_page("one"), Page())
    for size in range(0, len(data), 50):
        try:
            pixels = rendered(processes, truncated(data, size), 2)
            assert corners(pixels) == [WHITE, BLUE, RED, WHITE]
        except (PdfDecodeError, MediaNotFound):
            pass


def test_a_page_that_draws_without_end_costs_its_time_once():
    processes = VideoProcesses(1, timeout_s=1, decodes_videos=False)
    for why in ("not decoded within 1 s$", "not tried again"):
        with pytest.raises(PdfDecodeError, match=why):
            rendered(processes, bomb(), 1)
    assert rendered(processes, pdf(Page())).shape == (288, 288, 3)


def test_pages_are_counted_without_rendering(processes):
    assert processes.num_pdf_pages(pdf(*[Page(SQUARES)] * 1_000), MediaReader(), 1_000) == 1_000
    with pytest.raises(MediaTooLarge):
        processes.num_pdf_pages(pdf(*[Page()] * 11), MediaReader(), 10)


@pytest.mark.parametrize(
    ("value", "pages"),
    [
        ({"pdf": b"x"}, [None]),
        ({"pdf": b"x", "page": 3.0}, [3]),
        ({"pdf": b"x", "pages": [3, 1]}, [3, 1]),
        ({"pdf": {"bytes": None, "path": None}, "page": None}, []),
        ({"pdf": None, "pages": None, "text": "t"}, []),
    ],
)
def test_pages_are_named_by_their_numbers(value, pages):
    assert [page.number for page in Content.parse(value).images] == pages


@pytest.mark.parametrize(
    "value",
    [
        {"page": 1},
        {"pdf": None, "pages": [1]},
        {"pdf": b"x", "page": 0},
        {"pdf": b"x", "page": True},
        {"pdf": b"x", "page": 1.5},
        {"pdf": b"x", "page": 10**5_000},
        {"pdf": b"x", "page": float("nan")},
        {"pdf": b"x", "page": "1"},
        {"pdf": b"x", "pages": []},
        {"pdf": b"x", "pages": 1},
        {"pdf": b"x", "pages": [1, None]},
        {"pdf": b"x", "page": 1, "pages": [1]},
        {"pdf": 7},
        {"pdf": [b"x"]},
    ],
)
def test_what_names_no_page_is_invalid(value):
    with pytest.raises(InvalidContent):
        Content.parse(value)


def test_a_pages_text_layer_is_read_beside_its_image_where_that_is_wanted():
    data = pdf(text_page("The quick brown fox"), Page())
    plain, layered = (
        Preprocessor(RerankerConfig(str(TINY), pdf_text=wanted)) for wanted in (False, True)
    )
    typed = {"pdf": data, "pages": [1, 2], "text": ["own", "The quick brown fox"]}
    read = {"pdf": data, "pages": [1, 2], "text": "own"}
    expected = plain.prepare(CandidateSet.parse("q", [typed])).pairs[0]
    found = layered.prepare(CandidateSet.parse("q", [read])).pairs[0]
    assert found.input_ids.tolist() == expected.input_ids.tolist()


def test_a_text_layer_is_what_is_shown_and_bounded(processes):
    page = text_page("The quick brown fox")
    cropped = replace(page, entries=f"{page.entries} /CropBox [0 0 100 20]")
    source = PdfPage(pdf(page, cropped), 2)
    assert processes.pdf_text(source, MediaReader(), 10, 100) == ""
    with pytest.raises(TextTooLarge, match="19 characters"):
        processes.pdf_text(replace(source, number=1), MediaReader(), 10, 18)


def test_a_document_with_a_bad_page_leaves_the_others_alone():
    preprocessor = Preprocessor(RerankerConfig(str(TINY), max_pdf_pages=2))
    good, many = pdf(Page()), pdf(*[Page()] * 3)
    documents = [{"pdf": good, "pages": [1, 2]}, {"pdf": good}, {"pdf": many, "page": 1}]
    prepared = preprocessor.prepare(CandidateSet.parse("q", documents)).pairs
    codes = [each.code if isinstance(each, RerankError) else None for each in prepared]
    assert codes == ["media_not_found", None, "media_too_large"]
