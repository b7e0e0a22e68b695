import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from shardrank.actors.config import OFFICIAL_OPTIONS, RerankerConfig
from shardrank.actors.data import CandidateSet, Video
from shardrank.actors.errors import (
    MediaForbidden,
    MediaNotFound,
    VideoDecodeError,
    VideoTooLong,
    VideoTooShort,
)
from shardrank.actors.fetch.reader import MediaReader
from shardrank.actors.media import sandbox, video_child, video_process
from shardrank.actors.media.pixels import video_file_pixels
from shardrank.actors.media.video import VideoRequest, load_video
from shardrank.actors.media.video_process import VideoProcesses
from shardrank.actors.preprocessor import Preprocessor

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
CLIP = GOLDEN / "media" / "v2s_24.mp4"
LIMIT = 10**8


def frames_of(videos: VideoProcesses, source, reader=None, options=OFFICIAL_OPTIONS, seconds=None):
    return videos.frames(Video(source), reader or MediaReader(), options, LIMIT, seconds)


def damaged(seed: int) -> bytes:
    """The clip with eight bytes changed; seed 19 crashes decord 0.6 on x86-64."""
    generator = random.Random(seed)
    data = bytearray(CLIP.read_bytes())
    for _ in range(8):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


def child_id(videos: VideoProcesses) -> int:
    return videos._idle.queue[-1]._child.process.pid


@pytest.mark.parametrize("as_bytes", [True, False])
def test_the_child_gives_what_decoding_here_gives(as_bytes):
    sampled = load_video(VideoRequest(CLIP, "clip", OFFICIAL_OPTIONS, LIMIT))
    source = CLIP.read_bytes() if as_bytes else str(CLIP)
    pixels, times_s = frames_of(VideoProcesses(1), source)
    assert (pixels == video_file_pixels(sampled.frames, OFFICIAL_OPTIONS)).all()
    assert times_s == sampled.times_s


def test_a_video_over_the_seconds_allowed_is_not_sampled():
    videos = VideoProcesses(1)
    with pytest.raises(VideoTooLong, match="over the limit of 0 s"):
        frames_of(videos, str(CLIP), seconds=0.5)
    assert len(frames_of(videos, str(CLIP), seconds=60.0)[1]) >= 2


def test_one_child_serves_many_files():
    videos = VideoProcesses(1)
    frames_of(videos, str(CLIP))
    first = child_id(videos)
    with pytest.raises(VideoDecodeError, match="a video of 7 bytes"):
        frames_of(videos, b"garbage")
    frames_of(videos, str(CLIP))
    assert child_id(videos) == first
    assert os.getpgid(first) != os.getpgid(0)  # Ctrl-C on the terminal does not reach it


def test_a_file_that_kills_decord_is_an_error_and_the_next_one_is_read():
    pytest.importorskip("decord")
    videos = VideoProcesses(1, "decord")
    with pytest.raises(VideoDecodeError, match="a video of 17332 bytes"):
        frames_of(videos, damaged(19))
    assert len(frames_of(videos, str(CLIP))[1]) >= 2


def test_a_child_killed_by_somebody_else_costs_no_row():
    videos = VideoProcesses(1)
    frames_of(videos, str(CLIP))
    first = child_id(videos)
    os.kill(first, 9)
    assert len(frames_of(videos, str(CLIP))[1]) >= 2
    assert child_id(videos) != first


