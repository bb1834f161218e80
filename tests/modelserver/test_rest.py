"""The model server's REST, over real sockets: a model's answers, then HTTP itself in front of a stand-in for them.

The messages are those of TensorFlow Serving, seen on a real one or read in its source."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loupe import proto
from loupe.engines.refused import Refused
from loupe.errors import UserError
from loupe.modelserver.flags import Flags
from loupe.modelserver.rest import app as rest
from loupe.modelserver.rest.connections import Limits, Server
from tests.support import models
from tests.support.pace import seconds
from tests.support.servers import ROOT, ModelServer, free_port, model_server, until

PREDICT = "/v1/models/half:predict"
ONE = '{"instances": [1.0]}'
PATIENCE = 30  # seconds


def ask(
    port: int, method: str, path: str, body: bytes | str | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("localhost", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def tell(port: int, method: str, path: str, body: bytes | str | None = None, **headers: str) -> tuple[int, Any]:
    status, found, answer = ask(port, method, path, body, **headers)
    assert found["Content-Type"] == "application/json"
    return status, json.loads(answer)


def raw(port: int, *pieces: bytes, patience: float = PATIENCE) -> bytes:
    """What comes back for these bytes until the server closes."""
    with socket.create_connection(("localhost", port), patience) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def head(path: str = PREDICT, length: int | None = None, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost"]
    lines += [f"Content-Length: {length}"] if length is not None else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


# ------------------------------------------------------------------------------------------------ a real model


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("models")
    models.write_half_plus_two(folder / "half" / "3")
    with model_server(folder, "half", engine="tensorflow") as running:
        yield running


def test_rows_are_answered_by_row_in_tensorflow_servings_layout(half: ModelServer) -> None:
    status, _, answer = ask(half.rest_port, "POST", PREDICT, '{"instances": [1.0, 2, NaN]}')
    assert (status, answer) == (200, b'{\n    "predictions": [2.5, 3.0, NaN\n    ]\n}')


def test_columns_are_answered_by_column(half: ModelServer) -> None:
    for body in ('{"inputs": [1, 2.5]}', '{"signature_name": "serving_default", "inputs": {"x": [1, 2.5]}}'):
        status, _, answer = ask(half.rest_port, "POST", "/v1/models/half/versions/3:predict", body)
        assert (status, answer) == (200, b'{\n    "outputs": [\n        2.5,\n        3.25\n    ]\n}')


def test_a_row_may_name_its_input(half: ModelServer) -> None:
    assert tell(half.rest_port, "POST", PREDICT, '{"instances": [{"x": 4}]}') == (200, {"predictions": [4.0]})


def test_the_name_in_the_path_is_percent_decoded(half: ModelServer) -> None:
    assert tell(half.rest_port, "POST", "/v1/models/h%61lf:predict", ONE) == (200, {"predictions": [2.5]})
    text = "Servable not found for request: Latest(ha/lf+)"
    assert tell(half.rest_port, "POST", "/v1/models/ha%2Flf+:predict", ONE) == (404, {"error": text})
    assert tell(half.rest_port, "GET", "/v1/models/half/labels/a%20b")[1] == {
        "error": "Unrecognized servable version label: a b"
    }


@pytest.mark.parametrize("path", ["/v1/models/half", "/v1/models/half/versions/3", "/V1/Models/half"])
def test_the_status_is_told(half: ModelServer, path: str) -> None:
    entry = {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert tell(half.rest_port, "GET", path) == (200, {"model_version_status": [entry]})


def test_the_metadata_is_told(half: ModelServer) -> None:
    status, answer = tell(half.rest_port, "GET", "/v1/models/half/metadata")
    assert (status, answer["model_spec"]) == (200, {"name": "half", "signature_name": "", "version": "3"})
    x = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]
    sizes = [dim["size"] for dim in x["tensor_shape"]["dim"]]
    assert (x["dtype"], sizes, x["name"]) == ("DT_FLOAT", ["-1"], "x:0")


REFUSALS = [
    ("GET", "/v1/models/nope", None, 404, "Could not find any versions of model nope"),
    ("GET", "/v1/models/half/versions/9", None, 404, "Could not find version 9 of model half"),
    ("GET", f"/v1/models/half/versions/{1 << 64}", None, 400, f"Failed to convert version: {1 << 64} to numeric."),
    ("GET", "/v1/models/half/labels/stable", None, 400, "Unrecognized servable version label: stable"),
    ("GET", "/v1/models", None, 400, "Missing model name in request."),
    ("GET", "/v1/models/half:predict", None, 400, "Malformed request: GET /v1/models/half:predict"),
    ("GET", "/v1/models/half?a=1", None, 404, "Could not find any versions of model half?a=1"),
    ("GET", "/v1/models/half/metadata?a=1", None, 400, "Malformed request: GET /v1/models/half/metadata?a=1"),
    ("GET", "/v1/foo", None, 400, "Malformed request: GET /v1/foo"),
    ("POST", "/v1/models/half", None, 400, "Malformed request: POST /v1/models/half"),
    ("POST", "/v1/models/half:PREDICT", ONE, 400, "Malformed request: POST /v1/models/half:PREDICT"),
    ("POST", "/v1/models/half/versions/x:predict", ONE, 400,
     "Malformed request: POST /v1/models/half/versions/x:predict"),
    ("OPTIONS", "/v1/models/half", None, 400, "Malformed request: OPTIONS /v1/models/half"),
    ("DELETE", "/v1/models/half", None, 400, "Malformed request: DELETE /v1/models/half"),
    ("POST", "/v1/models/nope:predict", ONE, 404, "Servable not found for request: Latest(nope)"),
    ("POST", "/v1/models/half/versions/9:predict", ONE, 404, "Servable not found for request: Specific(half, 9)"),
    ("POST", "/v1/models/half/labels/stable:predict", ONE, 400, "Unrecognized servable version label: stable"),
    ("POST", PREDICT, "", 400, "JSON Parse error: The document is empty"),
    ("POST", PREDICT, '{"instances": [1}', 400,
     "JSON Parse error: Missing a comma or ']' after an array element. at offset: 16"),
    ("POST", PREDICT, '{"signature_name": "nope", "instances": [1]}', 400,
     'Serving signature name: "nope" not found in signature def'),
    ("POST", PREDICT, "{}", 400, "Missing 'inputs' or 'instances' key"),
    ("POST", PREDICT, '{"instances": [[1], [2, 3]]}', 400,
     "Failed to process element: 1 of 'instances' list. "
     "Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "text"), REFUSALS, ids=[entry[-1] for entry in REFUSALS])
def test_refusals_are_json_in_tensorflow_servings_words(
    half: ModelServer, method: str, path: str, body: str | None, status: int, text: str
) -> None:
    assert tell(half.rest_port, method, path, body) == (status, {"error": text})


def test_head_is_refused_without_a_body(half: ModelServer) -> None:
    assert ask(half.rest_port, "HEAD", "/v1/models/half")[::2] == (400, b"")


# ------------------------------------------------------------------------------------------------- a stand-in


class StandIn:
    """Answers of a model that takes `x` of any shape and gives it back, when `gate` is open."""

    def __init__(self, dtype: str = "float32") -> None:
        self.inputs = proto.Signature(inputs={"x": {"dtype": proto.BY_NAME[dtype].number}}).inputs
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.error: Exception | None = None
        self.deadlines: list[float | None] = []
        self.requests: list[Any] = []

    def signature_inputs(self, spec: Any) -> Any:
        return self.inputs

    def predict(self, request: Any, deadline: float | None = None, entrypoint: str = "") -> Any:
        self.deadlines.append(deadline)
        self.begun.release()
        assert self.gate.wait(PATIENCE)
        if self.error:
            raise self.error
        return proto.PredictResponse(outputs={"y": request.inputs["x"]})

    def classify(self, request: Any, deadline: float | None = None, entrypoint: str = "") -> Any:
        self.requests.append(request)
        classes = [{"label": "a", "score": 0.1}, {"label": 'b"', "score": 12}]
        return proto.ClassificationResponse(result={"classifications": [{"classes": classes}, {"classes": []}]})

    def regress(self, request: Any, deadline: float | None = None, entrypoint: str = "") -> Any:
        self.requests.append(request)
        return proto.RegressionResponse(result={"regressions": [{"value": 42}, {"value": 1 / 3}]})


Start = Callable[..., tuple[StandIn, int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server in this process: `start(limits, flag=…)` gives its stand-in and its port."""
    running: list[tuple[StandIn, Server]] = []

    def begin(limits: Limits | None = None, monitoring: bool = False, **flags: Any) -> tuple[StandIn, int]:
        answers: Any = StandIn()
        settings = Flags(address="127.0.0.1", rest_api_port=free_port(), **flags)
        page = {"monitoring_path": "/monitoring/metrics", "monitoring_page": lambda: b"up 1\n"} if monitoring else {}
        server = rest.start(answers, settings, limits=limits, **page)  # type: ignore[arg-type]
        assert server
        running.append((answers, server))
        return answers, server.port

    yield begin
    for answers, server in running:
        answers.gate.set()
        server.stop(1)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[StandIn, int]]:
    """One server for tests that change nothing of it."""
    answers: Any = StandIn()
    server = rest.start(answers, Flags(address="127.0.0.1", rest_api_port=free_port()))
    assert server
    yield answers, server.port
    server.stop(1)


