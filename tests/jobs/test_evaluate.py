"""Measures, qrels and the report page, on score files as the job writes them."""

import gzip
import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from shardrank.jobs.errors import UsageError
from shardrank.jobs.evaluate.cli import evaluate
from shardrank.jobs.evaluate.measures import (
    compare,
    evaluate_queries,
    evaluate_run,
    first_stage_run,
    load_run_from_scores,
    load_scores,
)
from shardrank.jobs.evaluate.previews import _picture
from shardrank.jobs.evaluate.qrels import load_qrels
from tests.support.browser import chromium, needs_browser

SCORES = pa.schema(
    [
        ("query_id", pa.large_string()),
        ("doc_id", pa.large_string()),
        ("score", pa.float32()),
        ("logit", pa.float32()),
        ("first_stage_rank", pa.int32()),
        ("first_stage_score", pa.float64()),
        ("error_code", pa.large_string()),
    ]
)


def write_scores(directory: Path, rows: list[tuple], schema: pa.Schema = SCORES) -> str:
    """Two files, so that a query may lie in both."""
    (directory / "scores").mkdir(parents=True)
    for part in range(2):
        columns = zip(*rows[part::2], strict=True) if rows[part::2] else [[]] * len(schema)
        table = pa.table([list(column) for column in columns], schema=schema)
        pq.write_table(table, directory / "scores" / f"unit-{part}.parquet")
    return str(directory)


def row(query: str, doc: str, logit: float | None, rank: int | None, error: str | None = None):
    score = None if logit is None else 1 / (1 + math.exp(-logit))
    return query, doc, score, logit, rank, None, error


@pytest.fixture
def output(tmp_path: Path) -> str:
    """q1: its relevant document d3 goes from 3rd to 1st; q2: d1 falls from 1st to 2nd."""
    rows = [
        row("q1", "d1", -1.0, 1),
        row("q1", "d2", None, 2, "image_decode"),
        row("q1", "d3", 2.0, 3),
        row("q2", "d1", 0.5, 1),
        row("q2", "d2", 0.6, 2),
        row("q9", "d1", 0.5, 1),
    ]
    return write_scores(tmp_path / "out", rows)


QRELS = {"q1": {"d3": 1}, "q2": {"d1": 1}, "q5": {"d1": 1}}


def test_measures_equal_values_worked_out_by_hand():
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    qrels = {"q": {"b": 1, "c": 2}}
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    expected = (1 / math.log2(3) + 2 / math.log2(4)) / ideal  # trec_eval's linear gain
    values = evaluate_run(run, qrels, ["nDCG@10", "RR@10", "P@1", "Success@1", "R@2"])
    assert values["nDCG@10"] == pytest.approx(expected)
    assert values["RR@10"] == 0.5
    assert (values["P@1"], values["Success@1"], values["R@2"]) == (0, 0, 0.5)


@given(st.dictionaries(st.text("abcdef", min_size=1), st.integers(0, 3), min_size=1, max_size=9))
def test_ndcg_is_one_for_the_ideal_order_and_never_more(judged):
    ideal = {"q": {doc: float(grade) for doc, grade in judged.items()}}
    worst = {"q": {doc: -float(grade) for doc, grade in judged.items()}}
    best = evaluate_run(ideal, {"q": judged}, ["nDCG@10"])["nDCG@10"]
    assert best == pytest.approx(1.0 if any(judged.values()) else 0.0)
    assert evaluate_run(worst, {"q": judged}, ["nDCG@10"])["nDCG@10"] <= best + 1e-9


def test_only_queries_of_run_and_qrels_count_unless_complete():
    run = {"q1": {"d": 1.0}, "unjudged": {"d": 1.0}}
    qrels = {"q1": {"d": 1}, "q2": {"d": 1}}
    assert evaluate_run(run, qrels, ["RR@10"]) == {"RR@10": 1.0}
    assert evaluate_run(run, qrels, ["RR@10"], complete=True) == {"RR@10": 0.5}


def test_a_query_whose_pairs_all_failed_counts_as_zero():
    assert evaluate_queries({"q": {}}, {"q": {"d": 1}}, ["nDCG@5"]) == {"nDCG@5": {"q": 0.0}}


@pytest.mark.parametrize("name", ["hit@1", "nDCG@0", "nDCG@x", "nDCG@1.5", "ERR@10", "foo(", ""])
def test_an_unknown_measure_and_ids_that_never_meet_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        evaluate_run({"q": {"d": 1.0}}, {"q": {"d": 1}}, ["RR@10", name])
    with pytest.raises(UsageError, match="are the ids the same"):
        evaluate_run({"1": {"d": 1.0}}, {"q1": {"d": 1}}, ["RR@10"])


