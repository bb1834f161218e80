"""One client's connection: how long it may take, how much it may send, and how it ends.

    config = uvicorn.Config(app, http=partial(Connection, limits, crowd))

uvicorn's own connection speaks HTTP and runs the app. It sets no time and no size to a request's head, waits for ever
for a client that does not take its answer, and refuses in plain text what is no HTTP. That is what is added here.

`HttpToolsProtocol` is extended by public methods alone: asyncio's (connection_made, data_received, eof_received,
pause_writing, resume_writing, connection_lost), httptools' (on_message_begin, on_url, on_header, on_headers_complete,
on_body, on_message_complete) and its own (on_response_complete, shutdown).
"""

from __future__ import annotations

import asyncio
import http
import re
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from loupe.errors import BadRequest, Busy, ClientGone, HeadTooLarge, Problem, TooLarge, TooSlow
from loupe.gateway.door.crowd import Crowd, Phase
from loupe.gateway.door.joining import Joining
from loupe.gateway.observe import recorder
from loupe.gateway.observe.record import Head, stopping
from loupe.gateway.problems import whole_answer

MAX_HEAD = 1 << 16  # bytes
MAX_PIECES = 100_000  # of a body: in pieces of a byte or two it is no picture, and costs as much time as a large one
VERSIONS = ("1.0", "1.1")
ONCE = (b"host", b"content-type", b"transfer-encoding")  # headers that no request has twice
NO_TRAILERS = (*ONCE, b"connection", b"proxy-connection", b"content-length", b"upgrade")  # they would change its end
ONLY = {b"transfer-encoding": b"chunked", b"expect": b"100-continue"}  # what is understood of them
OVERHEAD = 2  # times the limit of a body, for what is around its chunks
SLICE = 1 << 11  # bytes parsed at a time: each request in them takes memory until its turn, fifty times its bytes
FIRST, TURN = 1 << 12, 1 << 18  # bytes parsed as they come, and when it is this connection's turn again
A_PIECE = 256  # bytes of these that a piece of a body counts for, however small it is
MOST_UNPARSED = 1 << 16  # bytes that wait for that; reading on tells of a client that goes away
SEND_SECONDS = 20.0  # for a client to take what was written for it
LINGER_SECONDS = 1.0  # for a client that is still sending to read why it should not
SWALLOW = 3  # times the limit of a body are thrown away meanwhile
LAST_WORD_SECONDS = 0.5  # when the worker ends: for a connection that was just made, or that may ask again
LAST_SILENCE_SECONDS = 2.0  # and for one that stopped in the midst of a head
LOOK_SECONDS = 0.1  # from the first look whether a client that sends no more is there to the second; then twice that
MOST_LOOKS = 5  # for which something is written: Go's client takes no more

NO_HTTP = "This is not a request that HTTP/1.1 knows; send it again with a usual client."
LONG_HEAD = "The request's address or headers are too long; send a URL in the body."
BROKE_OFF = "The request broke off before its end; send it again."
SLOW = "The request did not come to its end in time; send it again."
MANY = "More connect at once than this service can listen to; try again in a second."
PIECES = "The body came in too many pieces; send it in larger ones."


@dataclass(frozen=True)
class Limits:
    read_seconds: float  # for a head; the app gives as much to a head and its body together
    max_bytes: int  # of a body
    line: int  # bytes of a request's address
    fields: int  # headers
    field: int  # bytes of one of them
    uncounted_port: int  # requests to it are left out of the metrics


