"""What the door adds to uvicorn, each pitfall caused: raw sockets against a gateway under gunicorn."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.backends import Backend, backend
from tests.support.gateways import Gateway, connect, form, gateway, running
from tests.support.hostile_pictures import scanned
from tests.support.pace import seconds
from tests.support.pictures import encoded
from tests.support.servers import ROOT, free_port, meanwhile, until

PICTURE = encoded()
PROMPT = 0.5  # seconds for a probe, whatever else comes
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
TINY = CHUNKED + b"1\r\nx\r\n" * 99_000
AT_ONCE = "0.05"  # LOUPE_MAX_WAIT: where all threads are taken, the next is refused
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def behind() -> Iterator[Backend]:
    with backend(lambda *_: None) as started:
        yield started


@pytest.fixture(scope="module")
def here(behind: Backend) -> Iterator[Gateway]:
    with gateway(f"localhost:{behind.port}", LOUPE_READ_TIMEOUT="2") as started:
        yield started


@pytest.fixture(autouse=True)
def the_worker_lives(request: pytest.FixtureRequest) -> Iterator[None]:
    if "here" not in request.fixturenames:
        yield
        return
    here: Gateway = request.getfixturevalue("here")
    before = here.workers()
    yield
    assert here.workers() == before
    assert "Traceback" not in here.log.read_text()


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer on a connection that stays open."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def post(length: int, *headers: bytes) -> bytes:
    lines = [b"POST /predict HTTP/1.1", b"Host: h", b"Content-Type: image/jpeg", b"Content-Length: %d" % length]
    return b"\r\n".join([*lines, *headers, b"", b""])


def resident(here: Gateway) -> int:
    (worker,) = here.workers()
    return int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def probed(here: Gateway, within: float = PROMPT) -> Iterator[None]:
    """/healthz is asked all the while, and answered in time."""
    took: list[float] = []

    def probe() -> None:
        asked = time.monotonic()
        assert here.get("/healthz").status == 200
        took.append(time.monotonic() - asked)
        time.sleep(0.02)

    with meanwhile(probe):
        yield
    print(f"/healthz: {max(took):.3f} s at most, of {len(took)}")
    assert max(took) < seconds(within)


@contextmanager
def busy(max_wait: str = AT_ONCE) -> Iterator[tuple[Gateway, Backend, Callable[[], None]]]:
    """A gateway whose one thread is taken until the third is called."""
    turn = threading.Event()
    with (
        backend(lambda *_: turn.wait(60)) as slow,
        gateway(f"localhost:{slow.port}", LOUPE_THREADS="1", LOUPE_MAX_WAIT=max_wait) as here,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(here.post, "/predict", PICTURE, "image/jpeg")
        until(lambda: len(slow.remaining) == 1, "the thread to be taken")

        def go_on() -> None:
            turn.set()
            assert first.result().status == 200

        yield here, slow, go_on


@contextmanager
def honest(here: Gateway) -> Iterator[None]:
    """Pictures are sent all the while, and all answered."""
    statuses: Counter[int] = Counter()

    def ask() -> None:
        statuses[here.post("/predict", PICTURE, "image/jpeg").status] += 1

    with meanwhile(ask):
        yield
    assert set(statuses) == {200}, statuses


# ------------------------------------------------------------------------------------------ for the sake of others


@pytest.mark.timing
@pytest.mark.parametrize("senders", [8, 40])
def test_bodies_of_tiny_chunks_hold_up_no_probe(here: Gateway, senders: int) -> None:
    """Hostile input 37."""

    def send() -> None:
        with suppress(OSError), connect(here, TINY) as connection:  # it may be cut while it is sending
            everything(connection)

    with probed(here), honest(here), ThreadPoolExecutor(senders) as pool:
        for future in [pool.submit(send) for _ in range(senders)]:
            future.result()


@pytest.mark.timing
def test_nor_do_hundreds_of_connections_that_begin_one_at_once(here: Gateway) -> None:
    """Hostile input 37."""
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(here)) for _ in range(300)]
        with probed(here):
            for connection in idle:
                connection.sendall(CHUNKED + b"1\r\nx\r\n" * 2700)
            time.sleep(0.5)


@pytest.mark.timing
def test_connections_that_send_nothing_put_no_upload_out(here: Gateway) -> None:
    """Hostile input 39: 1,220 of them, while an upload is half way."""
    with ExitStack() as stack:
        upload = stack.enter_context(connect(here, post(len(PICTURE), b"Connection: close") + PICTURE[:100]))
        with probed(here), honest(here):
            for _ in range(1220):
                stack.enter_context(connect(here))
                time.sleep(0.001)
        upload.sendall(PICTURE[100:])
        assert everything(upload).startswith(b"HTTP/1.1 200")


def test_of_too_many_connections_those_that_sent_nothing_go_first(behind: Backend) -> None:
    def some(count: int, data: bytes = b"") -> list[socket.socket]:
        """Connect so many, which have arrived when this returns."""
        made = [stack.enter_context(connect(here, data)) for _ in range(count)]
        time.sleep(0.3)
        return made

    ask = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
    with (
        gateway(f"localhost:{behind.port}", GUNICORN_CMD_ARGS="--worker-connections 30") as here,
        ExitStack() as stack,
    ):
        silent, idle, uploads = some(10), some(5, ask), some(15, post(len(PICTURE)) + PICTURE[:9])
        assert all(answer(connection)[0] == 200 for connection in idle)
        some(10)
        assert [connection.recv(1) for connection in silent] == [b""] * 10
        for connection in idle:
            connection.sendall(ask)
            assert answer(connection)[0] == 200
        some(15, post(len(PICTURE)) + PICTURE[:9])  # for them the ten go that are silent, and the idle ones
        assert [connection.recv(1) for connection in idle] == [b""] * 5
        some(1, post(9) + b"x")  # and for that one the upload that has been arriving longest
        assert b"HTTP/1.1 503" in everything(uploads[0])
        for connection in uploads[1:]:
            connection.sendall(PICTURE[9:])
            assert answer(connection)[0] == 200


def test_a_full_table_of_files_is_said_once_and_costs_nothing(behind: Backend, tmp_path: Path) -> None:
    """Hostile input 44."""
    port = free_port()
    own = {"TF_SERVING_HOST": f"localhost:{behind.port}", "LOUPE_PORT": str(port), "LOUPE_READ_TIMEOUT": "5"}
    command = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", sys.executable, "-m", "gunicorn", "gateway:app"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")}
    with running(command, ROOT, inherited | own, port) as here, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(here))
        before = processor_seconds(here)
        time.sleep(2)
        assert processor_seconds(here) - before < 0.5, "it does not try again and again"
        stack.close()
        until(lambda: here.post("/predict", PICTURE, "image/jpeg").status == 200, "a picture to be answered")
        log = here.log.read_text()
        assert log.count("raise `ulimit -n`") == 1 and "Traceback" not in log


def processor_seconds(here: Gateway) -> float:
    fields = Path(f"/proc/{here.workers()[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@pytest.mark.parametrize("behind_it", [b"", b"GET /model HTTP/1.1\r\nHost: h\r\n\r\n"])
@pytest.mark.parametrize("ends", ["close", "reset"])
def test_for_who_went_away_before_his_turn_nothing_is_decoded(ends: str, behind_it: bytes) -> None:
    """Hostile input 43: twenty wait for the one thread, and go."""
    with busy(max_wait="60") as (here, slow, go_on):
        waiting = [connect(here, post(len(PICTURE)) + PICTURE + behind_it) for _ in range(20)]
        time.sleep(0.5)
        for connection in waiting:
            leave(connection, ends)
        until(lambda: here.log.read_text().count('"client_gone"') == 20, "all to be missed")
        go_on()
        assert here.post("/predict", PICTURE, "image/jpeg").status == 200
        assert len(slow.remaining) == 2, "the model was asked for those two alone"


@pytest.mark.parametrize("ends", ["close", "reset"])
def test_for_who_goes_away_meanwhile_no_more_is_decoded(ends: str) -> None:
    """Hostile input 43: twenty pictures, each of half a second and more, and he goes while the first is decoded."""
    body, kind = form(*[scanned(24)] * 20)
    head = f"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    with backend(lambda *_: None) as behind, gateway(f"localhost:{behind.port}") as here:
        assert here.post("/predict", PICTURE, "image/jpeg").status == 200
        before = processor_seconds(here)
        connection = connect(here, head.encode() + body)
        until(lambda: processor_seconds(here) > before + 0.2, "the first to be decoded")
        leave(connection, ends)
        until(lambda: '"client_gone"' in here.log.read_text(), "him to be missed")
        print(f"{processor_seconds(here) - before:.1f} s of processor time")
        assert here.post("/predict", PICTURE, "image/jpeg").status == 200
        assert len(behind.remaining) == 2, "the model was asked for those two alone"
        assert "Traceback" not in here.log.read_text()


def leave(connection: socket.socket, ends: str) -> None:
    if ends == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


@pytest.mark.slow
def test_requests_sent_in_one_go_take_little_memory_until_their_turn(here: Gateway) -> None:
    """A request of 27 bytes weighs 2 kB once it is parsed."""
    asked = b"GET /healthz HTTP/1.1\r\n\r\n" * 20_000
    before = resident(here)
    with ExitStack() as stack:
        stubborn = []
        for _ in range(100):
            connection = stack.enter_context(connect(here))
            connection.setblocking(False)
            stubborn.append(connection)
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            for connection in stubborn:
                with suppress(OSError):
                    connection.send(asked)
            time.sleep(0.01)
        assert resident(here) - before < 200_000_000


# --------------------------------------------------------------------------------------------------- heads and bodies


@pytest.mark.timing
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("data", [b"\r\n", b"\r\n\r\nGE"])
def test_nothing_short_of_a_request_keeps_a_connection(here: Gateway, kept: bool, data: bytes) -> None:
    """uvicorn starts no clock before a head is whole, and stops the one that it has at any byte."""
    with connect(here) as connection:
        if kept:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert answer(connection)[0] == 200
        connection.sendall(data)
        started = time.monotonic()
        everything(connection)
        assert time.monotonic() - started < seconds(4), "LOUPE_READ_TIMEOUT is 2"


def test_a_name_with_an_underscore_is_nobodys_header(here: Gateway) -> None:
    """X_Request_ID would read as X-Request-ID in WSGI, though no proxy would strip it."""
    assert here.get("/model", **{"X_Request_ID": "mine"}).headers["X-Request-ID"] != "mine"
    assert here.get("/model", **{"X-Request-ID": "mine"}).headers["X-Request-ID"] == "mine"


def test_a_trailer_is_no_header(here: Gateway) -> None:
    body = b"%x\r\n%s\r\n0\r\nX-Request-ID: from-the-trailer\r\nX-Request-Timeout: 0.0001\r\n\r\n" % (
        len(PICTURE), PICTURE,
    )  # fmt: skip
    with connect(here, CHUNKED + body) as connection:
        status, found = answer(connection)
    assert status == 200 and b"from-the-trailer" not in found


@pytest.mark.parametrize(
    "lines",
    [
        b"Host: h\r\nHost: i", b"Host: h\r\nContent-Type: image/png\r\nContent-Type: image/jpeg",
        b"Host: h\r\nTransfer-Encoding: identity", b"Host: h\r\nTransfer-Encoding: chunked, gzip",
        b"Host: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Host: h\r\nContent-Length: 1, 1",
        b"Host: h\r\nContent-Length: +1", b"Host: h\r\n Content-Length: 1", b"Host: h\r\nContent-Length : 1",
        b"Host: h\r\nA: b\x00c", b"Host: h\nContent-Length: 1",
    ],
)  # fmt: skip
def test_what_two_servers_could_read_in_two_ways_is_refused(here: Gateway, lines: bytes) -> None:
    with connect(here, b"POST /predict HTTP/1.1\r\n" + lines + b"\r\n\r\n0\r\n\r\n") as connection:
        came = everything(connection)
    assert came.startswith(b"HTTP/1.1 400") and came.count(b"\r\n\r\n") == 1
    assert json.loads(came.partition(b"\r\n\r\n")[2])["code"] == "bad_request"


def test_a_client_that_goes_in_the_midst_of_a_bad_body_stops_no_other(here: Gateway) -> None:
    """Its refusal comes when it is gone, while others wait for their turn to be parsed."""
    for _ in range(5):
        connect(here, CHUNKED + b"1\r\nx\r\n" * 5000 + b"z\r\n").close()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in PICTURE)
    with connect(here, CHUNKED + chunks + b"0\r\n\r\n") as connection:
        assert answer(connection)[0] == 200


def test_a_trailer_without_an_end_costs_little(here: Gateway) -> None:
    """The parser adds each slice of it to what it has: nine megabytes took six seconds."""
    before = processor_seconds(here)
    with suppress(OSError), connect(here, CHUNKED + b"1\r\nx\r\n0\r\nX: " + b"a" * 9_000_000) as connection:
        assert answer(connection)[0] == 400
    assert processor_seconds(here) - before < 1


def test_a_length_with_many_zeros_before_it_is_read(here: Gateway) -> None:
    with connect(here, post(len(PICTURE)).replace(b"Length: ", b"Length: " + b"0" * 5000) + PICTURE) as connection:
        assert answer(connection)[0] == 200


@pytest.mark.parametrize("count", [3, 10, 100])
def test_who_closes_his_end_behind_many_requests_has_all_answers(here: Gateway, count: int) -> None:
    with connect(here, (post(len(PICTURE)) + PICTURE) * count) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection).count(b"HTTP/1.1 200") == count


def test_an_upload_behind_a_slow_request_has_all_of_its_time() -> None:
    """It could not be read meanwhile."""
    body = PICTURE + bytes(700_000)
    with (
        backend(lambda call, _: time.sleep(3 if call == 1 else 0)) as slow,
        gateway(f"localhost:{slow.port}", LOUPE_READ_TIMEOUT="2") as here,
        connect(here, post(len(PICTURE)) + PICTURE + post(len(body), b"Connection: close") + body) as connection,
    ):
        assert re.findall(rb"HTTP/1\.1 (\d+) ", everything(connection)) == [b"200", b"200"]


def test_what_is_refused_twice_is_recorded_once() -> None:
    """All places are taken, and the body is malformed."""
    with busy() as (here, _, go_on):
        for _ in range(10):
            with connect(here, CHUNKED + b"z\r\n") as connection:
                everything(connection)
        go_on()
        assert here.log.read_text().count('"message": "request"') == 11


def test_a_client_that_offers_another_protocol_is_answered_in_this_one(here: Gateway) -> None:
    """As Java's does with each first request; the parser would wait for the other protocol for ever."""
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA")
    with connect(here, post(len(PICTURE), *offer) + PICTURE) as connection:
        status, found = answer(connection)
    assert status == 200 and b'"label"' in found