def test_an_interrupted_file_leaves_no_answer_for_the_next(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    videos = VideoProcesses(1)
    other = str(GOLDEN / "media" / "v6s_25.mp4")
    expected, _ = frames_of(videos, other)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(video_process.Connection, "poll", interrupted)
        frames_of(videos, str(CLIP))
    assert np.array_equal(frames_of(videos, other)[0], expected)


def test_a_missing_file_is_named():
    with pytest.raises(MediaNotFound, match=r"^gone\.mp4: no such file$"):
        frames_of(VideoProcesses(1), "gone.mp4")


def test_a_decoder_that_does_not_return_is_stopped():
    videos = VideoProcesses(1, timeout_s=0.001)
    with pytest.raises(VideoDecodeError, match="not decoded within"):
        frames_of(videos, str(CLIP))


FAULTY = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from shardrank.actors.media.sandbox import enter; enter()
from shardrank.actors.media import video_child
real = video_child.load_video
def load_video(request, resize, progress):
    if request.source == b"dies":
        os.abort()
    if request.source == b"hangs":
        time.sleep(600)
    if request.source == b"takes its time":
        for _ in range(3):
            progress()
            time.sleep(video_child.ALIVE_EVERY_S)
        request = replace(request, source=Path({clip!r}))
    return real(request, resize, progress)
video_child.load_video = load_video
video_child.serve(*map(int, sys.argv[1:]))
"""


@pytest.fixture
def faulty(monkeypatch):
    """Decoders that die, hang or take their time, as the file says."""
    monkeypatch.setattr(video_process, "_STARTUP", FAULTY.format(clip=str(CLIP)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"dies", "the decoder's process died of it, twice"),
        (b"hangs", "the decoder hung, with no packet and no frame for 1 s"),
    ],
)
def test_a_file_that_costs_a_decoder_costs_it_once(faulty, source, said):
    videos = VideoProcesses(2, silence_s=1)
    with pytest.raises(VideoDecodeError, match=f": {said}$"):
        frames_of(videos, source)
    for _ in range(3):
        with pytest.raises(VideoDecodeError, match=f": {said} \\(not tried again\\)$"):
            frames_of(videos, source)
    assert all(each._child is None for each in videos._idle.queue)  # none was started for those


def test_a_decoder_that_goes_on_is_not_taken_for_one_that_hangs(faulty):
    videos = VideoProcesses(1, silence_s=2 * video_child.ALIVE_EVERY_S)
    assert len(frames_of(videos, b"takes its time")[1]) >= 2


def test_who_asks_for_a_file_that_hangs_meanwhile_takes_no_second_decoder(faulty):
    videos = VideoProcesses(2, silence_s=4)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(frames_of, videos, b"hangs") for _ in range(3)]
        assert len(frames_of(videos, str(CLIP))[1]) >= 2
        assert not any(each.done() for each in waiting)
        said = [str(each.exception()) for each in waiting]
    assert sum("not tried again" in each for each in said) == 2


def test_a_file_that_changed_is_tried_again(faulty, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP.read_bytes())
    videos = VideoProcesses(1)
    videos.lost.lose_video(video_process._key(path), "it hung")
    with pytest.raises(VideoDecodeError, match=r"it hung \(not tried again\)$"):
        frames_of(videos, str(path))
    os.utime(path, ns=(1, 1))
    assert len(frames_of(videos, str(path))[1]) >= 2


def test_a_child_that_does_not_start_is_not_the_files_fault(monkeypatch):
    monkeypatch.setattr(video_process, "_STARTUP", "raise SystemExit(1)")
    videos = VideoProcesses(1)
    for _ in range(2):
        with pytest.raises(VideoDecodeError, match="^the process that decodes media does not"):
            frames_of(videos, str(CLIP))


def test_a_child_that_does_not_start_says_why(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudnn.so.9: cannot open')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(VideoDecodeError, match=r"not start: ImportError: libcudnn\.so\.9: cannot"):
        frames_of(VideoProcesses(1), str(CLIP))


@pytest.mark.skipif(not shutil.which("gcc"), reason="makes a library")
def test_the_child_has_the_libraries_that_its_parent_was_given(monkeypatch, tmp_path):
    """Without them torch, or what replaces malloc for it, is another one, or none."""
    (tmp_path / "given.c").write_text("int given;")
    library = str(tmp_path / "given.so")
    subprocess.run(["gcc", "-shared", "-o", library, str(tmp_path / "given.c")], check=True)
    monkeypatch.setenv("LD_PRELOAD", library)
    videos = VideoProcesses(1)
    frames_of(videos, str(CLIP))
    assert library in _text(child_id(videos), "maps")


def test_the_media_root_holds_before_the_child_is_asked():
    reader = MediaReader(str(GOLDEN / "tiny"))
    videos = VideoProcesses(1)
    with pytest.raises(MediaForbidden):
        frames_of(videos, "../media/v2s_24.mp4", reader)
    assert videos._idle.queue[-1]._child is None


@pytest.mark.parametrize("trap", ["link", "fifo", "another file"])
def test_what_was_put_in_a_files_place_after_the_check_is_not_decoded(trap, tmp_path):
    """Also while the child waits for it: it has the file, not the path."""
    root, place = tmp_path / "root", tmp_path / "root" / "clip.mp4"
    root.mkdir()
    shutil.copy(GOLDEN / "media" / "v9s_10.mp4", place)

    def overtake() -> None:
        place.unlink()
        os.mkfifo(place) if trap == "fifo" else place.symlink_to(CLIP)

    class Overtaken(MediaReader):
        def local_path(self, path: str) -> Path | None:
            found = super().local_path(path)
            if trap != "another file":
                overtake()
            return found

        def open_local(self, path: str) -> BinaryIO | None:
            found = super().open_local(path)
            overtake()
            return found

    videos = VideoProcesses(1, silence_s=5)
    if trap == "another file":
        assert len(frames_of(videos, "clip.mp4", Overtaken(str(root)))[1]) > 4
        return
    with pytest.raises(MediaNotFound, match="no such file any more"):
        frames_of(videos, "clip.mp4", Overtaken(str(root)))


def test_a_damaged_file_is_named_as_it_was_given():
    with pytest.raises(VideoDecodeError) as raised:
        frames_of(VideoProcesses(1), str(GOLDEN / "media" / "a.gif"))
    assert "a.gif" in str(raised.value) and "/dev/fd" not in str(raised.value)


def test_errors_of_the_child_keep_their_kind():
    short = OFFICIAL_OPTIONS.__class__(max_frames=1).over(OFFICIAL_OPTIONS)
    with pytest.raises(VideoTooShort, match=r"v2s_24\.mp4"):
        frames_of(VideoProcesses(1), str(CLIP), options=short)


def test_the_child_ends_with_its_owner():
    videos = VideoProcesses(1)
    frames_of(videos, str(CLIP))
    process = videos._idle.queue[-1]._child.process
    del videos
    gc.collect()
    assert process.wait(timeout=10) != 0


HANG = """
import ctypes, os, sys, time
from pathlib import Path
from shardrank.actors.media import video_child
def load_video(*_):
    Path({place!r}).write_text(str(os.getpid()))
    {hang}
video_child.load_video = load_video
video_child._GRACE_S = {alarm_s} - 600
video_child.serve(*map(int, sys.argv[1:]))
"""
PARENT = """
import sys
from shardrank.actors.media import sandbox, video_process
from shardrank.actors.config import OFFICIAL_OPTIONS
from shardrank.actors.data import Video
from shardrank.actors.fetch.reader import MediaReader
video_process._STARTUP = sys.argv[1]
videos = video_process.VideoProcesses(1, "pyav", 600, 600)
videos.frames(Video(b"hangs"), MediaReader(), OFFICIAL_OPTIONS, 1)
"""


def is_gone(process: int) -> bool:
    """Or nobody asks how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until(holds: Callable[[], object], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("hang", "alarm_s"),
    [("time.sleep(600)", 600), ("ctypes.PyDLL(None).sleep(600)", 10)],
    ids=["without the GIL", "with the GIL"],
)
def test_a_child_that_hangs_ends_after_its_parent_was_killed(
    tmp_path: Path, hang: str, alarm_s: int
) -> None:
    place = tmp_path / "child"
    startup = HANG.format(place=str(place), hang=hang, alarm_s=alarm_s)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, startup], cwd=ROOT)
    try:
        wait_until(lambda: place.exists() and place.read_text())
        child = int(place.read_text())
    finally:
        parent.kill()
    assert parent.wait() == -signal.SIGKILL
    try:
        wait_until(lambda: is_gone(child))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_a_deadly_video_leaves_the_other_documents_alone(faulty):
    preprocessor = Preprocessor(RerankerConfig(model=str(GOLDEN / "tiny")))
    documents = [{"video": {"bytes": b"dies"}}, {"video": str(CLIP)}, "text"]
    prepared = preprocessor.prepare(CandidateSet.parse("query", documents))
    assert [isinstance(pair, VideoDecodeError) for pair in prepared.pairs] == [True, False, False]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_beyond_the_childs_limit_is_not_given():
    code = (
        "from shardrank.actors.media.sandbox import data_bytes, limit_work\n"
        "limit_work(data_bytes() + (64 << 20), 60)\n"
        "small = bytearray(32 << 20)\n"
        "try: bytearray(64 << 20)\n"
        "except MemoryError: print('refused')"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == "refused\n", said.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_video_that_needs_more_memory_than_there_is_for_one_is_an_error(monkeypatch):
    code = (
        "import sys; from shardrank.actors.media import video_child as v; "
        "v._MIN_BYTES = v._BYTES_PER_PIXEL = 0; v.serve(*map(int, sys.argv[1:]))"
    )
    monkeypatch.setattr(video_process, "_STARTUP", code)
    with pytest.raises(VideoDecodeError, match="MemoryError|memory|died"):
        frames_of(VideoProcesses(1), str(CLIP))


def _text(child: int, name: str) -> str:
    return Path(f"/proc/{child}/{name}").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_child_has_no_secrets_and_few_rights(monkeypatch):
    monkeypatch.setenv("SHARDRANK_API_KEYS", "a key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    monkeypatch.setenv("HF_TOKEN", "a token")
    videos = VideoProcesses(1)
    frames_of(videos, str(CLIP))
    child = child_id(videos)
    names = {each.partition("=")[0] for each in _text(child, "environ").split("\0")}
    assert names <= {*sandbox._KEPT_VARIABLES, "OMP_NUM_THREADS", ""}
    assert "NoNewPrivs:\t1" in _text(child, "status")
    limits = {
        line[:26].strip(): line[26:].split()[0] for line in _text(child, "limits").split("\n")[1:-1]
    }
    assert limits["Max file size"] == "0" and limits["Max core file size"] == "0"
    assert int(limits["Max cpu time"]) < 2_000
    assert int(limits["Max data size"]) < 16 << 30


ATTACKS = """
import json, os, signal, socket, subprocess, sys
from shardrank.actors.media.sandbox import enter
given_up = enter()
from shardrank.actors.errors import VideoDecodeError
from shardrank.actors.media import video_child
attacks = {
    "socket": lambda: socket.create_connection(("127.0.0.1", 1)),
    "program": lambda: subprocess.run(["true"]),
    "signal": lambda: os.kill(os.getppid(), 0),
    "write": lambda: open({place!r}, "w").write("taken over"),
    "parent": lambda: open(f"/proc/{{os.getppid()}}/environ").read(),
}
def load_video(*_):
    outcomes = {}
    for name, attack in attacks.items():
        try:
            attack()
            outcomes[name] = "worked"
        except Exception as error:
            outcomes[name] = type(error).__name__
    raise VideoDecodeError(json.dumps([given_up, outcomes]))
video_child.load_video = load_video
video_child.serve(*map(int, sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
def test_a_decoder_that_was_taken_over_reaches_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")
    place = tmp_path / "written"
    monkeypatch.setattr(
        video_process,
        "_STARTUP",
        ATTACKS.replace("{place!r}", repr(str(place))).replace("{{", "{").replace("}}", "}"),
    )
    with pytest.raises(VideoDecodeError) as raised:
        frames_of(VideoProcesses(1), b"taken over")
    given_up, outcomes = json.loads(str(raised.value))
    expected = {"write": "PermissionError" if "landlock" in given_up else "OSError"}
    if "seccomp" in given_up:
        expected |= dict.fromkeys(("socket", "program", "signal"), "PermissionError")
    if "landlock" in given_up:
        expected["parent"] = "PermissionError"
    assert expected.items() <= outcomes.items()
    assert not place.exists() or place.read_text() == ""
    assert {"limits", "privileges"} <= set(given_up)
