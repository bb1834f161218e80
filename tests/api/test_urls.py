"""Many URLs of one request: fetched in parallel, with one deadline and one limit of bytes, each with its own answer."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from loupe.errors import Problem, RefusedURL
from loupe.gateway.request import fetch as fetching
from loupe.gateway.request.fetch import TOTAL_FACTOR, fetch, fetch_all
from loupe.gateway.settings import Settings
from tests.support.gateways import internet
from tests.support.pace import seconds

OK = b"HTTP/1.1 200 OK\r\n"
MAX_BYTES = 100_000
SETTINGS = Settings.from_environment(
    {"LOUPE_FETCH_ALLOW": "127.0.0.1", "LOUPE_FETCH_TIMEOUT": "1.5", "LOUPE_MAX_BYTES": str(MAX_BYTES)}
)


def site(path: str, write: Callable[[bytes], None]) -> None:
    name, _, number = path[1:].partition("/")
    if name == "late":
        time.sleep(0.5)
    elif name == "silent":
        time.sleep(4)
    elif name == "too-large":
        write(OK + b"\r\n" + b"x" * (MAX_BYTES + 1))
    elif name == "said-too-large":
        write(OK + b"Content-Length: %d\r\n\r\n" % (MAX_BYTES + 1) + b"x" * (MAX_BYTES + 1))
    elif name == "drip":
        write(OK + b"\r\n")
        for _ in range(20):
            write(b"x")
            time.sleep(0.2)
    size = MAX_BYTES if name == "full" else 100
    write(OK + b"Content-Length: %d\r\n\r\n" % size + number.encode().ljust(size))


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with internet(site) as port:
        yield f"http://127.0.0.1:{port}"


def outcomes(answers: Sequence[bytes | Problem]) -> list[str]:
    return [answer.split()[0].decode() if isinstance(answer, bytes) else type(answer).__name__ for answer in answers]


@pytest.mark.timing
def test_they_are_fetched_side_by_side_and_answered_in_order(base: str) -> None:
    started = time.monotonic()
    answers = fetch_all([f"{base}/late/{n}" for n in range(32)], SETTINGS)
    assert time.monotonic() - started < seconds(1.4)  # 32 × 0.5 s, one after the other
    assert outcomes(answers) == [str(n) for n in range(32)]


def test_each_bad_one_has_its_own_error_and_spoils_no_other(base: str) -> None:
    urls = [f"{base}/a/1", "ftp://x/", f"{base}/silent/", "http://10.0.0.1/", f"{base}/drip/", f"{base}/too-large/",
            f"{base}/a/2"]  # fmt: skip
    answers = fetch_all(urls, SETTINGS)
    failed = "FetchFailed"
    assert outcomes(answers) == ["1", "BadRequest", failed, "RefusedURL", failed, failed, "2"]
    assert "too long" in str(answers[2])
    assert "larger than 100,000 bytes" in str(answers[5])


def test_silent_servers_keep_no_picture_waiting_that_stands_behind_them(base: str) -> None:
    answers = fetch_all([f"{base}/silent/{n}" for n in range(31)] + [f"{base}/a/last"], SETTINGS)
    assert outcomes(answers) == ["FetchFailed"] * 31 + ["last"]


@pytest.mark.timing
def test_more_than_go_side_by_side_still_end_at_the_one_deadline(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_PARALLEL", 2)
    started = time.monotonic()
    answers = fetch_all([f"{base}/silent/{n}" for n in range(10)], SETTINGS)
    assert time.monotonic() - started < seconds(2.2)
    assert {str(answer) for answer in answers} == {"The picture's server took too long; upload the picture instead."}


def test_together_they_bring_no_more_than_the_total(base: str) -> None:
    answers = fetch_all([f"{base}/full/{n}" for n in range(TOTAL_FACTOR)], SETTINGS)
    assert sum(isinstance(answer, bytes) for answer in answers) == TOTAL_FACTOR
    answers = fetch_all([f"{base}/full/{n}" for n in range(3 * TOTAL_FACTOR)], SETTINGS)
    pictures = [answer for answer in answers if isinstance(answer, bytes)]
    assert len(pictures) <= TOTAL_FACTOR
    assert sum(map(len, pictures)) <= TOTAL_FACTOR * MAX_BYTES
    refused = [answer for answer in answers if not isinstance(answer, bytes)]
    assert all("400,000 bytes together" in str(answer) for answer in refused)


def test_a_picture_that_says_it_is_too_large_takes_nothing_from_the_others(base: str) -> None:
    urls = [f"{base}/said-too-large/"] * 3 * TOTAL_FACTOR + [f"{base}/full/{n}" for n in range(TOTAL_FACTOR)]
    assert sum(isinstance(answer, bytes) for answer in fetch_all(urls, SETTINGS)) == TOTAL_FACTOR


def test_no_thread_is_left_when_all_is_answered(base: str) -> None:
    fetch_all([f"{base}/silent/", f"{base}/a/1", "http://does-not-exist.invalid/"], SETTINGS)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("fetch", "lookup"))]


def test_a_public_address_that_is_this_machines_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 stands in for the public address of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        monkeypatch.setattr(fetching, "is_public", lambda _: True)
        monkeypatch.setattr(fetching, "PORTS", {"http": port, "https": 443})
        with pytest.raises(RefusedURL):
            fetch(f"http://127.0.0.1:{port}/", Settings.from_environment({"LOUPE_FETCH_TIMEOUT": "2"}))
