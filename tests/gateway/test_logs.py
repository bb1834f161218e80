"""The gateway's log: whatever is sent, each line is one JSON object, and each request has one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from loupe.gateway.observe.line_writer import MAX_QUEUED
from tests.support import models
from tests.support.backends import backend
from tests.support.gateways import Gateway, gateway, running
from tests.support.hostile import answers_in
from tests.support.pace import seconds
from tests.support.pictures import encoded
from tests.support.servers import ROOT, free_port, until

PICTURE = encoded()
HOSTILE_IDS = [
    b'"}\t{"forged": 1', b"\x1b[31mred", b"\xff\xfe\x80", b"a" * 5000, b"\xe2\x80\xa8", b"${jndi:ldap://x}",
    b"\\u000a{}",
]  # fmt: skip
HOSTILE_PATHS = [
    b"/%0A%7B%22message%22:%22request%22,%22status%22:200%7D", b"/%0d%0ax", b"/%00", b"/%ff%fe", b"/%E2%80%A8%C2%85",
    b"/\xff\xfe\xc3", b"/" + b"%0A" * 2000, b'/"\\', b"/%1b%5B2J", b"/?key=secret-in-the-query", b"http://evil/predict",
]  # fmt: skip
NO_REQUESTS = [
    b"\x16\x03\x01\x02\x00\n{}\n", b"{}\n{}\n\n", b"GET /\n\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET /%0A" + b"a" * 70_000, b'X"\\ / HTTP/1.1\r\nHost: a\r\n\r\n',
    b"POST /\x00 HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with backend(lambda *_: None, models.card(certain_at=0.9)) as behind:
        yield f"localhost:{behind.port}"


@pytest.fixture(scope="module")
def here(target: str) -> Iterator[Gateway]:
    with gateway(target, LOUPE_READ_TIMEOUT="2") as running:
        yield running


def lines(here: Gateway) -> list[dict[str, Any]]:
    """All of stdout and stderr; whatever is no JSON object alone on its line fails."""
    found = [json.loads(line) for line in here.log.read_bytes().split(b"\n")[:-1]]
    assert all(isinstance(line, dict) and line["time"] and line["level"] and line["message"] for line in found)
    return found


def requests(here: Gateway) -> list[dict[str, Any]]:
    return [line for line in lines(here) if line["message"] == "request"]


def send(here: Gateway, data: bytes) -> int:
    return int(talk(here, data).split()[1])


def talk(here: Gateway, data: bytes, *, end: bool = False) -> bytes:
    with socket.create_connection(("127.0.0.1", here.port), timeout=60) as connection:
        with suppress(OSError):
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
        came = b""
        while not answers_in(came) and (part := connection.recv(65536)):
            came += part
        return came


def last(here: Gateway, before: int) -> dict[str, Any]:
    """The line may come a moment after its answer."""
    until(lambda: len(requests(here)) > before, "the request's line")
    return requests(here)[-1]


def test_a_line_says_what_there_is_to_say_of_a_request(here: Gateway) -> None:
    before = len(requests(here))
    sent = {"X-Request-ID": "mine-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    assert here.post("/predict?heatmap=1", PICTURE, "image/jpeg", **sent).status == 200
    line = last(here, before)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    milliseconds = line.pop("ms")
    assert list(milliseconds)[-1] == "whole" and {"wait", "fetch", "decode", "model"} < set(milliseconds)
    assert milliseconds["whole"] >= milliseconds["model"] > 0
    assert line.pop("bytes_in") > len(PICTURE)
    assert line.pop("process") in here.workers()
    assert line == {
        "level": "info", "message": "request", "request_id": "mine-1", "trace_id": "a" * 32, "method": "POST",
        "path": "/predict", "status": 200, "client": "127.0.0.1", "pictures": 1, "labels": {"cracked": 1},
        "uncertain": 1, "version": 1,
    }  # fmt: skip


def test_nothing_that_a_caller_sends_breaks_or_forges_a_line(here: Gateway) -> None:
    before = len(requests(here))
    sent = [b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path for path in HOSTILE_PATHS]
    for text in HOSTILE_IDS:
        headers = b"".join(b"%s: %s\r\n" % (name, text) for name in (b"X-Request-ID", b"traceparent", b"User-Agent"))
        sent.append(b"GET /model?" + text[:5] + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + headers + b"\r\n")
    sent += NO_REQUESTS
    statuses = [send(here, data) for data in sent]
    until(lambda: len(requests(here)) >= before + len(sent), "a line for each")
    found = requests(here)[before:]
    assert Counter(line["status"] for line in found) == Counter(statuses)
    assert {200, 400, 404, 413, 431} <= set(statuses)
    assert all(line["code"] for line in found if line["status"] >= 400)
    log = here.log.read_bytes()
    assert b"secret-in-the-query" not in log and b"forged" not in log
    assert all(len(line) <= 4000 and line.isascii() and line.isprintable() for line in log.decode().splitlines())
    assert all(re.fullmatch(r"[\w.-]{1,64}", line["request_id"]) for line in found)


def test_a_sender_that_is_too_slow_has_its_line(here: Gateway) -> None:
    before = len(requests(here))
    assert send(here, b"POST /predict?secret HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123") == 408
    line = last(here, before)
    assert (line["method"], line["path"], line["code"]) == ("POST", "/predict", "request_timeout")
    assert line["ms"].keys() == {"arriving"} and line["ms"]["arriving"] >= 1900 and line["client"] == "127.0.0.1"


TRACE = "0af7651916cd43dd8448eb211c80319c"
NAMED = (
    b"Host: a\r\nx-request-ID:  mine-%d \t\r\n"
    b"TraceParent: 00-" + TRACE.encode() + b"-b7ad6b7169203331-01\r\nContent-Length: "
)


@pytest.mark.parametrize(
    "status, end, rest",
    [
        (413, False, b"99999999\r\n\r\n"),
        (408, False, b"9\r\n\r\n123"),
        (400, True, b"9\r\n\r\n123"),  # broken off
        (400, False, b"3\r\nContent-Length: 4\r\n\r\n123"),  # two lengths
        (431, False, b"3\r\nX: " + b"x" * 10_000 + b"\r\n\r\n123"),
    ],
)
def test_what_the_front_refuses_keeps_the_name_that_its_caller_gave(
    here: Gateway, status: int, end: bool, rest: bytes
) -> None:
    before = len(requests(here))
    answer = talk(here, b"POST /predict?secret HTTP/1.1\r\n" + NAMED % status + rest, end=end)
    assert answer.split()[1] == str(status).encode()
    assert b"\r\nx-request-id: mine-%d\r\n" % status in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["request_id"] == f"mine-{status}"
    line = last(here, before)
    assert (line["request_id"], line["trace_id"]) == (f"mine-{status}", TRACE)
    assert (line["method"], line["path"], line["status"]) == ("POST", "/predict", status)


def test_so_does_what_is_refused_because_all_is_busy() -> None:
    turn = threading.Event()
    with (
        backend(lambda *_: turn.wait(60), models.card()) as behind,
        gateway(f"localhost:{behind.port}", LOUPE_WORKERS="1", LOUPE_THREADS="1", LOUPE_MAX_WAIT="0.05") as here,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(here.post, "/predict", PICTURE, "image/jpeg")
        until(lambda: len(behind.remaining) == 1, "the model to be asked")
        answer = talk(here, b"POST /predict HTTP/1.1\r\n" + NAMED % 503 + b"3\r\n\r\n123")
        turn.set()
        assert waiting.result().status == 200
        assert b" 503 " in answer and b"\r\nx-request-id: mine-503\r\n" in answer
        until(lambda: '"busy"' in here.log.read_text(), "its line")
        line = next(line for line in requests(here) if line["status"] == 503)
    assert (line["request_id"], line["trace_id"], list(line["ms"])) == ("mine-503", TRACE, ["arriving"])


@pytest.mark.parametrize(
    "data, status, method, path",
    [
        (b"GET /" + b"x" * 70_000, 431, "GET", "/" + "x" * 299),
        (b"GET /a?" + b"secret" * 12_000, 431, "GET", "/a"),
        (b"GET /" + b"y" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "GET", "/" + "y" * 299),
        (b"GET /\n\nX-Request-ID: mine-0\r\n\r\n", 400, "GET", "/"),
        (b"POST /predict HTTP/1.1\r\nX-Request-ID: mine-0 x\r\nContent-Le", 400, "POST", "/predict"),
        (b"POST /predict HTTP/1.1\r\nX-Request-ID: mine-0\r\nX-Request-ID: b\r\nContent-Length: 9\r\n\r\n", 400, "POST",
         "/predict"),
        (b"POST /predict HTTP/1.1\r\nX-Request-ID: mine-0 x\r\nContent-Length: 9\r\n\r\n", 400, "POST", "/predict"),
        (b"\x16\x03\x01\r\nX-Request-ID: mine-0\r\n\r\n", 400, "", ""),
    ],
)  # fmt: skip
def test_of_half_a_head_what_came_whole_is_believed(
    here: Gateway, data: bytes, status: int, method: str, path: str
) -> None:
    before = len(requests(here))
    assert talk(here, data, end=True).split()[1] == str(status).encode()
    line = last(here, before)
    assert (line["method"], line["path"]) == (method, path)
    assert re.fullmatch("[0-9a-f]{32}", line["request_id"]) and "trace_id" not in line
    assert "secret" not in here.log.read_text()


def test_probes_are_logged_only_when_they_fail() -> None:
    with gateway(f"localhost:{free_port()}") as here:
        for _ in range(5):
            assert here.get("/healthz").status == 200
        assert here.get("/readyz").status == 503
        line = last(here, 0)
        assert [one["path"] for one in requests(here)] == ["/readyz"]
        assert (line["level"], line["code"]) == ("warning", "model_unavailable")


def test_what_gunicorn_says_and_what_is_printed_is_json_too(target: str) -> None:
    with gateway(target) as here:
        os.kill(here.workers()[0], signal.SIGKILL)
        until(lambda: "SIGKILL" in here.log.read_text(), "gunicorn to say so")
        here.process.terminate()
        here.process.wait(60)
        said = {line["logger"] for line in lines(here)}
        assert said == {"gunicorn.error"}


def test_an_unexpected_exception_is_one_line_with_its_traceback_and_request(target: str, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(
        "import warnings\nfrom gateway import app\n\n\n@app.get('/boom')\ndef boom():\n"
        "    print('printed\\nin two lines')\n    warnings.warn('warned')\n    raise RuntimeError('one\\n{}\\ntwo')\n"
    )
    port = free_port()
    environment = {**os.environ, "TF_SERVING_HOST": target, "LOUPE_PORT": str(port), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "faulty:app"]
    with running(command, ROOT, environment, port) as here:
        answer = here.get("/boom", **{"X-Request-ID": "the-one"})
        assert (answer.status, answer.json()["code"]) == (500, "internal_error")
        until(lambda: requests(here), "its line")
        found = {line["message"]: line for line in lines(here)}
        error = next(line for line in lines(here) if "traceback" in line)
        assert (error["level"], error["request_id"]) == ("error", "the-one")
        assert error["traceback"].endswith("RuntimeError: one\n{}\ntwo") and "in boom" in error["traceback"]
        assert {"printed", "in two lines"} < set(found)
        assert (found["request"]["level"], found["request"]["code"]) == ("error", "internal_error")


def test_as_text_the_lines_are_short_and_as_harmless(target: str) -> None:
    with gateway(target, LOUPE_LOG_FORMAT="text") as here:
        assert here.post("/predict", PICTURE, "image/jpeg").status == 200
        assert send(here, b"GET /%1b%5B2J%0aforged HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") == 404
        until(lambda: "not_found" in here.log.read_text(), "both lines")
        found = here.log.read_text().split("\n")[:-1]
    assert all(line.isprintable() for line in found)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d 200 POST /predict \(wait .*model \d+, whole \d+ ms\) cracked version 1", found[-2]
    )
    assert re.fullmatch(r"\d\d:\d\d:\d\d 404 GET /\\x1b\[2J\\nforged \(.*\) not_found", found[-1])


# ------------------------------------------------------------------------------------------- a log that nobody reads


@contextmanager
def gateway_on_a_pipe(target: str, folder: Path, **settings: str) -> Iterator[tuple[Gateway, IO[bytes]]]:
    """A gateway whose stdout and stderr are one pipe, which is read by the test or by nobody."""
    reader, writer = os.pipe()
    port = free_port()
    environment = {**os.environ, "TF_SERVING_HOST": target, "LOUPE_PORT": str(port), **settings}
    command = [sys.executable, "-m", "gunicorn", "gateway:app"]
    with os.fdopen(reader, "rb") as pipe:
        try:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=writer, stderr=writer)
        finally:
            os.close(writer)
        here = Gateway(process, port, folder / "log")
        try:
            until(lambda: answers(here), "the gateway")
            yield here, pipe
        finally:
            process.kill()
            process.wait(60)


def answers(here: Gateway) -> bool:
    with suppress(OSError):
        return here.get("/healthz").status == 200
    return False


def dropped_lines(port: int) -> float:
    text = Gateway(None, port, None).get("/metrics").body.decode()  # type: ignore[arg-type]
    return float(re.findall(r"^loupe_log_lines_dropped_total (\S+)$", text, re.MULTILINE)[0])


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_log_that_nobody_reads_holds_up_no_answer_and_says_later_what_is_missing(
    target: str, tmp_path: Path, format: str
) -> None:
    """Hostile input 46."""
    metrics_port = free_port()
    settings = {"LOUPE_METRICS_PORT": str(metrics_port), "LOUPE_LOG_FORMAT": format}
    with gateway_on_a_pipe(target, tmp_path, **settings) as (here, pipe):
        # More requests than pipe and queue have room for.
        sent = 0
        while not dropped_lines(metrics_port):
            assert sent < 20 * MAX_QUEUED, "nothing is dropped"
            for _ in range(100):
                assert here.get(f"/request-{sent}.").status == 404
                sent += 1
        assert here.post("/predict", PICTURE, "image/jpeg").status == 200
        assert here.get("/boom").status == 404
        dropped = int(dropped_lines(metrics_port))
        # Once it is read, it has each line whole and in order up to the gap, whose length it tells.
        log = [pipe.readline()]
        while b"of the log are missing here" not in log[-1]:
            log.append(pipe.readline())
        numbers = [int(found[1]) for found in re.finditer(rb"/request-(\d+)\.", b"".join(log))]
        assert numbers == list(range(len(numbers))) and len(numbers) > MAX_QUEUED
        assert re.search(rb"(\d+) lines of the log are missing here", log[-1])[1] == b"%d" % dropped  # type: ignore[index]
        assert len(numbers) + dropped == sent + 2
        if format == "json":
            assert all(json.loads(line)["message"] for line in log)
        # And it goes on.
        assert here.get("/afterwards").status == 404
        while b"/afterwards" not in log[-1]:
            log.append(pipe.readline())
        assert b"".join(log).count(b"are missing here") == 1
        assert int(dropped_lines(metrics_port)) == dropped


def test_what_waits_to_be_written_is_written_at_the_end(target: str, tmp_path: Path) -> None:
    with gateway_on_a_pipe(target, tmp_path) as (here, pipe):
        for number in range(600):  # more than the pipe has room for
            assert here.get(f"/request-{number}.").status == 404
        here.process.terminate()
        log = pipe.read().decode()
        assert here.process.wait(60) == 0
    assert re.findall(r"/request-(\d+)\.", log) == [str(number) for number in range(600)]
    assert "Shutting down: Master" in log


@pytest.mark.timing
def test_a_log_that_nobody_reads_holds_up_no_end(target: str, tmp_path: Path) -> None:
    with gateway_on_a_pipe(target, tmp_path) as (here, _):
        for number in range(600):
            assert here.get(f"/request-{number}.").status == 404
        here.process.terminate()
        assert here.process.wait(seconds(12)) == 0, "gunicorn would wait 30 seconds"


def test_a_reader_that_went_away_is_no_reason_to_stop(target: str, tmp_path: Path) -> None:
    metrics_port = free_port()
    with gateway_on_a_pipe(target, tmp_path, LOUPE_METRICS_PORT=str(metrics_port)) as (here, pipe):
        pipe.close()
        for _ in range(10):
            assert here.post("/predict", PICTURE, "image/jpeg").status == 200
        until(lambda: here.get("/gone").status == 404 and dropped_lines(metrics_port) >= 10, "them to be counted")