def test_a_connection_is_kept_for_more_requests(start: Start) -> None:
    _, port = start()
    connection = http.client.HTTPConnection("localhost", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.connect()
        kept = connection.sock
        for body in (ONE, "{", '{"instances": [2]}'):
            connection.request("POST", PREDICT, body)
            connection.getresponse().read()
            assert connection.sock is kept


def test_pipelined_requests_are_answered_in_order(start: Start) -> None:
    _, port = start()
    bodies = [b'{"instances": [%d]}' % number for number in range(5)]
    requests = [
        head(length=len(body), **({"Connection": "close"} if body is bodies[-1] else {})) + body for body in bodies
    ]
    answers = raw(port, b"".join(requests))
    assert [f'"predictions": [{number}.0'.encode() in answers for number in range(6)] == [True] * 5 + [False]
    assert answers.index(b"[0.0") < answers.index(b"[4.0")


@pytest.mark.parametrize(
    "message", ["Content-Length: 24\r\n\r\n%s", "Transfer-Encoding: chunked\r\n\r\n18\r\n%s\r\n0\r\n\r\n"]
)
def test_a_get_with_a_body_is_refused_and_its_body_is_no_request(start: Start, message: str) -> None:
    """Hostile input 50: the body was read as a second request."""
    _, port = start()
    smuggled = "GET /foo HTTP/1.1\r\n\r\n   "
    answer = raw(port, f"GET /v1/models/half HTTP/1.1\r\nHost: x\r\n{message % smuggled}".encode())
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
    assert b"Malformed request: GET /v1/models/half" in answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/v2/models/half", 404), ("GET", "/v1", 404), ("BREW", "/v1/a", 501)],
)
def test_what_is_outside_the_api_gets_libevents_page(
    shared: tuple[StandIn, int], method: str, path: str, status: int
) -> None:
    _, port = shared
    found, headers, page = ask(port, method, path)
    phrase = {404: "Not Found", 501: "Not Implemented"}[status]
    text = f"<HTML><HEAD>\n<TITLE>{status} {phrase}</TITLE>\n</HEAD><BODY>\n<H1>{phrase}</H1>\n</BODY></HTML>\n"
    assert (found, headers["Content-Type"], headers["Connection"], page.decode()) == (
        status,
        "text/html",
        "close",
        text,
    )


