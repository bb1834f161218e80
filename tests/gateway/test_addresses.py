"""Which addresses a gateway fetches from, in whatever spelling, and what one name's slow servers do to other names."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loupe.errors import BadRequest, RefusedURL
from loupe.gateway.request import addresses
from loupe.gateway.request.addresses import MAX_LOOKUPS, is_public, look_up
from loupe.gateway.request.fetch import fetch, fetch_all
from loupe.gateway.settings import Settings
from tests.support.pace import seconds
from tests.support.servers import until

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.215.14", "100.63.255.255", "100.128.0.0",
    "126.255.255.255", "128.0.0.1", "151.101.1.69", "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0",
    "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0", "192.88.98.255", "192.88.100.0",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255",
    "203.0.114.0", "223.255.255.255",
    "2001:200::1", "2001:4860:4860::8888", "2003::1", "2400:cb00::1", "2606:4700:4700::1111", "2620:fe::fe",
    "2800:3f0::1", "2a00:1450::1", "2c0f:fb50::1", "2001:db7:ffff::1", "2001:db9::", "2001:200::5efe:808:808",
    "2600::200:5efe:8.8.8.8", "2600::5eff:10.0.0.1", "3ffd:ffff::1",
]  # fmt: skip
NOT_PUBLIC = [
    "0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.100.100.200", "100.127.255.255",
    "127.0.0.1", "127.255.255.255", "168.63.129.16", "169.254.0.0", "169.254.169.254", "169.254.255.255", "172.16.0.0",
    "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.0.255", "192.0.2.1", "192.88.99.1", "192.168.0.0",
    "192.168.255.255", "198.18.0.0", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "64:ff9b:1:ffff::10.0.0.1", "100::1", "100:0:0:1::1",
    "200::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1",
    "2001:1ff:ffff::1", "2001:db8::1", "2001:db8:ffff::1", "2002:7f00:1::", "2002:808:808::1", "3ffe::1",
    "3ffe:ffff::1", "3fff::1", "3fff:fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%eth0", "fe80::5efe:10.0.0.1", "febf::1", "fec0::1", "feff::1", "ff02::1", "ff0e::1",
    "2600::5efe:10.0.0.1", "2600::5efe:127.0.0.1", "2600::200:5efe:169.254.169.254", "2001:200::5efe:192.168.1.1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public_up_to_the_edge_of_what_is_not(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_is_not_public_if_it_is_special_or_carries_one_that_is(address: str) -> None:
    assert not is_public(address)


class Resolver:
    """Stands in for the system's: names with `slow` in them hang until released, the rest are at once 127.0.0.1."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.release = threading.Event()

    def __call__(self, host: str, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        if "slow" in host:
            self.release.wait(30)
        if host.endswith(".unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    stub = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", stub)
    yield stub
    stub.release.set()
    until(lambda: not addresses._in_flight, "the look-ups' end")
    assert not addresses._below


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


@pytest.mark.timing
def test_many_who_wait_for_one_slow_name_ask_for_it_once_and_keep_no_other_waiting(resolver: Resolver) -> None:
    with ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit(look_up, "one.slow", soon(1)) for _ in range(100)]
        until(lambda: resolver.asked, "the look-up")
        started = time.monotonic()
        assert look_up("quick.example", soon(1)) == ["127.0.0.1"]
        assert time.monotonic() - started < seconds(0.5)
        assert [each.result() for each in waiting] == [[]] * 100
    assert resolver.asked.count("one.slow") == 1


