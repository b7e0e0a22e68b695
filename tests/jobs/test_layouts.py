"""Published data sets as they are downloaded; paths in --map; media beside `doc` and `query`."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import Content
from shardrank.actors.errors import RerankError
from shardrank.jobs.errors import UnreadableInput, UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.rerank import JobOptions, rerank
from tests.support import standin
from tests.support.engine import TINY
from tests.support.job_cases import (
    candidate,
    plan_of,
    query_row,
    read_all,
    run_inline,
    score_rows,
    text,
    text_rows,
    write_sets,
    write_table,
    write_text,
)

PAGE = {"bytes": b"png", "path": "page.png"}


def refused(options: InputOptions | str) -> str:
    with pytest.raises(UsageError) as error:
        plan_of(options)
    assert "\n" not in str(error.value)
    return str(error.value)


def pairs_of(options: InputOptions | str) -> list[tuple[Any, Any, Any, Any]]:
    """(query id, query, document id, document) of all pairs; none of them has an error."""
    rows = read_all(options)
    assert not any(each.error for row in rows for each in row.candidates)
    return [
        (row.query_id, row.query, each.doc_id, each.document)
        for row in rows
        for each in row.candidates
    ]


def write_hub(
    directory: Path, tables: dict[str, list[dict[str, Any]]], split: str = "test"
) -> Path:
    for name, rows in tables.items():
        write_table(directory / name / f"{split}-00000-of-00001.parquet", rows)
    return directory


def write_gzip(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()))
    return str(path)


# Visual documents


def test_vidore_v3_is_read_by_its_underscores(tmp_path: Path) -> None:
    page = {"image": PAGE, "doc_id": "report.pdf", "markdown": "# m", "page_number_in_doc": 0}
    write_hub(
        tmp_path,
        {
            "corpus": [{"corpus_id": i, **page} for i in range(2)],
            "queries": [{"query_id": 7, "query": "what", "language": "english"}],
            "qrels": [{"query_id": 7, "corpus_id": 1, "score": 2, "content_type": ["text"]}],
            "documents_metadata": [{"file_name": "report.pdf", "doc_id": "report.pdf"}],
        },
    )
    run = write_text(tmp_path / "bm25.trec", "7 Q0 1 1 9 x\n")
    options = InputOptions(str(tmp_path), run=run, preset="vidore")
    assert pairs_of(options) == [("7", "what", "1", {"image": PAGE})]


def write_languages(directory: Path, form: str) -> Path:
    """Tables of two languages that share their ids, in folders that `form` makes."""
    for language in ("english", "french"):
        for name, rows in {
            "corpus": [{"id": "c0", "image": PAGE, "text": language}],
            "queries": [{"id": "q0", "text": f"what? ({language})"}],
            "qrels": [{"query-id": "q0", "corpus-id": "c0", "score": 1}],
            "top_ranked": [{"query-id": "q0", "corpus-ids": ["c0"]}],
        }.items():
            write_hub(directory, {form.format(language, name): rows})
    return directory


@pytest.mark.parametrize("preset", ["vidore", "jinavdr", "mteb"])
@pytest.mark.parametrize("form", ["{}-{}", "{}/{}"])
def test_a_language_is_named_behind_its_directory(tmp_path: Path, form: str, preset: str) -> None:
    directory = write_languages(tmp_path / "data", form)
    document = {"text": "french", "image": PAGE}
    (pair,) = pairs_of(InputOptions(f"{directory}/french", preset=preset))
    assert pair == ("q0", {"text": "what? (french)"}, "c0", document)
    message = refused(InputOptions(str(directory), preset=preset))
    assert "holds the subsets english, french: name one, such as" in message


def test_the_only_subset_of_a_directory_is_taken(tmp_path: Path) -> None:
    write_hub(tmp_path / "default", {"corpus": [{"corpus-id": 1, "image": PAGE}]})
    write_hub(tmp_path / "default", {"queries": [{"query-id": 2, "query": "what"}]})
    run = write_text(tmp_path / "run.trec", "2 Q0 1 1 9 x\n")
    options = InputOptions(str(tmp_path), run=run, preset="jinavdr")
    assert pairs_of(options) == [("2", "what", "1", {"image": PAGE})]


def test_a_folder_named_corpus_is_no_subset_of_itself(tmp_path: Path) -> None:
    row = {"query_id": 1, "query": "q", "doc_id": 2, "doc": "d"}
    write_table(tmp_path / "my" / "corpus" / "pairs.parquet", [row])
    for path in (tmp_path, tmp_path / "my", tmp_path / "my" / "corpus" / "*.parquet"):
        assert pairs_of(str(path)) == [(1, "q", 2, "d")]


# Texts


def test_nanobeir_is_read_with_its_bm25_run(tmp_path: Path) -> None:
    tables = {
        "corpus": [{"_id": "d1", "text": "one"}, {"_id": "d2", "text": "two"}],
        "queries": [{"_id": "q1", "text": "what"}],
        "qrels": [{"query-id": "q1", "corpus-id": "d2"}],
        "bm25": [{"query-id": "q1", "corpus-ids": ["d2", "d1"]}],
    }
    write_hub(tmp_path, tables, "NanoNFCorpus")
    pairs = pairs_of(InputOptions(str(tmp_path), preset="nanobeir"))
    assert [(doc_id, document["text"]) for _, _, doc_id, document in pairs] == [
        ("d2", "two"),
        ("d1", "one"),
    ]
    write_hub(tmp_path, {"bm25": tables["bm25"]}, "NanoArguAna")
    message = refused(InputOptions(str(tmp_path), preset="nanobeir"))
    assert "run: " in message and "holds the splits NanoArguAna, NanoNFCorpus" in message


def write_msmarco(directory: Path) -> None:
    write_text(directory / "collection.tsv", '0\tThe "first" passage\n1\tthe second\n')
    write_text(directory / "queries.dev.small.tsv", "7\twhat is first\n")
    write_text(directory / "run.dev.small.tsv", "7\t1\t1\n7\t0\t2\n")


MSMARCO = [
    ("7", "what is first", "1", "the second"),
    ("7", "what is first", "0", 'The "first" passage'),
]


def test_msmarco_v1_is_read_under_its_own_names_and_a_header_line_names_others(
    tmp_path: Path,
) -> None:
    write_msmarco(tmp_path)
    run, queries = str(tmp_path / "run.dev.small.tsv"), str(tmp_path / "queries.dev.small.tsv")
    options = InputOptions(str(tmp_path), run=run, queries=queries, preset="msmarco")
    assert pairs_of(options) == MSMARCO
    corpus = str(tmp_path / "collection.tsv")
    assert pairs_of(InputOptions(run=run, queries=queries, corpus=corpus)) == MSMARCO
    named = write_text(tmp_path / "pairs.tsv", "doc\tquery_id\tquery\tdoc_id\nd\t1\tq\t2\n")
    assert pairs_of(named) == [("1", "q", "2", "d")]


@pytest.mark.parametrize("name", ["top1000.dev", "top1000.eval", "top1000.dev.gz", "top1000.tsv"])
def test_msmarcos_top1000_is_read_whatever_its_name_ends_in(tmp_path: Path, name: str) -> None:
    content = "7\t10\twhat\tone\n7\t11\twhat\ttwo\n"
    write = write_gzip if name.endswith(".gz") else write_text
    path = write(tmp_path / name, content)
    assert pairs_of(InputOptions(path, preset="msmarco")) == [
        ("7", "what", "10", "one"),
        ("7", "what", "11", "two"),
    ]


def test_msmarco_documents_have_a_title_before_their_body(tmp_path: Path) -> None:
    tsv = write_gzip(tmp_path / "msmarco-docs.tsv.gz", "D1\thttp://u\tTitle\tbody\nD2\tu\t\t\n")
    queries = write_gzip(tmp_path / "msmarco-test2019-queries.tsv.gz", "7\twhat\n")
    run = write_gzip(tmp_path / "msmarco-doctest2019-top100.gz", "7 Q0 D1 1 -5.5 Indri\n")
    options = InputOptions(run=run, queries=queries, corpus=tsv, preset="msmarco")
    assert pairs_of(options) == [("7", "what", "D1", {"text": "Title body"})]


def test_msmarco_v2_is_read_from_its_gz_files(tmp_path: Path) -> None:
    for part in range(2):
        passage = {"pid": f"p{part}", "passage": f"passage {part}", "spans": "(0,1)", "docid": "d"}
        name = f"msmarco_passage_0{part}.gz"
        write_gzip(tmp_path / "msmarco_v2_passage" / name, json.dumps(passage) + "\n")
    document = {"url": "u", "title": "T", "headings": "H", "body": "B", "docid": "p1"}
    write_gzip(tmp_path / "msmarco_v2_doc" / "msmarco_doc_00.gz", json.dumps(document) + "\n")
    queries = write_text(tmp_path / "passv2_dev_queries.tsv", "7\twhat\n")
    run = write_gzip(tmp_path / "passv2_dev_top100.txt.gz", "7 Q0 p1 1 9.5 Anserini\n")
    for corpus, expected in (("passage", "passage 1"), ("doc", {"text": "T B"})):
        options = InputOptions(
            run=run,
            queries=queries,
            corpus=str(tmp_path / f"msmarco_v2_{corpus}"),
            preset="msmarco",
        )
        assert pairs_of(options) == [("7", "what", "p1", expected)]


def test_miracl_is_read_from_topics_and_documents(tmp_path: Path) -> None:
    documents = [{"docid": "1#0", "title": "T", "text": "one"}]
    options = InputOptions(
        run=write_text(tmp_path / "run.miracl.bm25.sw.dev.txt", "7 Q0 1#0 1 9.5 Anserini\n"),
        queries=write_text(tmp_path / "topics.miracl-v1.0-sw-dev.tsv", "\ufeff7\twhat\r\n"),
        corpus=write_gzip(
            tmp_path / "miracl-corpus-v1.0-sw" / "docs-0.jsonl.gz",
            "".join(json.dumps(each) + "\n" for each in documents),
        ),
        preset="miracl",
    )
    assert pairs_of(options) == [("7", "what", "1#0", {"text": "T one"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a\tb\tc\n",
            "line 1 has 3 tab-separated columns and is no header with one of pid, docid, ",
        ),
        ("0\tone\n1\ttwo\tthree\n", "expected 2 tab-separated columns (pid, passage), got 3"),
    ],
)
def test_tab_separated_columns_that_say_nothing_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    write_msmarco(tmp_path)
    write_text(tmp_path / "collection.tsv", content)
    options = InputOptions(
        str(tmp_path),
        run=str(tmp_path / "run.dev.small.tsv"),
        queries=str(tmp_path / "queries.dev.small.tsv"),
        preset="msmarco",
    )
    with pytest.raises((UsageError, UnreadableInput)) as error:
        plan_of(options)
    assert message in str(error.value)


# One id, one content


@pytest.mark.parametrize("table", ["queries", "corpus"])
def test_an_id_with_two_contents_is_refused_with_both_places(tmp_path: Path, table: str) -> None:
    for language in ("de", "en"):
        write_table(tmp_path / "corpus" / language / "t.parquet", [{"doc_id": "a", "text": "same"}])
        write_table(
            tmp_path / "queries" / language / "t.parquet", [{"query_id": "q", "text": "same"}]
        )
    id_column = "doc_id" if table == "corpus" else "query_id"
    options = InputOptions(
        run=write_text(tmp_path / "run.trec", "q Q0 a 1 9 x\n"),
        queries=str(tmp_path / "queries"),
        corpus=str(tmp_path / "corpus"),
    )
    assert len(pairs_of(options)) == 1
    rows = [{id_column: "unnamed", "text": each} for each in ("one", "two")]
    write_table(tmp_path / table / "fr" / "t.parquet", rows)
    assert len(pairs_of(options)) == 1
    id_ = "a" if table == "corpus" else "q"
    write_table(tmp_path / table / "en" / "t.parquet", [{id_column: id_, "text": "other"}])
    message = refused(options)
    assert f"{table}: {id_column} '{id_}' has two contents, in " in message
    assert "de/t.parquet, row 0" in message and "en/t.parquet, row 0" in message


def test_pairs_whose_query_differs_from_its_first_row_are_errors_of_their_own(
    tmp_path: Path,
) -> None:
    rows = [
        {"query_id": 1, "doc_id": i, "query": query, "doc": "d", "instruction": instruction}
        for i, (query, instruction) in enumerate(
            [("dog", "x"), ("cat", "x"), ("dog", "y"), ("dog", None), ("dog", "x")]
        )
    ]
    run_inline(plan_of(write_table(tmp_path / "pairs.parquet", rows)), tmp_path / "out")
    found = {row["doc_id"]: row for row in score_rows(tmp_path / "out")}
    codes = [found[i]["error_code"] for i in range(5)]
    assert codes == [None, *["conflicting_query"] * 3, None]
    assert found[1]["error"] == "query_id 1 has another query in its first row"
    assert found[3]["error"] == "query_id 1 has another instruction in its first row"


# --map into structs and candidates


def test_a_map_reaches_into_structs(tmp_path: Path) -> None:
    documents = [{"meta": {"sku": f"d{i}"}, "content": {"text": f"document {i}"}} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(documents), tmp_path / "corpus.parquet", row_group_size=2)
    write_text(tmp_path / "corpus.jsonl", "".join(json.dumps(each) + "\n" for each in documents))
    for name in ("corpus.parquet", "corpus.jsonl"):
        options = InputOptions(
            run=write_text(tmp_path / "run.trec", "q Q0 d7 1 9 x\n"),
            queries=write_text(tmp_path / "queries.jsonl", '{"query_id": "q", "query": "?"}\n'),
            corpus=str(tmp_path / name),
            maps=("corpus.doc_id=meta.sku", "corpus.doc=content.text"),
        )
        assert pairs_of(options) == [("q", "?", "d7", "document 7")]


def test_a_map_reaches_into_candidates(tmp_path: Path) -> None:
    candidates = [{"sku": f"s{i}", "content": {"body": f"document {i}"}} for i in range(3)]
    rows = [{"query_id": 1, "query": "q", "results": candidates}]
    path = write_table(tmp_path / "sets.parquet", rows)
    maps = ("candidates=results", "candidates.doc_id=sku", "candidates.doc=content.body")
    options = InputOptions(path, maps=tuple(f"input.{each}" for each in maps))
    plan = plan_of(options)
    assert plan.units[0].num_pairs == 3
    assert pairs_of(options) == [(1, "q", f"s{i}", f"document {i}") for i in range(3)]
    _, counts = run_inline(plan, tmp_path / "out")
    assert (counts.num_pairs, counts.num_failed) == (3, 0)


@pytest.mark.parametrize(
    ("map", "message"),
    [
        ("candidates.doc_id=sky", "no field 'sky' (for candidates.doc_id) in 'candidates' of "),
        ("candidates.doc_id=sky", "its fields: doc, sku"),
        ("candidates.doc=doc.txt", "its fields: doc.body"),
        ("candidates.price=x", "unknown column 'candidates.price'"),
        ("query=payload.text", "no column 'payload.text' (for query)"),
        ("candidates=list", "no column 'list' (for candidates)"),
        ("query_id=query_id", "(name another with --map input.candidates.doc_id=NAME)"),
    ],
)
def test_a_map_that_leads_nowhere_names_what_there_is(
    tmp_path: Path, map: str, message: str
) -> None:
    candidates = [{"sku": "s", "doc": {"body": "document"}}]
    path = write_table(
        tmp_path / "sets.parquet", [{"query_id": 1, "query": "q", "candidates": candidates}]
    )
    assert message in refused(InputOptions(path, maps=(f"input.{map}",)))


# Media beside `doc` and `query`


def content_of(value: Any) -> Content:
    assert not isinstance(value, RerankError)
    return Content.parse(value)


def test_media_beside_doc_and_query_are_merged_in_every_form(tmp_path: Path) -> None:
    pair = {"query_id": 1, "query": "q", "query_image": b"qi", "doc_id": 2, "doc": "d"}
    media = {"image": b"di", "video": "d.mp4"}
    pairs = write_table(tmp_path / "pairs.parquet", [pair | media])
    inside = [{"doc_id": 2, "doc": "d", **media}]
    sets = {"query_id": 1, "query": "q", "image": b"qi", "candidates": inside}
    options = InputOptions(
        run=write_text(tmp_path / "run.trec", "1 Q0 2 1 9 x\n"),
        queries=write_table(
            tmp_path / "queries.parquet", [{"query_id": 1, "query": "q", "image": b"qi"}]
        ),
        corpus=write_table(tmp_path / "corpus.parquet", [{"doc_id": 2, "doc": "d", **media}]),
    )
    for each in (pairs, write_table(tmp_path / "sets.parquet", [sets]), options):
        ((_, query, _, document),) = pairs_of(each)
        assert content_of(query) == Content.parse({"text": "q", "image": b"qi"})
        assert content_of(document) == Content.parse({"text": "d", **media})
    assert "texts alone" not in plan_of(options).choice.reason


def test_media_may_stand_alone_on_either_side(tmp_path: Path) -> None:
    row = {"query_id": 1, "query_image": b"i", "doc_id": 2}
    row |= {"image": PAGE, "title": "t", "text": "x"}
    ((_, query, _, document),) = pairs_of(write_table(tmp_path / "pairs.parquet", [row]))
    assert (query, document) == ({"image": b"i"}, {"text": "t x", "image": PAGE})


def test_media_beside_a_struct_fill_what_it_lacks(tmp_path: Path) -> None:
    sets = write_sets(tmp_path / "sets.parquet", [query_row(1, [candidate("a", text("d"))])])
    table = pq.read_table(sets)
    videos = pa.array([[b"mp4"]], pa.list_(pa.binary()))
    pq.write_table(table.append_column("video", videos), sets)
    ((_, query, _, _),) = pairs_of(sets)
    assert content_of(query).texts == ("which?",) and len(content_of(query).videos) == 1


@pytest.mark.parametrize("order", ["query", "document"])
def test_two_sources_of_one_medium_are_their_rows_error_in_either_order(
    tmp_path: Path, order: str
) -> None:
    twice = {"text": "t", "image": PAGE}
    queries = [{"query_id": i, "query": twice, "image": (None, b"i")[i]} for i in range(2)]
    corpus = [{"doc_id": i, "doc": twice, "image": (None, PAGE)[i]} for i in range(2)]
    options = InputOptions(
        run=write_text(tmp_path / "run.trec", "0 Q0 0 1 9 x\n0 Q0 1 2 8 x\n1 Q0 0 1 9 x\n"),
        queries=write_table(tmp_path / "queries.parquet", queries),
        corpus=write_table(tmp_path / "corpus.parquet", corpus),
    )
    run_inline(plan_of(options, order=order), tmp_path / "out")
    rows = score_rows(tmp_path / "out")
    found = {(row["query_id"], row["doc_id"]): (row["error_code"], row["error"]) for row in rows}
    assert "both give" not in str(found["0", "0"])
    sentence = "{} and the column beside it both give an image"
    assert found["0", "1"] == ("invalid_content", sentence.format("doc"))
    assert found["1", "0"] == ("invalid_content", sentence.format("query"))


# Ids that a TREC run cannot hold


@pytest.mark.parametrize("id_", ["my file", "", "a\u3000b"])
def test_an_id_with_a_space_is_refused_before_anything_is_scored(tmp_path: Path, id_: str) -> None:
    rows = text_rows(2, 2)
    rows[1]["candidates"][1]["doc_id"] = id_
    pairs = [{"query_id": id_, "query": "q", "doc_id": 1, "doc": "d"}]
    for path in (
        write_sets(tmp_path / "sets.parquet", rows),
        write_table(tmp_path / "pairs.parquet", pairs),
    ):
        options = JobOptions(str(tmp_path / "out"), InputOptions(path), with_trec_run=True)
        with pytest.raises(UsageError) as error:
            rerank(options, RerankerConfig(model=str(TINY)), standin.make_engine())
        assert f"--trec-run: the id {id_!r} is empty or has a space" in str(error.value)
    assert not (tmp_path / "out").exists()


# Contents


def test_a_title_is_text_and_stands_before_the_first_of_several_texts(tmp_path: Path) -> None:
    wrong = [math.nan, 5, ["a"], {"en": "a"}, False]
    rows = [{"title": title, "text": "x"} for title in wrong]
    rows += [{"title": "T", "text": each} for each in (["a", "b"], [], None, "a")]
    (query,) = read_all(
        run_over(tmp_path, [row | {"doc_id": str(i)} for i, row in enumerate(rows)])
    )
    found = [each.document for each in query.candidates]
    assert [each["text"] for each in found[5:]] == [["T a", "b"], "T", "T", "T a"]
    assert all(isinstance(document, RerankError) for document in found[:5])
    assert [str(document) for document in found[:5]] == [
        f"title must be a string, got {type(title).__name__}" for title in wrong
    ]


def run_over(directory: Path, documents: list[dict[str, Any]]) -> InputOptions:
    lines = "".join(f"q Q0 {row['doc_id']} {n} 1 t\n" for n, row in enumerate(documents, start=1))
    return InputOptions(
        run=write_text(directory / "run.trec", lines),
        queries=write_text(directory / "queries.jsonl", '{"query_id": "q", "query": "which"}\n'),
        corpus=write_text(
            directory / "corpus.jsonl", "".join(f"{json.dumps(row)}\n" for row in documents)
        ),
    )


# Refusals

SETS = {"query_id": "q", "query": "a", "candidates": [{"doc_id": "d", "doc": "x"}]}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("top1000.dev.tar.gz", "tar", "is an archive: unpack it"),
        ("a.tsv", "query_id\tdoc_id\tdoc\tdoc\nq\td\tx\ty\n", "column 'doc' stands twice"),
        ("a.jsonl", json.dumps(SETS), "input: candidate sets are read from Parquet only"),
        (
            "a.parquet",
            SETS | {"image": "a", "query_image": "b"},
            "'image' and 'query_image' are both the query's image",
        ),
    ],
)
def test_a_file_that_says_nothing_or_two_things_is_refused(
    tmp_path: Path, name: str, content: Any, sentence: str
) -> None:
    path = tmp_path / name
    is_text = isinstance(content, str)
    assert sentence in refused(
        write_text(path, content) if is_text else write_table(path, [content])
    )


def test_instructions_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for index, wrong in enumerate((5, {"a": "b"}, ["b"], b"b")):
        tables = {
            "queries": [{"_id": "q", "text": "which"}],
            "corpus": [{"_id": "d", "text": "x"}],
            "top_ranked": [{"query-id": "q", "corpus-ids": ["d"]}],
            "instruction": [{"query-id": "q", "instruction": wrong}],
        }
        place = write_hub(tmp_path / str(index), tables)
        sentence = refused(InputOptions(str(place), preset="mteb"))
        assert "instructions: column 'instruction' must be a string" in sentence


def test_two_tables_of_one_name_are_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "queries.jsonl", '{"query_id": "q", "query": "which"}\n')
    write_text(tmp_path / "corpus.jsonl", '{"doc_id": "d", "text": "one"}\n')
    write_table(tmp_path / "corpus.parquet", [{"doc_id": "d", "text": "another"}])
    write_text(tmp_path / "run.tsv", "q d 1 0.5\n")
    sentence = refused(str(tmp_path))
    assert f"{tmp_path}/corpus.jsonl and {tmp_path}/corpus.parquet could both be" in sentence


@pytest.mark.parametrize(
    ("parquet", "lines"), [(".parq", ".ndjson"), (".pq", ".jsonl.bz2"), (".PARQUET", ".ndjson.zst")]
)
def test_a_folders_tables_may_have_every_ending_that_is_read(
    tmp_path: Path, parquet: str, lines: str
) -> None:
    write_table(tmp_path / f"corpus{parquet}", [{"doc_id": "d", "text": "one"}])
    for name, line in (
        ("queries", '{"query_id": "q", "query": "which"}\n'),
        ("run", '{"query_id": "q", "doc_id": "d"}\n'),
    ):
        with pa.output_stream(tmp_path / f"{name}{lines}", compression=_codec(lines)) as stream:
            stream.write(line.encode())
    write_text(tmp_path / "corpus-notes.jsonl", "{}\n")
    write_text(tmp_path / "queries.jsonl.md5", "0\n")
    ((row,),) = [read_all(str(tmp_path))]
    assert (row.query, [each.document for each in row.candidates]) == ("which", [{"text": "one"}])


def _codec(name: str) -> str | None:
    return {"bz2": "bz2", "zst": "zstd"}.get(name.rpartition(".")[2])


def told(caplog: pytest.LogCaptureFixture, options: InputOptions | str) -> list[str]:
    caplog.clear()
    with caplog.at_level("INFO", "shardrank.jobs.inputs"):
        plan_of(options)
    return [message for message in caplog.messages if "not read" in message]


def test_columns_that_look_like_content_and_are_passed_over_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"query_id": 1, "query": "q", "doc_id": 2, "doc": "d", "title": "t", "text": "x"}
    pairs = write_table(tmp_path / "pairs.parquet", [row | {"images": [b"i"]}])
    of_doc = "input: '{}' is not read, since 'doc' is there"
    of_images = "input: 'images' is not read; --map input.image=images would read it"
    assert told(caplog, pairs) == [of_doc.format("title"), of_doc.format("text"), of_images]
    mapped = InputOptions(pairs, maps=("input.image=images", "input.doc=text"))
    assert told(caplog, mapped) == ["input: 'title' is not read, since 'text' is there"]
    candidates = [{"doc_id": 2, "doc": "d", "text": "x", "videos": ["v"]}]
    row = {"query_id": 1, "query": "q", "candidates": candidates, "text": "x", "images": [b"i"]}
    assert told(caplog, write_table(tmp_path / "sets.parquet", [row])) == [
        "input: 'text' is not read, since 'candidates' is there",
        "input: 'images' is not read; --map input.query_image=images would read it",
        "input.candidates: 'text' is not read, since 'doc' is there",
        "input.candidates: 'videos' is not read; --map input.candidates.video=videos would read it",
    ]
    run = tmp_path / "run"
    write_table(run / "run.parquet", [{"query_id": 1, "doc_id": 2}])
    write_table(run / "queries.parquet", [{"query_id": 1, "query": "q", "text": "x"}])
    write_table(run / "corpus.parquet", [{"doc_id": 2, "title": "t", "text": "d"}])
    assert told(caplog, str(run)) == ["queries: 'text' is not read, since 'query' is there"]
