import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardrank.actors.errors import MediaForbidden
from shardrank.actors.fetch.web_url import WebUrl, shown

BOTH = ("http", "https")


def parse(text: str) -> WebUrl:
    return WebUrl.parse(text, BOTH)


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("http://h.test", "h.test", 80, "/"),
        ("https://h.test/a/1.png", "h.test", 443, "/a/1.png"),
        ("HTTP://H.Test/A", "h.test", 80, "/A"),
        ("http://h.test./a", "h.test", 80, "/a"),
        ("http://h.test:/a", "h.test", 80, "/a"),
        ("http://h.test:8080?x=1&y=%20#part", "h.test", 8080, "/?x=1&y=%20"),
        ("https://h.test:80/", "h.test", 80, "/"),
        ("http://h.test//a/../b/%2e%2e/@c:d", "h.test", 80, "//a/../b/%2e%2e/@c:d"),
        ("http://h.test/é?東=ü", "h.test", 80, "/%C3%A9?%E6%9D%B1=%C3%BC"),
        ("http://bücher.test/", "xn--bcher-kva.test", 80, "/"),
        ("http://my_host/", "my_host", 80, "/"),
        ("http://8.8.8.8:65535/", "8.8.8.8", 65535, "/"),
        ("http://8.8.8.8./", "8.8.8.8", 80, "/"),
        ("http://[2606:4700:0::1]:1024/", "2606:4700::1", 1024, "/"),
        ("http://[::ffff:8.8.8.8]/", "::ffff:808:808", 80, "/"),
    ],
)
def test_a_url_is_read(text: str, host: str, port: int, target: str) -> None:
    assert parse(text) == WebUrl(text[: text.index(":")].lower(), host, port, target)


@pytest.mark.parametrize(
    "text",
    [
        "http://h.test/a b",
        " http://h.test/",
        "http://h.test/\n",
        "http://h.test/a\r\nHost: other",
        "ht\ttp://h.test/",
        "http://h.test\x00/",
        "http://h.test/\x7f",
        "http://h.test/\x85",
        "http://h.test\\@other.test/",
        "http:\\\\h.test/",
        "http://h.test/\ud800",
    ],
)
def test_what_parsers_disagree_on_is_refused(text: str) -> None:
    with pytest.raises(MediaForbidden, match="^a URL cannot hold spaces, control characters"):
        parse(text)


@pytest.mark.parametrize(
    "authority",
    [
        "2130706433",
        "0x7f000001",
        "0X7F.1",
        "017700000001",
        "0177.0.0.1",
        "127.0.0.01",
        "127.1",
        "127.0.1",
        "127.0.0.1.1",
        "1.2.3.256",
        "127.0.0.0x1",
        "host.0x",
        "host.1",
        "１２７.1",
        "127.0.0.1..",
        "",
        ".",
        ":80",
        "a..b",
        ".h.test",
        "h%2etest",
        "127%2e0.0.1",
        "h,test",
        "h;test",
        "h*",
        "x" * 64 + ".test",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[127.0.0.1]",
        "[v1.a]",
        "[]",
    ],
)
def test_a_host_that_resolvers_may_read_differently_is_refused(authority: str) -> None:
    with pytest.raises(MediaForbidden, match="its host is no name|not a URL that can be read"):
        parse(f"http://{authority}/")


@pytest.mark.parametrize(
    "authority",
    ["[::1", "::1]", "[::1]x", "[::1]x:80", "x[::1]", "h:80:80", "h:x", "h:65536", "::1"],
)
def test_a_broken_authority_is_refused(authority: str) -> None:
    with pytest.raises(MediaForbidden, match="^not a URL that can be read$"):
        parse(f"http://{authority}/")


@pytest.mark.parametrize("user", ["user@", "user:word@", ":word@", "@", "user%40h.test@", "a@b@"])
def test_credentials_are_refused(user: str) -> None:
    with pytest.raises(MediaForbidden, match="with a user name or password"):
        parse(f"http://{user}h.test/")


@pytest.mark.parametrize("port", [0, 1, 22, 25, 53, 79, 81, 110, 442, 444, 445, 1023])
def test_another_protocols_port_is_refused(port: int) -> None:
    with pytest.raises(MediaForbidden, match=f"^port {port} is not allowed"):
        parse(f"http://h.test:{port}/")


@pytest.mark.parametrize("text", ["ftp://h.test/", "file:///etc/passwd", "//h.test/", "h.test", ""])
def test_another_scheme_is_refused(text: str) -> None:
    with pytest.raises(MediaForbidden, match="its scheme is not allowed; use http:// or https://"):
        parse(text)


def test_schemes_can_be_fewer() -> None:
    with pytest.raises(MediaForbidden, match="its scheme is not allowed; use https://$"):
        WebUrl.parse("http://h.test/", ("https",))


def test_a_very_long_url_is_refused() -> None:
    assert parse("http://h.test/" + "x" * 8_000)
    with pytest.raises(MediaForbidden, match="^a URL of 8193 characters, over the limit of 8192$"):
        parse("http://h.test/".ljust(8_193, "x"))


@pytest.mark.parametrize(
    ("location", "authority", "target"),
    [
        ("/b", "h.test:8080", "/b"),
        ("b?z=2", "h.test:8080", "/a/b?z=2"),
        ("?z=2", "h.test:8080", "/a/1?z=2"),
        ("//o.test/b", "o.test", "/b"),
        ("https://o.test:443/b#c", "o.test", "/b"),
        ("http://[2606:4700::1]:81/", None, None),
        ("http://[2606:4700::1]:8081/", "[2606:4700::1]:8081", "/"),
        ("file:///etc/passwd", None, None),
        ("http://u:p@o.test/", None, None),
        ("http://[x/", None, None),
        ("/a\tb", None, None),
        ("\udcff", None, None),
    ],
)
def test_a_redirects_place_is_held_to_the_same_rules(
    location: str, authority: str | None, target: str | None
) -> None:
    url = parse("http://h.test:8080/a/1?x=1")
    if authority is None:
        with pytest.raises(MediaForbidden):
            url.joined(location, BOTH)
    else:
        joined = url.joined(location, BOTH)
        assert (joined.authority, joined.target) == (authority, target)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h.test/a/1.png", "https://h.test/a/1.png"),
        ("https://h.test:8080/a?token=hush#hush", "https://h.test:8080/a"),
        ("https://h.test#hush", "https://h.test"),
        ("https://hush:hush@h.test/a", "https://h.test/a"),
        ("https://hush@hush@h.test/a", "https://h.test/a"),
        ("https://user:hu?sh@h.test/a", "https://..."),
        ("https://user:hu/sh@h.test/a", "https://..."),
        ("https://user:hu#sh@h.test/a", "https://..."),
        ("https://[::1]:80/@me/a", "https://[::1]:80/@me/a"),
        ("https://h.test/a\r\nb c?hush", "https://h.test/a%0D%0Ab%20c"),
    ],
)
def test_a_shown_url_has_no_secrets(url: str, expected: str) -> None:
    assert shown(url) == expected


@given(st.text(max_size=30) | st.text("htp:/@.[]?#%0127x \\é\ud800", max_size=30))
def test_any_text_is_a_plain_url_or_forbidden(text: str) -> None:
    for candidate in (text, f"http://{text}"):
        try:
            url = parse(candidate)
        except MediaForbidden:
            continue
        assert parse(f"{url.scheme}://{url.authority}{url.target}") == url
        assert url.target.isascii() and url.target.isprintable() and " " not in url.target
        assert "hush" not in shown(f"{candidate.partition('?')[0]}?hush")
