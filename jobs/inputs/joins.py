"""The list of pairs with the place of every query and document: ids are joined, payloads stay.

All of it happens in the driver, on id columns alone. A pair's place is (file index, position);
-1 as file index means that the table has no such id.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs import lines, parquet
from shardrank.jobs.inputs.forms import OpenedInput
from shardrank.jobs.inputs.tables import (
    OpenedTable,
    Table,
    check_types,
    data_files,
    id_type,
    open_table,
    require,
)
from shardrank.jobs.storage import Location

PLACE_COLUMNS = ("query_file", "query_position", "doc_file", "doc_position")


def list_pairs(opened: OpenedInput) -> pa.Table:
    """One row a pair: query_id, doc_id, rank, score, instruction (null if none), its places.

    The pairs of a query are neighbours, in their own order; queries come as they first appear.
    """
    pairs = _own_pairs(opened) if opened.form == "pairs" else _joined_pairs(opened)
    return _grouped_by_query(pairs)


def _own_pairs(opened: OpenedInput) -> pa.Table:
    """Pairs that carry their payload: a query is read from its first row."""
    scanned = scan_columns(opened.queries, ["query_id", "doc_id", "rank", "score"])
    codes = id_codes(scanned["query_id"])
    first_rows = np.unique(codes, return_index=True)[1][codes]
    return _with_places(scanned, scanned, first_rows, scanned, np.arange(len(codes)))


def _joined_pairs(opened: OpenedInput) -> pa.Table:
    assert opened.run is not None
    run = read_run(opened.run, opened.run_mapping)
    queries = scan_columns(opened.queries, ["query_id"])
    documents = scan_columns(opened.corpus, ["doc_id"])
    if opened.instructions is not None:
        run = _with_instructions(run, opened.instructions)
    return _with_places(
        run,
        queries,
        _index_in(run["query_id"], queries["query_id"]),
        documents,
        _index_in(run["doc_id"], documents["doc_id"]),
    )


def scan_columns(opened: OpenedTable, columns: list[str]) -> pa.Table:
    """The columns of the whole table (null where it lacks one) with `file` and `position`."""
    parts = [
        _scan_file(opened.table, index, [c for c in columns if opened.table.has(c)])
        for index in range(len(opened.table.files))
    ]
    try:
        scanned = pa.concat_tables(parts)
    except pa.ArrowInvalid as error:
        raise UsageError(f"{opened.table.name}: ids of different types: {error}") from error
    return _with_missing(scanned, columns)


def _scan_file(table: Table, index: int, columns: list[str]) -> pa.Table:
    file = table.files[index]
    names = [table.columns[column] for column in columns]
    if file.is_parquet:
        with parquet.open_parquet(file.location) as opened:
            scanned = opened.read(columns=names).select(names).rename_columns(columns)
        positions = pa.array(np.arange(scanned.num_rows))
    else:
        scanned, positions = _scan_lines(file.location, names, columns)
    for place, column in enumerate(columns):
        if column in ("query_id", "doc_id"):
            ids = scanned[column].cast(id_type(scanned[column].type))
            scanned = scanned.set_column(place, column, ids)
    scanned = scanned.append_column("file", pa.array(np.full(len(positions), index, np.int32)))
    return scanned.append_column("position", positions)


def _scan_lines(
    location: Location, names: list[str], columns: list[str]
) -> tuple[pa.Table, pa.Array]:
    positions: list[int] = []
    values: list[list[Any]] = [[] for _ in names]
    for position, row in lines.scan_rows(location):
        positions.append(position)
        for name, column in zip(names, values, strict=True):
            column.append(row.get(name))
    try:
        arrays = [pa.array(column) for column in values]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UsageError(f"{location}: ids of different types: {error}") from error
    return pa.table(arrays, names=columns), pa.array(positions, pa.int64())


def _with_missing(pairs: pa.Table, columns: list[str]) -> pa.Table:
    for column in columns:
        if column not in pairs.schema.names:
            pairs = pairs.append_column(column, pa.nulls(pairs.num_rows))
    return pairs


def read_run(uri: str, mapping: Any) -> pa.Table:
    """query_id, doc_id, rank, score of a TREC run file (plain or gzip), or of a Parquet table."""
    location = Location.parse(uri)
    if all(not file.location.name.endswith(".parquet") for file in data_files(location)):
        return _read_trec(location)
    opened = open_table("run", uri, mapping)
    check_types(opened)
    require(opened, ["query_id"])
    if opened.table.has("doc_ids"):
        return _explode(scan_columns(opened, ["query_id", "doc_ids"]))
    require(opened, ["doc_id"])
    return scan_columns(opened, ["query_id", "doc_id", "rank", "score"])


def _explode(ranked: pa.Table) -> pa.Table:
    """mteb's top_ranked: a list of document ids a query, the best first."""
    lists = ranked["doc_ids"].combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy()
    starts = np.flatnonzero(np.diff(parents, prepend=-1))
    lengths = np.diff(np.append(starts, len(parents))).astype(np.int64)
    ranks = np.arange(len(parents)) - np.repeat(starts, lengths) + 1
    flat = pc.list_flatten(lists)
    return pa.table(
        {
            "query_id": ranked["query_id"].take(pa.array(parents)),
            "doc_id": flat.cast(id_type(flat.type)),
            "rank": pa.array(ranks.astype(np.int32)),
            "score": pa.nulls(len(parents), pa.float64()),
        }
    )


