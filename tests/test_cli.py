"""The command line's refusals: one sentence on stderr and exit code 2, nothing written."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from shardrank import cli
from shardrank.actors.config import RerankerConfig
from shardrank.cli import main
from shardrank.jobs.command import how_to_go_on, pasteable
from shardrank.jobs.errors import JobError, UsageError
from shardrank.jobs.inputs.forms import InputOptions
from shardrank.jobs.rerank import JobOptions
from shardrank.jobs.run.pool import Pool, choose_pool
from shardrank.jobs.run.progress import Meter, duration
from tests.support.engine import TINY
from tests.support.job_cases import text_rows, write_sets, write_text

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sets(tmp_path: Path) -> str:
    return write_sets(tmp_path / "sets.parquet", text_rows(2, 2))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["rerank", *arguments]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    return stderr


def test_no_name_commands_the_terminal(capsys: pytest.CaptureFixture[str], sets: str) -> None:
    name = "\x1b]0;owned\x07\u202eq"
    stderr = refused(capsys, sets, "--output=o", f"--model={TINY}", f"--map=input.query={name}")
    assert r"\x1b]0;owned\x07\u202eq" in stderr


LOGS = r"""
import logging
from shardrank import cli
def read_status(output):
    logging.getLogger("job").warning(f"unit of {output}")
    raise cli.JobError("no")
