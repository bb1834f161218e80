"""Test `test.py --load`, the quick load check, against real gateways: what it counts, what it draws, how it ends."""

from __future__ import annotations

import os
import pty
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loupe.gateway.access.keys import digest_of
from tests.support.backends import backend
from tests.support.gateways import Gateway, gateway
from tests.support.pace import seconds
from tests.support.servers import ROOT, free_port, until

ROW = re.compile(r"^ *[\d.]+ m?s [–-] [\d.]+ m?s +([\d,]+)  ", re.MULTILINE)
ANSWER = b'{"label": "cracked", "timings_ms": {"fetch": 0, "decode": 1, "model": 2}}'


def command(port: int, *arguments: str) -> list[str]:
    return [sys.executable, "test.py", "--url", f"http://127.0.0.1:{port}", *arguments]


def load(port: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run(
        command(port, *arguments), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60
    )


@contextmanager
def loading(port: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(port, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


@contextmanager
def served(behave: object = None, **settings: str) -> Iterator[tuple[Gateway, list[float]]]:
    """A gateway, and a list that grows by one with each picture that reaches the model."""
    assert behave is None or callable(behave)
    with (
        backend(lambda call, _: behave(call) if behave else None) as behind,
        gateway(f"localhost:{behind.port}", **settings) as here,
    ):
        yield here, behind.remaining


@contextmanager
def site(status: int = 200, body: bytes = ANSWER, closes: bool = False) -> Iterator[tuple[int, list[str]]]:
    """A server that gives every picture the same answer, and a list of the connections that were made to it."""
    connections: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            connections.append(str(self.client_address))
            super().setup()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = closes

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, connections
    finally:
        server.shutdown()
        server.server_close()


def count(name: str, text: str) -> int:
    match = re.search(rf"^{name} +([\d,]+)", text, re.MULTILINE)
    return int(match[1].replace(",", "")) if match else 0


def answered(text: str) -> int:
    match = re.match(r"([\d,]+) of [\d,]+ answered", text)
    assert match, text
    return int(match[1].replace(",", ""))


def drawn(text: str) -> int:
    return sum(int(number.replace(",", "")) for number in ROW.findall(text))


def test_two_hundred_pictures_are_answered_counted_and_drawn_in_80_columns() -> None:
    with served(lambda call: time.sleep(0.01 if call % 20 else 0.2)) as (here, asked):
        done = load(here.port, "--load", "200")
        assert (done.returncode, len(asked)) == (0, 200), done.stdout
    assert done.stdout.startswith("200 of 200 answered in ")
    assert re.search(r", 8 at once: [\d.]+ a second\n", done.stdout)
    assert re.search(r"^latency +p50 .+ p90 .+ p99 .+ worst .+s$", done.stdout, re.MULTILINE)
    assert re.search(r"^of that +fetch .+ decode .+ model .+ \(medians\)$", done.stdout, re.MULTILINE)
    assert drawn(done.stdout) == 200
    assert "◂ p50" in done.stdout
    assert "◂ p99" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == "", "no terminal: no line that counts"


def test_connections_stay_open() -> None:
    with site() as (port, connections):
        done = load(port, "--load", "60", "--at-once", "3")
        assert done.returncode == 0, done.stdout
        assert len(connections) == 3


def test_a_connection_that_was_closed_meanwhile_is_made_anew() -> None:
    """As servers do with connections that were silent for too long, without a word."""
    with site(closes=True) as (port, connections):
        done = load(port, "--load", "20", "--at-once", "2")
        assert (done.returncode, len(connections)) == (0, 20), done.stdout


def test_what_a_full_gateway_refuses_is_counted_and_waits_as_it_is_told() -> None:
    began = time.monotonic()
    with served(lambda _: time.sleep(0.2), LOUPE_THREADS="1", LOUPE_MAX_WAIT="0.05") as (here, asked):
        done = load(here.port, "--load", "24")
        refused = count("refused", done.stdout)
        assert done.returncode == 1
        assert refused >= 7, "of the first eight all but one"
        assert (answered(done.stdout), count("failed", done.stdout)) == (24 - refused, 0)
        assert len(asked) == 24 - refused, "nothing is sent twice"
    assert time.monotonic() - began > 1, "Retry-After: 1"
    assert drawn(done.stdout) == 24 - refused


def test_a_gateway_that_goes_away_is_given_up_and_what_was_answered_is_shown() -> None:
    with served(lambda _: time.sleep(0.02)) as (here, asked), loading(here.port, "--load", "100000") as process:
        until(lambda: len(asked) > 50, "answers")
        workers = here.workers()
        here.process.kill()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (1, "")
        assert answered(stdout) == drawn(stdout) > 0
        assert re.search(r"^ +\d+ x Connection refused$", stdout, re.MULTILINE)
        assert re.search(r"^not done +[\d,]+: given up after \d+ failures in a row$", stdout, re.MULTILINE)


def test_nobody_there_is_said() -> None:
    done = load(free_port(), "--load", "3", "--at-once", "1")
    assert done.returncode == 1
    assert done.stdout.startswith("0 of 3 answered")
    assert "3 x Connection refused" in done.stdout


def test_ctrl_c_shows_what_there_is_so_far() -> None:
    with served(lambda _: time.sleep(0.02)) as (here, asked), loading(here.port, "--load", "100000") as process:
        until(lambda: len(asked) > 50, "answers")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stderr) == (130, "")
        assert answered(stdout) == drawn(stdout) > 0
        assert re.search(r"^not done +[\d,]+: interrupted$", stdout, re.MULTILINE)
        assert count("failed", stdout) == 0


def test_ctrl_c_does_not_wait_for_answers_that_never_come_nor_asks_again() -> None:
    over = threading.Event()
    with served(lambda call: call > 8 and over.wait(60), LOUPE_MODEL_TIMEOUT="60") as (here, asked):
        try:
            with loading(here.port, "--load", "100") as process:
                until(lambda: len(asked) == 16, "all connections to wait for their second answer")
                process.send_signal(signal.SIGINT)
                stdout, stderr = process.communicate(timeout=20)  # an answer would take 60 s
        finally:
            over.set()
        assert len(asked) == 16
    assert (process.returncode, stderr) == (130, "")
    assert answered(stdout) == 8


def test_it_ends_when_its_time_is_over() -> None:
    with site() as (port, _):
        done = load(port, "--load", "100000", "--for", "0.5")
    assert done.returncode == 1
    assert "the 0.5 s of --for are over" in done.stdout
    assert 0 < answered(done.stdout) < 100_000


def test_a_gateway_that_never_answers_is_waited_for_no_longer_than_was_said() -> None:
    over = threading.Event()
    with served(lambda _: over.wait(60), LOUPE_MODEL_TIMEOUT="60") as (here, _):
        try:
            done = load(here.port, "--load", "4", "--timeout", "0.5")
        finally:
            over.set()
    assert done.returncode == 1
    assert "4 x no answer within 0.5 s" in done.stdout


def test_reasons_are_grouped_the_commonest_first_and_harmless(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"this is no picture")
    good = str(ROOT / "data" / "samples" / "cracked-1.jpg")
    pictures = [good, *[str(tmp_path / "bad.jpg")] * 2, "http://127.0.0.1:1/tire.jpg"]
    with served() as (here, _):
        done = load(here.port, "--load", "8", *pictures)
    assert done.returncode == 1
    assert (answered(done.stdout), count("failed", done.stdout)) == (2, 6)
    assert re.findall(r"^ +(\d) x (\d+) ", done.stdout, re.MULTILINE) == [("4", "422"), ("2", "400")]
    with site(500, b'{"detail": "\\u001b[2J' + b"x" * 500 + b'"}') as (port, _):
        done = load(port, "--load", "4")
    assert "4 x 500 ?[2Jxx" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_what_is_no_gateway_is_said() -> None:
    with site(body=b"<html>") as (port, _):
        done = load(port, "--load", "4")
    assert done.returncode == 1
    assert "4 x the answer is not one of a Loupe gateway" in done.stdout


def test_a_picture_that_cannot_be_read_is_said_before_anything_is_sent() -> None:
    with site() as (port, connections):
        done = load(port, "--load", "4", "no-such.jpg")
        assert (done.returncode, done.stdout, connections) == (1, "", [])
    assert "cannot be read" in done.stderr


def test_a_terminal_sees_it_count_and_the_line_is_gone_afterwards() -> None:
    ours, theirs = pty.openpty()
    with site() as (port, _):
        words = command(port, "--load", "100000", "--for", "0.5")
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True)
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # how a terminal ends
            while data := os.read(ours, 4096):
                seen += data
        process.communicate(timeout=60)
    os.close(ours)
    *lines, blank, _ = [line.rstrip() for line in seen.decode().split("\r")]
    assert re.fullmatch(r"[\d,]+ of 100,000   \d+ a second", lines[-1])
    assert blank == ""
    assert max(len(line) for line in seen.decode().split("\r")) < 80


def test_where_blocks_cannot_be_shown_it_is_drawn_in_ascii() -> None:
    with site() as (port, _):
        done = load(port, "--load", "20", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert drawn(done.stdout) == 20
    assert re.search(r"#+ < .*p50", done.stdout)


def test_a_key_is_sent_and_never_printed(tmp_path: Path) -> None:
    key = "loupe_" + "k" * 43
    (tmp_path / "keys.txt").write_text(f"anne:{digest_of(key)}\n")
    with served(LOUPE_API_KEYS=str(tmp_path / "keys.txt")) as (here, _):
        without = load(here.port, "--load", "4")
        assert without.returncode == 1
        assert "4 x 401 " in without.stdout
        smoke = load(here.port, "--key", key, "data/samples/cracked-1.jpg")
        done = load(here.port, "--key", key, "--load", "4")
        malformed = load(here.port, "--key", f"{key}\nX-Other: 1", "--load", "4")
    assert (smoke.returncode, done.returncode, malformed.returncode) == (0, 0, 2), smoke.stderr + done.stdout
    for outcome in (smoke, done, malformed):
        assert key not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--load", "0"), "from 1 to 100,000, not '0'"),
        (("--load", "100001"), "from 1 to 100,000, not '100001'"),
        (("--load", "9", "--at-once", "65"), "from 1 to 64, not '65'"),
        (("--load", "9", "--timeout", "nan"), "not 'nan'"),
        (("--url", "localhost:9696"), "http://HOST:PORT or https://HOST, not 'localhost:9696'"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_a_reason(flags: tuple[str, ...], said: str) -> None:
    done = load(1, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("low", "high"), [(1, 30_000), (0.05, 0.2), (12, 40), (100, 100), (1000, 1300), (0, 0), (29_000, 31_000), (3, 3.01)]
)
def test_the_rows_hold_every_latency_and_tell_their_limits_apart(low: float, high: float) -> None:
    values = [low + (high - low) * (index / 99) ** 3 for index in range(100)]
    rows = runpy.run_path(str(ROOT / "test.py"))["histogram"](values, {"p50": values[49], "p99": values[98]})
    assert 1 <= len(rows) <= 16
    assert drawn("\n".join(rows)) == 100
    ranges = [row.split("–")[0].strip() for row in rows]
    assert len(set(ranges)) == len(ranges)
    assert sum("p50" in row for row in rows) == sum("p99" in row for row in rows) == 1
    assert max(map(len, rows)) <= 80


@pytest.mark.timing
def test_it_sends_quickly_enough_to_measure_a_gateway() -> None:
    """It is to show what the gateway takes, not what it takes itself."""
    with site() as (port, _):
        done = load(port, "--load", "400")
    match = re.search(r"answered in ([\d.]+) s", done.stdout)
    assert match
    assert float(match[1]) < seconds(4)