class Connection(HttpToolsProtocol):
    def __init__(self, limits: Limits, crowd: Crowd, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.limits, self.crowd = limits, crowd
        self.phase = Phase.SILENT
        self.cycles: deque[RequestResponseCycle] = deque()  # of requests whose answers are not out; the first runs
        self.unparsed = bytearray()
        self.awaits_turn = False
        # The request that arrives.
        self.url, self.headers = b"", []
        self.receiving = False  # its end has not come
        self.in_head = False
        self.began = self.heard_at = 0.0  # when its first bytes came, and its last
        self.size = self.pieces = 0
        self.trailers = 0
        self.unfinished = 0  # bytes since the parser found anything: a long trailer, or what is said of a chunk
        self.body_left = 0  # bytes that will be body and nothing else
        self.offers_upgrade = False  # to another protocol
        # How this ends.
        self.fault: Problem | None = None  # what the parser stumbled over, where that was ours to say
        self.refusal: Problem | None = None
        self.swallowed = 0  # bytes that came after it
        self.half_closed = False  # the client sends no more, and may still listen
        self.looks = 0  # whether it does
        self.ending = False  # the worker is told to end
        self.alarm: asyncio.TimerHandle | None = None  # the client must have sent something by then
        self.send_alarm: asyncio.TimerHandle | None = None  # the client must have taken what was written

    # Connections come and go.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Joining(transport, self.loop))  # type: ignore[arg-type]
        self.sock = transport.get_extra_info("socket")
        with suppress(OSError):  # asyncio does it only for sockets that name their protocol, and gunicorn's do not
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=1)  # so that pause_writing tells of all that is not taken at once
        self._set_alarm(self.limits.read_seconds, self.transport.close)
        self.crowd.put(self, self.phase)

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.remove(self)
        if self.receiving and not self.refusal and (self.in_head or not self.cycle.response_started):
            self._record(ClientGone("The client went away while it was sending."))
        self._stop_alarm()
        self._stop_keep_alive()  # uvicorn's clock would keep this in memory, where it was reset
        self.resume_writing()
        self.unparsed.clear()
        super().connection_lost(exc)
        for cycle in self.cycles:  # uvicorn tells only the last
            cycle.disconnected = True
            cycle.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Go on with the requests that came whole: who closed this end alone still reads their answers."""
        self.half_closed = True
        self._settle()
        return True

    def _look_for_client(self) -> None:
        """Drop the connection of a client that is gone, so that nothing is decoded for it.

        A client that is gone and one that only sends no more look alike, until something is written: the first answers
        with a reset. What is written is what every client of HTTP/1.1 skips.
        """
        if self.transport.is_closing() or self.phase is not Phase.IN_HAND:
            return
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        cycle = self.cycles[0]
        if self.looks < MOST_LOOKS and not cycle.response_started and cycle.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(LOOK_SECONDS * 2**self.looks, self._look_for_client)
        self.looks += 1

    def shutdown(self) -> None:
        """Answer what is in hand, and give the others a moment: their requests may be under way."""
        self.ending = True
        if self.phase is Phase.IN_HAND or (self.receiving and not self.in_head):
            super().shutdown()
        else:
            self.loop.call_later(LAST_WORD_SECONDS, self._end)

    def _end(self) -> None:
        if self.phase in (Phase.SILENT, Phase.IDLE):
            self.transport.close()
        elif self.in_head and self.loop.time() - self.heard_at >= LAST_SILENCE_SECONDS:
            self.refuse(TooSlow(SLOW))
        elif not self.transport.is_closing():
            self.loop.call_later(LAST_WORD_SECONDS, self._end)

    # What comes, to the parser in slices.

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        if self.refusal:
            self.swallowed += len(data)
            if self.swallowed > SWALLOW * self.limits.max_bytes:
                self.transport.pause_reading()
            return
        self.unparsed += data
        if self.awaits_turn:
            self._read_on()
        else:
            self._parse(FIRST)

    def _parse(self, most: int) -> None:
        """Parse what came, so many bytes at most, and none before the requests before them have their turn."""
        parsed = 0
        while self.unparsed and parsed < most and not (self.pipeline or self.refusal or self.transport.is_closing()):
            piece = bytes(self.unparsed[: max(SLICE, self.body_left)])
            del self.unparsed[: len(piece)]
            parsed += SLICE
            pieces = self.pieces
            self.unfinished += len(piece)
            self._feed(piece)
            parsed += A_PIECE * max(0, self.pieces - pieces)
            self.size += len(piece)
            if self.in_head and self.size > MAX_HEAD:
                self.refuse(HeadTooLarge(LONG_HEAD))
            elif self.receiving and self.unfinished > MAX_HEAD:
                self.refuse(BadRequest(NO_HTTP))
            elif self.receiving and self.size > OVERHEAD * self.limits.max_bytes + MAX_HEAD:
                self.refuse(TooLarge(PIECES))
        if self.unparsed and not self.pipeline:
            self._await_turn()
        self._read_on()
        self._settle()

    def _read_on(self) -> None:
        """Read, or not: what waits here is bounded, and uvicorn pauses where the app has not taken a body yet."""
        if len(self.unparsed) > MOST_UNPARSED:
            self.transport.pause_reading()
        elif self.pipeline or not self.flow.read_paused:
            self.transport.resume_reading()

    def _feed(self, piece: bytes) -> None:
        self._stop_keep_alive()
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            if self.offers_upgrade:
                self._decline(piece[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(self.fault or BadRequest(NO_HTTP))

    def _decline(self, rest: bytes) -> None:
        """Parse the request again, without the other protocol that it offers: the parser leaves its body to that one.

        Java's client offers HTTP/2 with the first request of each connection.
        """
        self.offers_upgrade = False
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name not in (b"upgrade", b"connection")]
        self.parser, self.url = httptools.HttpRequestParser(self), b""
        self.unparsed[:0] = b"\r\n".join([*lines, b"connection: close", b"", rest])

    def _await_turn(self) -> None:
        if not self.awaits_turn:
            self.awaits_turn = True
            self.crowd.await_turn(self)

    def take_turn(self) -> None:
        self.awaits_turn = False
        if self.refusal or self.transport.is_closing():
            self.unparsed.clear()
        else:
            self._parse(TURN)

    # What the parser found.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.receiving = self.in_head = True
        self.began = self.heard_at
        self.size = self.pieces = self.body_left = self.trailers = self.unfinished = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if self.parser.get_method() == b"PRI":  # how HTTP/2 begins; the parser would wait for more of it
            self._fail(BadRequest(NO_HTTP))
        if len(self.url) > self.limits.line:
            self._fail(HeadTooLarge(LONG_HEAD))

    def on_header(self, name: bytes, value: bytes) -> None:
        name, value = name.lower(), value.rstrip(b" \t")  # which the parser leaves on
        self.unfinished = 0
        if not self.in_head:  # a trailer, which nothing here asks for
            self.trailers += 1
            if self.trailers > self.limits.fields or name in NO_TRAILERS:
                self._fail(BadRequest(NO_HTTP))
            return
        if len(self.headers) >= self.limits.fields or len(name) + len(value) > self.limits.field:
            self._fail(HeadTooLarge(LONG_HEAD))
        if name in ONLY and value.lower() != ONLY[name] or name in ONCE and name in dict(self.headers):
            self._fail(BadRequest(NO_HTTP))
        if name == b"content-length" and value.isdigit():
            self.body_left = min(int(value[:18]), OVERHEAD * self.limits.max_bytes)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version, method = self.parser.get_http_version(), self.parser.get_method()
        if version not in VERSIONS or (version == "1.0" and b"transfer-encoding" in dict(self.headers)):
            self._fail(BadRequest(NO_HTTP))
        if self.parser.should_upgrade() and method != b"CONNECT":
            self.offers_upgrade = True
            return
        if version == "1.0":
            self.expect_100_continue = False
        self.scope["state"]["began"] = self.began
        super().on_headers_complete()
        self.cycles.append(self.cycle)
        self.in_head = False
        if stopping.is_set() or self.ending or method == b"CONNECT":
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self.unfinished = 0
        self.pieces += 1
        if self.pieces > MAX_PIECES:
            self._fail(TooLarge(PIECES))
        self.body_left = max(0, self.body_left - len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.offers_upgrade:
            return
        self.receiving, self.body_left = False, 0
        super().on_message_complete()

    def _fail(self, problem: Problem) -> None:
        """Have the parser stop, and this refused."""
        self.fault = problem
        raise ValueError

    # What becomes of it.

    def on_response_complete(self) -> None:
        self.cycles.popleft()
        super().on_response_complete()
        if self.transport.is_closing():
            return
        # The time of what has come meanwhile starts now, when it can be heard.
        self.began = self.loop.time()
        if self.cycles:
            self.cycles[0].scope["state"]["began"] = self.began
        if self.refusal and not self._answers():
            self._tell(self.refusal)
            self._linger()
            return
        if self.unparsed:
            self._await_turn()
        self._read_on()
        self._settle()

    def _answers(self) -> bool:
        """Tell if a request that came whole has not been answered yet."""
        if self.pipeline:
            return True
        is_open = self.cycle is not None and not (self.cycle.response_complete or self.cycle.disconnected)
        return is_open and (self.in_head or not self.receiving)

    def _settle(self) -> None:
        """Find the phase, and what it asks for."""
        if self.transport.is_closing():
            return
        was = self.phase
        if self._answers():
            self.phase = Phase.IN_HAND
        elif self.refusal:
            self.phase = Phase.REFUSED
        elif self.receiving:
            self.phase = Phase.ARRIVING
        elif was is not Phase.SILENT:
            self.phase = Phase.IDLE
        self.crowd.put(self, self.phase)
        # A head has its time; the app sees to bodies.
        if self.phase is Phase.ARRIVING and self.in_head:
            if self.alarm is None or was is not Phase.ARRIVING:
                self._set_alarm(self.began + self.limits.read_seconds - self.loop.time(), self.refuse, TooSlow(SLOW))
        elif self.phase is Phase.IDLE and was is Phase.IDLE:  # what came was no request, and stopped uvicorn's clock
            if self.alarm is None:
                self._set_alarm(self.limits.read_seconds, self.transport.close)
        elif self.phase not in (Phase.SILENT, Phase.REFUSED):
            self._stop_alarm()
        # Nothing more will come.
        if not self.half_closed:
            return
        if self.phase is Phase.IN_HAND:
            if not self.looks:
                self._look_for_client()
        elif not self.unparsed and self.phase is Phase.ARRIVING:
            self.refuse(BadRequest(BROKE_OFF))
        elif not self.unparsed:
            self.transport.close()

    def refuse(self, problem: Problem) -> None:
        """Answer the request that arrives with this problem, after those before it, and close the connection."""
        if self.refusal or self.transport.is_closing():
            return
        self.refusal = problem
        self.unparsed.clear()
        if not self._answers():
            self._tell(problem)
            self._linger()

    def _tell(self, problem: Problem) -> None:
        if self.receiving and not self.in_head:  # the app is gathering its body
            if self.cycle.response_started:
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.scope["state"]["refused"] = True
        status, headers, data = whole_answer(problem, self._record(problem))
        lines = [b"HTTP/1.1 %d %s" % (status, http.HTTPStatus(status).phrase.encode())]
        lines += [f"{name.lower()}: {value}".encode() for name, value in headers.items()]
        self.transport.write(b"\r\n".join([*lines, b"", data]))

    def _linger(self) -> None:
        """Listen a little longer: closed at once, with bytes unread, the client would see a reset and no answer."""
        self._set_alarm(LINGER_SECONDS, self.transport.close)
        self.flow.resume_reading()
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            with suppress(OSError):  # it is gone already
                self.transport.write_eof()
        self._settle()

    def _record(self, problem: Problem | ClientGone) -> str:
        method = self.parser.get_method().decode() if self.url else ""
        path = re.sub(rb"^\w+://[^/?]*|\?.*", b"", self.url).decode("utf-8", "replace")  # without what may be secret
        return recorder.record_refusal(
            problem, Head.of(method, path, self.headers), self.client, self.size, self.began,
            counted=self.server is None or self.server[1] != self.limits.uncounted_port,
        )  # fmt: skip

    def pace(self) -> float:
        return (self.size + len(self.unparsed)) / max(0.001, self.loop.time() - self.began)

    def give_way(self) -> None:
        """End, so that another can stay (crowd.py). Whose request is arriving has a moment to read why."""
        if self.phase is Phase.ARRIVING and not self.refusal:
            self.refuse(Busy(MANY))
        else:
            self.transport.close()

    def abandon(self) -> None:
        """Write nothing any more: the worker ends at once. uvicorn would try, where the loop is closed already."""
        for cycle in self.cycles:
            cycle.disconnected = True

    # Time.

    def _set_alarm(self, seconds: float, ring: Callable[..., None], *arguments: Any) -> None:
        self._stop_alarm()
        self.alarm = self.loop.call_later(seconds, ring, *arguments)

    def _stop_alarm(self) -> None:
        if self.alarm:
            self.alarm.cancel()
            self.alarm = None

    def _stop_keep_alive(self) -> None:
        if self.timeout_keep_alive_task:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.send_alarm = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.send_alarm:
            self.send_alarm.cancel()
            self.send_alarm = None
