"""The benchmark's command: processes, rounds, tables, exit codes. Never a word about time."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.contenders import Contender, Peers, schedule
from bench.peers.protocol import PeerSettings
from bench.processes import PeerFailed, Process
from bench.results import aligned
from bench.settings import BenchSettings
from bench.workloads import Workload
from shardrank.cli import main as shardrank

SETS = [{"query": {"text": "q"}, "documents": [{"text": "a"}, {"text": "bb"}]}]
WORKLOAD = Workload("text", SETS, [[0, 1]])
STAND_IN = "tests.support.bench_peer:StandInPeer"


def stand_in(behaviour: str, path: Path) -> Process:
    return Process(STAND_IN, PeerSettings(behaviour), path / "peer.log")


def interpreter(path: Path, behaviour: str) -> str:
    """A python that runs the stand-in whatever peer it is asked for."""
    script = path / behaviour
    settings = json.dumps({"model": behaviour})
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -m bench.peers {STAND_IN} '{settings}'\n")
    script.chmod(0o755)
    return str(script)


def bench(path: Path, *arguments: str) -> int:
    shared = ["--preset", "tiny", "--scale", "0.05", "--rounds", "2", "--device", "cpu"]
    return main([*shared, "--workdir", str(path), *arguments])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Shared, so that one checkpoint is built."""
    return tmp_path_factory.mktemp("bench")


def test_a_peer_answers_whatever_else_is_printed(tmp_path):
    with stand_in("right", tmp_path) as peer:
        assert peer.introduction["label"] == "stand-in"
        for _ in range(2):
            answer = peer.ask("score", SETS)
            assert answer["result"] == [[1e-6, 2e-6]]
            assert answer["seconds"] > 0 and answer["peak_rss_bytes"] > 1 << 20
    assert "a library's own words" in (tmp_path / "peer.log").read_text()
    assert not peer.is_alive


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("raise", "^RuntimeError: the reason$"),
        ("crash", "ended with code 7"),
        ("sleep", "no answer within 1 s"),
    ],
)
def test_a_peer_that_fails_says_how_and_only_a_living_one_is_asked_again(
    behaviour, sentence, tmp_path
):
    with stand_in(behaviour, tmp_path) as peer:
        for _ in range(2 if behaviour == "raise" else 1):
            with pytest.raises(PeerFailed, match=sentence):
                peer.ask("score", SETS, timeout_s=1 if behaviour == "sleep" else 60)
        assert peer.is_alive == (behaviour == "raise")


def test_the_whole_benchmark_agrees_with_plain_transformers(workdir, capfd):
    crash, absent = (interpreter(workdir, name) for name in ("crash", "unavailable"))
    code = bench(
        workdir,
        *(
            "--workloads",
            "text,pages",
            "--peers",
            "transformers_one,transformers_padded,official,vllm",
        ),
        *("--peer-python", f"official={crash}", "--peer-python", f"vllm={absent}"),
        *("--json", str(workdir / "report.json"), "--profile", "text"),
    )
    output = capfd.readouterr().out
    report = json.loads(output.splitlines()[-1])
    assert code == 0 and report["faults"] == []
    assert json.loads((workdir / "report.json").read_text()) == report
    assert set(report["workloads"]) == {"text", "pages"}
    for figures in report["workloads"].values():
        ours, ours_one, one, padded, crashed, missing = figures["implementations"]
        assert ours["max_score_difference"] < 1e-5 and ours_one["max_score_difference"] < 1e-5
        assert padded["failure"] == "text only" or padded["work"] in ("padded:8", "padded:32")
        assert figures["best_peer"] in ("transformers_one", "transformers_padded")
        assert one["share_of_bound"] == pytest.approx(one["ratio"] / one["bound"])
        assert "ended with code 7" in crashed["failure"] and crashed["seconds"] is None
        assert missing["failure"] == "stand-in is not installed here"
    assert "not measured: stand-in is not installed here" in output
    assert report["profile"]["share_of_matmul_rate"] > 0 and "linear layers: " in output


