"""Small PDF files, written by hand: pages of any box, rotation and content, and harmful ones."""

from collections.abc import Sequence
from dataclasses import dataclass

SQUARES = b"1 0 0 rg 0 0 50 50 re f 0 0 1 rg 50 50 50 50 re f"
"""Red below on the left, blue above on the right, of 100 x 100 points."""


@dataclass(frozen=True)
class Page:
    """entries: more of the page's dictionary; objects: the file's further ones, by number."""

    content: bytes = SQUARES
    width: float = 100
    height: float = 100
    entries: str = ""


def text_page(text: str) -> Page:
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    content = f"BT /F 12 Tf 10 50 Td ({escaped}) Tj ET".encode("latin-1")
    font = "/Resources <</Font <</F <</Type /Font /Subtype /Type1 /BaseFont /Helvetica>>>>>>"
    return Page(content, 300, 100, font)


def pdf(*pages: Page, objects: Sequence[bytes] = (), catalog: str = "", trailer: str = "") -> bytes:
    """A file of these pages; `objects` are numbered from 3 on, and the pages follow them."""
    first = 3 + len(objects)
    numbers = [first + 2 * index for index in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    written = [
        f"<</Type /Catalog /Pages 2 0 R {catalog}>>".encode(),
        f"<</Type /Pages /Kids [{kids}] /Count {len(pages)}>>".encode(),
        *objects,
    ]
    for number, page in zip(numbers, pages, strict=True):
        entries = f"/MediaBox [0 0 {page.width} {page.height}] /Contents {number + 1} 0 R"
        entries = f"{entries} {page.entries}"
        written.append(f"<</Type /Page /Parent 2 0 R {entries}>>".encode())
        written.append(stream(page.content))
    return _file(written, trailer)


def stream(content: bytes, entries: str = "") -> bytes:
    head = f"<</Length {len(content)} {entries}>>\nstream\n".encode()
    return head + content + b"\nendstream"


def with_password() -> bytes:
    """Encrypted with a password that is not the empty one."""
    key = "00" * 32
    encrypted = f"/Encrypt <</Filter /Standard /V 1 /R 2 /P -4 /O <{key}> /U <{key}>>> "
    return pdf(Page(), trailer=f"{encrypted}/ID [<{key}> <{key}>]")


def bomb(depth: int = 12) -> bytes:
    """A page whose form is drawn ten times by a form that is drawn ten times, and so on."""
    last = 3 + depth
    forms = []
    for number in range(3, last):
        content = b"/X Do " * 10 if number < last - 1 else SQUARES
        names = f"/Resources <</XObject <</X {number + 1} 0 R>>>>"
        forms.append(stream(content, f"/Type /XObject /Subtype /Form /BBox [0 0 100 100] {names}"))
    page = Page(b"/X Do " * 10, entries="/Resources <</XObject <</X 3 0 R>>>>")
    return pdf(page, objects=forms)


def truncated(data: bytes, size: int) -> bytes:
    """The beginning of a file with an end of its own, so that it is opened."""
    return data[:size] + b"\nstartxref\n0\n%%EOF\n"


def _file(objects: Sequence[bytes], trailer: str) -> bytes:
    written, places = b"%PDF-1.7\n", []
    parts = [written]
    place = len(written)
    for number, each in enumerate(objects, start=1):
        part = b"%d 0 obj\n%b\nendobj\n" % (number, each)
        places.append(place)
        parts.append(part)
        place += len(part)
    count = len(objects) + 1
    table = "".join(f"{each:010} 00000 n \n" for each in places)
    parts.append(f"xref\n0 {count}\n0000000000 65535 f \n{table}".encode())
    parts.append(f"trailer <</Size {count} /Root 1 0 R {trailer}>>\n".encode())
    parts.append(f"startxref\n{place}\n%%EOF\n".encode())
    return b"".join(parts)
