import asyncio
import concurrent.futures
import inspect
import random
import threading
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardrank.actors import CandidateSet, PairScore, Reranker
from shardrank.actors.errors import EmptyQuery, ImageDecodeError
from shardrank.actors.planner import plan
from shardrank.actors.prepared import PreparedSet
from shardrank.actors.scorer import _costs
from shardrank.serve.errors import DeadlineExceeded, NotReady, TooManyRequests
from shardrank.serve.queue.batching import BatchQueue
from tests.actors.test_preprocessor import png
from tests.support.engine import TINY, tiny_reranker
from tests.support.serve_standin import StandIn, expected, media, padded, texts, until, with_queue


def scoring(queue: BatchQueue, *sets: CandidateSet, **more: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(queue.score(sets, **more))


async def in_the_scorer(queue: BatchQueue, reranker: StandIn) -> "asyncio.Task[Any]":
    """A request that keeps the scorer busy until its gate lets it go."""
    reranker.scoring.close()
    task = scoring(queue, texts("busy 10"))
    await until(lambda: reranker.batches == [["busy"]])
    return task


def queued(max_batch_tokens: int = 100, **more: Any) -> Callable[[Any], Callable[..., None]]:
    """The test runs on a queue of its own before a stand-in of its own."""

    def decorated(test: Any) -> Callable[..., None]:
        def run(**given: Any) -> None:
            reranker = StandIn(max_batch_tokens)
            with_queue(reranker, lambda queue: test(queue, reranker, **given), **more)

        names = list(inspect.signature(test).parameters.values())[2:]
        run.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        run.__doc__ = test.__doc__
        return run

    return decorated


def is_empty(queue: BatchQueue) -> bool:
    left = (queue.admission.num_pairs, queue.admission.num_tokens, queue._num_ahead)
    return left == (0, 0, 0) and not (queue._requests or queue._to_prepare or queue._to_score)


# Results


@pytest.mark.parametrize(
    "sets",
    [
        [texts(*(f"{s}-{d} {d % 9 + 1}" for d in range(200))) for s in range(3)],
        [],
        [texts(), texts()],
        [texts(), texts("a 1")],
        [texts("a 5", "error", "b 5"), texts("error")],
        [texts("a 10", "huge 500", "b 10", "vast 300")],
    ],
    ids=["many", "none", "empty", "one", "errors", "over a batch"],
)
def test_results_come_in_the_order_of_sets_and_documents(sets):
    assert with_queue(StandIn(), lambda queue: queue.score(sets)) == expected(*sets)


def test_the_engines_errors_come_through():
    documents = ["first", {"image": b"broken"}, "last", 3]
    sets = [CandidateSet.parse("query", documents), CandidateSet.parse(None, ["a", "b"])]
    scores, unasked = with_queue(tiny_reranker(), lambda queue: queue.score(sets))
    codes = [pair.error and pair.error.code for pair in scores]
    assert codes == [None, "image_decode", None, "invalid_content"]
    assert isinstance(scores[1].error, ImageDecodeError) and "documents[3]" in str(scores[3].error)
    assert [type(pair.error) for pair in unasked] == [EmptyQuery, EmptyQuery]


# Batches


class Recorded:
    """A real reranker whose scorer's calls are kept."""

    def __init__(self, reranker: Reranker, max_batch_tokens: int) -> None:
        self.preprocessor, self.scorer = reranker.preprocessor, self
        self.max_batch_tokens = reranker.scorer.max_batch_tokens = max_batch_tokens
        self.calls: list[list[PreparedSet]] = []
        self._score = reranker.scorer.score

    def score(self, sets: list[PreparedSet]) -> list[list[PairScore]]:
        self.calls.append(sets)
        return self._score(sets)


@cache
def small_batches() -> Recorded:
    return Recorded(Reranker(str(TINY)), 600)


IMAGES = [png(64, 96, seed=seed) for seed in range(3)]
SIDES: list[Any] = [
    "short",
    "a text of some words " * 5,
    "a long text, longer than a batch is " * 60,
    {"image": IMAGES[0]},
    {"image": [IMAGES[1], IMAGES[0]], "text": "two pages"},
    {"image": IMAGES[1], "text": "a page"},
    {"video": {"frames": IMAGES}},
    {"image": b"broken"},
    "the same start, and then one end",
    "the same start, and then another end",
]


@cache
def alone(query: int, document: int) -> PairScore:
    one = CandidateSet.parse(SIDES[query], [SIDES[document]])
    return with_queue(tiny_reranker(), lambda queue: queue.score([one]))[0][0]


sets_of_sides = st.lists(
    st.tuples(st.integers(0, 6), st.lists(st.integers(0, 9), max_size=8)), min_size=1, max_size=3
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(sets_of_sides, min_size=1, max_size=5))
def test_a_pair_scores_in_a_crowd_what_it_scores_alone(requests: list[list[Any]]) -> None:
    async def use(queue: BatchQueue) -> list[Any]:
        return await asyncio.gather(
            *(
                queue.score([CandidateSet.parse(SIDES[q], [SIDES[d] for d in ds]) for q, ds in one])
                for one in requests
            )
        )

    results = with_queue(small_batches(), use)
    for one, scores in zip(requests, results, strict=True):
        for (query, documents), found in zip(one, scores, strict=True):
            for document, pair in zip(documents, found, strict=True):
                single = alone(query, document)
                assert pair.score == pytest.approx(single.score, abs=1e-5)
                assert (repr(pair.error), pair.num_tokens) == (
                    repr(single.error),
                    single.num_tokens,
                )


def test_a_batch_is_one_plan_of_the_scorer():
    reranker, numbers = small_batches(), random.Random(3)
    reranker.calls.clear()
    sets = [
        CandidateSet.parse(numbers.choice(SIDES[:7]), numbers.choices(SIDES, k=25))
        for _ in range(4)
    ]
    with_queue(reranker, lambda queue: asyncio.gather(*(queue.score([each]) for each in sets)))
    plans = [plan(_costs(call), reranker.max_batch_tokens) for call in reranker.calls]
    assert {len(each) for each in plans if each} == {1}
    assert sum(pairs.num_pairs for call in reranker.calls for pairs in call) == 100
    assert any(len(call) > 1 for call in reranker.calls)


def test_a_big_request_is_split_and_batches_are_full():
    one = texts(*(f"{n} 10" for n in range(1_000)))
    reranker = StandIn(max_batch_tokens=200)
    assert with_queue(reranker, lambda queue: queue.score([one])) == expected(one)
    assert max(reranker.batch_tokens) <= 200
    assert len(reranker.batches) >= 50
    assert len([size for size in reranker.batch_tokens if size >= 150]) > 25


@queued()
async def test_a_free_scorer_takes_what_there_is_and_then_all_that_came(queue, reranker):
    busy = await in_the_scorer(queue, reranker)
    others = [scoring(queue, texts(f"{name} 10")) for name in "abc"]
    await until(lambda: len(queue._to_score) == 3)
    reranker.scoring.open()
    await asyncio.gather(busy, *others)
    assert [sorted(names) for names in reranker.batches] == [["busy"], ["a", "b", "c"]]


# Who waits for whom


@pytest.mark.parametrize("size", [5, 95])
@pytest.mark.parametrize("sets", [texts, padded])
@queued()
async def test_a_small_request_waits_two_batches_for_a_giant(queue, reranker, sets, size):
    giant = sets(*(f"g{n} {size}" for n in range(300)))
    reranker.scoring.close()
    waiting = scoring(queue, giant)
    await until(lambda: len(reranker.batches) == 1 and queue._num_ahead >= 200)
    small = scoring(queue, texts("small 50"))
    await until(lambda: len(queue._to_score) == 2)
    reranker.scoring.let(3)
    await small
    reranker.scoring.open()
    assert await waiting == expected(giant)
    assert "small" in reranker.batches[1] + reranker.batches[2]


@queued()
async def test_preparing_runs_ahead_of_the_scorer_by_two_batches_alone(queue, reranker):
    busy = await in_the_scorer(queue, reranker)
    giant = scoring(queue, padded(*(f"g{n} 40" for n in range(500))))
    await until(lambda: queue._num_ahead >= 200)
    small = scoring(queue, texts("small 10"))
    await until(lambda: "small" in reranker.prepared)
    await until(lambda: sum(map(len, (each.ready for each in queue._to_score))) > 2)
    reranker.scoring.let(1)
    await until(lambda: len(reranker.batches) == 2)
    assert len(reranker.prepared) <= 14  # the two scored, two budgets of 40s, three threads
    reranker.scoring.open()
    await asyncio.gather(busy, giant, small)


@queued()
async def test_text_does_not_wait_for_others_media(queue, reranker):
    reranker.media.close()
    pages = [scoring(queue, media(f"m{n} 5", f"n{n} 5")) for n in range(6)]
    await until(lambda: queue._num_ahead > 2_000)  # two slices, by the guess of a page
    assert await queue.score([texts("a 5")]) == expected(texts("a 5"))
    assert not any(page.done() for page in pages)
    reranker.media.open()
    await asyncio.gather(*pages)


# Leaving


@queued()
async def test_who_goes_away_is_not_scored_and_not_counted(queue, reranker):
    busy = await in_the_scorer(queue, reranker)
    before = queue.admission.num_pairs, queue.admission.num_tokens
    gone = scoring(queue, padded(*(f"g{n} 40" for n in range(300))))
    await until(lambda: len(queue._to_score) == 1)
    gone.cancel()
    await asyncio.wait([gone])
    assert gone.cancelled()
    assert (queue.admission.num_pairs, queue.admission.num_tokens) == before
    num_prepared = len(reranker.prepared)
    reranker.scoring.open()
    await asyncio.gather(busy, queue.score([texts("after 5")]))
    assert is_empty(queue)
    assert len(reranker.prepared) <= num_prepared + 1 + 3 * 2  # slices in the threads
    assert reranker.batches == [["busy"], ["after"]]


@queued(max_batch_tokens=100_000, num_preparing=1)
async def test_preparing_for_who_went_away_ends_at_the_next_document(queue, reranker):
    reranker.preparing.close()
    gone = scoring(queue, texts(*(f"g{n} 1" for n in range(64))))
    reranker.preparing.let(3)
    await until(lambda: len(reranker.prepared) == 3)
    gone.cancel()
    await asyncio.wait([gone])
    assert is_empty(queue)
    reranker.preparing.open()
    await queue.score([texts("after 1")])
    assert set(reranker.prepared) <= {"g0", "g1", "g2", "g3", "after"}
    assert reranker.batches == [["after"]]


# Too many


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@queued(max_queue_s=10, clock=Clock())
async def test_who_would_wait_too_long_is_refused_before_any_work(queue, reranker):
    def a_second_for_ten_tokens(num_tokens: int) -> None:
        queue._clock.now += num_tokens / 10

    reranker.after_batch = a_second_for_ten_tokens
    await queue.score([texts("first 20")])
    assert queue.admission.tokens_per_s == pytest.approx(10)
    reranker.scoring.close()
    waiting = [scoring(queue, texts("a 60"))]
    await until(lambda: len(reranker.batches) == 2)
    waiting.append(scoring(queue, texts("b 60")))
    await until(lambda: len(queue._to_score) == 1)
    for refused in (queue.check_room, queue.score):  # with its prompt it is a larger one
        with pytest.raises(TooManyRequests) as raised:
            await refused([texts("c 1")])  # type: ignore[misc]
        assert (raised.value.status, raised.value.code) == (429, "overloaded")
        assert raised.value.retry_after_s == pytest.approx(2)  # 12 s, and 10 are allowed
    queue.check_any_room()  # a shorter one would have some
    queue.check_room([texts()])
    assert queue.admission.num_pairs == 2
    reranker.scoring.let(1)
    await waiting[0]
    waiting.append(scoring(queue, texts("d 1")))
    reranker.scoring.open()
    await asyncio.gather(*waiting)
    assert is_empty(queue)
    assert sorted(reranker.prepared) == ["a", "b", "d", "first"]


@queued(max_queue_pairs=10)
async def test_pairs_over_the_limit_are_refused_unless_nobody_waits(queue, reranker):
    reranker.scoring.close()
    giant = scoring(queue, texts(*(f"{n} 5" for n in range(50))))
    await until(lambda: reranker.batches)
    with pytest.raises(TooManyRequests) as raised:
        await queue.score([texts("a 5")])
    assert raised.value.retry_after_s == 5.0  # no speed is known yet
    reranker.scoring.open()
    await giant
    assert await queue.score([texts("a 5")]) == expected(texts("a 5"))


@queued(max_queue_s=0.001, clock=Clock())
async def test_a_slow_server_takes_any_request_that_comes_alone(queue, reranker):
    reranker.after_batch = lambda num_tokens: setattr(queue._clock, "now", queue._clock.now + 3_600)
    for _ in range(3):
        await queue.score([texts(*(f"{n} 50" for n in range(9)))])


# Failures


class OddError(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (OddError("no"), OddError),
        (StopIteration(), RuntimeError),
        (SystemExit(3), RuntimeError),
        (KeyboardInterrupt(), RuntimeError),
        (TimeoutError(), TimeoutError),
        (asyncio.CancelledError(), RuntimeError),
        (concurrent.futures.CancelledError(), concurrent.futures.CancelledError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("stage", ["", "prepare "])
@queued()
async def test_a_failure_is_its_requests_alone(queue, reranker, raised, seen, stage):
    reranker.failing[f"{stage}bad"] = raised
    first = await in_the_scorer(queue, reranker)
    bad = scoring(queue, texts("a 40", "bad 60", *(f"{n} 50" for n in range(20))))
    await until(lambda: queue._to_score or bad.done())
    other = scoring(queue, texts("other 60"))
    await until(lambda: other.get_coro() and "other" in reranker.prepared)
    reranker.scoring.open()
    with pytest.raises(seen):
        await bad
    assert await first == expected(texts("busy 10"))
    assert await other == expected(texts("other 60"))
    assert await queue.score([texts("next 5")]) == expected(texts("next 5"))
    assert queue._is_open and is_empty(queue)


@queued()
async def test_a_scorer_that_loses_a_set_fails_the_batch(queue, reranker):
    with pytest.raises(AssertionError):
        await queue.score([texts("lost 5")])
    assert await queue.score([texts("next 5")]) == expected(texts("next 5"))


@pytest.mark.parametrize("which", [0, 1, 2])
@queued()
async def test_the_end_of_a_loop_fails_everybody_and_shows(queue, reranker, which):
    waiting = [await in_the_scorer(queue, reranker), scoring(queue, texts("a 5"))]
    assert queue._is_open
    queue._tasks[which].cancel()
    for task in waiting:
        with pytest.raises(NotReady):
            await task
    assert not queue._is_open and is_empty(queue)
    with pytest.raises(NotReady):
        await queue.score([texts("b 5")])


@queued()
async def test_a_loop_that_dies_of_a_bug_tells_everybody_of_what(queue, reranker):
    waiting = [await in_the_scorer(queue, reranker)]
    queue._change = None  # type: ignore[assignment,method-assign]
    waiting.append(scoring(queue, texts("a 5")))
    for task in waiting:
        with pytest.raises(TypeError, match="not callable"):
            await task
    assert not queue._is_open and is_empty(queue)


# Metrics


def test_an_observer_sees_every_batch_and_an_empty_queue_at_the_end():
    reranker, batches, queues = StandIn(), [], []
    seen = SimpleNamespace(
        batch=lambda *numbers: batches.append(numbers),
        queue=lambda *numbers: queues.append(numbers),
    )
    one = texts(*(f"{n} 10" for n in range(40)), "error")
    with_queue(reranker, lambda queue: queue.score([one]), observer=seen)
    assert sum(num_pairs for num_pairs, *_ in batches) == 41
    assert [batch[1] for batch in batches] == reranker.batch_tokens
    assert all(fill == num_tokens / 100 for _, num_tokens, fill, _ in batches)
    assert queues[0][0] == 41 and queues[-1] == (0, 0)


def fail(*numbers: Any) -> None:
    raise OddError


@queued(observer=SimpleNamespace(batch=fail, queue=fail))
async def test_an_observer_that_fails_stops_nothing(queue, reranker):
    assert await queue.score([texts("a 5")]) == expected(texts("a 5"))
    assert queue._is_open and is_empty(queue)


# Start and stop


def test_nothing_is_taken_before_the_start():
    async def main() -> None:
        queue = BatchQueue(StandIn())  # type: ignore[arg-type]
        assert not queue._is_open
        with pytest.raises(NotReady) as raised:
            await queue.score([texts("a 5")])
        assert raised.value.retry_after_s == 1
        await queue.stop(0)

    asyncio.run(main())


@queued()
async def test_a_stop_finishes_what_is_in_and_takes_no_more(queue, reranker):
    one = texts(*(f"{n} 20" for n in range(30)))
    waiting = [await in_the_scorer(queue, reranker), scoring(queue, one)]
    await asyncio.sleep(0)
    stopping = asyncio.create_task(queue.stop(60))
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await queue.score([texts("a 5")])
    reranker.scoring.open()
    await stopping
    assert await asyncio.gather(*waiting) == [expected(texts("busy 10")), expected(one)]
    assert not queue._is_open


@queued()
async def test_a_stop_fails_what_does_not_end_in_time(queue, reranker):
    waiting = [await in_the_scorer(queue, reranker), scoring(queue, texts("a 5"))]
    await until(lambda: queue._to_score)
    await queue.stop(0.01)
    for task in waiting:
        with pytest.raises(NotReady) as raised:
            await task
        assert raised.value.retry_after_s == 1
    assert is_empty(queue)
    assert reranker.batches == [["busy"]]


@queued()
async def test_a_stop_that_is_itself_cancelled_leaves_nobody_waiting(queue, reranker):
    waiting = await in_the_scorer(queue, reranker)
    stopping = asyncio.create_task(queue.stop(60))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(NotReady):
        await waiting


def test_the_threads_end_with_the_queue():
    queues = []
    before = set(threading.enumerate())

    async def use(queue: BatchQueue) -> None:
        queues.append(queue)  # or the threads would end with it
        await queue.score([texts("a 5"), media("b 5")])

    with_queue(StandIn(), use)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


# Everything at once


def _documents(size: st.SearchStrategy[int]) -> st.SearchStrategy[list[str]]:
    one = st.one_of(
        st.builds("d {}".format, size),
        st.builds("d {}".format, size),
        st.sampled_from(["error", "bad 5", "bad 90"]),
    )
    return st.lists(one, max_size=60)


callers = st.lists(
    st.tuples(
        _documents(st.integers(1, 120)),
        st.booleans(),
        st.sampled_from(["stays", "stays", "stays", "leaves", "late"]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(callers)
def test_whoever_comes_and_goes_everybody_ends_and_nothing_is_left(requests: list[Any]) -> None:
    reranker = StandIn()
    reranker.failing["bad"] = OddError("no")

    async def call(
        queue: BatchQueue, documents: list[str], has_media: bool, kind: str, pause: int
    ) -> None:
        for _ in range(pause):
            await asyncio.sleep(0.0005)
        one = (media if has_media and "error" not in documents else texts)(*documents)
        task = scoring(queue, one, timeout_s=0.002 if kind == "late" else None)
        if kind == "leaves":
            await asyncio.sleep(0.001)
            task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            assert kind == "leaves"
        elif task.exception() is None:
            assert task.result() == expected(one)
        else:
            assert isinstance(task.exception(), DeadlineExceeded | OddError | TooManyRequests)
            assert kind == "late" or isinstance(task.exception(), OddError | TooManyRequests)

    async def use(queue: BatchQueue) -> None:
        await asyncio.gather(*(call(queue, *request) for request in requests))
        assert is_empty(queue) and queue._is_open

    with_queue(reranker, use)
    sizes = zip(reranker.batches, reranker.batch_tokens, strict=True)
    assert all(tokens <= 100 or len(names) == 1 for names, tokens in sizes)
