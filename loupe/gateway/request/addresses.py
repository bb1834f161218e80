"""Tell public addresses from others, and look host names up without waiting for other names' slow servers.

    is_public("8.8.8.8")                                     # True
    look_up("example.org", time.monotonic() + 10)            # ["93.184.215.14"]; [] if unknown or too slow

The lists follow IANA's registries of special-purpose addresses. They also refuse ranges that the registries call
reachable but that carry an address inside (6to4, Teredo). ipaddress.is_global is not used: in Python 3.11 several of
these ranges are global.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LookupTimeout

MAX_LOOKUPS = 64  # look-ups in progress at one time, in this process
MAX_LOOKUPS_A_SITE = 8  # below one domain: the owner of a slow one can make endless names in it

_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # looks public, but leads to the host of every Azure machine
    )
]  # fmt: skip
# Not in this range, and so not public: loopback, link and site local, unique local, multicast, discard (100::/64),
# segment routing (5f00::/16) and four ways to write a v4 address (::/96, ::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48).
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocols: Teredo (a v4 address inside), benchmarking, ORCHID and more
        "2001:db8::/32", "3fff::/20",  # documentation
        "2002::/16",  # 6to4: a v4 address inside
        "3ffe::/16",  # the 6bone, no longer in use
    )
]  # fmt: skip
_ISATAP = (0x00005EFE, 0x02005EFE)  # bits 64 to 95 of an address that has a v4 address in its last 32


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _NOT_PUBLIC_V4)
    if ip not in _PUBLIC_V6 or any(ip in network for network in _NOT_PUBLIC_V6):
        return False
    isatap = (int(ip) >> 32 & 0xFFFFFFFF) in _ISATAP
    return not isatap or is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))


_in_flight: dict[str, Future[list[str]]] = {}
_lookups_changed = threading.Condition()


def look_up(host: str, deadline: float) -> list[str]:
    """Return the addresses of `host`, or [] if it is unknown or the deadline passes.

    Callers asking for the same name share one look-up in a thread: getaddrinfo has no timeout and cannot be cancelled.
    """
    # Join the look-up of this name, or start one as soon as there is room.
    with _lookups_changed:
        if not _lookups_changed.wait_for(
            lambda: host in _in_flight or _has_room(host), max(0.0, deadline - time.monotonic())
        ):
            return []
        lookup = _in_flight.get(host)
        if lookup is None:
            lookup = _in_flight[host] = Future()
            threading.Thread(target=_resolve, args=(host, lookup), name="lookup", daemon=True).start()
    # Wait for it no longer than the deadline.
    try:
        return lookup.result(max(0.0, deadline - time.monotonic()))
    except LookupTimeout:
        return []


def _has_room(host: str) -> bool:
    same_site = sum(_site(other) == _site(host) for other in _in_flight)
    return len(_in_flight) < MAX_LOOKUPS and same_site < MAX_LOOKUPS_A_SITE


def _site(host: str) -> list[str]:
    return host.split(".")[-2:]


def _resolve(host: str, lookup: Future[list[str]]) -> None:
    addresses: list[str] = []
    try:
        with contextlib.suppress(OSError, UnicodeError):  # an unknown name, or not a valid one
            addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    finally:
        with _lookups_changed:
            del _in_flight[host]
            _lookups_changed.notify_all()
        lookup.set_result(addresses)
