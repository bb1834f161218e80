"""The gateway as an ASGI app: takes requests in, whole, and has threads run the Flask app for them.

    door = Door(app, settings, proxies, on_start, on_end)     # in a worker, after its fork
    await door(scope, receive, send)                          # by uvicorn, once the head of a request is there

Who would have to wait too long is refused by the head alone (admission.py). A body is gathered here, however slowly it
comes, so a thread never waits for a client: a thousand slow ones cost a thousand sockets. Probes, the page and requests
that fetch URLs have threads of their own. For a client that went away nothing more is decoded.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from loupe.errors import BadRequest, Busy, ClientGone, InternalError, Problem, TooLarge, TooSlow, without_traceback
from loupe.gateway import neighbours
from loupe.gateway.door.admission import CROWDED, FULL, BodyMemory, BodyRoom, Lane
from loupe.gateway.door.connection import LINGER_SECONDS, SLOW, SWALLOW
from loupe.gateway.door.environ import Proxies, to_environ
from loupe.gateway.observe import metrics, recorder
from loupe.gateway.observe.record import Head
from loupe.gateway.problems import whole_answer
from loupe.gateway.request.body import may_name_urls
from loupe.gateway.request.deadline import HEADER, NEVER, out_of_time, read_seconds
from loupe.gateway.settings import Settings

ALIVE, READY = "/healthz", "/readyz"
PROBE_THREADS = PAGE_THREADS = 2
WAIT_STEPS = 2  # up to LOUPE_MAX_WAIT, in which workers tell how long one waits; with finer ones a crowd goes to one
MODEL = "/model"  # it asks the model server, unlike all else that is only read
UNDER_WAY = 1 << 14  # bytes of a body, from which on it has room for all of it: heads alone hold nothing
LAST_BODY_SECONDS = 10.0  # when the worker ends: for a body to arrive

FAULT = "Something went wrong here; the log of this service says what."

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
WSGI = Callable[..., Any]

_log = logging.getLogger(__name__)


class Request:
    """A request, of which the head has come."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope, self._receive = scope, receive
        self.path: str = scope["path"]
        self.port: int = scope["server"][1] if scope["server"] else 0
        self.began: float = scope["state"]["began"]
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.size = 0  # bytes of its body that have come
        self.is_whole = False
        self.room: BodyRoom | None = None  # for its body
        self.timeout: asyncio.Timeout | None = None

    def header(self, name: str) -> str | None:
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)

    @property
    def length(self) -> int | None:
        """The length of the body as the head says. None: it comes in chunks."""
        if self.header("Transfer-Encoding"):
            return None
        digits = (self.header("Content-Length") or "").lstrip("0")
        return int(digits[:18] or "0")  # Python reads no number of thousands of digits

    @property
    def patience(self) -> float:
        """The seconds that its caller allows. What is no number is answered later."""
        try:
            return read_seconds(self.header(HEADER))
        except BadRequest:
            return NEVER

    async def take_part(self) -> bytes:
        """Return what has come of the body since the last time. Raises ClientGone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone("The client went away.")
        self.is_whole = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        self.size += len(part)
        if self.room:
            self.room.heard(len(part))
        return part

    def cut_at(self, when: float) -> None:
        """Cut what arrives at this time, if it has not ended by then."""
        if self.timeout is None:
            return
        before = self.timeout.when()
        if before is None or before > when:
            with suppress(RuntimeError):  # its time is over already
                self.timeout.reschedule(when)

    def cut(self) -> None:
        self.cut_at(0)

    async def client_leaves(self) -> None:
        """Return when the client has gone. Only for a request that is whole: there is nothing else to receive."""
        await self._receive()


class Door:
    def __init__(
        self,
        app: WSGI,
        settings: Settings,
        proxies: Proxies,
        on_start: Callable[[Door], None],
        on_end: Callable[[], None],
    ) -> None:
        self._app, self._settings, self._proxies = app, settings, proxies
        self._on_start, self._on_end = on_start, on_end
        self._uploads = Lane("upload", settings.threads)
        self._fetches = Lane("fetch", settings.fetches)  # so that uploads never wait for strangers' servers
        self._pages = Lane("page", PAGE_THREADS)  # of its twenty files a browser needs each
        self._alive = Lane("alive", 1)  # whatever the model keeps waiting
        self._probes = Lane("probe", PROBE_THREADS)
        self._memory = BodyMemory(settings.body_memory, settings.read_timeout)
        self._arriving: set[Request] = set()
        self._ends_at = math.inf  # when all bodies must have come
        self.served_at = 0.0  # the last time that a thread was done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["state"].get("refused"):  # by the connection, meanwhile
            return
        request = Request(scope, receive)
        try:
            status, headers, answer = await self._take(request)
        except ClientGone:
            return
        except Problem as problem:
            await self._refuse(request, without_traceback(problem), send)
            return
        except Exception:
            _log.exception("%s %s failed", scope["method"], request.path)
            await self._refuse(request, InternalError(FAULT), send)
            return
        await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
        await send({"type": "http.response.body", "body": answer})

    async def _take(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
        self._check(request, self._lane(request))
        try:
            return await self._answer(request, await self._gather(request))
        finally:
            if request.room:
                self._memory.free(request.room)
            self._count()

    async def _live(self, receive: Receive, send: Send) -> None:
        """Answer ASGI's lifespan: when the worker starts, and when it ends."""
        await receive()
        self._on_start(self)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._on_end()
        await send({"type": "lifespan.shutdown.complete"})

    def hurry(self) -> None:
        """Give bodies that are arriving little more time, since the worker ends."""
        self._ends_at = asyncio.get_running_loop().time() + LAST_BODY_SECONDS
        for request in self._arriving:
            request.cut_at(self._ends_at)

    # Admission.

    def _is_probe(self, request: Request) -> bool:
        return request.path in (ALIVE, READY) or 0 < self._settings.metrics_port == request.port

    def _lane(self, request: Request, data: bytes | None = None) -> Lane:
        """Return the threads that it is for. Until its body has come, JSON may be for either: then it is the better."""
        if self._is_probe(request):
            return self._alive if request.path == ALIVE else self._probes
        if request.scope["method"] in ("GET", "HEAD") and request.path != MODEL:
            return self._pages
        if data is None:
            lanes = [self._uploads, self._fetches] if may_name_urls(request.header("Content-Type")) else [self._uploads]
            return min(lanes, key=Lane.expected_wait)
        return self._fetches if may_name_urls(request.header("Content-Type"), data) else self._uploads

    def _check(self, request: Request, lane: Lane) -> None:
        """Raise Busy if it would have to wait too long."""
        if not self._is_probe(request):
            lane.check(self._patience(request))

    def _patience(self, request: Request) -> float:
        return min(self._settings.max_wait, request.patience)

    # Bodies.

    async def _gather(self, request: Request) -> bytes:
        """Return the body. It has room for all of it once its first bytes show that it is under way."""
        length, limit = request.length, self._settings.max_bytes
        too_large = TooLarge(f"The body is larger than {limit:,} bytes; send less, or smaller pictures.")
        if (length or 0) > limit:
            raise too_large
        parts: list[bytes] = []
        self._arriving.add(request)
        try:
            until = min(request.began + self._settings.read_timeout, self._ends_at)
            async with asyncio.timeout_at(until) as request.timeout:
                while not request.is_whole:
                    if request.room is None and request.size >= UNDER_WAY:
                        wanted = limit if length is None else length
                        request.room = await self._memory.reserve(
                            wanted, request.size, self._patience(request), request.cut
                        )
                    parts.append(await request.take_part())
                    if request.size > limit:
                        raise too_large
        except TimeoutError:
            raise (Busy(CROWDED) if request.room and request.room.was_cut else TooSlow(SLOW)) from None
        finally:
            self._arriving.remove(request)
        if request.room is None:
            request.room = self._memory.hold(request.size)
        self._memory.whole(request.room)
        return b"".join(parts)

    # Answers.

    async def _answer(self, request: Request, data: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Have a thread run the Flask app, unless the client goes away before its turn, or its turn does not come."""
        lane, is_probe = self._lane(request, data), self._is_probe(request)
        self._check(request, lane)
        environ = to_environ(request.scope, data, self._proxies)
        head_size = sum(len(name) + len(value) + 4 for name, value in request.headers)
        environ["loupe.arrived_at"], environ["loupe.bytes"] = time.monotonic(), head_size + len(data)
        del data  # the app frees it once it has the pictures
        leaves = asyncio.ensure_future(request.client_leaves())
        left = threading.Event()
        leaves.add_done_callback(lambda _: left.set())
        environ["loupe.client_left"] = left.is_set  # so that the app ends where nobody reads its answer
        turn = lane.enter(partial(_run, self._app, environ))
        self._count()
        answer = asyncio.wrap_future(turn.call)
        limit = None if is_probe else self._patience(request)
        try:
            await asyncio.wait((answer, leaves), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() or not turn.call.cancel():
                answered: tuple[int, list[tuple[str, str]], bytes] = await answer
                return answered
            if leaves.done():
                gone = ClientGone("The client went away before its turn.")
                self._record(request, gone, environ["loupe.bytes"])
                raise gone
            raise Busy(FULL, lane.expected_wait()) if limit == self._settings.max_wait else out_of_time()
        finally:
            leaves.cancel()
            lane.leave(turn)
            self._count()
            self.served_at = time.monotonic()

    def tell(self) -> None:
        """Tell the other workers how long one who came now would wait; at least once a second, since it grows."""
        ends = [lane.expected_end() for lane in (self._uploads, self._fetches)]
        neighbours.tell_waits(*(int(WAIT_STEPS * end / self._settings.max_wait) for end in ends))

    def _count(self) -> None:
        neighbours.tell_in_hand(len(self._uploads), len(self._fetches))
        self.tell()
        lanes = (self._uploads, self._fetches, self._pages)
        metrics.in_hand(sum(map(len, lanes)), max(lane.expected_wait() for lane in lanes), self._memory.held)

    async def _refuse(self, request: Request, problem: Problem, send: Send) -> None:
        request_id = self._record(request, problem, request.size)
        status, headers, data = whole_answer(problem, request_id)
        await send({"type": "http.response.start", "status": status, "headers": _encoded(list(headers.items()))})
        await send({"type": "http.response.body", "body": data, "more_body": True})
        # Closed at once, with bytes unread, the client would see a reset and no answer.
        swallowed = 0
        with suppress(TimeoutError, ClientGone):
            async with asyncio.timeout(LINGER_SECONDS):
                while not request.is_whole and swallowed <= SWALLOW * self._settings.max_bytes:
                    swallowed += len(await request.take_part())
        await send({"type": "http.response.body"})

    def _record(self, request: Request, problem: Problem | ClientGone, size: int) -> str:
        head = Head.of(request.scope["method"], request.path, request.headers)
        return recorder.record_refusal(
            problem, head, request.scope["client"], size, request.began,
            counted=request.port != self._settings.metrics_port,
        )  # fmt: skip


def _encoded(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _run(app: WSGI, environ: dict[str, Any]) -> tuple[int, list[tuple[str, str]], bytes]:
    """Call the WSGI app, in a thread."""
    given: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> None:
        given[:] = int(status[:3]), headers

    try:
        parts = app(environ, start_response)
        try:
            data = b"".join(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
    except BaseException:  # SystemExit too, which would end the loop
        _log.exception("%s %s failed", environ["REQUEST_METHOD"], environ["PATH_INFO"])
        raise InternalError(FAULT) from None
    finally:
        environ.clear()  # of the body, before its client has the answer
    return given[0], given[1], data
