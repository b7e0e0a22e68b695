"""What a scoring actor makes of a chunk whose attempts died: none does, as in test_attempts."""

import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.data import DataContext

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import PairScore
from shardrank.actors.errors import Crashed
from shardrank.actors.prepared import PreparedSet
from shardrank.jobs.errors import JobError
from shardrank.jobs.outputs.scores import PLACE_SCHEMA
from shardrank.jobs.run.attempts import MAX_DEATHS, MAX_DEATHS_OF_WORK, Attempt, AttemptLog
from shardrank.jobs.run.engine import Engine, outline_of
from shardrank.jobs.run.pipeline import _configure, packed
from shardrank.jobs.run.pool import Pool
from shardrank.jobs.run.preparing import Chunk, prepare_unit
from shardrank.jobs.run.scoring import Score, score_pairs
from shardrank.jobs.units.plan import SetsUnit
from tests.support.engine import TINY

WORK = ("score", 0, 0)
PREPARED: list[Any] = [PreparedSet((None, None), ()), PreparedSet((None,), ())]


class Together:
    """A pair's score is how many were scored with it: alone it is another one."""

    def __init__(self, config: RerankerConfig | None = None) -> None:
        self.num_calls = 0

    def score(self, sets: list[PreparedSet], progressed: Any) -> list[list[PairScore]]:
        self.num_calls += 1
        num_pairs = sum(each.num_pairs for each in sets)
        return [[PairScore(logit=num_pairs, num_tokens=1)] * each.num_pairs for each in sets]


def after(num_deaths: int, log: AttemptLog, *step: Any) -> Attempt:
    for _ in range(num_deaths):
        Attempt(log, WORK)
        log.at(WORK, step)
    return Attempt(log, WORK)


@pytest.mark.parametrize(("num_deaths", "num_calls"), [(0, 1), (1, 1), (MAX_DEATHS, 4)])
def test_a_chunk_that_others_killed_has_the_scores_of_an_undisturbed_one(
    num_deaths: int, num_calls: int
) -> None:
    scorer = Together()
    scores = score_pairs(scorer, PREPARED, after(num_deaths, AttemptLog()))
    assert ([score.logit for score in scores], scorer.num_calls) == ([3, 3, 3], num_calls)


def test_who_dies_together_alone_is_scored_alone() -> None:
    log = AttemptLog()
    after(MAX_DEATHS, log)
    scores = score_pairs(Together(), PREPARED, after(MAX_DEATHS, log, "together"))
    assert [score.logit for score in scores] == [1, 1, 1]


def test_a_pair_that_kills_is_an_error_and_the_others_have_scores() -> None:
    log = AttemptLog()
    after(MAX_DEATHS, log)
    first, second, third = score_pairs(Together(), PREPARED, after(MAX_DEATHS, log, "pair", 1))
    assert isinstance(second.error, Crashed)
    assert (first.logit, third.logit) == (1, 1)


def batch() -> pa.Table:
    chunk = Chunk([{"place": place} for place in range(3)], list(PREPARED))
    return chunk.table(PLACE_SCHEMA, unit=0, index=0, is_last=True)


def test_a_chunk_that_kills_wherever_it_is_touched_is_all_its_pairs_error() -> None:
    log = AttemptLog()
    engine = packed(Engine(Together, Together))
    actor = Score(engine, RerankerConfig(str(TINY)), Pool(1, 1, 0), log)
    assert actor(batch())["error_code"].null_count == 3
    after(MAX_DEATHS_OF_WORK, log)
    broken = batch().set_column(4, "prepared", pa.array([pickle.dumps(1)[:-1]], pa.large_binary()))
    assert actor(broken)["error_code"].to_pylist() == ["crashed"] * 3