def test_what_is_no_http_gets_400(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    _, port = start()
    for nonsense in (b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 100_000):
        assert raw(port, nonsense).startswith(b"HTTP/1.1 400 ")
    assert raw(port, head(Transfer_Encoding="chunked"), b"xyz\r\n").startswith(b"HTTP/1.1 400 ")
    assert capfd.readouterr() == ("", "")


def test_classify_sends_examples_and_answers_labels_with_scores(start: Start) -> None:
    answers, port = start()
    examples = '[{"a": 1.5, "b": ["t", {"b64": "AA=="}]}, {"a": true}]'
    body = f'{{"signature_name": "s", "context": {{"c": [1]}}, "examples": {examples}}}'
    status, _, answer = ask(port, "POST", "/v1/models/half/versions/7:classify", body)
    layout = b'{\n    "results": [[["a", 0.1], ["b\\"", 12.0]], []\n    ]\n}'
    assert (status, answer) == (200, layout)
    (request,) = answers.requests
    assert (request.model_spec.name, request.model_spec.version.value, request.model_spec.signature_name) == (
        "half",
        7,
        "s",
    )
    sent = request.input.example_list_with_context
    first, second = (example.features.feature for example in sent.examples)
    assert list(sent.context.features.feature["c"].int64_list.value) == [1]
    assert list(first["a"].float_list.value) == [1.5] and list(first["b"].bytes_list.value) == [b"t", b"\0"]
    assert list(second["a"].int64_list.value) == [1]


def test_regress_answers_numbers(start: Start) -> None:
    answers, port = start()
    status, _, answer = ask(port, "POST", "/v1/models/half:regress", '{"examples": [{}, {"x": []}]}')
    assert (status, answer) == (200, b'{\n    "results": [42.0, 0.333333343]\n}')
    assert len(answers.requests[0].input.example_list.examples) == 2


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{}", "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ('{"examples": 1}', """JSON Value: {\n    "examples": 1\n} Expecting 'examples' value to be an list/array"""),
        ('{"examples": []}', """JSON Value: {\n    "examples": []\n} 'examples' value is an empty array"""),
        ('{"examples": [1]}', "Example must be JSON object but got JSON Number"),
        ('{"examples": [{"x": null}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [[1]]}]}', "Feature: x has element with unexpected JSON type: Array"),
        ('{"examples": [{"x": [1, 1.5]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": [18446744073709551615]}]}', "Feature: x has uint64 element. Only int64 is supported."),
        ('{"examples": [{"x": 1e39}]}', "Cannot convert JSON value: 1e+39 to float without loss of precision."),
    ],
)
def test_classify_and_regress_refuse_in_tensorflow_servings_words(
    shared: tuple[StandIn, int], body: str, text: str
) -> None:
    _, port = shared
    for method in ("classify", "regress"):
        assert tell(port, "POST", f"/v1/models/half:{method}", body) == (400, {"error": text})


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("CANCELLED", 499), ("UNKNOWN", 500), ("INVALID_ARGUMENT", 400), ("DEADLINE_EXCEEDED", 504), ("NOT_FOUND", 404),
        ("ALREADY_EXISTS", 409), ("PERMISSION_DENIED", 403), ("UNAUTHENTICATED", 401), ("RESOURCE_EXHAUSTED", 429),
        ("FAILED_PRECONDITION", 400), ("ABORTED", 409), ("OUT_OF_RANGE", 400), ("UNIMPLEMENTED", 501),
        ("INTERNAL", 500), ("UNAVAILABLE", 503), ("DATA_LOSS", 500),
    ],
)  # fmt: skip
def test_a_grpc_status_becomes_tensorflow_servings_http_status(
    shared: tuple[StandIn, int], code: str, status: int
) -> None:
    answers, port = shared
    answers.error = Refused(grpc.StatusCode[code], 'it "is" so\n')
    try:
        assert tell(port, "POST", PREDICT, ONE) == (status, {"error": 'it "is" so\n'})
    finally:
        answers.error = None