def test_failed_pairs_are_left_out_and_counted(output):
    scores = load_scores(output)
    assert (scores.num_pairs, dict(scores.errors)) == (6, {"image_decode": 1})
    assert set(load_run_from_scores(output)["q1"]) == {"d1", "d3"}


def test_before_is_the_first_stage_and_after_is_the_reranker(output):
    comparison = compare(load_scores(output, QRELS), QRELS, ["RR@10"])
    assert comparison.before["RR@10"] == {"q1": pytest.approx(1 / 3), "q2": 1.0}
    assert comparison.after["RR@10"] == {"q1": 1.0, "q2": 0.5}
    assert comparison.missing_queries == ("q5",)
    assert [query for query, _ in comparison.changes("RR@10")] == ["q1", "q2"]


@pytest.mark.parametrize(
    ("rows", "order"),
    [
        ([("q", "a", 1.0, 20.0, 1, None, None), ("q", "b", 1.0, 21.0, 2, None, None)], "ba"),
        ([row("q", doc, 0.5, rank) for doc, rank in (("z", 2), ("a", 3), ("m", 1))], "mza"),
    ],
)
def test_logits_rank_and_equal_ones_keep_the_first_stages_order(tmp_path, rows, order):
    run = load_run_from_scores(write_scores(tmp_path, rows))
    assert list(run["q"].items()) == [
        (doc, float(len(order) - place)) for place, doc in enumerate(order)
    ]


def test_without_a_first_stage_there_is_no_before(tmp_path):
    scores = load_scores(write_scores(tmp_path, [row("q1", "d3", 1.0, None)]))
    comparison = compare(scores, QRELS, ["RR@10"])
    assert comparison.before == {} and comparison.after == {"RR@10": {"q1": 1.0}}
    assert comparison.changes("RR@10") == []


def test_integer_ids_meet_the_text_ids_of_qrels(tmp_path):
    schema = SCORES.set(0, pa.field("query_id", pa.int64())).set(1, pa.field("doc_id", pa.int64()))
    rows = [(7, 70, 0.9, 2.0, 1, None, None), (7, 71, 0.1, -2.0, 2, None, None)]
    run = load_run_from_scores(write_scores(tmp_path, rows, schema))
    assert evaluate_run(run, {"7": {"70": 1}}, ["RR@10"]) == {"RR@10": 1.0}


def test_a_directory_without_scores_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is it the --output of a job"):
        load_scores(str(tmp_path))


EXPECTED = {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": 2}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q1 0 d1 1\nq1 0 d2 0\nq2 0 d1 2\n", EXPECTED),
        ("q1\t0\td1\t1\nq1\t0\td2\t0\nq2\t0\td1\t2\n", EXPECTED),
        ("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n", EXPECTED),
        ("score\tcorpus-id\tquery-id\n1\td1\tq1\n0\td2\tq1\n2.0\td1\tq2\n", EXPECTED),
        ("q1\td1\t1\nq1\td2\t0\nq2\td1\t2\n", EXPECTED),
        ("q1 0\td1\t1\nq1 0\td2\t0\nq2 0\td1\t2\n", EXPECTED),
        ("\ufeffquery-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n", EXPECTED),
        ("\ufeffq1 0 d1 1\r\nq1 0 d2 0\r\nq2 0 d1 2\r\n", EXPECTED),
        ("qid\tdocno\tlabel\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n", EXPECTED),
        ("topic iter docno rel\nq1 0 d1 1\nq1 0 d2 0\nq2 0 d1 2\n", EXPECTED),
        ("\ufeffq1 \td1\t1\r\n q1\td2\t0\r\n\r\nq2\v\td1 \t2\r\n", EXPECTED),
        ("\ufeffq1 0 d1 1\nq1 0 d2 0\n\ufeffq2 0 d1 2\n", EXPECTED),
        ("q\xa01 0 d\u20031 1\n", {"q\xa01": {"d\u20031": 1}}),
        ("q\xa01\td\u20031\t1\n", {"q\xa01": {"d\u20031": 1}}),
        ("q1\t0\td1\t1\nq1\t0\tmy file\t2\n", {"q1": {"d1": 1, "my file": 2}}),
    ],
)
def test_qrels_are_read_as_trec_beir_and_their_kin_write_them(tmp_path, text, expected):
    for name, content in (("a.tsv", text.encode()), ("a.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(content)
        assert load_qrels(str(tmp_path / name)) == expected


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("q1 0 d1 0.5\n", "line 1: the relevance must be a whole number, got '0.5'"),
        ("q1 0 d1 1\nq1 0 d1 2\n", "line 2: query q1 and document d1 are judged twice, 1 and 2"),
        ("q1 0 d1 1\nq1 0\n", "line 2: expected 4 columns as in the first line"),
        ("q1 0 d1 1\nq1 0 doc 2 1\n", "line 2: expected 4 columns as in the first line"),
        ("q1 0 d1 1 5\n", "line 1: expected `query 0 document relevance`"),
        ("", "holds no judgement"),
        *(
            (json.dumps({"query_id": id_, "doc_id": "d1", "relevance": 1}), "byte 0: the query id ")
            for id_ in (7.0, True, {"id": 7})
        ),
    ],
)
def test_a_bad_judgement_is_named(tmp_path, text, place):
    path = tmp_path / ("qrels.jsonl" if text.startswith("{") else "qrels.txt")
    path.write_text(text)
    with pytest.raises(UsageError, match=place):
        load_qrels(str(path))


