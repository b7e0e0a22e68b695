"""Pages of PDF files to pixels, and their text layer, by PDFium (the package pypdfium2).

For the child process alone, which lives with whatever a stranger's file makes of PDFium. Every
failure is a RerankError with a sentence; knows nothing about the process.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from shardrank.actors.config import QueryOptions
from shardrank.actors.errors import (
    ImageTooLarge,
    MediaNotFound,
    MediaTooLarge,
    PdfDecodeError,
    RerankError,
    TextTooLarge,
)
from shardrank.actors.media.kinds import kind_of
from shardrank.actors.media.pixels import FACTOR, check_tokens, smart_resize, tokens_of

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

DPI = 200
"""What a page is rendered at where image_max_pixels has room for it, which A4 has not: 1,800 tokens
are 138 dots an inch. Directly at the size that the model reads letters stay sharper than they do
when a larger rendering is resized.
"""
_POINTS_PER_INCH = 72
_WHITE = (255, 255, 255, 255)
_HEAD_BYTES = 1_024
_TAIL_BYTES = 64 << 10
"""Where readers look for the file's mark (Acrobat's 1,024 bytes), and for the end's."""

PdfFile = bytes | BinaryIO


def page_pixels(
    file: PdfFile,
    name: str,
    number: int | None,
    options: QueryOptions,
    max_pages: int,
    max_pixels: int,
    max_tokens: float,
) -> np.ndarray:
    """(H, W, 3) uint8 of a page, by its number from 1 or None for the only one, as a viewer shows
    it: rotated, cropped, with its annotations and filled-in fields, on white. The size is the one
    that an image of it at 200 dots an inch would be resized to.

    Raises MediaNotFound for a page that the file does not have, MediaTooLarge for a file of more
    pages, ImageTooLarge, TooManyVisualTokens and AspectRatio before anything is rendered.
    """
    with _opened(file, name, max_pages) as document:
        page = document[_index(len(document), name, number)]
        size = _page_size(page, name, options, max_pixels)
        check_tokens(tokens_of(size), max_tokens)
        return _rendered(document, page, *size)


def page_text(file: PdfFile, name: str, number: int | None, max_pages: int, max_chars: int) -> str:
    """The text layer of what is shown of a page, "" where it has none. Raises like page_pixels, and
    TextTooLarge.
    """
    with _opened(file, name, max_pages) as document:
        layer = document[_index(len(document), name, number)].get_textpage()
        count = layer.count_chars()
        if count > max_chars:
            raise TextTooLarge(
                f"{name}: a page's text of {count} characters, over the limit of {max_chars}"
            )
        return layer.get_text_bounded().replace("\r\n", "\n")


def num_pages(file: PdfFile, name: str, max_pages: int) -> int:
    """How many pages there are. Raises MediaTooLarge where they are more than max_pages."""
    with _opened(file, name, max_pages) as document:
        return len(document)


@contextmanager
def _opened(file: PdfFile, name: str, max_pages: int) -> Iterator["PdfDocument"]:
    try:
        import pypdfium2
    except ImportError as error:
        raise PdfDecodeError(
            f"{name}: reading PDF files needs pypdfium2: pip install pypdfium2"
        ) from error
    _check_ends(file, name)
    try:
        with pypdfium2.PdfDocument(file) as document:
            document.init_forms()
            _check_count(len(document), name, max_pages)
            yield document
    except RerankError:
        raise
    except Exception as error:  # its wrapper raises many kinds on damaged files
        password = pypdfium2.raw.FPDF_ERR_PASSWORD
        if isinstance(error, pypdfium2.PdfiumError) and error.err_code == password:
            raise PdfDecodeError(f"{name}: the PDF is protected by a password") from error
        if len(error.args) and "Success" in str(error):  # what it says of no pages
            raise PdfDecodeError(f"{name}: a PDF without pages") from error
        raise PdfDecodeError(f"{name}: a damaged PDF: {error}") from error


def _check_ends(file: PdfFile, name: str) -> None:
    """Raises PdfDecodeError for what is no PDF, and for one whose end is missing: of that PDFium
    makes a file out of whatever is there, perhaps with empty pages.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    head = stream.read(_HEAD_BYTES)
    if b"%PDF-" not in head:
        raise PdfDecodeError(f"{name}: this is {kind_of(head)}, not a PDF")
    stream.seek(max(0, stream.seek(0, io.SEEK_END) - _TAIL_BYTES))
    if b"startxref" not in stream.read():
        raise PdfDecodeError(f"{name}: a damaged PDF: its end is missing")
    stream.seek(0)


def _check_count(count: int, name: str, max_pages: int) -> None:
    if not count:
        raise PdfDecodeError(f"{name}: a PDF without pages")
    if count > max_pages:
        raise MediaTooLarge(f"{name}: a PDF of {count:,} pages, over the limit of {max_pages:,}")


def _index(count: int, name: str, number: int | None) -> int:
    if number is None and count > 1:
        raise MediaNotFound(f"{name}: a PDF of {count:,} pages: say which by page or pages")
    if number is not None and number > count:
        pages = "one page" if count == 1 else f"{count:,} pages"
        raise MediaNotFound(f"{name}: no page {number:,}: the PDF has {pages}")
    return (number or 1) - 1


def _page_size(
    page: "PdfPage", name: str, options: QueryOptions, max_pixels: int
) -> tuple[int, int]:
    """(height, width) in pixels, what image_pixels would leave as it is."""
    assert options.image_min_pixels is not None and options.image_max_pixels is not None
    points = page.get_height(), page.get_width()
    height, width = (max(1, round(each * DPI / _POINTS_PER_INCH)) for each in points)
    limits = options.image_min_pixels, options.image_max_pixels
    size = smart_resize(height, width, FACTOR, *limits)
    if size[0] * size[1] > max_pixels:
        raise ImageTooLarge(f"{name}: {size[1]} x {size[0]} pixels, over the limit of {max_pixels}")
    return size


def _rendered(document: "PdfDocument", page: "PdfPage", height: int, width: int) -> np.ndarray:
    from pypdfium2 import PdfBitmap, raw

    bitmap = PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR)
    bitmap.fill_rect(_WHITE, 0, 0, width, height)
    whole = (0, 0, width, height, 0, raw.FPDF_ANNOT)
    raw.FPDF_RenderPageBitmap(bitmap, page, *whole)
    if document.formenv:
        raw.FPDF_FFLDraw(document.formenv, bitmap, page, *whole)
    return np.ascontiguousarray(bitmap.to_numpy()[..., ::-1])
