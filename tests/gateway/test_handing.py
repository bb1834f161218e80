"""A connection that stays open, between the worker's loop and its threads: what its client does while a thread has its
request in hand, and just after."""

from __future__ import annotations

import http.client
import os
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.backends import backend
from tests.support.gateways import Gateway, gateway
from tests.support.pace import seconds
from tests.support.pictures import encoded
from tests.support.servers import meanwhile, until

PICTURE = encoded()
HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(PICTURE)
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def pause() -> dict[str, float]:
    return {"model": 0.0}


@pytest.fixture(scope="module")
def started(pause: dict[str, float]) -> Iterator[Gateway]:
    """One request at a time, and none that waits."""
    settings = {"LOUPE_THREADS": "1", "LOUPE_MAX_WAIT": "0.05"}
    with (
        backend(lambda call, context: time.sleep(pause["model"])) as behind,
        gateway(f"localhost:{behind.port}", **settings) as here,
    ):
        yield here


@pytest.fixture
def here(started: Gateway, pause: dict[str, float]) -> Iterator[Gateway]:
    workers = started.workers()
    yield started
    pause["model"] = 0.0
    until(lambda: started.post("/predict", PICTURE, "image/jpeg").status == 200, "the thread")
    assert started.workers() == workers
    assert "Traceback" not in started.log.read_text()


@pytest.fixture
def kept(here: Gateway) -> Iterator[socket.socket]:
    """It has had two answers: the loop watches it from the first on."""
    with socket.create_connection(("127.0.0.1", here.port), timeout=60) as connection:
        for _ in range(2):
            connection.sendall(HEAD + PICTURE)
            assert answers(connection) == 1
        yield connection


def answers(connection: socket.socket, count: int = 1) -> int:
    """How many came, of so many that should; all must be predictions."""
    found = 0
    for _ in range(count):
        response = http.client.HTTPResponse(connection)
        response.begin()
        found += response.status == 200 and b'"label"' in response.read()
    return found


def test_who_asks_one_after_another_never_meets_himself(here: Gateway) -> None:
    """What he asked before is out of the count when he has its answer, though the loop may not know yet."""
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
    for _ in range(200):
        connection.request("POST", "/predict", PICTURE, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()
    connection.close()
    assert {here.post("/predict", PICTURE, "image/jpeg").status for _ in range(50)} == {200}


@pytest.mark.timing
def test_the_second_request_of_a_connection_is_heard_at_once(here: Gateway) -> None:
    """Nobody watches it while the first is in hand, so the loop must be told when that is done."""
    took = []
    for _ in range(9):
        with socket.create_connection(("127.0.0.1", here.port), timeout=60) as connection:
            connection.sendall(HEAD + PICTURE)
            assert answers(connection) == 1
            asked = time.monotonic()
            connection.sendall(HEAD + PICTURE)
            assert answers(connection) == 1
            took.append(time.monotonic() - asked)
    assert statistics.median(took) < seconds(0.3)


def test_what_is_sent_before_the_answer_came_waits_and_costs_nothing(
    here: Gateway, kept: socket.socket, pause: dict[str, float]
) -> None:
    pause["model"] = 1.0
    kept.sendall(HEAD + PICTURE)
    time.sleep(0.2)
    kept.sendall(HEAD + PICTURE[:100])
    before = processor_seconds(here)
    time.sleep(0.6)
    assert processor_seconds(here) - before < 0.2, "told of it again and again, it would take all of a core"
    assert answers(kept) == 1
    kept.sendall(PICTURE[100:])
    assert answers(kept) == 1


def test_answers_that_are_taken_slowly_come_in_full_and_in_order(here: Gateway) -> None:
    """Many requests at once: when the rest of an answer has gone out, the next request is there already."""
    count, ask = 150, b"GET /docs HTTP/1.1\r\nHost: here\r\n"
    whole = here.get("/docs").body
    for _ in range(2):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect(("127.0.0.1", here.port))
            connection.sendall((ask + b"\r\n") * (count - 1) + ask + b"Connection: close\r\n\r\n")
            time.sleep(0.5)
            data = b"".join(iter(lambda: connection.recv(65536), b""))
            assert data.count(b"HTTP/1.1 200 OK") == data.count(whole[-2000:]) == count


def test_many_sent_at_once_one_by_one_are_never_too_many(here: Gateway) -> None:
    """One client on one connection, at one request at a time, while probes keep the loop busy."""
    with meanwhile(lambda: here.get("/healthz"), threads=6):
        for _ in range(12):
            with socket.create_connection(("127.0.0.1", here.port), timeout=60) as connection:
                ask = b"GET /page/icon.svg HTTP/1.1\r\nHost: here\r\n"
                connection.sendall((ask + b"\r\n") * 39 + ask + b"Connection: close\r\n\r\n")
                data = b"".join(iter(lambda: connection.recv(65536), b""))
            assert data.count(b"HTTP/1.1 200 OK") == 40, data[-400:]


def test_who_closes_his_own_end_meanwhile_still_has_his_answer(kept: socket.socket, pause: dict[str, float]) -> None:
    pause["model"] = 0.3
    kept.sendall(HEAD + PICTURE)
    time.sleep(0.1)
    kept.shutdown(socket.SHUT_WR)
    assert answers(kept) == 1
    assert kept.recv(100) == b""


def test_who_hangs_up_meanwhile_leaves_nothing_behind(here: Gateway, pause: dict[str, float]) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{here.workers()[0]}/fd").iterdir()))

    until(lambda: descriptors() == descriptors(), "rest")
    before = descriptors()
    pause["model"] = 0.05
    for _ in range(10):
        connection = socket.create_connection(("127.0.0.1", here.port), timeout=60)
        for last in (False, True):
            connection.sendall(HEAD + PICTURE)
            if not last:
                connection.recv(65536)
        time.sleep(0.02)
        connection.close()
        time.sleep(0.08)
    until(lambda: descriptors() <= before, "its descriptors")


def processor_seconds(here: Gateway) -> float:
    fields = Path(f"/proc/{here.workers()[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
