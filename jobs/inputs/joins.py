"""The list of pairs with the place of every query and document: ids are joined, payloads stay.

All of it happens in the driver, on id columns alone. A pair's place is (file index, position);
-1 as file index means that the table has no such id, NO_CANDIDATES that the query has no documents.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs import lines, parquet
from shardrank.jobs.inputs.columns import DOCUMENT_COLUMNS, IDS, QUERY_COLUMNS
from shardrank.jobs.inputs.forms import OpenedInput
from shardrank.jobs.inputs.parts import check_one_split
from shardrank.jobs.inputs.paths import column_at, plain_type, type_at
from shardrank.jobs.inputs.runs import is_text_run, read_text_run, run_files
from shardrank.jobs.inputs.tables import (
    Mapped,
    OpenedTable,
    Table,
    check_types,
    open_table,
    require,
)
from shardrank.jobs.storage import Location

PLACE_COLUMNS = ("query_file", "query_position", "doc_file", "doc_position")
NO_CANDIDATES = -2


def list_pairs(opened: OpenedInput) -> pa.Table:
    """One row a pair: query_id, doc_id, rank, score, instruction (null if none), its places.

    The pairs of a query are neighbours, in their own order; queries come as they first appear.
    """
    pairs = _LISTED.get(opened.form, _joined_pairs)(opened)
    return _grouped_by_query(pairs)


def _own_pairs(opened: OpenedInput) -> pa.Table:
    """Pairs that carry their payload: a query is read from its first row."""
    scanned = scan_columns(opened.queries, ["query_id", "doc_id", "rank", "score"])
    codes = id_codes(scanned["query_id"])
    first_rows = np.unique(codes, return_index=True)[1][codes]
    return _with_places(scanned, scanned, first_rows, scanned, np.arange(len(codes)))


def _texts(opened: OpenedInput) -> pa.Table:
    """Texts to embed: each is a query with itself as its one document."""
    column = IDS[opened.corpus.table.name]
    scanned = scan_columns(opened.corpus, [column])
    nothing = pa.nulls(scanned.num_rows)
    pairs = {"query_id": scanned[column], "doc_id": scanned[column]}
    rows = np.arange(scanned.num_rows)
    listed = pa.table(pairs | {"rank": nothing, "score": nothing})
    return _with_places(listed, scanned, rows, scanned, rows)


def _joined_pairs(opened: OpenedInput) -> pa.Table:
    assert opened.run is not None
    run = read_run(opened.run, opened.run_mapping)
    queries = scan_columns(opened.queries, ["query_id"])
    documents = scan_columns(opened.corpus, ["doc_id"])
    if opened.instructions is not None:
        run = _with_instructions(run, opened.instructions)
    document_rows = _index_in(run["doc_id"], documents["doc_id"])
    if "is_empty" in run.schema.names:
        document_rows = np.where(run["is_empty"].to_numpy(), NO_CANDIDATES, document_rows)
    query_rows = _index_in(run["query_id"], queries["query_id"])
    check_one_content(opened.queries, "query_id", queries, query_rows, QUERY_COLUMNS)
    check_one_content(opened.corpus, "doc_id", documents, document_rows, DOCUMENT_COLUMNS)
    return _with_places(run, queries, query_rows, documents, document_rows)


_LISTED = {"pairs": _own_pairs, "texts": _texts}


def scan_columns(opened: OpenedTable, columns: list[str]) -> pa.Table:
    """The columns of the whole table (null where it lacks one) with `file` and `position`."""
    kinds = [(column, opened.types.get(column, pa.null())) for column in columns]
    schema = pa.schema([*kinds, ("file", pa.int32()), ("position", pa.int64())])
    return pa.concat_tables(
        _scan_file(opened, index, columns).cast(schema) for index in range(len(opened.parts))
    )


def _scan_file(opened: OpenedTable, index: int, columns: list[str]) -> pa.Table:
    part = opened.parts[index]
    paths = [opened.table.columns.get(column, "") for column in columns]
    present = [path for path in paths if type_at(part.schema, path) is not None]
    if isinstance(part, lines.Scan):
        found = {path: part.columns[path] for path in present}
        positions = part.columns["position"]
    else:
        with parquet.open_parquet(opened.table.files[index].location) as file:
            read = file.read(columns=present)
        found = {path: column_at(read, path) for path in present}
        positions = pa.array(np.arange(part.num_rows))
    arrays = [found[path] if path in found else pa.nulls(part.num_rows) for path in paths]
    files = pa.array(np.full(part.num_rows, index, np.int32))
    return pa.table([*arrays, files, positions], names=[*columns, "file", "position"])


def read_run(uri: str, mapping: Mapped) -> pa.Table:
    """query_id, doc_id, rank, score of a run: text files, or a Parquet or JSON lines table.

    A row with `is_empty` is a query that has no candidates. Raises UsageError for an empty run.
    """
    files = run_files(Location.parse(uri))
    run = read_text_run(files, mapping) if is_text_run(files) else _read_table(uri, mapping)
    if not run.num_rows:
        raise UsageError(f"run: {uri} is empty: it names no pair")
    return run


def _read_table(uri: str, mapping: Mapped) -> pa.Table:
    check_one_split("run", run_files(Location.parse(uri)))
    opened = open_table("run", uri, mapping)
    check_types(opened)
    require(opened, ["query_id"])
    if opened.table.has("doc_ids"):
        return _explode(scan_columns(opened, ["query_id", "doc_ids"]))
    require(opened, ["doc_id"])
    return scan_columns(opened, ["query_id", "doc_id", "rank", "score"])


def _explode(ranked: pa.Table) -> pa.Table:
    """mteb's top_ranked: a list of document ids a query, the best first. An empty or null list
    keeps its query, in a row of its own.
    """
    lists = ranked["doc_ids"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(lists)), np.maximum(lengths, 1))
    is_empty = (lengths == 0)[rows]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    ranks = np.arange(len(rows)) - np.repeat(starts, np.maximum(lengths, 1)) + 1
    flat = pc.list_flatten(lists)
    places = np.cumsum(~is_empty) - 1
    return pa.table(
        {
            "query_id": ranked["query_id"].take(pa.array(rows)),
            "doc_id": flat.cast(plain_type(flat.type)).take(pa.array(places, mask=is_empty)),
            "rank": pa.array(ranks.astype(np.int32), mask=is_empty),
            "score": pa.nulls(len(rows), pa.float64()),
            "is_empty": pa.array(is_empty),
        }
    )


def _index_in(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> np.ndarray:
    """Row of the first equal id in `known`, -1 where there is none; null equals nothing."""
    if ids.type != known.type:
        ids, known = ids.cast(pa.large_string()), known.cast(pa.large_string())
    found = pc.index_in(ids, value_set=known.combine_chunks(), skip_nulls=True)
    return found.fill_null(-1).combine_chunks().to_numpy(zero_copy_only=False)


def check_one_content(
    opened: OpenedTable, id_column: str, scanned: pa.Table, rows: np.ndarray, columns: Sequence[str]
) -> None:
    """Raises UsageError for an id that the run names and the table has twice, with two contents.

    scanned: the table's ids with `file` and `position`; rows: of each pair, its row there or -1.
    Only what has such an id is read.
    """
    codes = id_codes(scanned[id_column])
    firsts = np.unique(codes, return_index=True)[1][codes] if len(codes) else codes
    is_named = np.zeros(len(codes), bool)
    is_named[rows[rows >= 0]] = True
    again = np.flatnonzero((firsts != np.arange(len(firsts))) & is_named[firsts])
    if not len(again):
        return
    table, found = opened.table, dict[int, tuple[bytes, str]]()
    wanted = np.unique(np.concatenate([firsts[again], again]))
    for row, place, content in _contents(table, scanned, wanted, columns):
        other, first_place = found.setdefault(int(firsts[row]), (content, place))
        if other != content:
            raise UsageError(
                f"{table.name}: {id_column} {scanned[id_column][row].as_py()!r} has two contents, "
                f"in {first_place} and in {place}: an id must have one"
            )


def _contents(
    table: Table, scanned: pa.Table, rows: np.ndarray, columns: Sequence[str]
) -> Iterator[tuple[int, str, bytes]]:
    """(row, where it is, a digest of its columns) of the wanted rows, in their order."""
    files, positions = scanned["file"].to_numpy()[rows], scanned["position"].to_numpy()[rows]
    for file in np.unique(files).tolist():
        unit = "row" if table.files[file].is_parquet else "byte"
        fetched = table.fetch(file, positions[files == file], columns)
        for row, (position, value) in zip(rows[files == file].tolist(), fetched, strict=True):
            digest = hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).digest()
            yield row, f"{table.files[file].location}, {unit} {position}", digest


def _with_instructions(run: pa.Table, opened: OpenedTable) -> pa.Table:
    require(opened, ["query_id", "instruction"])
    scanned = scan_columns(opened, ["query_id", "instruction"])
    rows = _index_in(run["query_id"], scanned["query_id"])
    check_one_content(opened, "query_id", scanned, rows, ("instruction",))
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
        values = np.pad(table[name].to_numpy(), (0, 1))  # a table may have no row 0
        yield np.where(rows >= 0, values[np.maximum(rows, 0)], rows)


def id_codes(ids: pa.ChunkedArray) -> np.ndarray:
    """Integers that are equal where the ids are equal, growing by first appearance."""
    encoded = ids.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False)


def _grouped_by_query(pairs: pa.Table) -> pa.Table:
    codes = id_codes(pairs["query_id"])
    return pairs.take(pa.array(np.argsort(codes, kind="stable"))).append_column(
        "query_index", pa.array(np.sort(codes))
    )
