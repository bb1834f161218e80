"""Checks for hostile input: what a refusal must look like, how soon it must come, and that the gateway is unharmed.

    with defended(sample_models) as here:                 # a gateway under gunicorn, a real model server behind it
        with unharmed(here):                              # the same processes after it, and well
            refused(lambda: here.post("/predict", b"x"), 422, "broken_image")
            refused(lambda: raw(here, b"GET / HTTP/9.9\\r\\n\\r\\n"), 400)
            answered(lambda: here.post("/predict", PICTURE))

A test that stands for a line of the list of hostile inputs names it in its docstring, "Hostile inputs 9a";
tests/hostile/test_list.py holds that none is left out.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from tests.support.gateways import Answer, Gateway, gateway
from tests.support.pictures import encoded
from tests.support.servers import model_server

PICTURE = encoded()
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /model HTTP/1.1\r\nHost: smuggled\r\n\r\n"
READ_TIMEOUT = 3  # of the gateway under attack
SOON = 60.0  # seconds, so that nothing hangs; who must be answered faster is asked by tests marked timing
FIELDS = {"type", "title", "status", "code", "detail", "request_id"}
LEAKS = re.compile(
    r"/(?:tmp|work|home|usr|root|opt|var|proc|etc)/|Traceback|File \"|\.py\b|site-packages|(?:\d+\.){3}\d+|localhost"
    r"|0x[0-9a-f]{6}|\b[A-Z]\w+(?:Error|Exception)\b|gunicorn|werkzeug|flask|PIL\b|grpc|tensorflow"
)
TO_DO = re.compile(  # a detail says what to do, or within which bounds
    r"\b(?:send|give|upload|save|encode|POST|GET|use|try|ask|must|at most|at least|with|wait|should look like)\b",
    re.IGNORECASE,
)


def post(headers: bytes, body: bytes = b"", line: bytes = b"POST /predict HTTP/1.1") -> bytes:
    return line + b"\r\nHost: here\r\n" + headers + b"\r\n" + body


def sized(data: bytes = PICTURE, more: bytes = b"") -> bytes:
    return post(b"Content-Length: %d\r\n" % len(data) + more, data)


def in_chunks(data: bytes = PICTURE, size: int = 100, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    chunks = [b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces]
    return b"".join(chunks) + b"0" + extension + b"\r\n" + trailer + b"\r\n"


def raw(here: Gateway, data: bytes, *, then_close: bool = False) -> Answer:
    """The first answer to these very bytes."""
    answers = conversation(here, data, 1, then_close=then_close)
    assert answers, "closed without an answer"
    return answers[0]


def conversation(
    here: Gateway, data: bytes, most: int = 1_000_000, *, then_close: bool = False, patience: float = 60
) -> list[Answer]:
    """All answers until the gateway closes the connection, or so many."""
    with socket.create_connection(("127.0.0.1", here.port), timeout=patience) as connection:
        with suppress(OSError):  # it may refuse and close while this is still being sent
            connection.sendall(data)
        if then_close:
            connection.shutdown(socket.SHUT_WR)
        came = b""
        with suppress(OSError):
            while len(answers_in(came)) < most and (data_read := connection.recv(1 << 20)):
                came += data_read
    return answers_in(came)


def answers_in(came: bytes) -> list[Answer]:
    """Each whole answer among the bytes; those to HEAD have no body, and go through http.client."""
    answers = []
    while b"\r\n\r\n" in came:
        head, came = came.split(b"\r\n\r\n", 1)
        first, _, lines = head.decode("latin-1").partition("\r\n")
        headers = HeaderParser().parsestr(lines)
        length = int(headers["Content-Length"] or 0)
        if len(came) < length:
            break
        if not first.startswith("HTTP/1.1 1"):
            answers.append(Answer(int(first.split()[1]), headers, came[:length]))
        came = came[length:]
    return answers


def refused(asked: Callable[[], Answer], status: int, code: str | None = None, within: float = SOON) -> dict[str, Any]:
    """A refusal in time and in the one form of all errors, that says what to do and leaks nothing of this machine."""
    answer = in_time(asked, within)
    assert answer.status == status, (answer.status, answer.body[:300])
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) >= FIELDS, body
    check_problem(body, status, code)
    assert body["request_id"] == answer.headers["X-Request-ID"]
    return body


def check_problem(body: dict[str, Any], status: int, code: str | None) -> None:
    """Check a problem, which may also stand in a list of predictions."""
    assert body["status"] == status, body
    assert code in (None, body["code"]), body
    assert body["type"] and body["title"]
    detail = body["detail"]
    assert 10 < len(detail) < 400 and "\n" not in detail and detail[-1] in ".?", detail
    assert TO_DO.search(detail), detail
    assert not LEAKS.search(detail), detail


def answered(asked: Callable[[], Answer], within: float = SOON) -> dict[str, Any]:
    """A proper prediction in time."""
    answer = in_time(asked, within)
    assert answer.status == 200, (answer.status, answer.body[:300])
    assert answer.headers["Content-Type"] == "application/json"
    body: dict[str, Any] = answer.json()
    assert body["label"] in body["scores"] and 0 <= body["confidence"] <= 1
    assert body["request_id"] == answer.headers["X-Request-ID"]
    return body


def in_time(asked: Callable[[], Answer], within: float = SOON) -> Answer:
    started = time.monotonic()
    answer = asked()
    took = time.monotonic() - started
    assert took < within, f"{took:.2f} s"
    return answer


@contextmanager
def defended(models: Path, **settings: str) -> Iterator[Gateway]:
    """Run a gateway whose timeouts are short. All else is set as usual."""
    settings = {"LOUPE_READ_TIMEOUT": str(READ_TIMEOUT), "LOUPE_FETCH_TIMEOUT": "2", **settings}
    with model_server(models, "tires") as server, gateway(f"localhost:{server.port}", **settings) as here:
        answered(lambda: here.post("/predict", PICTURE))
        yield here


@contextmanager
def unharmed(here: Gateway) -> Iterator[None]:
    """The very same workers are there after it, and not grown; the service is well and logged no fault of its own."""
    workers, said = here.workers(), here.log.stat().st_size
    yield
    assert here.get("/healthz").status == 200
    assert here.workers() == workers
    for worker in workers:
        resident = int(Path(f"/proc/{worker}/status").read_text().split("VmRSS:")[1].split()[0])
        assert resident < 500_000, f"{resident} kB"
    with here.log.open("rb") as log:
        log.seek(said)
        assert b"Traceback" not in log.read()