def test_a_failure_inside_is_one_line_in_the_log_and_500(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    answers, port = start()
    answers.error = ZeroDivisionError("secret")
    assert tell(port, "POST", PREDICT, ONE) == (500, {"error": "The server failed; its log says why"})
    assert capfd.readouterr().err == "loupe.modelserver: REST failed: ZeroDivisionError('secret')\n"


# ---------------------------------------------------------------------------------------------------- bodies


SMALL = Limits(body=1000, held=1500)


def test_a_gzip_body_is_read(start: Start) -> None:
    _, port = start()
    body = gzip.compress(ONE.encode())
    assert tell(port, "POST", PREDICT, body, Content_Encoding="gzip") == (200, {"predictions": [1.0]})


def test_a_broken_gzip_body_is_an_empty_document(start: Start) -> None:
    _, port = start()
    body = gzip.compress(ONE.encode())
    for broken in (body[:-9], b"abc", body + b"x", zlib.compress(ONE.encode())):
        assert tell(port, "POST", PREDICT, broken, Content_Encoding="gzip") == (
            400, {"error": "JSON Parse error: The document is empty"},
        )  # fmt: skip


def test_a_gzip_bomb_is_refused_before_it_has_grown(start: Start) -> None:
    _, port = start(Limits(body=1 << 20))
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as file:
        for _ in range(500):
            file.write(bytes(1 << 20))
    begun = time.monotonic()
    status, answer = tell(port, "POST", PREDICT, bomb.getvalue(), Content_Encoding="gzip")
    assert (status, answer) == (400, {"error": "The request's body inflates to more than 1048576 bytes"})
    assert time.monotonic() - begun < 5


def test_a_body_that_is_too_long_is_refused_before_it_comes(start: Start) -> None:
    _, port = start(SMALL)
    answer = raw(port, head(length=1001))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"larger than 1000 bytes" in answer
    assert tell(port, "POST", PREDICT, b" " * (1000 - len(ONE)) + ONE.encode())[0] == 200


def test_a_chunked_body_that_grows_too_long_is_refused(start: Start) -> None:
    _, port = start(SMALL)
    chunk = b"200\r\n" + b" " * 512 + b"\r\n"
    assert raw(port, head(Transfer_Encoding="chunked"), chunk, chunk).startswith(b"HTTP/1.1 413 ")


def test_the_sender_of_a_long_body_sees_why_it_is_refused(start: Start) -> None:
    _, port = start(SMALL)
    answer = raw(port, head(length=4 << 20), bytes(4 << 20))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_bodies_held_at_once_are_bounded_and_given_back(start: Start) -> None:
    answers, port = start(SMALL)
    answers.gate.clear()
    long_body = b" " * (900 - len(ONE)) + ONE.encode()
    with socket.create_connection(("localhost", port), PATIENCE) as holder:
        holder.sendall(head(length=len(long_body), Connection="close") + long_body)
        assert answers.begun.acquire(timeout=PATIENCE)
        status, answer = tell(port, "POST", PREDICT, long_body)
        assert (status, "try again" in answer["error"]) == (503, True)
        answers.gate.set()
        assert b" 200 " in read_all(holder)
    assert tell(port, "POST", PREDICT, long_body)[0] == 200


def test_a_body_that_its_sender_gave_up_is_given_back(start: Start) -> None:
    _, port = start(SMALL)
    for _ in range(3):
        with socket.create_connection(("localhost", port), PATIENCE) as holder:
            holder.sendall(head(length=900) + b" " * 800)
    long_body = b" " * (900 - len(ONE)) + ONE.encode()
    until(lambda: tell(port, "POST", PREDICT, long_body)[0] == 200, "the bytes")


# ------------------------------------------------------------------------------------- deadlines and threads


def test_a_body_that_does_not_come_in_time_gets_408(start: Start) -> None:
    _, port = start(rest_api_timeout_in_ms=300)
    answer = raw(port, head(length=20), b"{")
    assert answer.startswith(b"HTTP/1.1 408 ") and b"within 0.3 seconds" in answer


def test_an_answer_that_is_not_computed_in_time_gets_504(start: Start) -> None:
    answers, port = start(rest_api_timeout_in_ms=300, rest_api_num_threads=1)
    answers.gate.clear()
    late = (504, {"error": "Timed out waiting for notification"})
    assert tell(port, "POST", PREDICT, ONE) == late  # computing
    assert tell(port, "POST", PREDICT, ONE) == late  # waiting for the thread
    answers.gate.set()
    until(lambda: tell(port, "POST", PREDICT, ONE)[0] == 200, "the thread")
    assert answers.deadlines[0] and abs(answers.deadlines[0] - time.monotonic()) < PATIENCE


def test_more_requests_than_threads_wait(start: Start) -> None:
    answers, port = start(rest_api_num_threads=1)
    answers.gate.clear()
    found: list[int] = []
    asking = [threading.Thread(target=lambda: found.append(tell(port, "POST", PREDICT, ONE)[0])) for _ in range(4)]
    for thread in asking:
        thread.start()
    assert answers.begun.acquire(timeout=PATIENCE) and not answers.begun.acquire(timeout=0.3)
    answers.gate.set()
    for thread in asking:
        thread.join(PATIENCE)
    assert found == [200] * 4


def test_the_loop_is_free_while_every_thread_computes(start: Start) -> None:
    answers, port = start(rest_api_num_threads=1)
    answers.gate.clear()
    with socket.create_connection(("localhost", port), PATIENCE) as holder:
        holder.sendall(head(length=len(ONE)) + ONE.encode())
        assert answers.begun.acquire(timeout=PATIENCE)
        assert ask(port, "GET", "/foo")[0] == 404


# ------------------------------------------------------------------------------------------------ connections


def test_two_hundred_connections_at_once_are_all_accepted(half: ModelServer) -> None:
    """Hostile input 50: the hundredth waited twelve seconds."""
    began = time.monotonic()
    with contextlib.ExitStack() as opened:
        sockets = [
            opened.enter_context(socket.create_connection(("127.0.0.1", half.rest_port), PATIENCE)) for _ in range(200)
        ]
        for connection in sockets:
            connection.sendall(b"GET /v1/models/half HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert all(read_all(connection).startswith(b"HTTP/1.1 200") for connection in sockets)
    assert time.monotonic() - began < 10


def test_one_connection_too_many_gets_503(start: Start) -> None:
    _, port = start(Limits(connections=3))
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("localhost", port), PATIENCE))
        answer = raw(port)
        assert answer.startswith(b"HTTP/1.1 503 ") and b"Too many connections" in answer
    until(lambda: tell(port, "POST", PREDICT, ONE)[0] == 200, "a free connection")


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/models/half:predict HT", head(length=len(ONE)) + ONE.encode() + b"GET"]
)
def test_an_idle_connection_is_closed(start: Start, sent: bytes) -> None:
    _, port = start(Limits(idle=0.4))
    begun = time.monotonic()
    raw(port, sent)
    assert 0.3 < time.monotonic() - begun < 10


