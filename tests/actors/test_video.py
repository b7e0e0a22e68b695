import io
import math
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from shardrank.actors.config import OFFICIAL_OPTIONS, QueryOptions, VideoReader
from shardrank.actors.errors import ImageTooLarge, VideoDecodeError, VideoTooShort
from shardrank.actors.media.decord_frames import DecordVideo
from shardrank.actors.media.video import SampledVideo, VideoRequest, frame_indices, load_video
from shardrank.actors.media.video_frames import PyAvVideo
from tests.support.clips import Clip, encoded

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / "tests" / "golden" / "media"
FILES = sorted(MEDIA.glob("*.mp4"))
LIMIT = 178_956_970


def read(reader: Any, indices: list[int], max_pixels: int = LIMIT) -> np.ndarray:
    return np.concatenate(list(reader.frames(indices, max_pixels)))


def load(
    source: bytes | str,
    fps: float = 1.0,
    max_frames: int = 64,
    own_fps: float | None = None,
    decoder: VideoReader = "pyav",
) -> SampledVideo:
    name = source if isinstance(source, str) else f"a video of {len(source)} bytes"
    options = QueryOptions(fps=fps, max_frames=max_frames).over(OFFICIAL_OPTIONS)
    file = Path(source) if isinstance(source, str) else source
    return load_video(VideoRequest(file, name, options, LIMIT, own_fps, None, decoder))


@pytest.mark.parametrize(
    ("num_frames", "video_fps", "fps", "max_frames", "indices"),
    [
        (48, 24.0, 1.0, 64, [0, 16, 31, 47]),  # 2 wanted, at least 4: steps of 15.67
        (150, 25.0, 1.0, 64, [0, 30, 60, 89, 119, 149]),  # 6 of 6 s: steps of 29.8
        (90, 10.0, 1.0, 64, [0, 13, 25, 38, 51, 64, 76, 89]),  # 9 floored to 8: 12.71
        (90, 10.0, 1.0, 4, [0, 30, 59, 89]),  # 29.67
        (90, 10.0, 1.0, 5, [0, 30, 59, 89]),  # an odd limit is floored
        (100, 25.0, 2.0, 64, [0, 14, 28, 42, 57, 71, 85, 99]),  # 14.14
        (3, 10.0, 1.0, 64, [0, 2]),  # 3 floored to 2
        (2, 10.0, 1.0, 64, [0, 1]),
        (6, 1.0, 1.0, 64, [0, 1, 2, 3, 4, 5]),
        (4, 30.0, 30.0, 64, [0, 1, 2, 3]),
        (6, 30.0, 1.0, 64, [0, 2, 3, 5]),  # 1.67, 3.33
        (12, 3.0, 2.0, 3, [0, 11]),
        (1, 10.0, 1.0, 64, []),
        (90, 10.0, 1.0, 1, []),
    ],
)
def test_frames_are_sampled_as_the_official_reader_does(
    num_frames: int, video_fps: float, fps: float, max_frames: int, indices: list[int]
) -> None:
    assert frame_indices(num_frames, video_fps, fps, max_frames) == indices


def test_the_largest_sample_of_a_long_video() -> None:
    indices = frame_indices(90_000, 25.0, 1.0, 64)
    assert (len(indices), indices[0], indices[-1]) == (64, 0, 89_999)


def test_times_are_those_of_the_frames() -> None:
    sampled = load(str(MEDIA / "v2s_24.mp4"))
    assert sampled.times_s == [0, 16 / 24, 31 / 24, 47 / 24]
    assert sampled.frames.shape[0] == 4 and sampled.frames.dtype == np.uint8


def test_a_videos_own_fps_comes_first() -> None:
    path = str(MEDIA / "v6s_25.mp4")
    assert len(load(path, fps=4.0, own_fps=2.0).times_s) == 12
    assert len(load(path, fps=4.0).times_s) == 24


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_bytes_and_path_give_the_same_frames(path: Path) -> None:
    by_path, by_bytes = load(str(path)), load(path.read_bytes())
    assert np.array_equal(by_path.frames, by_bytes.frames)
    assert by_path.times_s == by_bytes.times_s


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_both_readers_see_the_same_video(path: Path) -> None:
    """Their pixels were equal when this was written; other builds of FFmpeg may round otherwise."""
    pytest.importorskip("decord")
    decord, pyav = DecordVideo(path), PyAvVideo(path)
    assert (decord.num_frames, decord.fps) == (pyav.num_frames, pytest.approx(pyav.fps))
    indices = frame_indices(decord.num_frames, decord.fps, 1.0, 64)
    difference = np.abs(read(decord, indices).astype(int) - read(pyav, indices).astype(int))
    assert difference.mean() < 0.5 and difference.max() <= 4


