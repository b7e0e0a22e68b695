import io
import re
import zipfile

import pytest
from PIL import Image

from shardrank.actors.errors import ImageDecodeError
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.media.images import load_image
from shardrank.actors.media.kinds import READ


def box(major: bytes, *others: bytes) -> bytes:
    """The first box of ISO's base format, and a little of the second."""
    brands = major + bytes(4) + b"".join(others)
    return (len(brands) + 8).to_bytes(4, "big") + b"ftyp" + brands + bytes(4) + b"Zmeta" + bytes(99)


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("word/document.xml", "<w/>")
    return file.getvalue()


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FILES = {
    "a HEIC picture": [
        box(b"heic", b"mif1", b"heic"),
        box(b"mif1", b"miaf", b"heix"),
        box(b"hevc"),
    ],
    "a HEIF picture": [box(b"mif1", b"miaf")],
    "a damaged AVIF file": [box(b"avif", b"mif1")],
    "an MP4 or QuickTime file": [box(b"isom", b"mp42"), box(b"qt  ")],
    "a camera's raw picture": [box(b"crx ")],
    "an SVG drawing": [
        SVG,
        b'<?xml version="1.0"?>\n<!DOCTYPE svg>\n' + SVG,
        b"\xef\xbb\xbf\n <!-- drawn -->" + SVG,
        b"\xff\xfe" + SVG.decode().encode("utf-16-le"),
    ],
    "an HTML page": [b"<!DOCTYPE html><title>404</title>", b"\n<HTML><body>", b"<!-- a --><head>"],
    "XML or HTML": [b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'],
    "a PDF document": [b"%PDF-1.7\n%\xe2\xe3"],
    "a Git LFS pointer, not the file itself": [LFS],
    "JSON or other text": [b'{"error": "not found"}'],
    "a ZIP archive or an Office document": [archive()],
    "a PostScript (EPS) file": [b"%!PS-Adobe-3.0 EPSF-3.0"],
    "a Photoshop file": [b"8BPS\0\1"],
    "a JPEG XL picture": [b"\xff\x0a\xfa", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "a Matroska or WebM video": [b"\x1aE\xdf\xa3\xa3"],
    "a compressed file": [b"\x1f\x8b\x08\0svgz"],
    "an empty file": [b"", b" \n"],
    "text": ["über 3 Seiten".encode()],
    "a damaged PNG file": [b"\x89PNG\r\n\x1a\n" + bytes(30)],
    "a file of no known kind": [b"\x01\x02\x03\x04" * 9],
}


@pytest.mark.parametrize(
    ("kind", "data"), [(kind, data) for kind, files in FILES.items() for data in files]
)
@pytest.mark.parametrize("is_path", [False, True])
def test_a_refusal_says_what_the_file_is_and_what_is_read(tmp_path, kind, data, is_path):
    path = tmp_path / "page.png"
    path.write_bytes(data)
    name = str(path) if is_path else f"an image of {len(data)} bytes"
    sentence = f"^{re.escape(name)}: this is {re.escape(kind)}; {re.escape(READ)} are read$"
    with pytest.raises(ImageDecodeError, match=sentence):
        load_image(str(path) if is_path else data, MediaReader(), 10**6)


def test_a_plugin_that_is_installed_opens_nothing_more():
    """As pillow-heif does it; a HEIC would be read in one place and refused in another."""

    def opened(file, name):
        raise AssertionError("a format that is not ours was opened")

    Image.register_open("OURS", opened, lambda prefix: prefix[4:8] == b"ftyp")
    try:
        with pytest.raises(ImageDecodeError, match="this is a HEIC picture"):
            load_image(box(b"heic"), MediaReader(), 10**6)
    finally:
        Image.OPEN.pop("OURS")
        Image.ID.remove("OURS")