@pytest.mark.parametrize(
    "names",
    [
        ("train.tsv", "dev.tsv", "test.tsv"),
        ("qrels.train.tsv", "qrels.dev.small.tsv"),
        ("test/part-0.tsv", "validation/part-0.tsv"),
        ("NanoA-00000-of-00001.tsv", "NanoB-00000-of-00001.tsv"),
    ],
)
def test_qrels_of_several_splits_are_refused_and_parts_of_one_read_together(tmp_path, names):
    for name in names:
        (tmp_path / "qrels" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "qrels" / name).write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    with pytest.raises(UsageError, match="holds the splits .*: name the one that is meant"):
        load_qrels(str(tmp_path / "qrels"))
    assert load_qrels(str(tmp_path / "qrels" / names[0])) == {"q1": {"d1": 1}}
    for part in range(2):
        text = f"query-id\tcorpus-id\tscore\nq1\td{part}\t1\n"
        (tmp_path / f"test-0000{part}-of-00002.tsv").write_text(text)
    assert load_qrels(f"{tmp_path}/*.tsv") == {"q1": {"d0": 1, "d1": 1}}


def test_a_table_of_two_columns_lists_what_is_relevant(tmp_path):
    table = pa.table({"query-id": ["q1", "q2"], "corpus-id": [["d1", "d2"], ["d3"]]})
    pq.write_table(table, tmp_path / "lists.parquet")
    assert load_qrels(str(tmp_path / "lists.parquet")) == {
        "q1": {"d1": 1, "d2": 1},
        "q2": {"d3": 1},
    }
    pq.write_table(table.append_column("grade", pa.array([1, 1])), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="no column for relevance"):
        load_qrels(str(tmp_path / "other.parquet"))


def test_tied_ranks_are_ordered_by_the_first_stages_scores(tmp_path):
    scored = [("n", math.nan), ("a", 5.0), ("b", 9.0), ("c", 7.0), ("z", None)]
    rows = [("q1", doc, 0.5, 0.1, 0, score, None) for doc, score in scored]
    first_stage = first_stage_run(load_scores(write_scores(tmp_path, rows)))
    assert list(first_stage["q1"])[:3] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("query", "doc", "relevance"),
    [("query-id", "corpus-id", "score"), ("query_id", "doc_id", "relevance")],
)
def test_qrels_are_read_from_parquet_and_json_lines(tmp_path, query, doc, relevance):
    rows = [
        {query: "q1", doc: "d1", relevance: 1.0},
        {query: "q1", doc: "d2", relevance: 0.0},
        {query: "q2", doc: "d1", relevance: 2.0},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "qrels.parquet")
    (tmp_path / "qrels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_qrels(str(tmp_path / "qrels.parquet")) == EXPECTED
    assert load_qrels(str(tmp_path / "qrels.jsonl")) == EXPECTED


def test_qrels_columns_can_be_mapped(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2], "c": [3]}), tmp_path / "qrels.parquet")
    columns = {"query_id": "a", "doc_id": "b", "relevance": "c"}
    assert load_qrels(str(tmp_path / "qrels.parquet"), columns) == {"1": {"2": 3}}
    with pytest.raises(UsageError, match="no column for query_id .*there are a, b, c"):
        load_qrels(str(tmp_path / "qrels.parquet"))


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(stream, "PNG")
    return stream.getvalue()


def write_tables(directory: Path) -> None:
    queries = {"query_id": ["q1", "q2"], "query": ["a <b>red</b> thing", "blau"]}
    pq.write_table(
        pa.table(queries | {"language": ["en", "de"]}),
        directory / "queries.parquet",
    )
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": png("blue")}, {"bytes": b"no image"}, {"bytes": png("red")}]
    corpus = pa.table(
        {"doc_id": ["d1", "d2", "d3"], "image": pa.array(images, image)},
    )
    pq.write_table(corpus, directory / "corpus.parquet")
    (directory / "qrels.txt").write_text("q1 0 d3 1\nq2 0 d1 1\nq5 0 d1 1\n")


