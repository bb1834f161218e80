"""Answer REST calls as TensorFlow Serving does: predict, classify and regress, status and metadata.

    server = app.start(answers, flags)      # None where --rest_api_port is 0
    curl localhost:8501/v1/models/tires
    curl localhost:8501/v1/models/half:predict -d '{"instances": [1.0, 2.0]}'
    server.stop(10)

A request has --rest_api_timeout_in_ms for everything: its body must have come by then (else 408), its answer must be
computed (else 504). Reading JSON and computing happen in --rest_api_num_threads threads; more requests wait.
Differences on purpose: a body of more than 256 MiB is refused (413), and so is one while 512 MiB of them are held
(503); parsed JSON takes up to thirty times its bytes for a while. A GET with a body is refused (400) and its connection
closed: there the body is read as the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from grpc import StatusCode

from loupe import malloc, proto
from loupe.engines.refused import BY_NUMBER, HTTP_STATUS, Refused, invalid, say
from loupe.modelserver.answers import METADATA_FIELD, REST, Answers
from loupe.modelserver.flags import Flags
from loupe.modelserver.rest import json_tensors

if TYPE_CHECKING:
    from loupe.modelserver.rest.connections import Limits, Server

MODEL_PATH = r"(?i:/v1/models/([^/:]+)(?:/versions/([0-9]+)|/labels/([^/:]+))?"
READ_PATH = re.compile(MODEL_PATH.replace("models/([^/:]+)", "models(?:/([^/:]+))?") + r"(/metadata)?)")
CALL_PATH = re.compile(MODEL_PATH + r":(predict|classify|regress))")
API_PATH = re.compile(r"(?i:/v1/.*)", re.DOTALL)
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
MAX_VERSION = (1 << 63) - 1
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
HTML = "<HTML><HEAD>\n<TITLE>{0} {1}</TITLE>\n</HEAD><BODY>\n<H1>{1}</H1>\n</BODY></HTML>\n"
SLICE = 64 << 10  # bytes of an answer that are sent, or of a gzip body that are inflated, at a time
LINGER = 1.0  # seconds in which a refused body is still read, so that its sender sees the answer


def start(
    answers: Answers,
    flags: Flags,
    monitoring_path: str | None = None,
    monitoring_page: Callable[[], bytes] | None = None,
    *,
    limits: Limits | None = None,
) -> Server | None:
    """Start the server in a thread. Return None if --rest_api_port is 0. `monitoring_page` is called for each answer at
    `monitoring_path`."""
    if not flags.rest_api_port:
        return None
    from loupe.modelserver.rest import connections  # uvicorn: not for those who have no REST

    limits = limits or connections.Limits()
    listener = connections.listen(flags.address, flags.rest_api_port, "rest_api_port")
    return connections.serve(App(answers, flags, limits, monitoring_path, monitoring_page), listener, limits)


# ------------------------------------------------------------------------------------------------- HTTP


@dataclass
class Reply:
    body: bytes
    status: int = 200
    content_type: str = "application/json"
    closes: bool = False  # the connection; what else comes on it is not read


class RefusedHTTP(Exception):
    """A request that HTTP itself refuses, with a status that gRPC has no code for. Its connection is closed."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Request:
    """A request's head as the app sees it: `target` is what was asked for, `path` that without the query."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1").lower() for name, value in headers}
        self.method: str = scope["method"]
        path, query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        if not path.startswith("/"):  # an absolute address, as a proxy sends it
            path = re.sub(r"^[A-Za-z]+://[^/]*", "", path) or "/"
        self.path, self.target = path, f"{path}?{query}" if query else path
        length = self.headers.get("content-length", "0")
        self.length = int(length) if length.isdecimal() else 0
        self.has_body = self.length > 0 or "transfer-encoding" in self.headers
        self.waits_to_continue = "expect" in self.headers


class App:
    """The ASGI app."""

    def __init__(
        self,
        answers: Answers,
        flags: Flags,
        limits: Limits,
        monitoring_path: str | None,
        monitoring_page: Callable[[], bytes] | None,
    ) -> None:
        self.answers, self.limits, self.seconds = answers, limits, flags.rest_api_timeout_in_ms / 1000
        self.cors = CORS if flags.rest_api_enable_cors_support else {}
        self.monitoring_path, self.monitoring_page = monitoring_path, monitoring_page
        self.threads = ThreadPoolExecutor(flags.rest_threads, thread_name_prefix="rest")
        self.held = Held(limits.held)

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        request = Request(scope)
        try:
            reply = await self._reply(request, receive)
        except Refused as error:
            reply = Reply(json_tensors.write_error(str(error)), HTTP_STATUS.get(error.code, 500))
        except RefusedHTTP as error:
            reply = Reply(json_tensors.write_error(str(error)), error.status, closes=True)
        except ConnectionError:  # the caller is gone
            return
        except Exception as error:
            say(f"REST failed: {error!r}")
            reply = Reply(json_tensors.write_error("The server failed; its log says why"), 500, closes=True)
        await self._send(request, reply, receive, send)

    async def _reply(self, request: Request, receive: Any) -> Reply:
        deadline = time.monotonic() + self.seconds
        malformed = f"Malformed request: {request.method} {request.target}"
        # What libevent refuses, and what HTTP lets pass but is read in two ways.
        if request.method not in METHODS:
            return _page(HTTPStatus.NOT_IMPLEMENTED)
        if request.has_body and request.method == "GET":
            raise RefusedHTTP(400, malformed)
        # Paths that are no model's.
        if self.monitoring_page and request.path == self.monitoring_path:
            return await self._monitoring(request, self.monitoring_page, deadline)
        if not API_PATH.fullmatch(request.target):
            return _page(HTTPStatus.NOT_FOUND)
        if request.method == "OPTIONS" and self.cors and not request.has_body:
            return Reply(b"")
        # A model's.
        if request.method == "GET" and (found := READ_PATH.fullmatch(request.target)):
            parts = found.groups()
            return await self._in_thread(lambda: Reply(read(self.answers, parts)), deadline)
        if request.method == "POST" and (found := CALL_PATH.fullmatch(request.target)) and found[4].islower():
            return await self._call(request, found.groups(), receive, deadline)
        if request.has_body:
            raise RefusedHTTP(400, malformed)
        raise invalid(malformed)

    async def _call(self, request: Request, parts: Sequence[Any], receive: Any, deadline: float) -> Reply:
        share = Share(self.held)
        try:
            body = await self._body(request, receive, share, deadline)
            is_gzip = "gzip" in request.headers.get("content-encoding", "")

            def compute() -> Reply:
                document = inflate(body, self.limits.body, share) if is_gzip else body
                try:
                    return Reply(call(self.answers, parts, document, deadline))
                finally:
                    if len(document) > malloc.LARGE:
                        malloc.give_back()

            return await self._in_thread(compute, deadline, share)
        except BaseException:
            share.release_unless_lent()
            raise

    async def _body(self, request: Request, receive: Any, share: Share, deadline: float) -> bytearray:
        too_large = RefusedHTTP(413, f"The request's body is larger than {self.limits.body} bytes")
        if request.length > self.limits.body:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    share.take(len(message["body"]))
                    body += message["body"]
                    if len(body) > self.limits.body:
                        raise too_large
                    if not message["more_body"]:
                        return body
        except TimeoutError as error:
            raise RefusedHTTP(408, f"The request's body has not come within {self.seconds:g} seconds") from error

    async def _in_thread(self, work: Callable[[], Reply], deadline: float, share: Share | None = None) -> Reply:
        """Do it in a thread, and give up waiting at the deadline. The thread itself ends when the work does, and only
        then is the share given back."""

        def work_in_time() -> Reply:
            if time.monotonic() > deadline:
                raise timed_out
            return work()

        timed_out = Refused(StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        future = self.threads.submit(work_in_time)
        if share:
            share.lend()
            future.add_done_callback(lambda _: share.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise timed_out from error

    async def _monitoring(self, request: Request, page: Callable[[], bytes], deadline: float) -> Reply:
        if request.target != request.path:
            text = f"Unexpected path: {request.target}. Should be {request.path}"
            return Reply(text.encode(), 400, "text/plain", closes=request.has_body)
        reply = await self._in_thread(lambda: Reply(page(), content_type="text/plain"), deadline)
        reply.closes = request.has_body
        return reply

    async def _send(self, request: Request, reply: Reply, receive: Any, send: Any) -> None:
        headers = {"content-type": reply.content_type, "content-length": str(len(reply.body)), **self.cors}
        if reply.closes:
            headers["connection"] = "close"
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        # Send it. From a caller that does not read, uvicorn takes the connection when this returns.
        *slices, last = [reply.body[start : start + SLICE] for start in range(0, len(reply.body), SLICE)] or [b""]
        lingers = reply.closes and request.has_body and not request.waits_to_continue
        messages = [
            {"type": "http.response.start", "status": reply.status, "headers": encoded},
            *({"type": "http.response.body", "body": body, "more_body": True} for body in slices),
            {"type": "http.response.body", "body": last, "more_body": lingers},
        ]
        try:
            for message in messages:
                async with asyncio.timeout(self.limits.idle):
                    await send(message)
        except TimeoutError:
            return
        # If the connection closed with the body unread, the caller would see a reset and not the answer.
        if lingers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    while (await receive()).get("more_body"):
                        pass
            await send({"type": "http.response.body", "body": b""})


def _page(status: HTTPStatus) -> Reply:
    """Return the page with which libevent refuses."""
    return Reply(HTML.format(status.value, status.phrase).encode(), status.value, "text/html", closes=True)


# ----------------------------------------------------------------------------------------------- bodies


class Held:
    """A count of the bytes of all bodies that are held, and its limit."""

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        with self.lock:
            if self.count + count > self.limit:
                raise RefusedHTTP(503, "The server holds as many bytes of requests as it may; try again")
            self.count += count

    def remove(self, count: int) -> None:
        with self.lock:
            self.count -= count


class Share:
    """What one request holds. Once it is lent to a thread only the thread's end gives it back."""

    def __init__(self, held: Held) -> None:
        self.held, self.count, self.is_lent = held, 0, False

    def take(self, count: int) -> None:
        self.held.add(count)
        self.count += count

    def lend(self) -> None:
        self.is_lent = True

    def release_unless_lent(self) -> None:
        if not self.is_lent:
            self.release()

    def release(self) -> None:
        count, self.count = self.count, 0
        self.held.remove(count)


