"""Tell public addresses from others, and look host names up without waiting for other names' slow servers.

    is_public("8.8.8.8")                                     # True
    look_up("example.org", time.monotonic() + 10)            # ["93.184.215.14"]; [] if unknown or too slow

A look-up cannot be cancelled, and a name whose server is silent holds it for ten seconds and more. So there is a limit,
and nobody who makes up names without end may take all of it. Whose a name is cannot be told without a list of public
suffixes: evil.com is somebody's, co.uk is nobody's. So what is free is shared out at every level of a name: a domain
gets another look-up while it has fewer than are free. It ends with half: evil.com with half of all, and attacker.co.uk
with half of the half that co.uk may have. The slow names of n domains, all in com or all in co.uk, leave one part in
n + 1 to others there. Not bounded is what many domains of many kinds do together, until the resolver gives them up.

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
from collections import Counter
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LookupTimeout

MAX_LOOKUPS = 64  # look-ups in progress at one time, in this process
MAX_LEVELS = 6  # labels of a name, from its end, up to which these are shared out

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
_below: Counter[str] = Counter()  # of each domain, how many are in flight: its own name and all below it
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
            lookup = Future()
            threading.Thread(target=_resolve, args=(host, lookup), name="lookup", daemon=True).start()
            _in_flight[host] = lookup  # after the start, which may fail; the thread cannot end before this lock is free
            _below.update(_domains(host))
    # Wait for it no longer than the deadline.
    try:
        return lookup.result(max(0.0, deadline - time.monotonic()))
    except LookupTimeout:
        return []


def _has_room(host: str) -> bool:
    """Return True if at every level of the name fewer are in flight than are free there."""
    free: float = MAX_LOOKUPS - len(_in_flight)
    for domain in _domains(host):
        if _below[domain] >= free:
            return False
        free = (free - _below[domain]) / 2  # each look-up that is added takes one from what is free and adds one here
    return free > 0


def _domains(host: str) -> list[str]:
    """Return the domains that a name is in, the largest first: co.uk, attacker.co.uk, www.attacker.co.uk."""
    labels = host.split(".")
    return [".".join(labels[-count:]) for count in range(2, min(len(labels), MAX_LEVELS) + 1)]


def _resolve(host: str, lookup: Future[list[str]]) -> None:
    addresses: list[str] = []
    try:
        with contextlib.suppress(OSError, UnicodeError):  # an unknown name, or not a valid one
            addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    finally:
        with _lookups_changed:
            del _in_flight[host]
            _below.subtract(_domains(host))
            for domain in _domains(host):
                if not _below[domain]:
                    del _below[domain]
            _lookups_changed.notify_all()
        lookup.set_result(addresses)