cli.read_status = read_status
raise SystemExit(cli.main(["status", "\x1b]0;owned\x07"]))
"""


def test_no_name_in_the_log_commands_the_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", LOGS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert r"unit of \x1b]0;owned\x07" in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--bogus=1", "No such option: --bogus"),
        ("--max-length=-4", "max_length must be above zero, got -4"),
        ("--fps=nan", "fps"),
        ("--dtype=int8", "'--dtype'"),
        ("--unit-pairs=0", "--unit-pairs must be above zero"),
        ("--num-actors=x", "'--num-actors'"),
        ("--preset=bier", "unknown preset 'bier'"),
        ("--map=input.query=question", "no column 'question' (for query)"),
        ("--model=/no/such/model", "--model: model '/no/such/model' is neither"),
        ("--run=/no/such/run", "--queries"),
        ("--qrels=/no/such/qrels", "/no/such/qrels"),
        ("--image-min-pixels=9000000", "image_min_pixels must not exceed"),
        ("--num-actors=999", "too few CPUs: 999 scoring actors and one reading task need 1000"),
    ],
)
def test_a_wrong_option_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sets: str, option: str, sentence: str
) -> None:
    given = [sets, f"--output={tmp_path / 'out'}", f"--model={TINY}", option]
    assert sentence in refused(capsys, *given)
    assert not (tmp_path / "out").exists()


def test_more_actors_than_this_machine_could_have_are_refused_before_ray_starts(
    tmp_path: Path, sets: str
) -> None:
    command = [sys.executable, "-m", "shardrank.cli", "rerank", sets, f"--model={TINY}"]
    command += [f"--output={tmp_path / 'out'}", "--device=cuda", "--num-actors=999"]
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path / "ray")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "999 scoring actors need as many, this machine has" in done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "ray").exists()


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("{}", "{}/out"),
        ("{}/**", "{}/a/out"),
        ("{}/**/*.parquet", "{}/out"),
        ("{}/link", "{}/real/out"),
    ],
)
def test_an_output_that_would_be_input_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sets: str, given: str, output: str
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    arguments = [given.format(tmp_path), f"--output={output.format(tmp_path)}", f"--model={TINY}"]
    assert "its files would be read as input the next time" in refused(capsys, *arguments)
    before = {tmp_path / name for name in ("real", "link", "sets.parquet")}
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "output"),
    [("{}/a", "{}/ab"), ("{}/a/*.parquet", "{}/a/out"), ("{}/a", "{}/a/_out"), ("{}/a", "{}")],
)
def test_an_output_beside_the_input_is_none_of_it(tmp_path: Path, given: str, output: str) -> None:
    (tmp_path / "a").mkdir()
    InputOptions(given.format(tmp_path)).check_apart_from(output.format(tmp_path))


def test_a_glob_that_the_shell_took_is_to_be_quoted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sets: str
) -> None:
    given = (f"--output={tmp_path / 'out'}", f"--model={TINY}")
    assert "quote a glob, as in 'pages/*.parquet'" in refused(capsys, sets, sets, *given)
    assert main(["evaluate", str(tmp_path), "--qrels", "a.tsv", "b.tsv"]) == 2
    assert "quote a glob" in capsys.readouterr().err
    tables = ("--run=r.trec", "--queries=q.jsonl", "--corpus=c-1.parquet")
    said = refused(capsys, sets, *tables, *given)
    assert f"INPUT {sets} is not read beside --run, --queries and --corpus" in said


@pytest.mark.parametrize("left_out", ["--output", "--model"])
def test_a_missing_option_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sets: str, left_out: str
) -> None:
    given = {"--output": str(tmp_path / "out"), "--model": str(TINY)}
    del given[left_out]
    assert left_out in refused(capsys, sets, *[f"{k}={v}" for k, v in given.items()])


def test_a_directory_with_something_else_in_it_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sets: str
) -> None:
    write_text(tmp_path / "out" / "thesis.txt", "mine")
    stderr = refused(capsys, sets, f"--output={tmp_path / 'out'}", f"--model={TINY}")
    assert "is not empty and has no manifest.json" in stderr


def test_a_model_directory_without_weights_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sets: str
) -> None:
    for name in ("config.json", "tokenizer.json"):
        write_text(tmp_path / "model" / name, (TINY / name).read_text())
    given = [sets, f"--output={tmp_path / 'out'}", f"--model={tmp_path / 'model'}"]
    assert "no *.safetensors" in refused(capsys, *given)


def test_an_adapter_beside_the_weights_is_refused_before_ray_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, sets: str
) -> None:
    model = shutil.copytree(TINY, tmp_path / "model")
    write_text(model / "adapter_config.json", "{}")
    is_running = ray.is_initialized()  # other tests' own
    stderr = refused(capsys, sets, f"--output={tmp_path / 'out'}", f"--model={model}")
    assert f"--model: {model}/adapter_config.json is an adapter's file" in stderr
    assert not (tmp_path / "out").exists() and ray.is_initialized() == is_running


@pytest.mark.parametrize(
    "command",
    [f"{sys.executable} -m shardrank.jobs.rerank --bogus", pasteable(["rerank", "--bogus"])],
)
def test_the_module_and_what_is_printed_are_the_same_command(command: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: No such option: --bogus")


def test_a_printed_command_keeps_its_quotes_and_no_credentials() -> None:
    uri = "s3://KEY:SECRET@bucket/it's in?region=us-east-1&secret_key=abc"
    given = ["rerank", "pages/[ab]*.parquet", f"--output={uri}", "--instruction", "Find 'it' $HOME"]
    said = how_to_go_on(given)
    assert "SECRET" not in said and "abc" not in said
    command, note = said.splitlines()[1:]
    hidden = "--output=s3://***@bucket/it's in?region=us-east-1&secret_key=***"
    assert shlex.split(command)[-5:] == [*given[:2], hidden, *given[3:]]
    assert note == "(with the credentials in the place of ***)"


@pytest.mark.parametrize(
    ("resources", "device", "num_actors", "pool"),
    [
        ({"CPU": 8, "GPU": 4}, "auto", None, Pool(4, 1, 1)),
        ({"CPU": 8, "GPU": 4}, "auto", 2, Pool(2, 1, 1)),
        ({"CPU": 4, "GPU": 4}, "auto", None, Pool(4, 0, 1)),
        ({"CPU": 8, "GPU": 4}, "cpu", None, Pool(1, 1, 0)),
        ({"CPU": 2}, "auto", None, Pool(1, 1, 0)),
        ({"CPU": 2}, "cuda", 8, Pool(8, 0, 1)),
    ],
)
def test_the_pool_has_one_actor_a_gpu_or_one_on_cpu(
    resources: dict[str, float], device: str, num_actors: int | None, pool: Pool
) -> None:
    assert choose_pool([resources], device, num_actors) == pool


def test_a_node_with_no_core_to_spare_still_takes_an_actor() -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 0.0, "GPU": 1.0}]
    assert choose_pool(nodes, "auto", None) == Pool(1, 0, 1)
    assert choose_pool([nodes[0], {"CPU": 2.0, "GPU": 1.0}], "auto", None) == Pool(1, 1, 1)


@pytest.mark.parametrize(
    ("resources", "device", "num_actors", "sentence"),
    [
        ({"CPU": 1}, "auto", None, "need 2, the cluster has 1"),
        ({"CPU": 4}, "cpu", 4, "need 5, the cluster has 4"),
        ({"GPU": 4}, "auto", None, "need 1, the cluster has 0"),
        ({"CPU": 4}, "cuda", None, "the cluster has no GPU"),
    ],
)
def test_a_pool_that_could_never_run_is_refused(
    resources: dict[str, float], device: str, num_actors: int | None, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        choose_pool([resources], device, num_actors)


def test_a_line_of_progress_has_rates_an_eta_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("shardrank.jobs.run.progress.time.monotonic", lambda: now)
    meter = Meter(total_pairs=1_000, total_groups=10, started=now)
    assert "0/1,000 pairs · 0/10 queries · 0 pairs prepared, 0 of 1 scoring" in meter.line()
    meter.num_pairs, meter.num_errors = 500, 3
    now += 10
    assert meter.eta_s == pytest.approx(10)
    assert "500/1,000 pairs · 0/10 queries · 50.0 pairs/s" in meter.line()
    assert meter.line().endswith("ETA 0:10 · 3 errors")
    assert (duration(59.6), duration(3_723)) == ("1:00", "1:02:03")


@pytest.mark.parametrize(
    ("given", "roots"),
    [
        ((), ()),
        (("--media-root=/a",), "/a"),
        (("--media-root=/a", "--media-root=/b"), ("/a", "/b")),
    ],
)
def test_local_media_are_read_under_the_given_roots_alone(
    tmp_path: Path,
    sets: str,
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    roots: object,
) -> None:
    configs: list[RerankerConfig] = []

    def stopped(options: JobOptions, config: RerankerConfig) -> None:
        configs.append(config)
        raise UsageError("that is enough")

    monkeypatch.setattr(cli, "run_rerank", stopped)
    main(["rerank", sets, f"--output={tmp_path / 'out'}", f"--model={TINY}", *given])
    assert [config.media_root for config in configs] == [roots]


@pytest.mark.parametrize("command", ["rerank", "serve"])
def test_a_video_reader_that_is_not_installed_is_refused_before_anything_starts(
    tmp_path: Path,
    sets: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)  # as where it is not installed
    inputs = [sets, f"--output={tmp_path / 'out'}"] if command == "rerank" else []
    assert main([command, *inputs, f"--model={TINY}", "--video-reader=decord"]) == 2
    assert "pip install 'shardrank[decord]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["status", "verify", "rerank"])
def test_only_a_job_that_failed_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: str,
) -> None:
    def failed(*given: object) -> None:
        raise JobError("it broke")

    monkeypatch.setattr(cli, "run_rerank", failed)
    monkeypatch.setattr(cli, "read_status", failed)
    monkeypatch.setattr(cli, "verify_output", failed)
    given = ["x.parquet", f"--output={tmp_path}", f"--model={TINY}"]
    assert main([command, *(given if command == "rerank" else [str(tmp_path)])]) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: it broke\n")
    assert ("go on with" in stderr) == (command == "rerank")