def test_a_wrong_score_of_ours_makes_the_exit_code_1(workdir, capfd):
    wrong, right = (interpreter(workdir, name) for name in ("wrong", "right"))
    pythons = {"ours": wrong, "ours_one": right, "transformers_one": right}
    options = [x for name, path in pythons.items() for x in ("--peer-python", f"{name}={path}")]
    code = bench(workdir, "--workloads", "text", "--peers", "transformers_one", *options)
    output = capfd.readouterr().out
    assert code == 1
    (fault,) = json.loads(output.splitlines()[-1])["faults"]
    assert "off plain transformers" in fault and f"WRONG: {fault}" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "70b"], "invalid choice: '70b'"),
        (["--workloads", "text,nope"], "--workloads: unknown 'nope'"),
        (["--peers", "nope"], "--peers: unknown 'nope'"),
        (["--rounds", "0"], "--rounds: must be above zero"),
        (["--model", "/no/such/place"], "--model: must be a local checkpoint"),
        (["--peer-python", "vllm"], "must be NAME=VALUE, got 'vllm'"),
        (["--peer-python", "nope=python"], "--peer-python: unknown 'nope'"),
    ],
)
@pytest.mark.parametrize("command", [main, lambda given: shardrank(["bench", *given])])
def test_a_wrong_command_is_one_sentence(command, arguments, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        command(["--device", "cpu", *arguments])
    assert sentence in capsys.readouterr().err


class OnePeer(Peers):
    """One peer, whatever is asked for."""

    def __init__(self, peer: Any) -> None:
        self._peer = peer

    def get(self, name: str) -> Any:
        return self._peer


class SlowPeer:
    """Like Process, of one pair a second, whatever the batch."""

    introduction = {"label": "slow", "work": "padded", "versions": {}, "batch_sizes": [1, 32]}

    def __init__(self) -> None:
        self.asked: list[int] = []

    def ask(self, call: str, sets: list, batch_size: int | None, timeout_s: float | None) -> dict:
        scores = [[0.5] * len(one["documents"]) for one in sets]
        self.asked.append(sum(map(len, scores)))
        return {"seconds": float(self.asked[-1]), "result": scores}


@pytest.mark.parametrize(("budget_s", "asked"), [(40, [4, 16, 16, 16]), (None, [4, 64, 64])])
def test_trials_of_batch_sizes_keep_to_the_budget(budget_s, asked):
    sets = [{"query": {"text": "q"}, "documents": [{"text": "d"}] * 100}]
    own = Contender("slow", Workload("text", sets, [list(range(100))]), budget_s)
    peer = SlowPeer()
    own.prepare(OnePeer(peer), rounds=2)
    assert peer.asked == asked
    assert own.timed.num_pairs == (20 if budget_s else 100)


def test_scores_that_are_missing_are_a_failure(tmp_path):
    with stand_in("forget", tmp_path) as peer:
        own = Contender("forgetful", WORKLOAD)
        own.prepare(OnePeer(peer), rounds=1)
    assert own.failure is not None and "another number of scores" in own.failure


def test_rounds_take_turns_and_begin_with_another_peer_each_time():
    contenders = [Contender(name, WORKLOAD) for name in "abc"]
    order = "".join(each.name for _, each in schedule(contenders, 3, alone=False))
    assert order == "abcbcacab"


def test_time_over_ends_the_rounds_but_never_the_first():
    own = Contender("slow", WORKLOAD, budget_s=10)
    assert not own.is_done
    own.runs.append({"seconds": 6.0})
    assert own.is_done


def test_what_reads_files_is_not_started_on_weights_that_are_none(tmp_path):
    peers = Peers(BenchSettings(tmp_path, preset="2b"), tmp_path)
    with pytest.raises(PeerFailed, match="reads weights from files: give --model, not 2b"):
        peers.get("sentence_transformers")


def test_a_table_is_aligned():
    assert aligned([["", "x", ""], ["long", "1", "note"]]) == "      x\nlong  1  note"
