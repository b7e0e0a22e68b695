"""The way of a text batch and of a request: which of the project's files they enter.

A file counts where a function of it is called; what only happens while a module is imported does
not. `python -m tests.support.way` prints both ways with each file's lines.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(str(ROOT / name) + os.sep for name in ("shardrank", "actors", "jobs", "serve"))
TINY = ROOT / "tests" / "golden" / "tiny"
_FOLDER = "WAY_FOLDER"
_IS_FUNCTION = 1  # inspect.CO_OPTIMIZED: neither a module nor a class's body


class Recorder:
    """Tells `entered` each file once, when the first of its functions is called in any thread."""

    def __init__(self, entered: Callable[[str], Any]) -> None:
        self._entered = entered
        self._known: set[str] = set()

    def start(self) -> None:
        threading.setprofile_all_threads(self) if sys.version_info >= (3, 12) else (
            threading.setprofile(self)
        )
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_filename in self._known:
            return
        path = os.path.realpath(code.co_filename)
        if not path.startswith(PACKAGES):
            self._known.add(code.co_filename)
        elif code.co_flags & _IS_FUNCTION and not _is_imported(frame):
            self._known.add(code.co_filename)
            self._entered(os.path.relpath(path, ROOT))


def _is_imported(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def record_process() -> None:
    """Begins in every Python process that has the environment of `batch_way`."""
    folder = Path(os.environ[_FOLDER])
    with suppress_errors():
        Recorder(lambda name: (folder / name.replace(os.sep, "|")).touch()).start()


@contextmanager
def suppress_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print(f"not recorded: {error!r}", file=sys.stderr)


def batch_way(directory: Path) -> list[str]:
    """The files between the command and the Parquet rows of one text batch: the driver, what
    prepares and what scores, on a Ray of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, hook = directory / "found", directory / "hook"
    found.mkdir()
    hook.mkdir()
    start = "from tests.support.way import record_process\nrecord_process()\n"
    (hook / "sitecustomize.py").write_text(start)
    row = {"query_id": "q", "query": "a planet", "candidates": _candidates("Mars", "Bananas")}
    pq.write_table(pa.Table.from_pylist([row]), directory / "sets.parquet")
    command = ["rerank", str(directory / "sets.parquet"), f"--output={directory / 'out'}"]
    path = os.pathsep.join([str(hook), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, _FOLDER: str(found)}
    command = [sys.executable, "-m", "shardrank.cli", *command, f"--model={TINY}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert pq.read_table(directory / "out" / "scores").num_rows == 2
    return sorted(file.name.replace("|", os.sep) for file in found.iterdir())


def _candidates(*texts: str) -> list[dict[str, str]]:
    return [{"doc_id": text, "doc": text} for text in texts]


def request_way() -> list[str]:
    """The files between the route and the answer of one request of two texts, at a server that is
    ready."""
    import httpx

    from tests.support.serve_app import running

    found: set[str] = set()
    body = {"query": "a planet", "documents": ["Mars", "Bananas"]}
    is_asked = False

    def entered(name: str) -> None:
        if is_asked:
            found.add(name)

    class WhileAsked(Recorder):
        """Files that were entered before the request count once more."""

        def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
            if is_asked:
                super().__call__(frame, event, argument)

    WhileAsked(entered).start()
    try:
        with running() as url:
            is_asked = True
            answer = httpx.post(f"{url}/v2/rerank", json=body, timeout=60)
            is_asked = False
            assert answer.status_code == 200, answer.text
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return sorted(found)


def num_lines(names: list[str]) -> int:
    return sum(len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in names)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        ways = {"a batch": batch_way(Path(directory)), "a request": request_way()}
    for what, names in ways.items():
        for name in names:
            print(f"{num_lines([name]):6,} {name}")
        print(f"{num_lines(names):6,} lines in {len(names)} files: the way of {what}\n")


if __name__ == "__main__":
    main()
