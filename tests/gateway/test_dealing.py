"""Connections are dealt out evenly among a gateway's workers, and none waits for a worker that does not take it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.backends import backend
from tests.support.gateways import Gateway, connect, gateway
from tests.support.servers import until

ASK = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture
def here() -> Iterator[Gateway]:
    with (
        backend(lambda call, context: None) as behind,
        gateway(f"localhost:{behind.port}", LOUPE_WORKERS="2") as started,
    ):
        until(lambda: started.get("/readyz").status == 200, "the gateway to be ready")
        until(lambda: both_listen(started), "both workers")
        yield started


def both_listen(here: Gateway) -> bool:
    with ExitStack() as both:
        assert all(is_alive(both.enter_context(connect(here))) for _ in range(2))
        return held(here) == [1, 1]


def held(here: Gateway) -> list[int]:
    """Return how many connections each worker has."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{here.port:04X}") and row[3] == "01"}
    return sorted(sum(link in ours for link in links(worker)) for worker in here.workers())


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
