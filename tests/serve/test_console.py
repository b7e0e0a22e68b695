"""The access log's lines, and the console on which the command shows them."""

import json
import os

import pytest

from shardrank.serve import console
from shardrank.serve.cli import Console
from shardrank.serve.console import begin, log_access, usage


def logged(kind, capsys, path="/v2/rerank") -> str:
    begin().num_documents = 3
    usage().num_tokens = 250
    log_access(kind, "POST", path, 200, 0.0126, "mine", usage())
    return capsys.readouterr().out


def test_a_line_says_what_was_asked_what_came_and_what_it_took(capsys):
    time, _, rest = logged("lines", capsys).partition(" ")
    assert rest == "POST /v2/rerank 200 13 ms request_id=mine documents=3 tokens=250\n"
    entry = json.loads(logged("json", capsys))
    assert len(entry.pop("time")) == len(time) == 20
    assert entry == {
        "method": "POST",
        "path": "/v2/rerank",
        "status": 200,
        "ms": 13,
        "request_id": "mine",
        "documents": 3,
        "tokens": 250,
    }
    assert logged("none", capsys) == ""


@pytest.mark.parametrize("path", ["/a\nGET /b 200", "/\x1b[31m", "/é\ud800 \u2028" + "a" * 10_000])
def test_a_path_cannot_write_a_line_of_its_own(path, capsys):
    line = logged("lines", capsys, path)
    assert line.endswith("\n") and line[:-1].isprintable() and line.isascii()
    assert line.count(" ") == 8 and len(line) < 2_500


def test_the_command_shows_what_its_processes_say(tmp_path, capsys, monkeypatch):
    path = str(tmp_path / "console")
    monkeypatch.setenv(console.PIPE_VARIABLE, path)
    shown = Console(path)
    for number in range(1_000):
        console.log(f"line {number}")
    console.say("loading é ...")
    console.say("x" * 100_000)
    shown.close()
    found = capsys.readouterr()
    assert found.out.splitlines() == [f"line {number}" for number in range(1_000)]
    first, second = found.err.splitlines()
    assert first == "loading é ..." and set(second) == {"x"} and 4_000 < len(second) < 4_096


class Closed:
    def write(self, text: str) -> None:
        raise BrokenPipeError

    flush = write


def test_no_process_waits_for_a_command_that_shows_nothing(tmp_path, monkeypatch):
    path = str(tmp_path / "console")
    monkeypatch.setenv(console.PIPE_VARIABLE, path)
    monkeypatch.setattr("sys.stdout", Closed())
    shown = Console(path)
    console.log("x")
    shown.close()
    console.log("nobody reads")
    path = str(tmp_path / "slow")
    os.mkfifo(path)
    reads = os.open(path, os.O_RDWR)
    monkeypatch.setenv(console.PIPE_VARIABLE, path)
    for _ in range(1_000):
        console.log("x" * 4_000)
    os.close(reads)


def test_without_a_command_lines_go_to_the_processs_own_output(capsys, monkeypatch):
    monkeypatch.delenv(console.PIPE_VARIABLE, raising=False)
    console.log("one")
    console.say("two")
    assert capsys.readouterr() == ("one\n", "two\n")
