"""A connection whose requests were gathered before gunicorn parses them, and answers that no application is asked for.

connection = Connection(cfg, sock, client, server, max_bytes)
connection.request.take(data)                     # in the worker's loop, until it is whole (framing.py)
connection.init()                                 # in a thread: its parser reads what was gathered
connection.sock.unsent                            # what its client has not taken yet
connection.sock.send(answer(problem, request_id))
"""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from typing import Any

from gunicorn import http
from gunicorn.workers.gthread import TConn

from loupe.errors import Problem
from loupe.gateway.door.framing import Arriving
from loupe.gateway.observe.record import handover
from loupe.gateway.problems import HEADERS, render

# What becomes of a connection, again and again: its request arrives, a thread has it in hand, its client takes what the
# system would not take at once, and it waits for the next. At last it lingers, and is closed.
ARRIVING, IN_HAND, LEAVING, WAITING = "arriving", "in hand", "leaving", "waiting"
LINGERING, CLOSED = "lingering", "closed"
SENT_TOGETHER = 1 << 16  # bytes; of a larger answer the first go out while the rest is read


class Outlet(socket.socket):
    """Never waits for a client to take its answer: what the system does not take at once is kept, for the worker's loop
    to send. Head and body of an answer go out together."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        super().setblocking(False)
        self.unsent = bytearray()

    def setblocking(self, _: bool) -> None:
        """gunicorn's threads would have it block, which nothing here does."""

    def settimeout(self, _: float | None) -> None:
        """The same, for as long as it takes a client to hang up, should an answer break off."""

    def close(self) -> None:
        """And close it then, though the loop may be watching it, and the next connection would get its number."""

    def end(self) -> None:
        super().close()

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.unsent += data
        if len(self.unsent) > SENT_TOGETHER:
            self.send_on()

    def send_on(self) -> None:
        """As much as goes out now."""
        while self.unsent:
            try:
                sent = self.send(self.unsent, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self.unsent.clear()
                raise
            del self.unsent[:sent]


class Connection(TConn):  # type: ignore[misc]
    """gunicorn's, whose parser reads what was gathered instead of the socket."""

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any, max_bytes: int) -> None:
        super().__init__(cfg, Outlet(sock), client, server)
        self.request = Arriving(max_bytes)
        self.initialized = False  # it has its parser
        self.deadline = 0.0  # of the request that is arriving, or of the answer that is being taken
        self.heard_at = 0.0  # when its last bytes came
        self.whole_at = 0.0
        self.admitted = False  # its head was seen while there was room
        self.phase = ARRIVING
        self.watched: Callable[..., Any] | None = None  # what the loop calls when something comes
        self.to_drain = 0
        self.data_ready = True
        self.body: bytes | None = None  # of a request that is whole, where its parser need not read it
        self._given = memoryview(b"")

    def init(self) -> None:
        if not self.initialized:
            self.initialized = True
            self.parser = http.get_parser(self.cfg, self, self.client)
        head, self.body = self.request.parts_of_it()
        self._given = memoryview(head)
        handover.arrived_at, handover.size, handover.head = self.whole_at, len(head) + len(self.body or b""), head

    def close(self, graceful: bool = False) -> None:
        self.phase, self.watched = CLOSED, None  # gunicorn's loop closes those that wait too long on its own
        self.sock.end()
        self.forget()

    def forget_request(self) -> None:
        """What gunicorn has read of it and what not: else a connection that stays open keeps it until its next one.
        Where that begins is known from what was gathered."""
        self._given = memoryview(b"")
        if self.initialized and self.parser.mesg:
            self.parser.mesg.body = io.BytesIO()
            self.parser.unreader.take_buffered()

    def forget(self) -> None:
        """Its bytes, at once: parser and connection know each other, and would be found by the collector much later."""
        self.request, self.body, self._given, self.parser = Arriving(0), None, memoryview(b""), None

    def recv(self, size: int) -> bytes:
        """For the parser. Beyond what was gathered there is nothing: no thread ever waits for a client."""
        part, self._given = bytes(self._given[:size]), self._given[size:]
        return part


def answer(problem: Problem, request_id: str) -> bytes:
    """A whole response: no application is asked."""
    status, headers, body = render(problem, request_id)
    data = json.dumps(body).encode()
    headers |= {**HEADERS, "Content-Length": str(len(data)), "Connection": "close"}
    lines = [f"HTTP/1.1 {status} {body['title']}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + data