def inflate(body: bytearray, limit: int, share: Share) -> bytes:
    """Return the text of a gzip body: nothing where it is broken, as in TensorFlow Serving. Raises Refused as soon as
    it grows beyond the limit."""
    inflater, pieces, size = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS), [], 0
    for start in range(0, len(body), SLICE):
        try:
            piece = inflater.decompress(body[start : start + SLICE], limit - size + 1)
        except zlib.error:
            return b""
        size += len(piece)
        if size > limit:
            raise invalid(f"The request's body inflates to more than {limit} bytes")
        share.take(len(piece))
        pieces.append(piece)
    return b"".join(pieces) if inflater.eof and not inflater.unused_data else b""


# ---------------------------------------------------------------------------------------------- answers


def call(answers: Answers, parts: Sequence[Any], body: bytes | bytearray, deadline: float = math.inf) -> bytes:
    """Answer a POST, whose path has these groups of CALL_PATH."""
    name, number, label, method = parts
    spec = _spec(name, number, label)
    if method == "predict":
        request, by_row = json_tensors.read_predict(body, spec, answers.signature_inputs, deadline)
        return json_tensors.write_predict(answers.predict(request, deadline, REST).outputs, by_row)
    if method == "classify":
        request = proto.ClassificationRequest(model_spec=spec)
        json_tensors.read_examples(body, request)
        return json_tensors.write_classifications(answers.classify(request, deadline, REST).result)
    request = proto.RegressionRequest(model_spec=spec)
    json_tensors.read_examples(body, request)
    return json_tensors.write_regressions(answers.regress(request, deadline, REST).result)


