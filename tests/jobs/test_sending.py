"""What goes along with a submitted command, and what is refused before anything is sent."""

import socket
from pathlib import Path

import pytest
import typer.main

from shardrank import cli
from shardrank.jobs.errors import UsageError
from shardrank.jobs.run.progress import Meter, Step, Underway
from shardrank.jobs.submit import sending
from shardrank.jobs.submit.follower import Said
from shardrank.jobs.submit.sending import Paths, WorkingDirectory, placed, read_variables
from shardrank.jobs.submit.submission import Submission
from shardrank.jobs.submit.variables import packed
from tests.support.job_cases import write_text

COMMANDS = typer.main.get_command(cli.app).commands
RERANK = COMMANDS["rerank"]
HERE = frozenset({socket.gethostname()})
OTHERS = frozenset({"head", "gpu-1"})


def arguments_of(paths: Paths, *arguments: str) -> list[str]:
    return list(placed(RERANK, arguments, paths.place))


def test_on_this_machine_paths_are_made_absolute_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    given = ("--model", "model", "sets/*.parquet", "--output=out", "--compile", "--media-root", ".")
    given += ("--instruction", "out", "--qrels", "s3://b/q.tsv", "--fps=2")
    assert arguments_of(Paths(HERE), *given) == [
        *("--model", f"{tmp_path}/model", f"{tmp_path}/sets/*.parquet", f"--output={tmp_path}/out"),
        *("--compile", "--media-root", str(tmp_path)),
        *("--instruction", "out", "--qrels", "s3://b/q.tsv", "--fps=2"),
    ]


@pytest.mark.parametrize(
    "given",
    ["{}/sets.parquet", "sets.parquet", "{}/*.parquet", "file://{}/sets.parquet", "~/none.parquet"],
)
def test_a_path_of_this_machine_is_refused_where_the_nodes_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "sets.parquet", "")
    given = given.format(tmp_path)
    with pytest.raises(UsageError, match=r"INPUT .*others \(gpu-1, head\): use s3:// or gs://, "):
        arguments_of(Paths(OTHERS), given)
    with pytest.raises(UsageError, match=r"--output .* or say --shared "):
        arguments_of(Paths(HERE | OTHERS), "--output", str(tmp_path / "out"))
    (name,) = arguments_of(Paths(OTHERS, (str(tmp_path), str(Path.home()))), given)
    assert name.startswith(("/", "file:"))


NO_PATHS = {"preset", "map", "measure", "max_errors", "retry_errors", "revision", "instruction"}
NO_PATHS |= {"allowed_networks", "rescore", "group_by", "dtype", "device", "address"}


@pytest.mark.parametrize("command", ["rerank", "embed", "verify", "evaluate"])
def test_each_option_that_takes_a_text_is_known_to_be_a_path_or_none(command: str) -> None:
    kinds = {each.name.rstrip("_"): each.bare_type() for each in COMMANDS[command].params}
    texts = {name for name, kind in kinds.items() if kind in (str, list[str])}
    assert texts - NO_PATHS <= sending._READ | sending._WRITTEN


def test_names_and_paths_of_the_nodes_go_as_they_are() -> None:
    given = ["s3://b/sets", "--model=Qwen/Qwen3-VL-Reranker-2B", "--output=/nodes/disk/out"]
    given += ["--media-root=/nodes/disk"]
    assert arguments_of(Paths(OTHERS), *given) == given


def test_small_inputs_are_found_in_the_working_directory_that_goes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/q.jsonl", "data/c.jsonl", ".env", "keys/id.pem", "big.bin", ".git/HEAD"):
        write_text(tmp_path / name, "12345")
    write_text(tmp_path / ".gitignore", "big.bin\n")
    found = WorkingDirectory.read(".", ["c.jsonl"])
    assert {each.relative_to(tmp_path).as_posix() for each in found.sizes} == {
        ".gitignore",
        "data/q.jsonl",
    }
    assert str(found).startswith("2 files, 0.0 MB of at most 536.9 MB, without")
    paths = Paths(OTHERS, directory=found)
    assert arguments_of(paths, "--queries", str(tmp_path / "data" / "q.jsonl")) == [
        *("--queries", "data/q.jsonl")
    ]
    for name in ("data/c.jsonl", "big.bin"):
        with pytest.raises(UsageError, match="this is a path of this machine"):
            arguments_of(paths, "--corpus", name)