def test_headers_that_trickle_do_not_keep_a_connection(start: Start) -> None:
    _, port = start(Limits(idle=0.4))
    with socket.create_connection(("localhost", port), PATIENCE) as connection, pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"G")
            time.sleep(0.05)


def test_an_answer_that_nobody_reads_is_given_up(start: Start) -> None:
    answers, port = start(Limits(idle=0.4, connections=1))
    body = json.dumps({"instances": [0.0] * 2_000_000})
    with socket.create_connection(("localhost", port), PATIENCE) as holder:
        holder.sendall(head(length=len(body)) + body.encode())
        assert answers.begun.acquire(timeout=PATIENCE)
        until(lambda: raw(port, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 404"), "the connection")


def test_a_connection_at_work_is_not_idle(start: Start) -> None:
    answers, port = start(Limits(idle=0.2))
    answers.gate.clear()
    with socket.create_connection(("localhost", port), PATIENCE) as holder:
        holder.sendall(head(length=len(ONE), Connection="close") + ONE.encode())
        time.sleep(1)
        answers.gate.set()
        assert b" 200 " in read_all(holder)


# ---------------------------------------------------------------------------------------- start, stop and pages


def test_without_a_port_nothing_is_started() -> None:
    answers: Any = StandIn()
    assert rest.start(answers, Flags(rest_api_port=0)) is None


def test_a_port_that_is_taken_is_a_users_error(start: Start) -> None:
    _, port = start()
    answers: Any = StandIn()
    with pytest.raises(UserError, match=f"port {port} .* is taken: .*; choose another with --rest_api_port"):
        rest.start(answers, Flags(address="127.0.0.1", rest_api_port=port))
    with pytest.raises(UserError, match="choose another"):
        rest.start(answers, Flags(address="nowhere.invalid", rest_api_port=port))


def test_a_stop_lets_requests_under_way_end_and_refuses_new_ones() -> None:
    answers: Any = StandIn()
    answers.gate.clear()
    server = rest.start(answers, Flags(address="127.0.0.1", rest_api_port=free_port()))
    assert server
    idle = socket.create_connection(("localhost", server.port), PATIENCE)
    with idle, socket.create_connection(("localhost", server.port), PATIENCE) as holder:
        holder.sendall(head(length=len(ONE)) + ONE.encode())
        assert answers.begun.acquire(timeout=PATIENCE)
        stopping = threading.Thread(target=server.stop, args=[PATIENCE])
        stopping.start()
        assert read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("localhost", server.port), PATIENCE)
        assert stopping.is_alive()
        answers.gate.set()
        assert b" 200 " in read_all(holder)
        stopping.join(PATIENCE)
        assert not stopping.is_alive()


def test_a_stop_does_not_wait_longer_than_it_is_told() -> None:
    answers: Any = StandIn()
    answers.gate.clear()
    server = rest.start(answers, Flags(address="127.0.0.1", rest_api_port=free_port()))
    assert server
    with socket.create_connection(("localhost", server.port), PATIENCE) as holder:
        holder.sendall(head(length=len(ONE)) + ONE.encode())
        assert answers.begun.acquire(timeout=PATIENCE)
        begun = time.monotonic()
        server.stop(1)
        assert time.monotonic() - begun < 5
        answers.gate.set()


def test_the_monitoring_page_is_plain_text_at_its_path_alone(start: Start) -> None:
    _, port = start(monitoring=True)
    status, headers, page = ask(port, "GET", "/monitoring/metrics")
    assert (status, headers["Content-Type"], page) == (200, "text/plain", b"up 1\n")
    status, headers, page = ask(port, "GET", "/monitoring/metrics?a=b")
    text = b"Unexpected path: /monitoring/metrics?a=b. Should be /monitoring/metrics"
    assert (status, headers["Content-Type"], page) == (400, "text/plain", text)
    assert ask(port, "GET", "/monitoring/metrics/")[0] == 404


def test_cors_headers_are_sent_where_they_are_asked_for(start: Start) -> None:
    _, port = start()
    assert "Access-Control-Allow-Origin" not in ask(port, "POST", PREDICT, ONE)[1]
    _, port = start(rest_api_enable_cors_support=True)
    for method, body, wanted in (("POST", ONE, 200), ("POST", "", 400), ("OPTIONS", None, 200)):
        status, headers, _ = ask(port, method, PREDICT, body)
        assert (status, headers["Access-Control-Allow-Origin"]) == (wanted, "*")
        assert headers["Access-Control-Allow-Methods"] == "POST, GET"
        assert headers["Access-Control-Allow-Headers"] == "Content-Type"


@pytest.mark.timing
def test_the_pixels_of_a_picture_are_read_and_answered_quickly(start: Start) -> None:
    _, port = start()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 299, 299, 3))
    body = json.dumps({"instances": pixels.tolist()})
    begun = time.monotonic()
    status, answer = tell(port, "POST", PREDICT, body)
    assert time.monotonic() - begun < seconds(2)
    assert status == 200 and np.array_equal(answer["predictions"], pixels)