@pytest.mark.parametrize("angle", [0, 90, 180, 270, 45])
def test_both_readers_turn_a_video_as_it_says(tmp_path: Path, angle: int) -> None:
    pytest.importorskip("decord")
    path = made(tmp_path / "a.mp4", 4, size=320, marked=True)
    data = bytearray(path.read_bytes())
    radians = math.radians(angle)
    cosine, sine = (round(65_536 * part(radians)) for part in (math.cos, math.sin))
    matrix = struct.pack(">9i", cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    place = data.index(b"tkhd") + 44
    data[place : place + len(matrix)] = matrix
    decord, pyav = read(DecordVideo(bytes(data)), [0, 2]), read(PyAvVideo(bytes(data)), [0, 2])
    assert np.abs(decord.astype(int) - pyav.astype(int)).max() <= 4
    corner = {90: (0, -1), 180: (-1, -1), 270: (-1, 0)}.get(angle, (0, 0))
    assert pyav[0][corner].min() > 200


def test_a_mirrored_video_is_mirrored_and_not_turned() -> None:
    data = bytearray(encoded(Clip(num_frames=4)))
    upright = read(PyAvVideo(bytes(data)), [0])[0]
    wanted = {
        (-1, 0, 0, 1): upright[:, ::-1],
        (1, 0, 0, -1): upright[::-1],
        (0, 1, 1, 0): upright.transpose(1, 0, 2),
        (0, -1, -1, 0): upright[::-1, ::-1].transpose(1, 0, 2),
    }
    for (a, b, c, d), pixels in wanted.items():
        place = data.index(b"tkhd") + 44
        struct.pack_into(
            ">9i", data, place, *(65_536 * n for n in (a, b, 0, c, d, 0, 0, 0)), 1 << 30
        )
        assert np.array_equal(read(PyAvVideo(bytes(data)), [0])[0], pixels)


def test_a_frame_that_a_decoder_would_make_up_is_damaged() -> None:
    data = bytearray(encoded(Clip(container="mkv", num_frames=80)))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    with pytest.raises(VideoDecodeError, match=r"the frame at 1\.\d+ s is damaged"):
        load(bytes(data), fps=25.0)


@pytest.mark.parametrize(("codec", "container"), [("libx264", "mkv"), ("libvpx-vp9", "webm")])
def test_files_put_one_behind_the_other_keep_their_rate(codec: str, container: str) -> None:
    clips = [encoded(Clip(codec, container, num_frames=n)) for n in (40, 20)]
    sampled = load(b"".join(clips), fps=25.0)
    assert len(sampled.frames) == 60
    assert sampled.times_s == pytest.approx([n / 25 for n in range(60)])


def test_the_limit_of_frames_is_kept() -> None:
    assert len(load(str(MEDIA / "v9s_10.mp4"), max_frames=4).times_s) == 4


def test_a_file_of_three_frames_gives_two() -> None:
    assert load(str(MEDIA / "v_short3.mp4")).frames.shape == (2, 96, 96, 3)


def made(
    path: Path,
    num_frames: int,
    codec: str = "mpeg4",
    size: int = 64,
    marked: bool = False,
    pixels: str = "",
) -> Path:
    """A video file written by PyAV, its frames brighter and brighter; marked: the corner white."""
    with av.open(str(path), "w") as container:
        encode(container, num_frames, codec, size, marked, pixels)
    return path


def encode(
    container: Any,
    num_frames: int,
    codec: str,
    size: int = 64,
    marked: bool = False,
    pixel_format: str = "",
) -> None:
    stream = container.add_stream(codec, rate=25)
    stream.width = stream.height = size
    if pixel_format:
        stream.pix_fmt = pixel_format
    container.start_encoding()
    for index in range(num_frames):
        pixels = np.full((size, size, 3), 240 * index // max(12, num_frames), dtype=np.uint8)
        if marked:
            pixels[: size // 4, : size // 4] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mov", "mpeg4"),
        ("a.mkv", "mpeg4"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.flv", "flv1"),
        ("a.wmv", "wmv2"),
    ],
)
def test_the_usual_containers_are_read(tmp_path: Path, name: str, codec: str) -> None:
    path = made(tmp_path / name, 8, codec)
    for source in (str(path), path.read_bytes()):
        levels = load(source).frames[:, 32, 32, 0].tolist()
        assert len(levels) == 4 and levels == sorted(levels) and levels[-1] > 100


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mpg", "an MPEG program stream"),
        ("a.ts", "an MPEG transport stream"),
        ("a.m2v", "a video stream without a container"),
    ],
)
def test_streams_without_an_index_are_refused_by_name(tmp_path: Path, name: str, kind: str) -> None:
    path = made(tmp_path / name, 8, "mpeg2video")
    with pytest.raises(VideoDecodeError, match=f": {kind}, not a video file that is read: MP4"):
        load(str(path))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "an empty file"),
        (b"words", "text"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"GIF89a", "a GIF"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "an HTML page"),
        (b"ID3\4\0", "an audio file"),
    ],
)
def test_a_refusal_says_what_the_file_is(data: bytes, kind: str) -> None:
    with pytest.raises(VideoDecodeError, match=f"^a video of {len(data)} bytes: {kind}"):
        load(data)


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_codec_that_is_not_on_the_list_is_not_opened(
    tmp_path: Path, decoder: VideoReader
) -> None:
    pytest.importorskip("decord")
    path = made(tmp_path / "a.avi", 8, "magicyuv", pixels="gbrp")
    with pytest.raises(VideoDecodeError, match="its video codec is magicyuv, which is not read: H"):
        load(str(path), decoder=decoder)