def test_a_body_in_a_hundred_thousand_chunks_is_refused_and_one_in_many_is_read(here: Gateway) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in PICTURE)
    with connect(here, CHUNKED + chunks + b"0\r\n\r\n") as connection:
        assert answer(connection)[0] == 200
    with connect(here, CHUNKED + b"1\r\nx\r\n" * 110_000) as connection:
        status, found = answer(connection)
    assert status == 413 and b"too many pieces" in found


def test_who_sends_all_before_he_listens_still_reads_why_not() -> None:
    """A refusal comes before the body. Closed at once, most clients would see a reset in the midst of sending."""
    with busy() as (here, _, go_on):
        for size in (100, 1_000_000, 9_900_000):
            for _ in range(5):
                assert here.post("/predict", bytes(size), "image/jpeg").status == 503
        go_on()


def test_answers_before_it_go_out_before_a_refusal(here: Gateway) -> None:
    whole = post(len(PICTURE)) + PICTURE
    for bad, status in ((b"NONSENSE\r\n\r\n", b"400"), (post(99_999_999), b"413"), (CHUNKED + b"z\r\n", b"400")):
        with connect(here, whole * 3 + bad) as connection:
            answers = everything(connection)
        statuses = re.findall(rb"HTTP/1\.1 (\d+) ", answers)
        assert statuses == [b"200"] * 3 + [status], (bad, answers[-500:])