# ----------------------------------------------------------------------------------------------------- metrics


def test_calls_and_loads_are_told_under_tensorflow_servings_names(tmp_path: Path) -> None:
    models.write(tmp_path / "tires" / "1")
    (tmp_path / "monitoring").write_text('prometheus_config { enable: true path: "/metrics/here" }')
    pixels = np.zeros((1, models.SIDE, models.SIDE, 3), np.uint8)
    with model_server(tmp_path, "tires", f"--monitoring_config_file={tmp_path / 'monitoring'}") as server:
        call = proto.call(grpc.insecure_channel(f"localhost:{server.port}"), proto.PREDICT)
        for _ in range(2):
            call(proto.predict_request("tires", {"image": pixels}), timeout=PATIENCE)
        for name in ("wrong", "nobody"):
            with pytest.raises(grpc.RpcError):
                call(proto.predict_request("tires" if name == "wrong" else name, {name: pixels}), timeout=PATIENCE)
        tell(server.rest_port, "POST", "/v1/models/tires:predict", json.dumps({"instances": pixels.tolist()}))
        status, headers, page = ask(server.rest_port, "GET", "/metrics/here")
    assert (status, headers["Content-Type"]) == (200, "text/plain")
    text = page.decode()
    for line in (
        ':tensorflow:serving:request_count{model_name="tires",status="OK"} 3.0',
        ':tensorflow:serving:request_count{model_name="tires",status="INVALID_ARGUMENT"} 1.0',
        ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="GRPC",model_name="tires"} 3.0',
        ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="REST",model_name="tires"} 1.0',
        ':tensorflow:serving:runtime_latency_count{API="Predict",model_name="tires",runtime="openvino"} 3.0',
        f':tensorflow:cc:saved_model:load_attempt_count{{model_path="{tmp_path}/tires/1",status="success"}} 1.0',
    ):
        assert line in text.splitlines(), text
    assert "nobody" not in text  # a name that is not served would be a series of its own for each that callers invent