class Planning(Together):
    """Does not come back before another chunk has been planned meanwhile, or may not be."""

    def __init__(self, config: RerankerConfig | None = None) -> None:
        super().__init__()
        self.began, self.is_planned, self.is_inside = threading.Event(), threading.Event(), False

    def planned(self, sets: list[PreparedSet]) -> list[PreparedSet]:
        if self.began.is_set():
            self.is_planned.set()
        return sets

    def score(self, sets: list[PreparedSet], progressed: Any) -> list[list[PairScore]]:
        assert not self.is_inside
        self.is_inside = True
        self.began.set()
        self.is_planned.wait(0.2 if self.num_calls else 20.0)
        self.is_inside = False
        return super().score(sets, progressed)


@pytest.mark.parametrize("num_deaths", [0, 1])
def test_the_next_chunk_is_made_ready_while_one_is_scored_that_nobody_died_of(
    num_deaths: int,
) -> None:
    log = AttemptLog()
    engine = packed(Engine(Planning, Planning))
    actor = Score(engine, RerankerConfig(str(TINY)), Pool(1, 1, 0), log)
    scorer: Any = actor._scorer
    scorer.num_calls = num_deaths  # then it does not wait for what must not come
    for _ in range(num_deaths):
        Attempt(log, WORK)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(actor, batch())
        assert scorer.began.wait(20.0)
        second = threads.submit(actor, batch())
        planned_meanwhile = (
            scorer.is_planned.wait(0.1) if num_deaths else scorer.is_planned.wait(20)
        )
        tables = [first.result(), second.result()]
    assert planned_meanwhile == (num_deaths == 0)
    assert [table["error_code"].null_count for table in tables] == [3, 3]


class Unplannable(Together):
    def planned(self, sets: list[PreparedSet]) -> list[PreparedSet]:
        raise ValueError("these cannot be planned")


def test_a_chunk_that_cannot_be_planned_is_scored_and_does_not_end_the_job() -> None:
    actor = Score(
        packed(Engine(Unplannable, Unplannable)), RerankerConfig(str(TINY)), Pool(1, 1, 0)
    )
    assert actor(batch())["error_code"].null_count == 3


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_node_with_another_model_scores_nothing(tmp_path: Path, file: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    config = RerankerConfig(str(model))
    outline = outline_of(config)
    with (model / file).open("ab") as stream:
        stream.write(b" ")
    engine = packed(Engine(Together, Together))
    with pytest.raises(JobError, match="is not what it was where the job was started"):
        Score(engine, config, Pool(1, 1, 0), outline=outline)
    batch = pa.table({"unit": pa.array([pickle.dumps(SetsUnit(0, 0, 0, 1, 1))])})
    with pytest.raises(JobError, match="every node needs the same files"):
        list(prepare_unit(batch, None, engine, config, AttemptLog(), 60.0, outline))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hangs", "told"),
    [
        (False, "died 2 times while it loaded the preprocessor of .*tiny"),
        (True, "preprocessor of .*tiny was not loaded within 600 s, 2 times"),
    ],
)
def test_a_preprocessor_that_is_not_loaded_ends_the_job_with_the_cause(
    hangs: bool, told: str
) -> None:
    log = AttemptLog()
    work = ("prepare", 0)
    for _ in range(2):
        Attempt(log, work)
        log.at(work, ("load",), hangs=hangs)
    batch = pa.table({"unit": pa.array([pickle.dumps(SetsUnit(0, 0, 0, 1, 1))])})
    engine = packed(Engine(Together, Together))
    with pytest.raises(JobError, match=told):
        list(prepare_unit(batch, None, engine, RerankerConfig(str(TINY)), log, 60.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(("pool", "hours"), [(Pool(1, 0, 1), 0.5), (Pool(1, 1, 0), 24)])
def test_without_gpus_a_chunk_may_take_long(
    pool: Pool, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = DataContext.get_current().copy()
    monkeypatch.setattr(DataContext, "get_current", lambda: context)
    _configure(pool)
    assert context.execution_no_progress_timeout_s == hours * 3_600