@pytest.mark.timing
@pytest.mark.parametrize(
    ("slow", "other", "most"),
    [
        ("{}.slow.example", "quick.example", MAX_LOOKUPS // 2),
        ("{}.slow-attacker.co.uk", "www.victim.co.uk", MAX_LOOKUPS // 4),
        ("{0}.{0}.{0}.slow-attacker.co.uk", "victim.co.uk", MAX_LOOKUPS // 4),
        ("{}" + ".x" * 100 + ".slow.example", "quick" + ".x" * 100 + ".example", 2),
    ],
)
def test_names_without_end_in_one_slow_domain_keep_no_other_waiting(
    resolver: Resolver, slow: str, other: str, most: int
) -> None:
    """Hostile inputs 42."""
    with ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit(look_up, slow.format(n), soon(1)) for n in range(100)]
        until(lambda: len(resolver.asked) == most, "the look-ups")
        started = time.monotonic()
        assert look_up(other, soon(1)) == ["127.0.0.1"]
        assert time.monotonic() - started < seconds(0.5)
        assert [each.result() for each in waiting] == [[]] * 100
    assert len(resolver.asked) == most + 1


@pytest.mark.timing
@pytest.mark.parametrize("suffix", ["com", "co.uk"])
def test_names_without_end_in_nine_slow_domains_leave_room_for_others(resolver: Resolver, suffix: str) -> None:
    """Hostile inputs 42."""
    with ThreadPoolExecutor(180) as pool:
        names = [f"{n}.slow{domain}.{suffix}" for n in range(20) for domain in range(9)]
        waiting = [pool.submit(look_up, name, soon(1)) for name in names]
        until(lambda: len(resolver.asked) > MAX_LOOKUPS // 3, "the look-ups")
        started = time.monotonic()
        for other in ("quick.example", f"www.victim.{suffix}", "www.example.org.uk"):
            assert look_up(other, soon(1)) == ["127.0.0.1"]
        assert time.monotonic() - started < seconds(0.5)
        assert [each.result() for each in waiting] == [[]] * len(names)


@pytest.mark.timing
def test_even_with_all_look_ups_taken_an_answer_comes_by_the_deadline_and_when_they_end_all_is_well(
    resolver: Resolver,
) -> None:
    with ThreadPoolExecutor(100) as pool:
        waiting = [pool.submit(look_up, f"a.{n}.slow", soon(5)) for n in range(MAX_LOOKUPS)]
        until(lambda: len(resolver.asked) == MAX_LOOKUPS, "the look-ups")
        started = time.monotonic()
        assert look_up("quick.example", soon(0.5)) == []
        assert 0.4 < time.monotonic() - started < seconds(1.5)
        late = pool.submit(look_up, "quick.example", soon(5))
        resolver.release.set()
        assert [each.result() for each in [*waiting, late]] == [["127.0.0.1"]] * (MAX_LOOKUPS + 1)


def test_a_name_that_hangs_is_unknown_or_is_private_gets_one_answer(resolver: Resolver) -> None:
    settings = Settings.from_environment({"LOUPE_FETCH_TIMEOUT": "0.5"})
    said = fetch_all([f"http://{name}/" for name in ("x.slow", "x.unknown", "x.private")], settings)
    assert {type(each) for each in said} == {RefusedURL}
    assert len({str(each) for each in said}) == 1


ELSEWHERE = [  # what some resolver, browser or library takes for a loopback or private address
    "http://0x7f.1/", "http://0x7f000001/", "http://017700000001/", "http://0177.0x0.1/", "http://0/", "http://127.0.1/",
    "http://127.0.0.1./", "http://localhost./", "http://LOCALHOST/", "http://127.0.0.1:443/", "https://127.0.0.1/",
    "http://[fe80::1%25lo]/", "http://[fe80::1%lo]/", "http://[::1%lo]/", "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:7f00:1]/", "http://[::ffff:0:127.0.0.1]/", "http://[64:ff9b:1::7f00:1]/", "http://%31%32%37.0.0.1/",
    "http://127。0。0。1/", "http://127．0．0．1/", "http://١٢٧.0.0.1/", "http://127٫0.0.1/", "http://ⓛocalhost/",
    "http://xn--loclhost-8za/", "http://[127.0.0.1]/", "http://[v1.x]/", "http://localhost%00.example.org/",
    "http://127.0.0.1%2f@example.org/", "http://127.0.0.1#@example.org/", "http://a..b/", "http://./", "http://.../",
    "http://" + "a" * 64 + "/", "http://" + "a." * 200 + "/", "http://-/", "http://_/", "http://*/", "http:///127.0.0.1/",
    "http:127.0.0.1/", "//127.0.0.1/", "http://127.0.0.1:/", "http://127.0.0.1:0/", "http://127.0.0.1:-1/",
    "http://127.0.0.1:８０/", "http://127.0.0.1:+80/", "http://1.1.1.1:22/", "http://4294967297/", "http://256.0.0.1/",
    "HTTP://127.0.0.1/", "jar:http://127.0.0.1!/", "http://[", "http://]/", "http://\u2028/", "blob:x", "about:blank",
]  # fmt: skip


@pytest.mark.parametrize("url", ELSEWHERE)
def test_no_spelling_of_a_host_leads_inside(url: str) -> None:
    with pytest.raises(BadRequest):
        fetch(url, Settings.from_environment({"LOUPE_FETCH_TIMEOUT": "2"}))


@pytest.mark.parametrize("target", ["model.example:8500", "dns:///model.example:8500", "a.example:1,model.example:2"])
def test_the_model_servers_own_name_is_refused_even_when_public(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(RefusedURL):
        fetch("http://Model.Example./", Settings.from_environment({"TF_SERVING_HOST": target}))


@pytest.mark.parametrize("allowed", ["intranet.example", "Intranet.Example", "127.0.0.0/8,10.0.0.0/8", "127.0.0.1"])
def test_an_allow_list_names_hosts_and_networks(allowed: str, resolver: Resolver) -> None:
    settings = Settings.from_environment({"LOUPE_FETCH_ALLOW": allowed})
    with pytest.raises(Exception, match="could not be reached"):  # so it was tried: nobody listens on port 1
        fetch("http://intranet.example:1/", settings)


@pytest.mark.parametrize("allowed", ["example", "other.example", "127.0.0.2", "::ffff:127.0.0.1", "10.0.0.0/8"])
def test_an_allow_list_lets_nothing_in_beside_what_it_names(allowed: str, resolver: Resolver) -> None:
    settings = Settings.from_environment({"LOUPE_FETCH_ALLOW": allowed})
    with pytest.raises(RefusedURL):
        fetch("http://intranet.example:1/", settings)
