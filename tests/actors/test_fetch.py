import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardrank.actors.config import RerankerConfig
from shardrank.actors.data import CandidateSet
from shardrank.actors.errors import (
    ImageDecodeError,
    MediaError,
    MediaForbidden,
    MediaNotFound,
    MediaUnreachable,
    RerankError,
    UnknownScheme,
    VideoDecodeError,
)
from shardrank.actors.fetch.reader import MediaReader, name_of
from shardrank.actors.fetch.web import WebMedia
from shardrank.actors.prepared import PreparedSet
from shardrank.actors.preprocessor import Preprocessor
from tests.support.web_site import answering, ok, serving

GOLDEN = Path(__file__).parents[1] / "golden"
LOOPBACK = WebMedia(allowed_networks=("127.0.0.0/8",), timeout_s=10.0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file in a folder, and a secret beside the root."""
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "root" / "a folder"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"one")
    return tmp_path / "root"


@pytest.mark.parametrize(
    "path",
    [
        "a folder/1.png",
        "./a folder/../a folder/1.png",
        "{root}/a folder/1.png",
        "file://{root}/a folder/1.png",
        "file://{root}/a%20folder/1.png",
        "FILE://{root}/a%20folder/%31.png",
    ],
)
def test_a_file_under_the_root_is_read(root: Path, path: str) -> None:
    assert MediaReader(str(root)).read(path.format(root=root)) == b"one"


def test_the_root_can_be_a_file_url(root: Path) -> None:
    assert MediaReader(f"file://{root}/a%20folder").read("1.png") == b"one"


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "a folder/../../secret",
        "{root}/../secret",
        "file://{root}/../secret",
        "file://{root}/%2e%2e/secret",
        "/etc/hostname",
        "../gone",
        "link",
        "loop out/secret",
    ],
)
def test_no_path_leaves_the_root(root: Path, path: str) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    (root / "loop out").symlink_to(root.parent)
    with pytest.raises(MediaForbidden, match="outside the media root"):
        MediaReader(str(root)).read(path.format(root=root))


def test_a_link_within_the_root_is_followed(root: Path) -> None:
    (root / "link").symlink_to(root / "a folder")
    assert MediaReader(str(root)).read("link/1.png") == b"one"


def test_of_several_roots_each_may_be_read_and_relative_paths_start_at_the_first(
    root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "2.png").write_bytes(b"two")
    (other / "link").symlink_to(root / "a folder")
    (other / "out").symlink_to(tmp_path)
    reader = MediaReader((str(root), str(other)))
    assert reader.read("a folder/1.png") == b"one"
    for path in (f"{other}/2.png", f"file://{other}/2.png", "../other/2.png"):
        assert reader.read(path) == b"two"
    assert reader.read(f"{other}/link/1.png") == b"one"
    with pytest.raises(MediaNotFound):
        reader.read("2.png")
    for path in ("../secret", f"{other}/out/secret", f"{other}/../secret", "/etc/hostname"):
        with pytest.raises(MediaForbidden, match=f"outside the media root {root}, {other}"):
            reader.read(path)


@pytest.mark.parametrize("roots", [(), "s3://bucket/pages", ("s3://bucket/pages",)])
@pytest.mark.parametrize("path", ["{root}/a folder/1.png", "file://{root}/a folder/1.png"])
def test_without_a_local_root_no_local_file_is_read(root: Path, roots: object, path: str) -> None:
    with pytest.raises(MediaForbidden, match="outside any media root"):
        MediaReader(roots).read(path.format(root=root))  # type: ignore[arg-type]


def test_relative_paths_start_at_an_object_store_that_is_first(root: Path) -> None:
    reader = MediaReader(("s3://bucket/pages", str(root)))
    assert reader.local_path("1.png") is None
    assert reader.read(f"{root}/a folder/1.png") == b"one"


def test_where_nothing_is_said_of_roots_any_local_file_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "a folder")
    reader = MediaReader()
    assert reader.read("1.png") == b"one"
    assert reader.read(str(root.parent / "secret")) == b"secret"


@pytest.mark.parametrize("has_root", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "gone.png",
        "a folder",
        ".",
        "",
        "loop",
        "a\0b",
        "file://{root}/a%00b",
        "file://[1.png",
        "file://host.png",
        "\ud800.png",
        "x" * 5_000,
        "data:image/png;base64,aaaa",
    ],
)
def test_what_is_no_file_is_not_found(root: Path, path: str, has_root: bool) -> None:
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(MediaNotFound):
        MediaReader(str(root) if has_root else None).read(path.format(root=root))


@pytest.mark.parametrize("path", ["http://h/1.png", "https://h/1.png", "HTTP://h/1.png"])
def test_http_is_refused(path: str) -> None:
    with pytest.raises(MediaForbidden, match=f"^{path}: media over http"):
        MediaReader().read(path)


def test_a_refused_url_is_named_without_its_secrets() -> None:
    with pytest.raises(MediaForbidden, match="^https://h/1.png: media over http"):
        MediaReader().local_path("https://hush:hush@h/1.png?token=hush")


@pytest.mark.parametrize("root", [None, "{root}", "s3://bucket/pages"])
def test_http_is_read_where_it_is_allowed(root: str | None, tmp_path: Path) -> None:
    reader = MediaReader(root and root.format(root=tmp_path), LOOPBACK)
    with serving(answering(ok(b"one"))) as site:
        for url in (f"{site.url}/1.png", site.url.upper()):
            assert reader.local_path(url) is None
            assert reader.read(url) == b"one"


def test_where_http_is_allowed_files_are_read_as_before(root: Path) -> None:
    reader = MediaReader(str(root), LOOPBACK)
    assert reader.read("a folder/1.png") == b"one"
    with pytest.raises(MediaForbidden, match="outside the media root"):
        reader.read("../secret")


@pytest.mark.parametrize(
    "path",
    [
        "{root}/a folder/1.png",
        "a folder/1.png",
        "file://{root}/a folder/1.png",
        "gone.png",
        "s3://bucket/1.png",
        "gs://bucket/1.png",
        "ftp://h/1.png",
        "http:/h/1.png",
        "",
        "a\0b",
    ],
)
@pytest.mark.parametrize("media_root", ["{root}", "s3://bucket/pages", None])
def test_no_path_is_read_where_paths_are_not_allowed(
    root: Path, path: str, media_root: str | None
) -> None:
    reader = MediaReader(media_root and media_root.format(root=root), LOOPBACK, local=False)
    for read in (reader.read, reader.local_path):
        with pytest.raises(MediaForbidden, match="media by path are not allowed$"):
            read(path.format(root=root))


def test_http_is_read_where_paths_are_not_allowed() -> None:
    with serving(answering(ok(b"one"))) as site:
        assert MediaReader(None, LOOPBACK, local=False).read(site.url) == b"one"


@pytest.mark.parametrize("path", ["ftp://h/1.png", "hdfs://h/1.png", "git+ssh://h/1.png"])
def test_an_unknown_scheme_is_named(path: str) -> None:
    scheme = path.partition(":")[0].replace("+", r"\+")
    with pytest.raises(UnknownScheme, match=f"unknown scheme '{scheme}'; use a path, file://"):
        MediaReader().read(path)


@pytest.mark.parametrize("path", ["a/1.png?x=@y", "s3://b/1.png?x=y", "ftp://a@h/1.png"])
def test_only_urls_of_the_web_lose_their_query_in_messages(path: str) -> None:
    assert name_of(path) == path
    assert name_of("HTTP://a@h/1.png?x=y") == "HTTP://h/1.png"


@pytest.mark.parametrize(
    ("path", "is_refused"),
    [
        ("s3://b/1.png?X-Amz-Signature=wJalrXU", True),
        ("s3://b/X-Amz-Signature=wJalrXU/1.png", False),
        ("a/1.png?password=wJalrXU&w=1", True),
        ("gs://b/1.png?X-Goog-Credential=wJalrXU", True),
        ("hdfs://h/1.png?sig=wJalrXU", True),
        ("/etc/my-token=wJalrXU", True),
    ],
)
def test_what_looks_like_a_secret_is_in_no_message(
    path: str, is_refused: bool, tmp_path: Path
) -> None:
    messages = [name_of(path)]
    if is_refused:
        with pytest.raises(MediaError) as raised:
            MediaReader(str(tmp_path)).read(path)
        messages.append(str(raised.value))
    assert [("wJalrXU" in each, "***" in each) for each in messages] == [(False, True)] * len(
        messages
    )


@pytest.mark.parametrize("trap", ["link", "fifo"])
def test_what_was_put_in_a_files_place_after_the_check_is_not_read(
    trap: str, tmp_path: Path
) -> None:
    secret, root = tmp_path / "secret", tmp_path / "root"
    secret.write_bytes(b"secret")
    root.mkdir()
    place = root / "page.png"
    place.touch()

    class Overtaken(MediaReader):
        def local_path(self, path: str) -> Path | None:
            found = super().local_path(path)
            place.unlink()
            place.symlink_to(secret) if trap == "link" else os.mkfifo(place)
            return found

    with pytest.raises(MediaNotFound, match="no such file any more"):
        Overtaken(str(root)).read("page.png")


def prepared(*documents: object, **settings: object) -> PreparedSet:
    config = RerankerConfig(str(GOLDEN / "tiny"), **settings)  # type: ignore[arg-type]
    return Preprocessor(config).prepare(CandidateSet.parse("q", documents))


def served(path: str) -> list[bytes]:
    """The golden media by name, and some that are broken."""
    name = path.partition("?")[0].removeprefix("/")
    file = GOLDEN / "media" / name
    return ok(file.read_bytes() if file.is_file() else b"broken")


def test_media_over_http_are_prepared_as_local_ones() -> None:
    names = [("image", "sq_64x64.png"), ("video", "v2s_24.mp4"), ("video", ["fr0.png", "fr1.png"])]
    by_path = prepared(*documents_at(f"{GOLDEN}/media", names))
    with serving(served) as site:
        by_url = prepared(*documents_at(site.url, names), web_media=LOOPBACK, local_media=False)
    assert [each.key for each in by_url.visuals] == [each.key for each in by_path.visuals]
    assert len(by_url.visuals) == 1 + 2 + 1
    for left, right in zip(by_url.pairs, by_path.pairs, strict=True):
        assert not isinstance(left, RerankError) and not isinstance(right, RerankError)
        assert left.input_ids.tolist() == right.input_ids.tolist()


def documents_at(folder: str, names: list[tuple[str, str | list[str]]]) -> list[object]:
    return [
        {
            kind: f"{folder}/{name}"
            if isinstance(name, str)
            else {"frames": [f"{folder}/{each}" for each in name]}
        }
        for kind, name in names
    ]


def test_broken_media_over_http_are_named_without_their_secrets() -> None:
    with serving(served) as site:
        url = f"{site.url}/gone?token=hush"
        pairs = prepared({"image": url}, {"video": url}, "a text", web_media=LOOPBACK).pairs
    assert [type(pair) for pair in pairs[:2]] == [ImageDecodeError, VideoDecodeError]
    for error in pairs[:2]:
        assert f"{site.url}/gone: " in str(error) and "text" in str(error)
        assert "hush" not in str(error)
    assert not isinstance(pairs[2], RerankError)


def test_without_leave_a_preprocessor_reads_neither_the_web_nor_paths() -> None:
    with serving(served) as site:
        url, path = f"{site.url}/sq_64x64.png", str(GOLDEN / "media" / "sq_64x64.png")
        without_web = prepared({"image": url}, {"image": path}).pairs
        without_both = prepared({"image": url}, {"video": path}, local_media=False).pairs
    assert [type(pair) for pair in without_both] == [MediaForbidden, MediaForbidden]
    assert isinstance(without_web[0], MediaForbidden)
    assert not isinstance(without_web[1], RerankError)
    assert site.num_connections == 0


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs a file that cannot be read")
def test_a_file_that_cannot_be_read_is_unreachable() -> None:
    with pytest.raises(MediaUnreachable, match="^/proc/self/mem: Input/output error$"):
        MediaReader().read("/proc/self/mem")


@settings(deadline=None)
@given(st.text(max_size=20) | st.text("abfile:/.%00[]\ud800", max_size=20))
def test_any_path_gives_bytes_or_a_media_error(path: str) -> None:
    try:
        assert MediaReader("/nowhere/at/all").read(path) is None
    except MediaError as error:
        assert str(error)


CLOSED = "?endpoint_override=127.0.0.1:{port}&scheme=http&access_key=a&secret_key=hush&region=x"


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_an_object_store_out_of_reach_is_unreachable(closed_port: int) -> None:
    reader = MediaReader("s3://bucket/pages" + CLOSED.format(port=closed_port))
    with pytest.raises(MediaUnreachable, match=r"^1\.png: ") as raised:
        reader.read("1.png")
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("root", "path", "bucket", "place"),
    [
        (None, "s3://b/d/1.png", "s3://b", "b/d/1.png"),
        (None, "S3://b/1.png", "s3://b", "b/1.png"),
        ("s3://b/d", "1.png", "s3://b", "b/d/1.png"),
        ("s3://b/d/", "e/1.png", "s3://b", "b/d/e/1.png"),
        ("s3://b/d?region=x", "1.png", "s3://b?region=x", "b/d/1.png"),
        ("s3://b/d?region=x", "is it?.png", "s3://b?region=x", "b/d/is it?.png"),
        ("gs://b", "1.png", "gs://b", "b/1.png"),
        ("s3://b/d?region=x", "s3://b/d/e/1.png", "s3://b?region=x", "b/d/e/1.png"),
        ("s3://k:s@b/d/?region=x", "S3://b/d/1.png", "s3://k:s@b?region=x", "b/d/1.png"),
        ("gs://b", "gcs://b/1.png", "gs://b", "b/1.png"),
        ((), "s3://b/d/1.png", "s3://b", "b/d/1.png"),
        ("/local", "s3://b/d/1.png", "s3://b", "b/d/1.png"),
    ],
)
def test_an_object_is_found_below_the_root(
    root: str | tuple[str, ...] | None, path: str, bucket: str, place: str
) -> None:
    reader = MediaReader(root)
    assert reader.local_path(path) is None
    assert reader._bucket_and_place(path) == (bucket, place)


@pytest.mark.parametrize(
    "path",
    [
        "s3://b/1.png",
        "s3://b/d",
        "s3://b/dd/1.png",
        "s3://b//d/1.png",
        "s3://b2/d/1.png",
        "gs://b/d/1.png",
        "../1.png",
        "e/../../../b2/1.png",
        "s3://b/d/../1.png",
    ],
)
def test_no_object_outside_an_object_store_root_is_read(path: str) -> None:
    """Of s3://b/d/../1.png curl, below pyarrow, would ask for s3://b/1.png."""
    for roots in ("s3://b/d", ("s3://k:hush@b/d/?region=x", "/local")):
        with pytest.raises(MediaForbidden, match=r"outside the media root s3://b/d$|have \.\."):
            MediaReader(roots).read(path)


@pytest.mark.parametrize("roots", [None, (), "/local", "s3://b/d"])
@pytest.mark.parametrize(
    "path",
    [
        "s3://b/d/1.png?region=x",
        "gs://b/d/1.png?",
        "s3://key:hush@b/d/1.png",
        "gs://anonymous@b/d/1.png",
        "s3://b#/d/1.png",
        "s3:///1.png",
    ],
)
def test_a_row_configures_no_object_store(path: str, roots: str | tuple[str, ...] | None) -> None:
    with pytest.raises(MediaForbidden, match="not a bucket and a key alone") as raised:
        MediaReader(roots).read(path)
    assert "hush" not in str(raised.value)


def test_no_row_sends_the_jobs_requests_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with serving(answering(ok(b"one"))) as site:
        place = site.url.removeprefix("http://")
        with pytest.raises(MediaForbidden):
            MediaReader().read(f"s3://b/1.png?region=x&scheme=http&endpoint_override={place}")
    assert site.num_connections == 0


@pytest.mark.parametrize("path", ["/etc/hostname", "file:///etc/hostname"])
def test_under_an_object_store_root_no_local_path_is_read(path: str) -> None:
    with pytest.raises(MediaForbidden, match="outside any media root"):
        MediaReader("s3://bucket/pages").read(path)
