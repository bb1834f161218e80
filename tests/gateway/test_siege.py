"""Clients that hold on to what others need: connections, memory, answers not taken; and a gateway that is replaced."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.gateways import Gateway, connect, gateway, running
from tests.support.pace import seconds
from tests.support.pictures import encoded
from tests.support.servers import ROOT, ModelServer, free_port, meanwhile, until

PICTURE = encoded()
PROMPT = 1.0  # seconds that an orchestrator gives a probe


@pytest.fixture
def here(server: ModelServer) -> Iterator[Gateway]:
    with gateway(f"localhost:{server.port}", LOUPE_THREADS="2") as running:
        before = running.workers()
        yield running
        assert running.workers() == before
        assert "Traceback" not in running.log.read_text()


def served_promptly(here: Gateway, duration: float) -> None:
    ends = time.monotonic() + duration
    while time.monotonic() < ends:
        asked = time.monotonic()
        assert here.get("/healthz").status == 200
        assert here.get("/readyz").status == 200
        assert time.monotonic() - asked < seconds(PROMPT)
        assert here.post("/predict", PICTURE, "image/jpeg").status == 200


def test_connections_that_are_cut_for_others_may_have_something_to_say_just_then(here: Gateway) -> None:
    """The longest are cut where too many arrive; each writes and closes in the same moment."""
    with ExitStack() as stack:
        oldest = [stack.enter_context(connect(here)) for _ in range(500)]
        for _ in range(200):
            news = [stack.enter_context(socket.socket()) for _ in range(5)]
            for connection in news:
                connection.setblocking(False)
                connection.connect_ex(("127.0.0.1", here.port))
            for connection in oldest[:5]:
                with suppress(OSError):
                    connection.send(b"G")
                connection.close()
            oldest = oldest[5:] + news
            time.sleep(0.003)


@pytest.mark.timing
def test_more_connections_than_there_may_be_shut_nobody_out(server: ModelServer) -> None:
    """Some idle after an answer, some that never say a word, some refused and not closed."""
    with (
        gateway(f"localhost:{server.port}", GUNICORN_CMD_ARGS="--worker-connections 200") as here,
        ExitStack() as stack,
    ):
        for _ in range(100):
            stack.enter_context(connect(here, b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"))
            stack.enter_context(connect(here))
            stack.enter_context(connect(here, b"\x16\x03\x01abc"))
        served_promptly(here, 1.5)


def held(here: Gateway) -> int:
    """kB, of memory that is no file's."""
    lines = Path(f"/proc/{here.workers()[0]}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


@pytest.mark.parametrize("chunked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_connection_that_stays_open_keeps_nothing_of_its_last_request(here: Gateway, chunked: bool) -> None:
    body = PICTURE + bytes(9_000_000)
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\n{length}\r\n\r\n".encode()
    data = head + (b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n" if chunked else body)
    with ExitStack() as stack:
        for number in range(40):
            connection = stack.enter_context(connect(here, data))
            assert b" 200 OK" in connection.recv(65536)
            if number == 4:
                before = held(here)
        assert held(here) < before + 60_000, "kB; together they were 360,000"


@pytest.mark.parametrize(
    "path", ["/predict?top=x", *(pytest.param(path, marks=pytest.mark.slow) for path in ("/predict", "/nowhere"))]
)
def test_a_refusal_keeps_nothing_of_its_request(here: Gateway, path: str) -> None:
    """Errors know the frames that they came through, and those know the error."""
    spoilt = bytes(9_900_000)
    assert here.post(path, spoilt, "image/jpeg").status >= 400
    before = held(here)
    for _ in range(3):  # too few for Python's collector to find what only knows each other
        assert here.post(path, spoilt, "image/jpeg").status >= 400
    assert held(here) < before + 8_000


def test_unfinished_uploads_keep_no_others_out(here: Gateway) -> None:
    """Thirty of nearly ten megabytes, whose senders fall silent: more than may lie here unfinished."""
    head = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/jpeg\r\nContent-Length: 9999999\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(connect(here, head + bytes(9_999_000)))
        for size in (10_000, 300_000, 3_000_000):
            answer = here.post("/predict", PICTURE + bytes(size), "image/jpeg")
            assert answer.status == 200, answer.body
        assert here.log.read_text().count('"busy"') <= 5, "no more are cut than have to be"


@pytest.mark.parametrize("path", ["/docs", pytest.param("/healthz", marks=pytest.mark.slow)])
@pytest.mark.timing
def test_answers_that_nobody_takes_hold_no_thread(here: Gateway, path: str) -> None:
    """Requests one after the other on each connection, and not a byte of the answers read."""
    asked = f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode() * 400
    with ExitStack() as stack:
        stubborn = []
        for _ in range(8):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", here.port))
            connection.setblocking(False)
            stubborn.append(connection)

        def ask_on() -> None:
            for connection in stubborn:
                with suppress(OSError):
                    connection.send(asked)
            time.sleep(0.01)

        with meanwhile(ask_on):
            time.sleep(0.5)
            full = "the system's buffers to be full: until then they are served as anybody"
            until(lambda: here.post("/predict", PICTURE, "image/jpeg").status == 200, full)
            served_promptly(here, 1.5)


@pytest.mark.timing
def test_a_model_that_hangs_does_not_keep_the_word_that_this_lives_waiting() -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=64) as silent,
        gateway(f"localhost:{port_of(silent)}") as here,
        meanwhile(lambda: here.get("/readyz"), threads=20),
    ):
        for _ in range(10):
            asked = time.monotonic()
            assert here.get("/healthz").status == 200
            assert time.monotonic() - asked < seconds(PROMPT)
            time.sleep(0.1)


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def test_who_stops_half_way_does_not_keep_it_from_ending(server: ModelServer) -> None:
    """A request may take 30 seconds to arrive, and an orchestrator waits no longer before it kills."""
    with gateway(f"localhost:{server.port}") as here, connect(here, b"POST /predict HTTP/1.1\r\nContent-Le"):
        here.process.send_signal(signal.SIGTERM)
        assert here.process.wait(20) == 0


def test_one_that_takes_over_goes_on_listening_when_the_old_one_ends(server: ModelServer) -> None:
    """gunicorn's USR2: a new master with the same sockets, then the old one is told to stop."""
    with whole_gunicorn(server) as here:
        old = here.process.pid
        os.kill(old, signal.SIGUSR2)
        until(lambda: any(map(children, children(old))), "another master, and its worker")
        (new,) = [child for child in children(old) if children(child)]
        try:
            until(lambda: "Booting worker" in here.log.read_text().split("usr2")[-1], "its worker")
            time.sleep(1)
            os.kill(old, signal.SIGTERM)
            here.process.wait(60)
            for _ in range(5):
                assert here.get("/healthz").status == 200
        finally:
            os.kill(new, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{new}/fd").exists() or not children(new), "its end")


@pytest.mark.parametrize("given", ["by systemd", "by its number"])
def test_a_socket_that_another_process_keeps_is_heard_by_the_next(server: ModelServer, given: str) -> None:
    """It outlives the service: what ends must not make it deaf."""
    arguments, variables = (["--bind", "fd://3"], {}) if given == "by its number" else ([], {"LISTEN_FDS": "1"})
    gunicorn = (sys.executable, "-m", "gunicorn", "gateway:app")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as kept:
        port = port_of(kept)
        for _ in range(2):
            with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "log").open("wb") as out:
                process = subprocess.Popen(
                    ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *gunicorn, *arguments],
                    cwd=ROOT, stdout=out, stderr=out, preexec_fn=lambda: os.dup2(kept.fileno(), 3), pass_fds=(3,),
                    env=environment(server, port) | variables,
                )  # fmt: skip
                here = Gateway(process, port, Path(scratch) / "log")
                try:
                    assert here.get("/healthz").status == 200  # it waits in the socket until somebody listens
                finally:
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(60) == 0
                    socket.create_connection(("127.0.0.1", port), timeout=10).close()


def environment(server: ModelServer, port: int) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")}
    own = {"TF_SERVING_HOST": f"localhost:{server.port}", "MODEL_NAME": "tires", "LOUPE_PORT": str(port)}
    return inherited | own


@contextmanager
def whole_gunicorn(server: ModelServer) -> Iterator[Gateway]:
    """Started by its own command: it starts itself again by that."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("gunicorn")), "gateway:app"]
    with running(command, ROOT, environment(server, port), port) as here:
        yield here


def children(process: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []
