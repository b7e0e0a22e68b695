from typing import Any

import pytest
from ray.data import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayTaskError, UserCodeException

from shardrank.jobs import cluster
from shardrank.jobs.cluster import own_error, own_errors
from shardrank.jobs.errors import JobError

TRACEBACK = """Traceback (most recent call last):
  File "scorer.py", line 7, in score
ValueError: the scorer's own sentence
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, backoff, or which errors are retried, configure Ray.

The above exception was the direct cause of the following exception:

ray.exceptions.UserCodeException: UDF failed to process a data block.
To change retry attempts, configure Ray."""


def test_what_failed_is_said_and_not_how_to_configure_ray() -> None:
    cause = UserCodeException("UDF failed to process a data block.\nTo change retry attempts, ...")
    error = RayTaskError("score", TRACEBACK, cause).as_instanceof_cause()
    assert str(own_error(error)) == "a worker failed: ValueError: the scorer's own sentence"


def test_our_own_error_comes_out_as_it_was() -> None:
    error = RayTaskError("score", "", JobError("ours")).as_instanceof_cause()
    assert str(own_error(error)) == "ours"


def test_a_run_in_which_nothing_moved_any_more_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 1_800)
    with (
        pytest.raises(JobError, match="nothing moved for 30 minutes: .* `ray status` and the logs"),
        own_errors(),
    ):
        raise ExecutionTimeoutError("Dataset execution made no progress for at least 1800s")


CHAINED = """Traceback (most recent call last):
  File "model.py", line 5, in load_model
safetensors.SafetensorError: header too small

The above exception was the direct cause of the following exception:

ray::MapWorker(MapBatches(Score)).__init__() (pid=1, ip=127.0.0.1)
  File "model.py", line 7, in load_model
ValueError: /model cannot be loaded: header too small"""


def test_of_a_chain_the_sentence_that_says_most_is_shown() -> None:
    error = RayTaskError("score", CHAINED, ValueError("")).as_instanceof_cause()
    assert str(own_error(error)).endswith("ValueError: /model cannot be loaded: header too small")


LATE = "The current node timed out during startup."
MISMATCH = "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n"


@pytest.mark.parametrize(
    ("address", "said", "sentence"),
    [
        (None, LATE, "^cannot start Ray on this machine: The current node timed"),
        ("a:1", MISMATCH, "^cannot join .* at a:1: Version .* Ray: 2.59.0 Python: 3.12.1; run the"),
    ],
    ids=["late", "another version"],
)
def test_a_ray_that_does_not_come_up_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, address: str | None, said: str, sentence: str
) -> None:
    def fails(**_: Any) -> None:
        raise Exception(said)

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", fails)
    with pytest.raises(JobError, match=sentence), cluster.connected(address):
        pass
