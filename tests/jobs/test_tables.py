"""One schema over all files and lines of a table."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions, open_job_input
from shardrank.jobs.inputs.paths import plain_type
from shardrank.jobs.units.order import has_media
from tests.support.job_cases import (
    plan_of,
    read_all,
    run_inline,
    score_rows,
    write_table,
    write_text,
)

PAIR = {"query_id": "q1", "doc_id": "d1", "query": "what", "doc": "text"}
NO_ROWS = pa.table({})
NULL_TYPES = pa.table({name: pa.nulls(0) for name in PAIR})


def write(path: Path, table: pa.Table) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def files(directory: Path, *parts: list[dict[str, Any]] | pa.Table) -> str:
    """A folder of a.parquet, b.parquet, ..."""
    for name, part in zip("abcdef", parts, strict=False):
        table = part if isinstance(part, pa.Table) else pa.Table.from_pylist(part)
        write(directory / f"{name}.parquet", table)
    return str(directory)


def refused(options: InputOptions | str) -> str:
    with pytest.raises(UsageError) as error:
        plan_of(options)
    assert "\n" not in str(error.value)
    return str(error.value)


# What a file or a line lacks is null there and read elsewhere


@pytest.mark.parametrize("is_first", [True, False])
def test_a_column_of_one_file_is_used_where_it_stands(tmp_path: Path, is_first: bool) -> None:
    parts = [[PAIR], [PAIR | {"query_id": "q2", "instruction": "find", "rank": 3}]]
    parts[1][0] |= {"fps": 0.5, "max_frames": 8.0}  # as pandas has a nullable integer
    place = files(tmp_path, *(reversed(parts) if is_first else parts))
    plain, instructed = sorted(read_all(place), key=lambda row: row.query_id)
    assert (plain.instruction, plain.candidates[0].rank, plain.options.fps) == (None, None, None)
    assert instructed.instruction == "find"
    assert (instructed.options.fps, instructed.options.max_frames) == (0.5, 8)
    assert instructed.candidates[0].rank == 3


def test_a_column_that_only_a_later_line_has_is_read(tmp_path: Path) -> None:
    queries = [{"query_id": 1, "query": "a"}, {"query_id": 2, "query": "b", "instruction": "find"}]
    corpus = [{"doc_id": "d", "text": "x"}, {"doc_id": "e", "title": "Title", "text": "y"}]
    options = InputOptions(
        run=write_text(tmp_path / "run.trec", "1 Q0 d 1 2 t\n2 Q0 e 1 2 t\n"),
        queries=write_lines(tmp_path / "queries.jsonl", queries),
        corpus=write_lines(tmp_path / "corpus.jsonl", corpus),
    )
    first, second = read_all(options)
    assert (first.instruction, second.instruction) == (None, "find")
    assert first.candidates[0].document == {"text": "x"}
    assert second.candidates[0].document == {"text": "Title y"}


def test_lines_and_files_may_say_their_content_in_different_columns(tmp_path: Path) -> None:
    corpora = (
        write_lines(
            tmp_path / "corpus.jsonl",
            [{"doc_id": "d", "text": "x"}, {"doc_id": "e", "doc": "y"}],
        ),
        files(tmp_path / "corpus", [{"doc_id": "d", "text": "x"}], [{"doc_id": "e", "doc": "y"}]),
    )
    run = write_text(tmp_path / "run.trec", "q Q0 d 1 2 t\nq Q0 e 2 1 t\n")
    queries = write_lines(tmp_path / "queries.jsonl", [{"query_id": "q", "query": "a"}])
    for corpus in corpora:
        (query,) = read_all(InputOptions(run=run, queries=queries, corpus=corpus))
        assert [each.document for each in query.candidates] == [{"text": "x"}, "y"]


def test_a_field_that_only_a_later_files_candidates_have_is_read(tmp_path: Path) -> None:
    first = {"query_id": 1, "query": "a", "candidates": [{"doc_id": "d", "text": "x"}]}
    page = {"bytes": b"png", "path": None}
    second = {"doc_id": "e", "text": None, "image": page, "rank": 2}
    empty = {"query_id": 3, "query": "c", "candidates": None}
    place = files(tmp_path, [first], [first | {"query_id": 2, "candidates": [second]}], [empty])
    candidates = [row.candidates[0] for row in read_all(place)]
    assert candidates[0].document == {"text": "x"}
    assert candidates[1].document == {"text": None, "image": page}
    assert candidates[1].rank == 2
    assert candidates[2].error is not None


def test_an_image_column_of_a_later_file_makes_a_corpus_of_media(tmp_path: Path) -> None:
    queries = write_table(tmp_path / "queries.parquet", [{"query_id": 1, "query": "a"}])
    run = write_text(tmp_path / "run.trec", "1 Q0 d 1 2 t\n")
    corpus = files(
        tmp_path / "corpus", [{"doc_id": "d", "text": "x"}], [{"doc_id": "e", "image": b"png"}]
    )
    assert has_media(open_job_input(InputOptions(run=run, queries=queries, corpus=corpus)))


# The same values, whatever they are kept as

TEXTS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]
NUMBERS = [pa.int8(), pa.int32(), pa.uint32(), pa.int64(), pa.float32(), pa.float64(), pa.null()]
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint16(), pa.uint32()]


def test_texts_of_any_kind_are_one_type() -> None:
    assert {plain_type(kind) for kind in TEXTS} == {pa.large_string()}
    assert plain_type(pa.list_view(pa.struct([("a", pa.binary_view())]))) == pa.large_list(
        pa.struct([("a", pa.large_binary())])
    )
    assert plain_type(pa.list_(TEXTS[2], 3)) == pa.large_list(pa.large_string())
    assert plain_type(pa.json_()) == pa.large_string()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(INTEGERS),
            st.sampled_from(TEXTS),
            st.sampled_from([*TEXTS, pa.null()]),
            st.sampled_from(NUMBERS),
        ),
        min_size=2,
        max_size=4,
    )
)
def test_any_mix_of_types_that_hold_the_same_values_is_read(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[pa.DataType, ...]]
) -> None:
    directory = tmp_path_factory.mktemp("mix")
    for number, (id_, text, instruction, rank) in enumerate(kinds):
        columns = {
            "query_id": pa.array([number], id_),
            "doc_id": pa.array(["d"]).cast(text),
            "query": pa.array(["what"]).cast(text),
            "doc": pa.array(["text"]).cast(text),
            "instruction": pa.nulls(1)
            if instruction == pa.null()
            else pa.array(["find"]).cast(instruction),
            "rank": pa.array([None if rank == pa.null() else 3], rank),
        }
        write(directory / f"{number}.parquet", pa.table(columns))
    rows = read_all(str(directory))
    assert [(row.query_id, row.query) for row in rows] == [(i, "what") for i in range(len(kinds))]
    for row, (_, _, instruction, rank) in zip(rows, kinds, strict=True):
        (candidate,) = row.candidates
        assert (candidate.doc_id, candidate.document) == ("d", "text")
        assert row.instruction == (None if instruction == pa.null() else "find")
        assert candidate.rank == (None if rank == pa.null() else 3)


def test_ids_of_two_widths_are_of_the_wider_one_in_the_output(tmp_path: Path) -> None:
    kinds = [pa.int32(), pa.int64()]
    parts = [
        pa.table({**{k: [v] for k, v in PAIR.items()}, "query_id": pa.array([i], kind)})
        for i, kind in enumerate(kinds)
    ]
    plan = plan_of(files(tmp_path / "in", *parts))
    assert plan.input.query_id_type == pa.int64()
    run_inline(plan, tmp_path / "out")
    assert [row["query_id"] for row in score_rows(tmp_path / "out")] == [0, 1]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)])
def test_images_are_bytes_whatever_keeps_them(tmp_path: Path, kind: pa.DataType) -> None:
    if kind == pa.binary_view():
        image = pa.array([{"bytes": b"png"}], pa.struct([("bytes", kind)]))
    else:
        image = pa.array([b"png"], kind)
    corpus = write(tmp_path / "corpus.parquet", pa.table({"doc_id": ["d"], "image": image}))
    options = InputOptions(
        run=write_text(tmp_path / "run.trec", "q Q0 d 1 1 t\n"),
        queries=write_table(tmp_path / "queries.parquet", [{"query_id": "q", "query": "a"}]),
        corpus=corpus,
    )
    (query,) = read_all(options)
    wanted = {"bytes": b"png"} if kind == pa.binary_view() else b"png"
    assert query.candidates[0].document == {"image": wanted}


# What no type holds, is missing or stands twice is refused before anything is spent


def typed(column: str, value: Any, kind: pa.DataType) -> pa.Table:
    return pa.table({name: [each] for name, each in PAIR.items() if name != column}).append_column(
        column, pa.array([value], kind)
    )


def one_candidate(doc_id: Any) -> dict[str, Any]:
    return {"query_id": 1, "query": "a", "candidates": [{"doc_id": doc_id, "text": "x"}]}


DIFFERENT = "has different types in different files: "


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            [[PAIR | {column: value}] for value in (None, one, other)],
            f"column {column!r} {DIFFERENT}{kinds[0]} in b and {kinds[1]} in c",
        )
        for column, one, other, kinds in [
            ("query_id", 1, "1", ("int64", "large_string")),
            ("rank", 1, "first", ("int64", "large_string")),
            ("doc", "x", {"text": "x"}, ("large_string", "struct<text: large_string>")),
            ("instruction", "x", ["x"], ("large_string", "large_list<item: large_string>")),
        ]
    ]
    + [
        (
            [[one_candidate(1)], [one_candidate("1")]],
            "large_list<item: struct<doc_id: int64, text: large_string>> in a and "
            "large_list<item: struct<doc_id: large_string, text: large_string>> in b",
        ),
        (
            [typed("doc_id", 7, kind()) for kind in (pa.int64, pa.uint64)],
            "int64 in a and uint64 in b",
        ),
        (
            [[PAIR | {"query_id": 1}], [PAIR | {"query_id": 1.5}]],
            "column 'query_id' must be a string or an integer, got double in b",
        ),
    ],
)
def test_what_cannot_be_one_type_names_files_and_types(
    tmp_path: Path, parts: list[Any], sentence: str
) -> None:
    place = files(tmp_path, *parts)
    assert sentence in refused(place).replace(f"{place}/", "").replace(".parquet", "")


def test_ids_of_two_types_in_two_files_of_lines_are_refused(tmp_path: Path) -> None:
    for name, id_ in (("a", 1), ("b", "1")):
        write_lines(tmp_path / "in" / f"{name}.jsonl", [PAIR | {"query_id": id_}])
    sentence = refused(str(tmp_path / "in"))
    assert f"int64 in {tmp_path}/in/a.jsonl and large_string in {tmp_path}/in/b.jsonl" in sentence


@pytest.mark.parametrize("column", ["query_id", "doc_id", "query", "doc"])
def test_a_file_without_what_each_must_have_is_named(tmp_path: Path, column: str) -> None:
    lacking = {name: value for name, value in PAIR.items() if name != column}
    for parts in ([[PAIR], [lacking]], [[PAIR], [lacking], NO_ROWS]):
        assert f"no column {column!r} in {tmp_path}/b.parquet" in refused(files(tmp_path, *parts))


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    values = [pa.array([value]) for value in PAIR.values()]
    twice = pa.table([*values, values[-1]], names=[*PAIR, "doc"])
    assert f"column 'doc' stands twice in {tmp_path}/b.p" in refused(files(tmp_path, [PAIR], twice))
    other = pa.table([*values, values[0], values[0]], names=[*PAIR, "other", "other"])
    assert len(read_all(write(tmp_path / "other.parquet", other))) == 1
    fields = [pa.field("text", pa.string())] * 2
    content = pa.StructArray.from_arrays([pa.array(["x"])] * 2, fields=fields)
    nested = pa.table([*values[:3], content], names=[*PAIR])
    assert "column 'text' stands twice" in refused(write(tmp_path / "nested.parquet", nested))


def test_a_large_list_view_is_refused(tmp_path: Path) -> None:
    """pyarrow 26 writes it, and reads it with offsets that are too short."""
    kind = pa.large_list_view(pa.struct([("doc_id", pa.string()), ("text", pa.string())]))
    candidates = pa.array([[{"doc_id": "d", "text": "x"}]], kind)
    table = pa.table({"query_id": ["q"], "query": ["a"], "candidates": candidates})
    assert "is a large_list_view" in refused(write(tmp_path / "a.parquet", table))


# Parts without rows


@pytest.mark.parametrize("empty", [NO_ROWS, NULL_TYPES])
def test_a_part_without_rows_is_passed_over(tmp_path: Path, empty: pa.Table) -> None:
    for parts in ([empty, [PAIR]], [[PAIR], empty], [empty, [PAIR], empty]):
        (row,) = read_all(files(tmp_path, *parts))
        assert (row.query_id, row.query, row.candidates[0].document) == ("q1", "what", "text")


def test_an_empty_file_of_lines_is_passed_over(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", "\n")
    write_lines(tmp_path / "b.jsonl", [PAIR])
    assert len(read_all(str(tmp_path))) == 1


def test_the_table_that_has_no_rows_is_blamed(tmp_path: Path) -> None:
    options = InputOptions(
        run=write_text(tmp_path / "run.trec", "q Q0 d 1 1 t\n"),
        queries=write_table(tmp_path / "queries.parquet", [{"query_id": "q", "query": "a"}]),
        corpus=files(tmp_path / "corpus", NO_ROWS, NULL_TYPES),
    )
    assert refused(options) == f"corpus: no rows in {tmp_path}/corpus"