def test_a_codec_that_is_not_read_is_named(tmp_path: Path) -> None:
    data = made(tmp_path / "a.avi", 8).read_bytes().replace(b"FMP4", b"theo")
    with pytest.raises(VideoDecodeError, match="its video codec is theora, which is not read: H"):
        load(data)


def test_a_video_of_2_by_2_pixels_is_read(tmp_path: Path) -> None:
    frames = load(str(made(tmp_path / "a.mp4", 8, size=2))).frames
    assert frames.shape == (4, 2, 2, 3)


def test_a_recording_without_a_duration_is_read(tmp_path: Path) -> None:
    """Browsers' MediaRecorder writes such: a stream to which nothing is added at its start."""

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            written.extend(data)
            return len(data)

    written = bytearray()
    with av.open(Pipe(), "w", format="matroska") as container:
        encode(container, 75, "libx264")
    with av.open(io.BytesIO(written)) as opened:
        assert opened.duration is None
    sampled = load(bytes(written))
    assert sampled.times_s == [0, 1.0, 1.96, 2.96]
    levels = sampled.frames[:, 32, 32, 0].tolist()
    assert levels == sorted(levels)


def test_a_file_of_one_frame_is_too_short(tmp_path: Path) -> None:
    path = str(made(tmp_path / "one.mp4", 1))
    with pytest.raises(
        VideoTooShort, match=f"^{path}: 1 frames, at most 64 wanted: fewer than two"
    ):
        load(path)


def test_a_file_without_a_frame_is_refused(tmp_path: Path) -> None:
    path = str(made(tmp_path / "none.mkv", 0))
    with pytest.raises((VideoTooShort, VideoDecodeError), match=f"^{path}: "):
        load(path)


def test_a_file_of_sound_alone_does_not_decode(tmp_path: Path) -> None:
    path = str(tmp_path / "sound.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(VideoDecodeError, match=f"^{path}: holds no video, but audio$"):
        load(path)


def test_sound_with_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = str(tmp_path / "song.mp4")
    with av.open(path, "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux([*sound.encode(frame), *sound.encode()])
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode()])
    with pytest.raises(VideoDecodeError, match="holds no video, but audio and a cover picture$"):
        load(path)


