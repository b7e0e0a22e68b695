"""A job that is followed: what is shown of it through lost connections, and the exit code."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from ray.job_submission import JobDetails, JobStatus

from shardrank.jobs.command import how_to_go_on
from shardrank.jobs.errors import JobError, UsageError, Way
from shardrank.jobs.run.progress import Display
from shardrank.jobs.submit import follower as module
from shardrank.jobs.submit.dashboard import Cluster, NoSuchJob, Unreachable
from shardrank.jobs.submit.follower import Follower, exit_code
from shardrank.jobs.submit.submission import check_versions
from shardrank.jobs.submit.variables import note_submitter

KEPT = '{"arguments": ["rerank", "s3://b/in"], "env": ["HF_TOKEN"], "working_dir": null}'


def details(status: str = "RUNNING", **more: Any) -> JobDetails:
    kind, kept = {"type": "SUBMISSION", "submission_id": "job"}, {"metadata": {"shardrank": KEPT}}
    return JobDetails(status=JobStatus(status), entrypoint="", **kind, **(kept | more))


@dataclass
class Dashboard:
    """Answers one after the other, the last one for ever; so do readings of the log."""

    jobs: list[JobDetails | Exception]
    logs: list[list[str | Exception]] = field(default_factory=lambda: [[]])
    address: str = "http://head:8265"
    option: tuple[str, ...] = ("--address", "http://head:8265")

    def job(self, job: str) -> JobDetails:
        return raised(self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0])

    def lines(self, job: str) -> Iterator[str]:
        for line in self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]:
            yield raised(line)


def raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def follower_of(dashboard: Any) -> Follower:
    return Follower(dashboard, "job", Display(is_live=False))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASK_EVERY_S", 0.01)
    monkeypatch.setattr(module, "LOST_AFTER_S", 0.2)


def test_each_line_is_shown_once_through_lost_connections(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost, counts = Unreachable("no answer"), "10:00:0{} {}/9 pairs · a rate"
    log: list[str | Exception] = ["2026-11-29 09:00:00,1\tINFO job_manager.py:581 -- set up", "one"]
    log += [counts.format(0, 3), "two \x1b[2J", counts.format(1, 9), counts.format(2, 9)]
    jobs: list[JobDetails | Exception] = [details("PENDING"), details(), lost, lost, details()]
    dashboard = Dashboard([*jobs, details("SUCCEEDED")], [[*log[:3], lost], [*log[:2], lost], log])
    follower = follower_of(dashboard)
    assert exit_code(follower.follow(), follower) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["one", "two \\x1b[2J", "10:00:01 9/9 pairs · a rate"]


def test_a_cluster_that_was_started_anew_says_how_to_go_on() -> None:
    dashboard = Dashboard([details(), Unreachable("away"), NoSuchJob("knows no job")])
    with pytest.raises(JobError) as ended:
        follower_of(dashboard).follow()
    sentence, command = str(ended.value).splitlines()
    assert sentence.startswith("the cluster at http://head:8265 was started anew: its head died, ")
    words = "submit rerank s3://b/in --env HF_TOKEN --address http://head:8265"
    assert command.endswith(words)


def test_a_cluster_that_stays_away_is_asked_for_a_while() -> None:
    with pytest.raises(JobError, match="no answer; it was asked for .*job runs on; follow it with"):
        follower_of(Dashboard([details(), Unreachable("no answer")])).follow()
    with pytest.raises(NoSuchJob):
        follower_of(Dashboard([NoSuchJob("knows no job")])).follow()


@pytest.mark.parametrize(
    ("status", "more", "log", "outcome"),
    [
        ("SUCCEEDED", {"driver_exit_code": 0}, [], 0),
        ("FAILED", {"driver_exit_code": 2}, ["error: --model is missing"], 2),
        ("FAILED", {"driver_exit_code": 130}, ["interrupted"], 130),
        ("STOPPED", {}, [], 130),
        ("FAILED", {"driver_exit_code": 127}, ["sh: 1: shardrank: not found"], "has no ShardRank"),
        ("FAILED", {"driver_exit_code": -9}, [], "job was killed on the head, by signal 9"),
        ("FAILED", {"driver_exit_code": 137}, [], "job was killed on the head, by signal 9"),
        (
            "FAILED",
            {"driver_exit_code": 1},
            ["error: a worker failed: ModuleNotFoundError: No module named 'torch'"],
            "a node of the cluster lacks the package torch: every node needs",
        ),
        (
            "FAILED",
            {"message": "runtime_env setup failed\nTraceback\n  File\nOSError: no space\n"},
            [],
            "job failed on the head: OSError: no space; what is finished",
        ),
        ("FAILED", {"message": "Its node died.\n\tclass: x"}, [], "head: Its node died.; what is"),
    ],
)
def test_the_end_is_the_jobs_own(
    capsys: pytest.CaptureFixture[str],
    status: str,
    more: dict[str, Any],
    log: list[str | Exception],
    outcome: int | str,
) -> None:
    follower = follower_of(Dashboard([details(), details(status, **more)], [log]))
    ended = follower.follow()
    if isinstance(outcome, int):
        assert exit_code(ended, follower) == outcome
        said = "submit resume job --env HF_TOKEN --address" in capsys.readouterr().err
        assert said == (status == "STOPPED")
    else:
        with pytest.raises(JobError, match=outcome):
            exit_code(ended, follower)


def test_a_job_says_when_the_package_that_submitted_it_was_another(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    note_submitter()
    assert not caplog.records
    monkeypatch.setenv("SHARDRANK_SUBMITTER", "9.9.9")
    note_submitter()
    assert "and the machine that submitted the job 9.9.9: install one version" in caplog.text


def test_the_job_says_how_to_go_on_where_its_user_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDRANK_RESUMED_BY", "job --env HF_TOKEN")
    said = how_to_go_on(["rerank", "in"], [Way("to fetch them", ("--web-media",))])
    assert said.endswith("\n  shardrank submit resume job --env HF_TOKEN --web-media")


def test_a_cluster_with_another_ray_is_refused_and_with_another_python_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    python = ".".join(map(str, sys.version_info[:3]))
    check_versions(Cluster(ray.__version__, python, frozenset()), "http://head:8265")
    assert not caplog.records
    check_versions(Cluster(ray.__version__, "3.99.1", frozenset()), "http://head:8265")
    assert "the cluster has Python 3.99.1, this machine 3." in caplog.text
    with pytest.raises(UsageError, match="http://head:8265 runs Ray 1.9.9, and this version of"):
        check_versions(Cluster("1.9.9", python, frozenset()), "http://head:8265")
