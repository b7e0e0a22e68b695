"""PDF files as a corpus, and as a column of a table."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardrank.actors.config import RerankerConfig
from shardrank.jobs.errors import UsageError
from shardrank.jobs.inputs.forms import InputOptions, open_job_input, unread
from shardrank.jobs.rerank import JobOptions, rerank
from tests.jobs.test_embed import embed, rows_by_file, rows_of
from tests.support.engine import TINY
from tests.support.job_cases import (
    read_all,
    score_rows,
    write_table,
    write_text,
)
from tests.support.pdfs import Page, pdf, with_password

HERE = pytest.mark.usefixtures("without_ray")


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def folder_of_pdfs(folder: Path) -> Path:
    write(folder / "b.pdf", pdf(Page(), Page(entries="/Rotate 90"), Page()))
    write(folder / "deep" / "a.PDF", pdf(Page()))
    return folder


def ids_of(corpus: Path | str, **more: Any) -> list[str]:
    options = InputOptions(str(corpus), embeds="document", **more)
    return [row.query_id for row in read_all(options)]  # type: ignore[misc]


def run_of(folder: Path, corpus: Path | str, *doc_ids: str) -> InputOptions:
    queries = write_table(folder / "queries.parquet", [{"query_id": "q", "query": "squares"}])
    rows = [{"query_id": "q", "doc_id": doc_id} for doc_id in doc_ids]
    run = write_table(folder / "run.parquet", rows)
    return InputOptions(run=run, queries=queries, corpus=str(corpus))


@pytest.mark.parametrize("place", ["/", "/**/*.{pdf,PDF}"])
def test_a_document_is_a_page_by_its_path_in_the_folder(tmp_path, place):
    folder = folder_of_pdfs(tmp_path / "pdfs")
    pages = ["b.pdf#page=1", "b.pdf#page=2", "b.pdf#page=3", "deep/a.PDF#page=1"]
    assert ids_of(f"{folder}{place}") == pages
    assert ids_of(folder / "b.pdf") == pages[:3]


@HERE
def test_a_folder_of_pdfs_is_embedded_and_what_is_wrong_is_its_own_row(tmp_path):
    folder, out = folder_of_pdfs(tmp_path / "pdfs"), tmp_path / "out"
    write(folder / "cut.pdf", pdf(Page())[:-40])
    write(folder / "locked.pdf", with_password())
    write(folder / "many.pdf", pdf(*[Page()] * 1_001))
    write(folder / "none.pdf", b"")
    embed(folder, out, TINY)
    found = {row["doc_id"]: row for row in rows_of(out)}
    errors = {name: row["error_code"] for name, row in found.items() if row["error_code"]}
    assert errors == {
        "cut.pdf": "pdf_decode",
        "locked.pdf": "pdf_decode",
        "many.pdf": "media_too_large",
        "none.pdf": "pdf_decode",
    }
    vectors = {
        name: np.array(row["embedding"]) for name, row in found.items() if name not in errors
    }
    assert (vectors["b.pdf#page=1"] == vectors["b.pdf#page=3"]).all()
    assert (vectors["b.pdf#page=1"] == vectors["deep/a.PDF#page=1"]).all()
    assert (vectors["b.pdf#page=1"] != vectors["b.pdf#page=2"]).any()


@HERE
def test_a_job_over_pdfs_grows_by_new_files_alone(tmp_path):
    folder, out = folder_of_pdfs(tmp_path / "pdfs"), tmp_path / "out"
    job = {"unit_pairs": 2}
    embed(folder, out, TINY, job=job)
    before = rows_by_file(out)
    write(folder / "a.pdf", pdf(Page(), Page()))
    embed(folder, out, TINY, job=job | {"add_new": True})
    after = rows_by_file(out)
    assert {name: after[name] for name in before} == before
    assert len(rows_of(out)) == 6
    (folder / "a.pdf").write_bytes((folder / "a.pdf").read_bytes() + b"% an update\n")
    with pytest.raises(UsageError, match=r"a\.pdf has changed"):
        embed(folder, out, TINY, job=job | {"add_new": True})


@HERE
@pytest.mark.parametrize("order", ["query", "document"])
def test_pages_that_a_run_names_are_reranked(tmp_path, order):
    folder = folder_of_pdfs(tmp_path / "pdfs")
    options = run_of(tmp_path, folder, "b.pdf#page=2", "deep/a.PDF#page=1", "b.pdf#page=4")
    out = tmp_path / "out"
    rerank(JobOptions(str(out), options, order=order), RerankerConfig(str(TINY), num_threads=1))
    found = {row["doc_id"]: row["error_code"] for row in score_rows(out)}
    assert found == {
        "b.pdf#page=2": None,
        "deep/a.PDF#page=1": None,
        "b.pdf#page=4": "document_not_found",
    }


def documents_of(rows: Sequence[dict[str, Any]], path: Path) -> list[Any]:
    table = (
        write_table(path, list(rows))
        if path.suffix == ".parquet"
        else write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    )
    options = run_of(path.parent, table, *(row["doc_id"] for row in rows))
    return [each.document for row in read_all(options) for each in row.candidates]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_column_may_hold_pdfs_and_their_pages(tmp_path, ending):
    rows = [
        {"doc_id": "a", "pdf": "a.pdf", "page": 3, "pages": None},
        {"doc_id": "b", "pdf": "b.pdf", "page": None, "pages": [1, 2]},
        {"doc_id": "c", "pdf": "c.pdf", "page": None, "pages": None},
    ]
    found = documents_of(rows, tmp_path / f"corpus.{ending}")
    assert found == [{key: row[key] for key in ("pdf", "page", "pages")} for row in rows]


def test_a_column_beside_other_content_is_read_where_it_is_mapped(tmp_path):
    rows = [{"doc_id": "a", "text": "t", "pdf": "a.pdf", "page": "iv"}]
    corpus = write_table(tmp_path / "corpus.parquet", rows)
    options = run_of(tmp_path, corpus, "a")
    opened = open_job_input(options)
    (row,) = read_all(options)
    assert row.candidates[0].document == {"text": "t"}
    assert any("--map corpus.pdf=pdf" in each for each in unread(opened.corpus))
    with pytest.raises(UsageError, match="'page' must be a number"):
        read_all(InputOptions(**_given(options), maps=("corpus.pdf=pdf",)))


def _given(options: InputOptions) -> dict[str, Any]:
    return {"run": options.run, "queries": options.queries, "corpus": options.corpus}


def test_pdfs_beside_a_table_are_its_media(tmp_path):
    folder = tmp_path / "corpus"
    write(folder / "a.pdf", pdf(Page()))
    write_table(folder / "corpus.parquet", [{"doc_id": "a", "pdf": "a.pdf"}])
    assert ids_of(folder) == ["a"]


def test_pdfs_are_no_queries(tmp_path):
    folder = folder_of_pdfs(tmp_path / "pdfs")
    with pytest.raises(UsageError, match="PDF files are read as a corpus"):
        open_job_input(InputOptions(str(folder), embeds="query"))
    with pytest.raises(UsageError, match="PDF files are read as a corpus"):
        open_job_input(InputOptions(str(folder)))


def test_bytes_in_json_are_no_pdf(tmp_path):
    data = base64.b64encode(pdf(Page())).decode()
    (found,) = documents_of([{"doc_id": "a", "pdf": data}], tmp_path / "corpus.jsonl")
    assert found == {"pdf": data}  # a path, as of images