def read(answers: Answers, parts: Sequence[Any]) -> bytes:
    """Answer a GET, whose path has these groups of READ_PATH."""
    name, number, label, metadata = parts
    if not name:
        raise invalid("Missing model name in request.")
    spec = _spec(name, number, label)
    answer = _metadata(answers, spec) if metadata == "/metadata" else _status(answers, spec)
    return json.dumps(answer, indent=1).encode()


def _spec(name: str, number: str | None, label: str | None) -> Any:
    version = None
    if number:
        digits = number.lstrip("0") or "0"
        if len(digits) > 19 or int(digits) > MAX_VERSION:
            raise invalid(f"Failed to convert version: {number} to numeric.")
        version = int(digits)
    spec = proto.model_spec(_decoded(name), version)
    spec.version_label = _decoded(label or "")
    return spec


def _decoded(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")


def _status(answers: Answers, spec: Any) -> dict[str, Any]:
    response = answers.status(proto.GetModelStatusRequest(model_spec=spec))
    return {
        "model_version_status": [
            {
                "version": str(entry.version),
                "state": proto.STATES[entry.state],
                "status": {
                    "error_code": BY_NUMBER[entry.status.error_code].name,
                    "error_message": entry.status.error_message,
                },
            }
            for entry in response.model_version_status
        ]
    }


def _metadata(answers: Answers, spec: Any) -> dict[str, Any]:
    request = proto.GetModelMetadataRequest(model_spec=spec, metadata_field=[METADATA_FIELD])
    response = answers.metadata(request)
    signatures = {
        name: {
            "inputs": {alias: _info(info) for alias, info in signature.inputs.items()},
            "outputs": {alias: _info(info) for alias, info in signature.outputs.items()},
            "method_name": signature.method_name,
        }
        for name, signature in proto.signatures(response).items()
    }
    model = response.model_spec
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": str(model.version.value)},
        "metadata": {METADATA_FIELD: {METADATA_FIELD: signatures}},
    }


def _info(info: Any) -> dict[str, Any]:
    dtype, shape = proto.BY_NUMBER.get(info.dtype), info.tensor_shape
    return {
        "dtype": f"DT_{dtype.tensorflow_name.upper()}" if dtype else info.dtype,
        "tensor_shape": {
            "dim": [{"size": str(dim.size), "name": dim.name} for dim in shape.dim],
            "unknown_rank": shape.unknown_rank,
        },
        "name": info.name,
    }
