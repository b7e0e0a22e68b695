"""Which network addresses may be connected to: public ones, and those that an operator allows.

Knows nothing about URLs or HTTP. What calls `allowed_addresses` must connect to what it returns: a
second look-up of the name may give another address.
"""

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from shardrank.actors.errors import MediaForbidden, MediaNotFound, MediaUnreachable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str], Sequence[str]]
"""A host name to all of its addresses as text."""

_GLOBAL_UNICAST = ip_network("2000::/3")
_NAT64 = ip_network("64:ff9b::/96")
_SPECIAL = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata are at 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host, which every virtual machine there can ask
        "169.254.0.0/16",  # link-local; the clouds' metadata are at 169.254.169.254
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4: embeds any IPv4 address, and is deprecated
        "3fff::/20",
    )
)
"""IANA's special-purpose registries (RFC 6890), and one cloud's own. `is_global` is not used: what
it says of several of these differs among Python's releases."""


def is_public(address: Address) -> bool:
    """An IPv6 address that stands for an IPv4 one (mapped, NAT64) is as public as that one."""
    address = unmapped(address)
    if isinstance(address, IPv6Address) and address in _NAT64:
        return is_public(IPv4Address(address.packed[-4:]))
    if any(address in network for network in _SPECIAL):
        return False
    return isinstance(address, IPv4Address) or address in _GLOBAL_UNICAST


def unmapped(address: Address) -> Address:
    """::ffff:a.b.c.d is the IPv4 address a.b.c.d; every other address is itself."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def allowed_addresses(host: str, networks: Sequence[Network], resolve: Resolve) -> list[Address]:
    """All addresses of `host`, a name or an address, each public or inside one of `networks`.

    Raises MediaForbidden if one of them is neither, however many are: whoever mixes them wants the
    other one to be taken. Raises MediaNotFound or MediaUnreachable if there is none.
    """
    addresses = [unmapped(address) for address in _addresses(host, resolve)]
    for address in addresses:
        if not is_public(address) and not any(address in network for network in networks):
            raise MediaForbidden("the host is not at a public address")
    return addresses


def _addresses(host: str, resolve: Resolve) -> list[Address]:
    try:
        return [ip_address(host)]
    except ValueError:
        pass
    try:
        texts = resolve(host)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise MediaUnreachable("the host's name could not be looked up") from error
        raise MediaNotFound("the host's name does not resolve") from error
    except (OSError, UnicodeError) as error:  # UnicodeError: no name for DNS
        raise MediaNotFound("the host's name does not resolve") from error
    if not texts:
        raise MediaNotFound("the host's name does not resolve")
    return [ip_address(text) for text in texts]


def resolve_host(host: str) -> list[str]:
    """A host's addresses by the system's resolver (with /etc/hosts), in its order, each once."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