def _read_trec(location: Location) -> pa.Table:
    columns: list[list[Any]] = [[], [], [], []]
    for number, line in lines.text_lines(location):
        values = line.split()
        if len(values) != 6:
            raise UsageError(
                f"run: {location}, line {number}: expected "
                f"`query_id Q0 doc_id rank score tag`, got {len(values)} columns"
            )
        row = (values[0], values[2], _number(location, number, values[3]))
        for column, value in zip(
            columns, (*row, _number(location, number, values[4])), strict=True
        ):
            column.append(value)
    kinds = (pa.large_string(), pa.large_string(), pa.float64(), pa.float64())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return pa.table(arrays, names=["query_id", "doc_id", "rank", "score"])


def _number(location: Location, number: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"run: {location}, line {number}: {text!r} is not a number") from None


def _index_in(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> np.ndarray:
    """Row of the first equal id in `known`, -1 where there is none; null equals nothing."""
    if ids.type != known.type:
        ids, known = ids.cast(pa.large_string()), known.cast(pa.large_string())
    found = pc.index_in(ids, value_set=known.combine_chunks(), skip_nulls=True)
    return found.fill_null(-1).combine_chunks().to_numpy(zero_copy_only=False)


def _with_instructions(run: pa.Table, opened: OpenedTable) -> pa.Table:
    require(opened, ["query_id", "instruction"])
    scanned = scan_columns(opened, ["query_id", "instruction"])
    rows = _index_in(run["query_id"], scanned["query_id"])
    taken = scanned["instruction"].take(pa.array(rows, mask=rows < 0))
    return run.append_column("instruction", taken)


def _with_places(
    pairs: pa.Table,
    queries: pa.Table,
    query_rows: np.ndarray,
    documents: pa.Table,
    document_rows: np.ndarray,
) -> pa.Table:
    columns = {
        "query_id": pairs["query_id"],
        "doc_id": pairs["doc_id"],
        "rank": pairs["rank"].cast(pa.float64()),
        "score": pairs["score"].cast(pa.float64()),
        "instruction": pairs["instruction"].cast(pa.large_string())
        if "instruction" in pairs.schema.names
        else pa.nulls(pairs.num_rows, pa.large_string()),
    }
    query_places = _places(queries, query_rows)
    places = (*query_places, *_places(documents, document_rows))
    return pa.table(columns | dict(zip(PLACE_COLUMNS, map(pa.array, places), strict=True)))


def _places(table: pa.Table, rows: np.ndarray) -> Iterator[np.ndarray]:
    for name in ("file", "position"):
        values = table[name].to_numpy()
        if not len(values):
            yield np.full(len(rows), -1, values.dtype)
        else:
            yield np.where(rows >= 0, values[np.maximum(rows, 0)], -1)


def id_codes(ids: pa.ChunkedArray) -> np.ndarray:
    """Integers that are equal where the ids are equal, growing by first appearance."""
    encoded = ids.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False)


def _grouped_by_query(pairs: pa.Table) -> pa.Table:
    codes = id_codes(pairs["query_id"])
    return pairs.take(pa.array(np.argsort(codes, kind="stable"))).append_column(
        "query_index", pa.array(np.sort(codes))
    )
