"""Queries' and documents' vectors, opened and held against each other by their jobs' manifests.

Reads footers alone: what does not fit is refused before a vector is read.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
import pyarrow.types as pt

from shardrank.actors.families.family import Role
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.columns import IDS
from shardrank.jobs.inputs.forms import read_mappings
from shardrank.jobs.inputs.parquet import read_range
from shardrank.jobs.inputs.tables import OpenedTable, check_types, open_table, require
from shardrank.jobs.outputs.files import EMBEDDINGS, MANIFEST, SUCCESS, Output
from shardrank.jobs.outputs.manifest import Manifest
from shardrank.jobs.retrieve.vectors import EMBEDDING, Piece, Vectors, is_vector
from shardrank.jobs.storage import Location

_TABLES: dict[Role, str] = {"query": "queries", "document": "corpus"}
OPTIONS: dict[Role, str] = {"query": "--queries", "document": "--embeddings"}


def open_vectors(role: Role, uri: str, maps: tuple[str, ...]) -> tuple[Vectors, Manifest | None]:
    """An `embed` job's vectors with its manifest, or those of plain Parquet. Raises UsageError."""
    manifest = None
    if Location.parse(uri).child(MANIFEST).exists():
        manifest = _finished(role, uri)
        uri = _within(uri, EMBEDDINGS)
    opened = open_mapped(_TABLES[role], uri, maps)
    files = opened.table.files
    if not all(file.is_parquet for file in files):
        raise UsageError(f"{OPTIONS[role]} {uri}: vectors are read from Parquet only")
    pieces = [
        Piece(file.location, number, group.num_rows)
        for file, footer in zip(files, opened.footers, strict=True)
        for number, group in enumerate(footer.row_groups if footer else ())
    ]
    id_column = IDS[_TABLES[role]]
    path, kind = opened.table.columns[id_column], opened.types[id_column]
    return Vectors(path, kind, _dimensions(role, opened), tuple(pieces)), manifest


def open_mapped(name: str, uri: str, maps: tuple[str, ...]) -> OpenedTable:
    """A table with its id, under the name that --map gives or the job's own."""
    mapping = {
        column: name if isinstance(name, tuple) else (name,)
        for column, name in read_mappings(None, maps)[name].items()
    }
    opened = open_table(name, uri, mapping)
    require(opened, [IDS[name]])
    check_types(opened)
    return opened


def _finished(role: Role, uri: str) -> Manifest:
    """The manifest of a job that is what its option wants. Raises UsageError."""
    directory = Location.parse(uri)
    manifest = Manifest.read(Output(directory))
    assert manifest is not None
    place = f"{OPTIONS[role]} {directory}"
    embedding = _embedding(manifest)
    if not embedding:
        raise UsageError(f"{place} holds scores: name an output of `shardrank embed`")
    if not manifest.is_finished:
        raise UsageError(
            f"{place} is not complete, it has no {SUCCESS}: run its `shardrank embed` to the end "
            "(`shardrank status` shows the command)"
        )
    if embedding["role"] != role:
        raise UsageError(
            f"{place} has vectors of {embedding['role']} texts: name what `shardrank embed --as "
            f"{role}` wrote"
        )
    return manifest


def _embedding(manifest: Manifest) -> Mapping[str, Any]:
    return manifest.job.get("options", {}).get("embedding") or {}


def instruction_of(manifest: Manifest) -> str:
    return manifest.job["options"].get("instruction") or ""


def _within(uri: str, name: str) -> str:
    """A file of a directory whose URI may end in settings of its store."""
    path, mark, settings = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{settings}"


def _dimensions(role: Role, opened: OpenedTable) -> int:
    """The one length of all vectors. Raises UsageError where they have several, or are none."""
    found: dict[int, str] = {}
    for file, part in opened.filled:
        kind = part.type_of(EMBEDDING)
        if not is_vector(kind):
            raise UsageError(
                f"{OPTIONS[role]}: {file.location} must have a column {EMBEDDING!r} of lists of "
                f"floats, got {kind}"
            )
        if pt.is_fixed_size_list(kind):
            found.setdefault(kind.list_size, str(file.location))
        elif not found:
            found[_first_length(role, opened)] = str(file.location)
    if len(found) > 1:
        (one, here), (other, there) = list(found.items())[:2]
        raise UsageError(
            f"{OPTIONS[role]}: vectors have {one} dimensions in {here} and {other} in {there}"
        )
    return next(iter(found))


def _first_length(role: Role, opened: OpenedTable) -> int:
    """The length of the first vector where the files do not say it."""
    for file, part in opened.filled:
        for batch in read_range(file.location, 0, part.num_rows, [EMBEDDING]):
            lengths = pc.list_value_length(batch[EMBEDDING]).drop_null()
            if len(lengths):
                return lengths[0].as_py()
    raise UsageError(f"{OPTIONS[role]}: no row has a vector")


def check_fit(
    queries: Vectors,
    documents: Vectors,
    of_queries: Manifest | None,
    of_documents: Manifest | None,
) -> None:
    """Raises UsageError where a product of the two says nothing."""
    if of_queries and of_documents and of_queries.job["model"] != of_documents.job["model"]:
        one, other = of_queries.model["name"], of_documents.model["name"]
        raise UsageError(
            f"--queries has vectors of another model than --embeddings: {_shown(of_queries)} and "
            f"{_shown(of_documents)}; embed both with "
            f"{'the same checkpoint' if one == other else 'one of them'}"
        )
    if queries.dimensions != documents.dimensions:
        raise UsageError(
            f"--queries has vectors of {queries.dimensions} dimensions and --embeddings of "
            f"{documents.dimensions}: embed both with the same --dimensions"
        )


def _shown(manifest: Manifest) -> str:
    known = manifest.job["model"]
    identity = known.get("weights") or known.get("commit") or ""
    return f"{manifest.model['name']} ({identity[:12]})"
