"""What a person sees of queries and documents in a report: their texts and small pictures."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image as PILImage

from shardrank.actors.data import Content, Video, parse_or_error
from shardrank.actors.errors import RerankError
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.media.images import Guard, load_image
from shardrank.actors.media.video_process import VideoProcesses
from shardrank.jobs.errors import UsageError
from shardrank.jobs.evaluate.page import Picture, Preview
from shardrank.jobs.inputs import lines
from shardrank.jobs.inputs.columns import DOCUMENT_COLUMNS, QUERY_COLUMNS
from shardrank.jobs.inputs.joins import scan_columns
from shardrank.jobs.inputs.parquet import open_parquet
from shardrank.jobs.inputs.paths import names_near, type_at, value_at
from shardrank.jobs.inputs.tables import OpenedTable
from shardrank.jobs.units.contents import document_value, query_value

_SIDE = 192  # pixels of a thumbnail's longer side; half as many on the page
_LARGE_SIDE = 1_000  # of what opens: a printed page's text can be read
_MAX_IMAGES = 3
_MAX_PIXELS = 200_000_000


def load_previews(
    opened: OpenedTable, ids: Iterable[str], media_root: str | Sequence[str] | None = None
) -> dict[str, Preview]:
    """Previews of the rows with these ids; ids are compared as text, as in qrels."""
    reader, guard = MediaReader(media_root), VideoProcesses(1).image
    is_query = opened.table.has("query_id")
    value = query_value if is_query else document_value
    return {
        id_: _preview(value(row), reader, guard)
        for id_, row in _rows(opened, set(ids), "query_id" if is_query else "doc_id")
    }


def load_labels(opened: OpenedTable, column: str) -> dict[str, str]:
    """Query id -> a further column of the queries table, such as its language, where not null."""
    labels: dict[str, str] = {}
    id_column = opened.table.columns["query_id"]
    has_column = [type_at(part.schema, column) is not None for part in opened.parts]
    if not any(has_column):
        file, part = opened.filled[0]
        names = ", ".join(names_near(part.schema, column))
        raise UsageError(
            f"--group-by: no column {column!r} in {file.location}; its columns: {names}"
        )
    for file in compress(opened.table.files, has_column):
        if file.is_parquet:
            with open_parquet(file.location) as parquet:
                rows: Iterable[Mapping[str, Any]] = parquet.read([id_column, column]).to_pylist()
        else:
            rows = (row for _, _, row in lines.scan_rows(file.location, file.tsv_columns))
        for row in rows:
            label = value_at(row, column)
            if label is not None:
                labels[str(value_at(row, id_column))] = str(label)
    return labels


def _rows(
    opened: OpenedTable, ids: set[str], id_column: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    columns = (id_column, *(QUERY_COLUMNS if id_column == "query_id" else DOCUMENT_COLUMNS))
    scanned = scan_columns(opened, [id_column])
    texts = scanned[id_column].cast(pa.large_string())
    found = scanned.filter(pc.is_in(texts, pa.array(sorted(ids), pa.large_string())))
    files, positions = found["file"].to_numpy(), found["position"].to_numpy()
    for file in np.unique(files).tolist():
        for _, row in opened.table.fetch(file, positions[files == file], columns):
            yield str(row[id_column]), row


def _preview(value: Any, reader: MediaReader, guard: Guard) -> Preview:
    content = parse_or_error(Content.parse, value, "content")
    if isinstance(content, RerankError):
        return Preview(texts=(f"({content})",))
    texts, images = list(content.texts), []
    sources = [*content.images, *(each for video in content.videos for each in _frames(video))]
    for source in sources[:_MAX_IMAGES]:
        try:
            images.append(_picture(load_image(source, reader, _MAX_PIXELS, guard=guard)))
        except RerankError as error:
            texts.append(f"({error})")
    if any(video.frames is None for video in content.videos):
        texts.append("(a video file)")
    return Preview(tuple(texts), tuple(images))


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