# --------------------------------------------------------------------------------------- as others are used to it


@pytest.mark.parametrize("piece", [b"[],", b'{"a":1},', b"[1,2],"])
def test_json_of_millions_of_lists_is_refused_before_it_is_parsed(half: ModelServer, piece: bytes) -> None:
    """60 MB of it, in 60 KB of gzip, kept everybody waiting for eleven seconds."""
    body = gzip.compress(b'{"instances": [' + piece * (20_000_000 // len(piece)) + b"1]}", 1)
    began = time.monotonic()
    status, answer = tell(half.rest_port, "POST", PREDICT, body, Content_Encoding="gzip")
    assert (status, "send fewer, or use gRPC" in answer["error"]) == (400, True)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_a_scalar_is_read_and_answered(tmp_path: Path, engine: str) -> None:
    models.write_scalar(tmp_path / "double" / "1")
    with model_server(tmp_path, "double", engine=engine) as server:
        path = "/v1/models/double:predict"
        assert tell(server.rest_port, "POST", path, '{"inputs": 1.5}') == (200, {"outputs": 3.0})
        assert tell(server.rest_port, "POST", path, '{"inputs": {"x": 1.5}}') == (200, {"outputs": 3.0})


def test_the_curl_calls_of_tensorflow_servings_tutorials_are_answered(tmp_path: Path) -> None:
    """The server is started as TensorFlow Serving's image is: by its environment."""
    models.write_half_plus_two(tmp_path / "half_plus_two" / "123")
    environment = {**os.environ, "MODEL_BASE_PATH": str(tmp_path), "MODEL_NAME": "half_plus_two"}
    port, rest_port = free_port(), free_port()
    command = [sys.executable, "-m", "loupe.modelserver", f"--port={port}", f"--rest_api_port={rest_port}"]
    with subprocess.Popen([*command, "--engine=tensorflow"], cwd=ROOT, env=environment) as server:
        try:
            address = f"http://localhost:{rest_port}/v1/models/half_plus_two"
            until(lambda: _curl(address), "the server")
            entry = {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            assert json.loads(_curl(address)) == {"model_version_status": [entry]}
            body = '{"instances": [1.0, 2.0, 5.0]}'
            assert json.loads(_curl("-d", body, "-X", "POST", f"{address}:predict")) == {"predictions": [2.5, 3.0, 4.5]}
            body = '{"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": 2.0}]}'
            assert json.loads(_curl("-d", body, "-X", "POST", f"{address}:regress")) == {"results": [2.5, 3.0]}
            assert (
                "serving_default"
                in json.loads(_curl(f"{address}/metadata"))["metadata"]["signature_def"]["signature_def"]
            )
        finally:
            server.terminate()
            assert server.wait(PATIENCE) == 0


def _curl(*arguments: str) -> str:
    """Return what curl prints; where it is not installed, what Python gets that sends the same bytes."""
    if not shutil.which("curl"):
        *_, address = arguments
        data = arguments[1].encode() if arguments[0] == "-d" else None  # with curl's own type of content
        try:
            with urllib.request.urlopen(address, data, PATIENCE) as response:
                return str(response.read().decode())
        except urllib.error.URLError:
            return ""
    return subprocess.run(["curl", "--silent", *arguments], capture_output=True, text=True, timeout=PATIENCE).stdout
