import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardrank.actors.errors import MediaForbidden, MediaNotFound, MediaUnreachable
from shardrank.actors.fetch.addresses import allowed_addresses, is_public, resolve_host

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",  # IPv4-compatible
    "::808:808",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",  # IPv4-translated
    "64:ff9b::7f00:1",  # NAT64
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::ffff:ffff",
    "64:ff9b:1::a00:1",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",  # Teredo
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4
    "2002:a00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.17",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "223.255.255.255",
    "2000::",
    "2001:200::",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_a_special_address_is_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_an_address_beside_the_special_ones_is_public(text: str) -> None:
    assert is_public(ip_address(text))


SPECIAL_BLOCKS = ["0.0.0.0/0", "192.0.0.0/8", "::/0", "2000::/3", "2001::/16", "::ffff:0:0/96"]


@given(st.sampled_from(SPECIAL_BLOCKS).flatmap(lambda network: st.ip_addresses(network=network)))
def test_what_python_calls_special_is_not_public(address: IPv4Address | IPv6Address) -> None:
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.is_private or mapped.is_multicast or mapped.is_reserved:
        assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_every_way_to_write_an_ipv4_address_in_ipv6_is_as_public(address: IPv4Address) -> None:
    for prefix in ("::ffff:", "64:ff9b::"):
        assert is_public(ip_address(f"{prefix}{address}")) == is_public(address)


def answering(*addresses: str):
    return lambda host: list(addresses)


@pytest.mark.parametrize(
    "addresses",
    [
        ["10.0.0.1"],
        ["8.8.8.8", "10.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["2606:4700::1", "::1"],
        ["8.8.8.8", "8.8.4.4", "fe80::1%2"],
    ],
)
def test_one_address_that_is_not_public_refuses_the_host(addresses: list[str]) -> None:
    with pytest.raises(MediaForbidden, match=r"^the host is not at a public address$"):
        allowed_addresses("h.test", [], answering(*addresses))


def test_the_addresses_come_in_the_resolvers_order() -> None:
    found = allowed_addresses("h.test", [], answering("2606:4700::1", "8.8.8.8", "::ffff:1.1.1.1"))
    assert [str(each) for each in found] == ["2606:4700::1", "8.8.8.8", "1.1.1.1"]


@pytest.mark.parametrize(
    ("address", "is_allowed"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fd00:1::5", True),
        ("8.8.8.8", True),
        ("10.2.0.1", False),
        ("fd00:2::5", False),
        ("127.0.0.1", False),
        ("64:ff9b::10.1.2.3", False),
    ],
)
def test_allowed_networks_are_added_to_the_public_ones(address: str, is_allowed: bool) -> None:
    networks = [ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")]
    for host, resolve in [("h.test", answering(address)), (address, answering())]:
        if is_allowed:
            assert len(allowed_addresses(host, networks, resolve)) == 1
        else:
            with pytest.raises(MediaForbidden):
                allowed_addresses(host, networks, resolve)


def raising(error: Exception):
    def resolve(host: str) -> list[str]:
        raise error

    return resolve


@pytest.mark.parametrize(
    ("resolve", "kind"),
    [
        (raising(socket.gaierror(socket.EAI_NONAME, "unknown")), MediaNotFound),
        (raising(UnicodeError("label too long")), MediaNotFound),
        (answering(), MediaNotFound),
        (raising(socket.gaierror(socket.EAI_AGAIN, "no resolver")), MediaUnreachable),
    ],
)
def test_a_name_without_an_address_is_not_found(resolve, kind) -> None:
    with pytest.raises(kind, match="^the host's name"):
        allowed_addresses("h.test", [], resolve)


def test_the_systems_resolver_knows_localhost() -> None:
    assert {"127.0.0.1", "::1"} >= set(resolve_host("localhost")) > set()
