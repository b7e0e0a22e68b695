"""What a person sees of queries and documents in a report: their texts and small pictures."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image as PILImage

from shardrank.actors.config import OFFICIAL_OPTIONS
from shardrank.actors.data import Content, ImageSource, PdfPage, Video, parse_or_error
from shardrank.actors.errors import RerankError
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.media.images import load_image
from shardrank.actors.media.video_process import VideoProcesses
from shardrank.jobs.errors import UsageError
from shardrank.jobs.evaluate.page import Picture, Preview
from shardrank.jobs.inputs.columns import DOCUMENT_COLUMNS, QUERY_COLUMNS
from shardrank.jobs.inputs.joins import scan_columns
from shardrank.jobs.inputs.paths import names_near, type_at
from shardrank.jobs.inputs.tables import OpenedTable
from shardrank.jobs.units.contents import document_value, query_value

_SIDE = 192  # pixels of a thumbnail's longer side; half as many on the page
_LARGE_SIDE = 1_000  # of what opens: a printed page's text can be read
_MAX_IMAGES = 3
_MAX_PIXELS = 200_000_000
_MAX_PDF_PAGES = 100_000


def load_previews(
    opened: OpenedTable, ids: Iterable[str], media_root: str | Sequence[str] | None = None
) -> dict[str, Preview]:
    """Previews of the rows with these ids; ids are compared as text, as in qrels."""
    reader, processes = MediaReader(media_root), VideoProcesses(1, decodes_videos=False)
    if opened.table.has("query_id"):
        rows, value = _rows(opened, "query_id", QUERY_COLUMNS, ids), query_value
    else:
        rows, value = _rows(opened, "doc_id", DOCUMENT_COLUMNS, ids), document_value
    return {id_: _preview(value(row), reader, processes) for id_, row in rows}


def load_labels(opened: OpenedTable, column: str) -> dict[str, str]:
    """Query id -> a further column of the queries table, such as its language, where not null."""
    if not any(type_at(part.schema, column) is not None for part in opened.parts):
        file, part = opened.filled[0]
        names = ", ".join(names_near(part.schema, column))
        raise UsageError(
            f"--group-by: no column {column!r} in {file.location}; its columns: {names}"
        )
    table = replace(opened.table, columns=opened.table.columns | {"label": column})
    rows = _rows(replace(opened, table=table), "query_id", ["label"])
    return {id_: str(row["label"]) for id_, row in rows if row.get("label") is not None}


def _rows(
    opened: OpenedTable, id_column: str, columns: Sequence[str], ids: Iterable[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, row) of all rows, or of those with the given ids."""
    found = scan_columns(opened, [id_column])
    if ids is not None:
        texts = found[id_column].cast(pa.large_string())
        wanted = pa.array(sorted(set(ids)), pa.large_string())
        found = found.filter(pc.is_in(texts, wanted))
    files, positions = found["file"].to_numpy(), found["position"].to_numpy()
    for file in np.unique(files).tolist():
        for _, row in opened.table.fetch(file, positions[files == file], [id_column, *columns]):
            yield str(row.get(id_column)), row


def _preview(value: Any, reader: MediaReader, processes: VideoProcesses) -> Preview:
    content = parse_or_error(Content.parse, value, "content")
    if isinstance(content, RerankError):
        return Preview(texts=(f"({content})",))
    texts, images = list(content.texts), []
    sources = [*content.images, *(each for video in content.videos for each in _frames(video))]
    for source in sources[:_MAX_IMAGES]:
        try:
            images.append(_picture(_loaded(source, reader, processes)))
        except RerankError as error:
            texts.append(f"({error})")
    if any(video.frames is None for video in content.videos):
        texts.append("(a video file)")
    return Preview(tuple(texts), tuple(images))


def _loaded(
    source: ImageSource | PdfPage, reader: MediaReader, processes: VideoProcesses
) -> PILImage.Image:
    if not isinstance(source, PdfPage):
        return load_image(source, reader, _MAX_PIXELS, guard=processes.image)
    limits = _MAX_PDF_PAGES, _MAX_PIXELS
    return PILImage.fromarray(processes.pdf_page(source, reader, OFFICIAL_OPTIONS, *limits))


def _frames(video: Video) -> tuple[Any, ...]:
    """The first, the middle and the last frame of a frame list."""
    if not video.frames:
        return ()
    last = len(video.frames) - 1
    return tuple(video.frames[index] for index in sorted({0, last // 2, last}))


def _picture(image: PILImage.Image) -> Picture:
    is_small = max(image.size) <= _SIDE
    large = None if is_small else _data_uri(image, _LARGE_SIDE, quality=50)
    return Picture(_data_uri(image, _SIDE, quality=80), large)


def _data_uri(image: PILImage.Image, side: int, quality: int) -> str:
    smaller, stream = image.copy(), io.BytesIO()
    smaller.thumbnail((side, side))
    smaller.save(stream, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