WHOLE = (MEDIA / "v2s_24.mp4").read_bytes()


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 500, b"words", WHOLE[:40], WHOLE[:2_000], WHOLE[:40] + b"\xff" * 2_000],
    ids=["empty", "zeros", "text", "head", "truncated", "garbage"],
)
def test_what_is_no_whole_video_does_not_decode(data: bytes) -> None:
    with pytest.raises(VideoDecodeError, match=f"^a video of {len(data)} bytes: "):
        load(data)


@pytest.mark.parametrize("reader", [DecordVideo, PyAvVideo])
def test_frames_over_the_pixel_limit_are_refused(reader: Any) -> None:
    path = MEDIA / "v_short3.mp4"
    assert read(reader(path), [0, 2], 96 * 96).shape == (2, 96, 96, 3)
    with pytest.raises(ImageTooLarge, match="frames of 96 x 96 pixels, over the limit of 9215"):
        read(reader(path), [0, 2], 96 * 96 - 1)


def test_a_relative_path_with_a_colon_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip:1.mp4").write_bytes(WHOLE)
    monkeypatch.chdir(tmp_path)
    assert len(load("clip:1.mp4").times_s) == 4
    assert PyAvVideo(Path("clip:1.mp4")).num_frames == 48


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A local server's address and the paths that it was asked for."""
    paths: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(WHOLE)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\n{link}\n#EXT-X-ENDLIST\n",
    "hls behind ID3": "ID3\x03\0\0\0\0\0\0#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{link}\n",
    "concat": "ffconcat version 1.0\nfile '{link}'\n",
    "sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "sdp in a transport stream": "G"
    + "x" * 187
    + "G\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "dash in QuickTime": "    free<?xml version='1.0'?><MPD><BaseURL>{link}</BaseURL></MPD>",
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("as_file", [False, True])
def test_a_playlist_is_not_followed(
    tmp_path: Path, asked: tuple[str, list[str]], name: str, as_file: bool
) -> None:
    address, paths = asked
    for link in (f"{address}/a.ts", f"file://{MEDIA}/v2s_24.mp4", f"{MEDIA}/v2s_24.mp4"):
        data = PLAYLISTS[name].format(link=link).encode()
        (tmp_path / "list.mp4").write_bytes(data)
        with pytest.raises(VideoDecodeError, match="not a video file that is read: MP4"):
            load(str(tmp_path / "list.mp4") if as_file else data)
    assert paths == []


WITHOUT = """
import sys
from pathlib import Path

sys.modules |= dict.fromkeys({missing})
from shardrank.actors.config import OFFICIAL_OPTIONS
from shardrank.actors.media.video import VideoRequest, load_video
from shardrank.actors.errors import RerankError
for decoder in ("pyav", "decord"):
    request = VideoRequest(
        Path(sys.argv[1]), "v2s_24.mp4", OFFICIAL_OPTIONS, 10**8, decoder=decoder
    )
    try:
        print(load_video(request).frames.shape)
    except RerankError as error:
        print(error.code, error)
"""


def load_without(*missing: str) -> list[str]:
    """What PyAV and decord give, a line each."""
    code, path = WITHOUT.replace("{missing}", repr(missing)), str(MEDIA / "v2s_24.mp4")
    return subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_without_a_reader_the_sentence_says_what_to_install() -> None:
    for said in load_without("decord", "av"):
        assert said.startswith("video_reader_missing ") and "v2s_24.mp4: " in said
        assert "PyAV: pip install av" in said


def test_without_decord_pyav_reads_and_who_asks_for_decord_is_told() -> None:
    pyav, decord = load_without("decord")
    assert pyav == "(4, 120, 160, 3)"
    assert decord.startswith("video_reader_missing ")
    assert "pip install 'shardrank[decord]'" in decord


@pytest.mark.parametrize("reader", [DecordVideo, PyAvVideo])
def test_frames_come_in_the_order_asked_for(tmp_path: Path, reader: Any) -> None:
    levels = read(reader(made(tmp_path / "a.mp4", 8)), [0, 3, 6])[:, 32, 32, 0]
    assert np.abs(levels.astype(int) - [0, 60, 120]).max() < 10


def test_letters_in_a_videos_data_do_not_make_it_a_playlist() -> None:
    honest = (MEDIA / "v2s_24.mp4").read_bytes() + b"....<mpd...."
    assert len(load(honest).frames) >= 2