# ------------------------------------------------------------------------------------------------------------ the end


def test_a_worker_without_a_master_ends(behind: Backend) -> None:
    with gateway(f"localhost:{behind.port}") as here:
        (worker,) = here.workers()
        here.process.kill()
        until(lambda: not Path(f"/proc/{worker}/fd").exists(), "its end")


@pytest.mark.parametrize("after", [0.1, 0.4, 0.8])
def test_told_to_stop_before_it_serves_it_ends(after: float) -> None:
    command = [sys.executable, "-m", "gunicorn", "gateway:app"]
    own = {**os.environ, "LOUPE_PORT": str(free_port())}
    with subprocess.Popen(
        command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if "Booting worker" in line:
                break
        time.sleep(after)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stdout.read()


def test_told_twice_to_read_its_settings_again_it_goes_on(behind: Backend) -> None:
    with gateway(f"localhost:{behind.port}") as here:
        old = here.workers()
        here.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        here.process.send_signal(signal.SIGHUP)
        until(lambda: len(here.workers()) == 1 and here.workers() != old, "one new worker")
        assert here.post("/predict", PICTURE, "image/jpeg").status == 200
        here.process.send_signal(signal.SIGTERM)
        assert here.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_told_to_stop_at_once_it_waits_for_nobody(behind: Backend, number: signal.Signals) -> None:
    with gateway(f"localhost:{behind.port}") as here, connect(here, post(1000) + b"x"):
        here.process.send_signal(number)
        assert here.process.wait(20) == 0
        assert "Traceback" not in here.log.read_text()


def test_behind_a_balancer_that_listens_nobody_is_lost(behind: Backend) -> None:
    """Callers stop when /readyz says so, on connections that stay open, as a balancer's do."""
    counts: Counter[str] = Counter()
    with gateway(f"localhost:{behind.port}", LOUPE_DRAIN="1") as here:

        def call() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
            while True:
                try:
                    connection.request("GET", "/readyz")
                    if connection.getresponse().read().find(b"stopping") >= 0:
                        counts["told"] += 1
                        return
                    connection.request("POST", "/predict", PICTURE, {"Content-Type": "image/jpeg"})
                    counts["answered" if b'"label"' in connection.getresponse().read() else "lost"] += 1
                except OSError as error:
                    counts[f"lost: {error!r}"] += 1
                    return

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: counts["answered"] > 20, "some answers")
        here.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert here.process.wait(60) == 0
    assert set(counts) == {"answered", "told"} and counts["told"] == 4, counts


def test_the_app_runs_in_other_servers_too(behind: Backend) -> None:
    with gateway(f"localhost:{behind.port}", GUNICORN_CMD_ARGS="--worker-class gthread --threads 4") as here:
        assert here.post("/predict", PICTURE, "image/jpeg").json()["label"]
        assert here.get("/readyz").status == 200
