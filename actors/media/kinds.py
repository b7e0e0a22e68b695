"""What a file is that is no picture of the formats that are read, by its first bytes."""

import re

READ = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000, PPM and ICO"

_HEAD_BYTES = 4_096
_KINDS = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), kind)
    for pattern, kind in [
        (rb"\Z", "an empty file"),
        (rb"%PDF-", "a PDF document"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript (EPS) file"),
        (rb"version https://(git-lfs|hawser)", "a Git LFS pointer, not the file itself"),
        (rb"<.*<svg\b|<svg\b", "an SVG drawing"),
        (rb"<!doctype html|<html\b|<.*<(html|head|body)\b", "an HTML page"),
        (rb"<", "XML or HTML"),
        (rb"[{\[]", "JSON or other text"),
        (rb"8BPS", "a Photoshop file"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
        (rb"II\xbc\x01", "a JPEG XR picture"),
        (rb"II\x2a\0.{4}CR|FUJIFILMCCD-RAW|II(RO|U\0)", "a camera's raw picture"),
        (rb"v/1\x01", "an OpenEXR picture"),
        (rb"#\?RADIANCE|#\?RGBE", "a Radiance HDR picture"),
        (rb"AT&TFORM", "a DjVu document"),
        (rb".{128}DICM", "a DICOM file"),
        (rb"SIMPLE  =", "a FITS file"),
        (rb"DDS ", "a DDS texture"),
        (rb"qoif", "a QOI picture"),
        (rb"icns", "an ICNS icon"),
        (rb"gimp xcf", "a GIMP file"),
        (rb"PK(\x03\x04|\x05\x06)", "a ZIP archive or an Office document"),
        (rb"\xd0\xcf\x11\xe0", "an old Office document"),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!", "a compressed file"),
        (rb"\x1aE\xdf\xa3", "a Matroska or WebM video"),
        (rb"RIFF.{4}AVI ", "an AVI video"),
        (rb"RIFF.{4}WAVE|OggS|ID3|fLaC", "an audio file"),
        (rb"FLV", "a Flash video"),
        (rb"PAR1", "a Parquet file"),
        (rb"\x89HDF", "an HDF5 file"),
        (rb"\x93NUMPY", "a NumPy array"),
        (rb"\x89PNG", "a damaged PNG file"),
        (rb"\xff\xd8\xff", "a damaged JPEG file"),
        (rb"GIF8", "a damaged GIF file"),
        (rb"RIFF.{4}WEBP", "a damaged WebP file"),
        (rb"II\x2a\0|MM\0\x2a|II\x2b\0|MM\0\x2b", "a TIFF file, damaged or of samples not read"),
    ]
]
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def kind_of(data: bytes) -> str:
    """Words for a file that Pillow does not know; what it is, where that can be told."""
    head = data[:_HEAD_BYTES]
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "ignore").encode()
    words = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, kind in _KINDS:
        if pattern.match(words):
            return kind
    return "text" if _is_text(words) else "a file of no known kind"


def _of_brands(head: bytes) -> str:
    """A file of ISO's base format, as MP4 and HEIC are, by its first box: brands of four bytes."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12]} | {head[place : place + 4] for place in range(16, size, 4)}
    if brands & _HEIC:
        return "a HEIC picture"
    if brands & {b"avif", b"avis"}:
        return "a damaged AVIF file"
    if brands & {b"mif1", b"msf1"}:
        return "a HEIF picture"
    return "a camera's raw picture" if b"crx " in brands else "an MP4 or QuickTime file"


def _is_text(words: bytes) -> bool:
    try:
        text = words.decode()
    except UnicodeDecodeError as error:
        if error.start < len(words) - 3:  # not only a character that the head ends in
            return False
        text = words[: error.start].decode()
    return all(char.isprintable() or char.isspace() for char in text)