def test_a_working_directory_that_ray_would_not_take_is_refused_by_its_largest_files(
    tmp_path: Path,
) -> None:
    for name, size in (("a.bin", 300 << 20), ("b.bin", 250 << 20), ("c.txt", 3)):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(size)
    with pytest.raises(UsageError, match=r"576.7 MB .* 536.9 MB: .*--exclude.* a.bin \(314.6 MB\)"):
        WorkingDirectory.read(str(tmp_path), [])
    assert WorkingDirectory.read(str(tmp_path), ["a.*"]).size == (250 << 20) + 3


def test_variables_are_given_by_name_and_a_value_is_never_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "geheim")
    assert read_variables(["HF_TOKEN"]) == {"HF_TOKEN": "geheim"}
    with pytest.raises(UsageError, match="--env HF_TOKEN: only a variable's name") as refused:
        read_variables(["HF_TOKEN=geheim"])
    assert "geheim" not in str(refused.value)
    with pytest.raises(UsageError, match="--env NO_SUCH: there is no such variable here"):
        read_variables(["NO_SUCH"])
    (place, content), (another, _) = packed({"HF_TOKEN": "geheim"}), packed({})
    assert place != another and b"geheim" not in content[:15]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["rerank", "--bogus"], "No such option: --bogus"),
        (["rerank", "s3://KEY:geheim@b/x"], "s3://***@b/x: Ray shows a job's command"),
        (["rerank", "--env=A=geheim"], "--env A: only a variable's name"),
        (["rerank", "--working-dir=/no/such"], "--working-dir /no/such: there is no such"),
        (["rerank", "in"], "--address is missing"),
        (["in", "--output=o"], "submit in: a command comes first, one of rerank, embed, "),
        (["--address=http://a:1", "rerank"], "submit --address=http://a:1: a command comes first"),
        ([], "Missing command"),
        (["status", "--address=ray://head:10001"], "expected one like http://head:8265"),
    ],
)
def test_a_wrong_submission_is_one_sentence_and_nothing_is_sent(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    sentence: str,
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["submit", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and "geheim" not in said


def test_what_a_job_logs_of_its_stages_is_read_as_the_same_stages() -> None:
    meter = Meter(total_pairs=160_000, total_groups=2_000, underway=Underway(num_ready=1))
    stages = [Step("regrouping", total=1_200, noun="document groups", num=7), meter]
    waiting = meter.line()
    meter.num_pairs = 12_345
    for line, num in ((stages[0].line(), 7), (waiting, 0), (meter.line(), 12_345)):
        said = Said.parse(f"12:34:56 {line}")
        assert said is not None and (said.line(), said.num) == (line, num)
        assert said.total == (1_200 if num == 7 else 160_000)
    step = Step("joining the Ray cluster at 10.0.0.1:6379")
    said = Said.parse(f"12:34:56 {step.line()}")
    assert said is not None and (said.line(), said.total) == (step.line(), None)


@pytest.mark.parametrize(
    "line",
    [
        "12:34:56 60 units, 0 done; 2 scoring actors on GPU",
        "12:34:56 verified: 24/24 pairs of 6 queries",
        " scores     /tmp/1/2/scores/",
        "error: 3/4 pairs",
        "",
    ],
)
def test_other_lines_are_no_stage(line: str) -> None:
    assert Said.parse(line) is None


def test_what_a_job_had_of_a_machine_is_given_anew_by_who_resumes_it() -> None:
    kept = Submission(("rerank",), env=("HF_TOKEN",), working_dir="/home/me/project")
    with pytest.raises(UsageError, match="--working-dir /home/me/project --env HF_TOKEN"):
        kept.check_granted("job", Submission((), env=("HF_TOKEN",)))
    with pytest.raises(UsageError, match="give them again"):
        kept.check_granted("job", Submission((), working_dir="."))
    kept.check_granted("job", Submission((), env=("HF_TOKEN", "MORE"), working_dir="."))
