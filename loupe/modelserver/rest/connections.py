"""Serve an ASGI app over HTTP/1.1 with uvicorn, in a thread of its own: how many connections, how long, how it ends.

    server = connections.serve(app, connections.listen("0.0.0.0", 8501), limits)
    server.stop(10)

A connection on which no request is under way is closed after `limits.idle` seconds, whatever it sends or does not read
meanwhile; one more than `limits.connections` is answered 503. Not covered: TLS, HTTP/2, WebSockets.
"""

from __future__ import annotations

import asyncio
import math
import resource
import socket
import threading
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from loupe.errors import UserError

BACKLOG = 1024
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%s"
)
TOO_MANY_TEXT = b'{\n    "error": "Too many connections"\n}'
BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
)
BAD_REQUEST_PAGE = (
    b"<HTML><HEAD>\n<TITLE>400 Bad Request</TITLE>\n</HEAD><BODY>\n<H1>Bad Request</H1>\n</BODY></HTML>\n"
)


@dataclass(frozen=True)
class Limits:
    body: int = 256 << 20  # bytes of one request's body, also once it is inflated
    held: int = 512 << 20  # bytes of all bodies at once
    connections: int = 1000
    idle: float = 50.0  # seconds, as TensorFlow Serving's

    @property
    def open_connections(self) -> int:
        """Return how many connections there may be: no more than half of the files this process may open."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return self.connections if files == resource.RLIM_INFINITY else min(self.connections, files // 2)


class Server:
    """An HTTP server that runs."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self._server = server
        self._thread = threading.Thread(target=server.run, args=([listener],), name="rest", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Accept no more, wait for the requests under way, so many seconds at most, and close every connection."""
        self._server.config.timeout_graceful_shutdown = math.ceil(seconds)
        self._server.should_exit = True
        self._thread.join(seconds + 1)


def listen(address: str, port: int, flag: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"port {port} of {address} is taken: {reason}; choose another with --{flag}") from error


def serve(app: Any, listener: socket.socket, limits: Limits) -> Server:
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_connection_class(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # the app logs its own failures; a caller's mistakes are no events
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(limits.idle),
    )
    return Server(uvicorn.Server(config), listener)


def _connection_class(limits: Limits) -> type[asyncio.Protocol]:
    class Connection(H11Protocol):
        """A connection that looks after itself: uvicorn has no limit for headers that come slowly, nor for an answer
        that is not read."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # asyncio does this only for sockets that name their protocol, and these do not.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Watch it from now on, or send it away.
            self.idle_since, self.last_cycle = self.loop.time(), self.cycle
            self.watch = self.loop.call_later(limits.idle / 4, self.look)
            if len(self.connections) > limits.open_connections:
                transport.write(TOO_MANY % (len(TOO_MANY_TEXT), TOO_MANY_TEXT))
                transport.close()

        def look(self) -> None:
            """Cut the connection off if no request has been under way for so long."""
            is_busy = self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()
            if is_busy or self.cycle is not self.last_cycle:
                self.idle_since, self.last_cycle = self.loop.time(), self.cycle
            if self.loop.time() - self.idle_since >= limits.idle:
                self.transport.abort()
            else:
                self.watch = self.loop.call_later(limits.idle / 4, self.look)

        def send_400_response(self, msg: str) -> None:
            """Refuse what is no HTTP, with libevent's page, unless an answer is half sent."""
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(BAD_REQUEST % (len(BAD_REQUEST_PAGE), BAD_REQUEST_PAGE))
            self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self.watch.cancel()
            super().connection_lost(exc)

    return Connection
