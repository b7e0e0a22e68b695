"""The job on a cluster that is already there: submitted to it, and joined by --address."""

import json
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from tests.support.ray_head import NUM_GPUS, ROOT, Head, ray_head
from tests.support.terminal import Terminal

TINY = ROOT / "tests" / "golden" / "tiny"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with ray_head() as head:
        yield head


def write_candidates(path: Path, num_queries: int = 6, num_documents: int = 4) -> None:
    rows = [
        {
            "query_id": query,
            "query": f"what is number {query}",
            "candidates": [
                {"doc_id": f"d{query}-{doc}", "doc": f"number {doc}", "score": 1 / doc, "rank": doc}
                for doc in range(1, num_documents + 1)
            ],
        }
        for query in range(num_queries)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def rerank_arguments(folder: Path) -> list[str]:
    write_candidates(folder / "candidates.parquet")
    arguments = [str(folder / "candidates.parquet"), "--output", str(folder / "out")]
    return [*arguments, "--model", str(TINY), "--threads", "1", "--unit-pairs", "4"]


def check_output(folder: Path) -> None:
    """Every pair once, with a score; the pool had an actor for each of the cluster's GPUs."""
    assert (folder / "out" / "_SUCCESS").exists()
    rows = pq.read_table(folder / "out" / "scores").to_pylist()
    pairs = {(row["query_id"], row["doc_id"]) for row in rows}
    assert len(rows) == len(pairs) == 6 * 4
    assert all(row["error_code"] is None and 0 <= row["score"] <= 1 for row in rows)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["num_actors"] == NUM_GPUS


KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI7MDENGbPxRfiCY"}


@pytest.fixture
def sets(tmp_path: Path, s3_endpoint: str) -> str:
    """Candidate sets in a bucket, for whose credentials the submitter alone has variables."""
    write_candidates(tmp_path / "candidates.parquet")
    bucket = fs.S3FileSystem(endpoint_override=s3_endpoint, region="us-east-1")
    with bucket.open_output_stream("bucket/submitted/candidates.parquet") as stream:
        stream.write((tmp_path / "candidates.parquet").read_bytes())
    endpoint = s3_endpoint.removeprefix("http://")
    query = f"?scheme=http&endpoint_override={endpoint}&region=us-east-1"
    return f"s3://bucket/submitted/candidates.parquet{query}"


def test_a_job_is_submitted_with_a_directory_and_variables_whose_values_nobody_sees(
    cluster, tmp_path, sets
):
    given = ["--working-dir", str(ROOT)]
    given += [f"--exclude={name}" for name in ("tests", "bench", "demo", "docs")]
    given += [word for name in KEYS for word in ("--env", name)]
    arguments = [sets, *rerank_arguments(tmp_path)[1:]]
    submitted = cluster.run(*cluster.submit, "rerank", *given, *arguments, **KEYS)
    assert submitted.returncode == 0, submitted.stdout
    assert re.search(r"goes along: \d+ files, [\d.]+ MB of at most", submitted.stdout)
    assert "verified: 24/24 pairs" in submitted.stdout and "Running entry" not in submitted.stdout
    check_output(tmp_path)
    listed = json.loads(ask(cluster, "/api/jobs/"))
    (job,) = [each for each in listed if "rerank-" in str(each["submission_id"])]
    place = job["runtime_env"]["env_vars"]["SHARDRANK_GIVEN"]
    with pytest.raises(urllib.error.HTTPError, match="404"):  # it is not there any more
        ask(cluster, f"/api/packages/gcs/{place}")
    said = [submitted.stdout, json.dumps(listed), (tmp_path / "out/manifest.json").read_text()]
    folder = Path(cluster.environment["RAY_TMPDIR"])
    said += [path.read_text(errors="replace") for path in folder.glob("session_*/logs/**/*.*")]
    assert len(said) > 10 and [text for text in said if KEYS["AWS_SECRET_ACCESS_KEY"] in text] == []


def ask(cluster: Head, path: str) -> str:
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(cluster.dashboard + path, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and none was found here: export"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refused the token in the variable RAY_AUTH_TOKEN: it is"),
        ({"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}, "no Ray dashboard answers at http://"),
    ],
    ids=["no token", "another's token", "no cluster"],
)
def test_a_cluster_that_lets_nobody_in_is_one_sentence(cluster, environment, sentence):
    refused = cluster.run(*cluster.submit, "status", "x", **environment)
    assert refused.returncode == 1 and sentence in refused.stdout
    assert refused.stdout.startswith("error: ") and len(refused.stdout.splitlines()) == 1


LINE = "12:34:56 $i/200 pairs · 0/9 queries · a rate"
PROGRESS = f'for i in $(seq 1 200); do echo "{LINE}"; sleep .3; done'


def test_ctrl_c_leaves_a_followed_job_running_until_it_is_stopped(cluster):
    """A shell stands in for the job; it is shown with a bar, as one on this machine is."""
    token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    body = json.dumps({"entrypoint": PROGRESS, "submission_id": "long"}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", body, headers)
    urllib.request.urlopen(request, timeout=60).close()
    terminal = Terminal([*cluster.submit, "follow", "long"], 80, cluster.environment)
    assert terminal.watch(lambda seen: re.search(r"\d/200 pairs · .* a rate ━", seen) is not None)
    terminal.process.send_signal(signal.SIGINT)
    assert not terminal.watch() and terminal.process.returncode == 130
    assert "long runs on; follow it again or stop it with:" in terminal.text
    assert "submit stop long" in terminal.text and "Traceback" not in terminal.text
    assert "running" in cluster.run(*cluster.submit, "status", "long").stdout
    stopped = cluster.run(*cluster.submit, "stop", "long")
    assert (stopped.returncode, stopped.stdout.split(";")[0]) == (0, "long ended: stopped")


def test_the_job_joins_a_cluster_by_address_and_uses_all_its_gpus(cluster, tmp_path):
    arguments = [*rerank_arguments(tmp_path), "--address", cluster.address]
    joined = cluster.run(sys.executable, "-m", "shardrank.jobs.rerank", *arguments)
    assert joined.returncode == 0, joined.stdout
    assert f"{NUM_GPUS} scoring actors on GPU" in joined.stdout
    check_output(tmp_path)


@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Bearer {'0' * 64}"}])
def test_a_request_without_the_right_token_is_refused(cluster, headers):
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code in (401, 403)


def test_the_dashboard_listens_on_loopback_only(cluster):
    port = f"{int(cluster.dashboard.rsplit(':', 1)[1]):04X}"
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port}") and line.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{port}"]
