"""The frames that are scored are those that a sequential decode shows, in every container."""

import contextlib
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.actors.config import OFFICIAL_OPTIONS, QueryOptions
from shardrank.actors.errors import MediaError
from shardrank.actors.media.video import VideoRequest, frame_indices, load_video
from shardrank.actors.media.video_frames import PyAvVideo
from tests.support.clips import ENCODINGS, RATE, Clip, encoded, sequential, tick_s

LIMIT = 10**8


def check(data: bytes, fps: float, max_frames: int) -> None:
    """An error alone where a sequential decode fails too, or shows fewer than two frames."""
    options = QueryOptions(fps=fps, max_frames=max_frames).over(OFFICIAL_OPTIONS)
    try:
        sampled = load_video(VideoRequest(data, "a clip", options, LIMIT))
    except MediaError:
        with contextlib.suppress(av.error.FFmpegError):
            assert len(sequential(data)) < 2
        return
    shown = sequential(data)
    rate = (len(shown) - 1) / sampled.times_s[-1]
    indices = frame_indices(len(shown), rate, fps, max_frames)
    assert sampled.times_s == pytest.approx([index / rate for index in indices])
    for index, frame in zip(indices, sampled.frames, strict=True):
        assert np.array_equal(frame, shown[index][2]), index
    check_rate(data, shown, rate)


def check_rate(data: bytes, shown: list[Any], rate: float) -> None:
    """It is the frames' number over the time that they are shown for."""
    times = [pts for pts, _, _ in shown if pts is not None]
    if len(times) < len(shown) or times != sorted(times):
        return  # not all dated, as AVI's, or going back where files are joined: as declared then
    last, duration = max((pts, duration) for pts, duration, _ in shown)
    span = last - min(times)
    seconds = (span + (duration or span / (len(shown) - 1))) * tick_s(data)
    assert len(shown) / rate == pytest.approx(float(seconds), abs=float(2.1 * tick_s(data)))


KINDS = [
    Clip(),
    Clip(container="mkv", is_open=True),
    Clip(codec="libx264", container="avi", b_frames=3),
    Clip(codec="libx264", container="wmv"),
    Clip(codec="libx264", is_variable=True),
    Clip(x264="interlaced=1"),
    Clip(x264="intra-refresh=1"),
    Clip(codec="libx265", is_open=True),
    Clip(codec="libx265", container="mkv"),
    Clip(codec="mpeg4", container="avi"),
    Clip(codec="mpeg2video", container="mkv"),
    Clip(codec="libvpx", container="webm"),
    Clip(codec="libvpx-vp9", container="webm"),
    Clip(codec="libsvtav1"),
    Clip(codec="wmv2", container="wmv", b_frames=0),
    Clip(parts=((17, 15),)),
    Clip(container="mov", is_open=True, parts=((20, 18),)),
    Clip(container="mkv", is_open=True, parts=((13, 20), (14, 20))),
    Clip(codec="libx265", is_open=True, parts=((15, 20),)),
    Clip(codec="libx265", container="mkv", is_open=True, parts=((13, 14), (26, 12))),
]


@pytest.mark.parametrize("clip", KINDS, ids=str)
def test_scored_frames_are_those_of_a_sequential_decode(clip: Clip) -> None:
    for fps, max_frames in ((1.0, 64), (9.0, 64), (25.0, 6)):
        check(encoded(clip), fps, max_frames)


X264 = ("", "intra-refresh=1", "interlaced=1", "b-pyramid=none", "slices=3", "ref=5:b-adapt=2")


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    codec, container = draw(st.sampled_from(ENCODINGS))
    num_frames = draw(st.integers(2, 70))
    part = st.tuples(st.integers(0, num_frames - 2), st.integers(2, num_frames))
    num_parts = 0 if codec == "libsvtav1" else 2  # PyAV copies no AV1
    takes_b_frames = codec not in ("wmv2", "flv", "mjpeg", "prores_ks")
    return Clip(
        codec=codec,
        container=container,
        num_frames=num_frames,
        gop=draw(st.integers(1, 30)),
        is_open=draw(st.booleans()),
        b_frames=draw(st.integers(0, 3)) if takes_b_frames else 0,
        is_variable=container not in ("avi", "wmv")
        and codec not in ("mpeg4", "mpeg2video", "mjpeg", "flv", "prores_ks")
        and draw(st.booleans()),
        x264=draw(st.sampled_from(X264)) if codec == "libx264" else "",
        parts=tuple(draw(st.lists(part, max_size=num_parts))),
    )


def check_any(clip: Clip, fps: float, max_frames: int) -> None:
    try:
        data = encoded(clip)
    except (av.error.FFmpegError, ValueError):
        return  # not a clip that this encoder or container can make
    check(data, fps, max_frames)


SAMPLING = st.sampled_from([0.5, 1.0, 3.0, 7.7, 25.0]), st.integers(2, 64)


@settings(max_examples=40)
@given(clips(), *SAMPLING)
def test_any_clip_gives_the_frames_of_a_sequential_decode(
    clip: Clip, fps: float, max_frames: int
) -> None:
    check_any(clip, fps, max_frames)


@pytest.mark.faults
@settings(max_examples=1_000)
@given(clips(), *SAMPLING)
def test_a_thousand_clips_give_the_frames_of_a_sequential_decode(
    clip: Clip, fps: float, max_frames: int
) -> None:
    check_any(clip, fps, max_frames)


def decoded_frames(data: bytes, indices: list[int]) -> int:
    """How many frames were decoded for those."""
    calls = []
    video = PyAvVideo(data, lambda: calls.append(None))
    before = len(calls)
    assert sum(len(chunk) for chunk in video.frames(indices, LIMIT)) == len(indices)
    return len(calls) - 2 * before if indices[-1] == video.num_frames - 1 else len(calls) - before


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_closed_groups_of_pictures_are_decoded_as_far_as_they_are_needed(codec: str) -> None:
    data = encoded(Clip(codec=codec, num_frames=70, gop=10, b_frames=0))
    assert decoded_frames(data, [0, 35, 69]) <= 17
    assert RATE == 25


def test_frames_that_nothing_refers_to_are_not_decoded() -> None:
    whole = encoded(Clip(num_frames=70, gop=70, b_frames=3))
    assert decoded_frames(whole, [0, 69]) < 50