def run_evaluate(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_says_measures_and_both_counts(output, tmp_path):
    write_tables(tmp_path)
    printed = run_evaluate(output, "--qrels", str(tmp_path / "qrels.txt"), "--measure", "RR@10")
    assert "0.6667" in printed and "0.7500" in printed and "+0.0833" in printed
    assert "2 queries measured, 1 judged queries not in the run" in printed
    assert "6 pairs, 1 failed (image_decode 1)" in printed
    assert "has not finished" in printed


def test_groups_are_averaged_by_a_column_of_the_queries(output, tmp_path):
    write_tables(tmp_path)
    arguments = (output, "--qrels", str(tmp_path / "qrels.txt"), "--measure", "RR@10", "--json")
    queries = str(tmp_path / "queries.parquet")
    values = json.loads(run_evaluate(*arguments, "--queries", queries, "--group-by", "language"))
    assert values["groups"]["language"]["de"]["RR@10"] == {"before": 1.0, "after": 0.5}
    assert values["measures"]["RR@10"]["after"] == 0.75
    with pytest.raises(UsageError, match="no column 'colour'"):
        run_evaluate(*arguments, "--queries", queries, "--group-by", "colour")


@pytest.mark.parametrize("name", ["table.jsonl", "table.parquet"])
@pytest.mark.parametrize(
    ("table", "row", "sentence"),
    [
        ("queries", {"_id": "q1", "text": "red"}, "queries: no column 'query_id'"),
        ("corpus", {"_id": "d1", "text": "red"}, "corpus: no column 'doc_id'"),
        ("queries", {"query_id": "q1", "question": "red"}, "queries: no column 'query'"),
        ("corpus", {"doc_id": "d1", "picture": "a.png"}, "corpus: no column 'doc'"),
        ("queries", {"query_id": "q1", "query": "red"}, "no column 'colour' .* query, query_id"),
    ],
)
def test_a_table_without_what_is_to_be_shown_is_refused_with_what_it_has(
    output, tmp_path, name, table, row, sentence
):
    write_tables(tmp_path)
    if name.endswith(".jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / name)
    arguments = (output, "--qrels", str(tmp_path / "qrels.txt"), f"--{table}", str(tmp_path / name))
    grouped = ("--group-by", "colour") if "colour" in sentence else ()
    with pytest.raises(UsageError, match=sentence):
        run_evaluate(*arguments, *grouped)


@pytest.fixture
def report(output, tmp_path) -> str:
    write_tables(tmp_path)
    path = tmp_path / "report.html"
    tables = [f"--{name}={tmp_path / name}.parquet" for name in ("queries", "corpus")]
    qrels = str(tmp_path / "qrels.txt")
    grouped = ("--group-by", "language", "--report", str(path))
    run_evaluate(output, "--qrels", qrels, *tables, *grouped)
    return path.read_text("utf-8")


def test_the_report_shows_text_pictures_and_both_orders(report):
    assert "a &lt;b&gt;red&lt;/b&gt; thing" in report and "<b>red" not in report
    assert report.count("data:image/webp;base64,") >= 3
    assert len(re.findall('<div id="large-[0-9a-f]+" popover="">', report)) == 2  # each once
    assert "✓ relevant" in report and "was 3" in report
    assert "nDCG@10 by language" in report and "image_decode" in report


def test_the_report_needs_nothing_outside_itself(report):
    linked = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", report)
    assert linked and all(link.startswith(("data:", "#")) for link in linked)
    assert "<script" not in report and "prefers-color-scheme: dark" in report


def test_the_report_is_well_formed_and_named_for_readers(report):
    root = ElementTree.fromstring(re.sub(r"<(meta|img)([^>]*)>", r"<\1\2/>", report)[16:])
    assert root.attrib["lang"] == "en"
    assert all(image.attrib["alt"] for image in root.iter("img"))
    assert [len(list(details)) for details in root.iter("details")] == [2, 2]


def test_a_picture_that_is_small_has_nothing_larger():
    assert _picture(Image.new("RGB", (64, 64))).large is None


@needs_browser
def test_on_a_phone_the_report_fits_and_its_pictures_open_large(report, tmp_path):
    (tmp_path / "shown.html").write_text(report.replace("a &lt;b&gt;", "x" * 300), "utf-8")
    inside = """() => [...document.querySelectorAll("main *, [popover]:popover-open *")]
      .filter((e) => e.getBoundingClientRect().right > 360.5).map((e) => e.outerHTML)"""
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 360, "height": 640}, is_mobile=True)
        tab.goto(f"file://{tmp_path}/shown.html")
        assert tab.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        assert tab.evaluate(inside) == []
        tab.get_by_role("button", name="image of d3").first.click()
        large = tab.locator("[popover]:popover-open")
        assert large.get_by_role("img").evaluate("(e) => [e.naturalWidth, e.alt]") == [
            300,
            "image of d3",
        ]
        assert tab.evaluate(inside) == []
        large.get_by_role("button", name="Close").click()
        assert large.count() == 0
