"""Connections are dealt out evenly among a gateway's workers, go where less is to be done, and none waits for a worker
that does not take it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import backend
from tests.support.gateways import Gateway, connect, gateway
from tests.support.pictures import encoded
from tests.support.servers import until

ASK = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"
PICTURE = encoded()
THREADS = 4
ENDLESS = b"POST /predict HTTP/1.1\r\nHost: here\r\nX-Request-ID: endless\r\nContent-Length: %d\r\n\r\n%s"


@pytest.fixture
def here() -> Iterator[Gateway]:
    """Its model answers at once, but to requests of the id `endless`."""
    over = threading.Event()

    def behave(call: int, context: Any) -> None:
        if ("x-request-id", "endless") in context.invocation_metadata():
            over.wait(60)

    with (
        backend(behave, threads=4 * THREADS) as behind,
        gateway(
            f"localhost:{behind.port}", LOUPE_WORKERS="2", LOUPE_THREADS=str(THREADS), LOUPE_MAX_WAIT="1"
        ) as started,
    ):
        until(lambda: started.get("/readyz").status == 200, "the gateway to be ready")
        until(lambda: both_listen(started), "both workers")
        yield started
        over.set()


def both_listen(here: Gateway) -> bool:
    with ExitStack() as both:
        assert all(is_alive(both.enter_context(connect(here))) for _ in range(2))
        return held(here) == [1, 1]


def held(here: Gateway) -> list[int]:
    """Return how many connections each worker has."""
    return sorted(map(len, ports(here).values()))


def ports(here: Gateway) -> dict[int, set[int]]:
    """Return by each worker's process id from which ports its clients are connected."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {
        f"socket:[{row[9]}]": int(row[2].rpartition(":")[2], 16)
        for row in rows
        if row[1].endswith(f":{here.port:04X}") and row[3] == "01"
    }
    return {worker: {ours[link] for link in links(worker) if link in ours} for worker in here.workers()}


def links(process: int) -> Iterator[str]:
    for file in Path(f"/proc/{process}/fd").iterdir():
        try:
            yield str(file.readlink())
        except FileNotFoundError:
            continue


def is_alive(connection: socket.socket) -> bool:
    connection.sendall(ASK)
    return connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.timing
@pytest.mark.parametrize("count", [16, 33])
def test_callers_that_come_at_once_are_dealt_out_evenly(here: Gateway, count: int) -> None:
    until(lambda: sum(held(here)) == 0, "no connection to be left")
    with ExitStack() as all_of_them:
        connections = [all_of_them.enter_context(connect(here)) for _ in range(count)]
        assert all(is_alive(connection) for connection in connections)
        fewer, more = held(here)
        assert fewer + more == count
        assert fewer >= count // 4, "on a busy machine some are not taken in time"


def test_a_worker_that_takes_no_connection_keeps_none_waiting(here: Gateway) -> None:
    """Stopped, it has the fewest, and the other knows."""
    stuck, other = here.workers()
    with ExitStack() as all_of_them:
        while held(here)[0] < 3:
            assert is_alive(all_of_them.enter_context(connect(here)))
        os.kill(stuck, signal.SIGSTOP)
        try:
            for _ in range(20):
                assert is_alive(all_of_them.enter_context(connect(here)))
        finally:
            os.kill(stuck, signal.SIGCONT)
        assert here.workers() == [stuck, other]


@pytest.mark.timing
def test_who_comes_has_the_worker_that_is_free_though_many_are_silent_there(here: Gateway) -> None:
    """Silent connections are dealt out evenly. Then those of one worker ask for what never ends, and some close."""
    with ExitStack() as all_of_them:
        connections = {}
        while held(here)[0] <= THREADS + 2:
            connection = all_of_them.enter_context(connect(here))
            connections[connection.getsockname()[1]] = connection
        busy, _ = here.workers()
        waiting, closing = sorted(ports(here)[busy])[: THREADS + 1], sorted(ports(here)[busy])[THREADS + 1 :]
        for port in waiting:
            connections[port].sendall(ENDLESS % (len(PICTURE), PICTURE))
        for port in closing:
            connections[port].close()
        until(lambda: len(ports(here)[busy]) == len(waiting), "the others to be closed")
        time.sleep(0.5)
        statuses: Counter[int] = Counter()
        for _ in range(40):
            statuses[here.post("/predict", PICTURE, "image/jpeg").status] += 1
            time.sleep(0.05)
        assert statuses == {200: 40}
