"""What an ASGI app sees through the door's connection: uvicorn in a thread, with an app that counts."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn

from loupe.gateway.door.connection import Connection, Limits
from loupe.gateway.door.crowd import Crowd
from loupe.gateway.door.joining import Joining
from tests.support.servers import until

LIMITS = Limits(read_seconds=60, max_bytes=10_000_000, line=4094, fields=100, field=8190, uncounted_port=0)
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def served(app: Callable[..., Any], connection: type[Connection] = Connection) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    made: Any = partial(connection, LIMITS, Crowd(100))
    config = uvicorn.Config(app, loop="asyncio", http=made, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    until(lambda: server.started, "uvicorn")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


async def answer(send: Callable[..., Any], body: bytes = b"ok") -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def ask(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        return connection.recv(65536)


def test_an_answer_is_sent_in_one_piece() -> None:
    """A worker that is killed between its head and its body would leave half of it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)

    with served(app) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for _ in range(200):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert connection.recv(65536).endswith(b"\r\n\r\nok")


def test_nothing_is_sent_once_the_loop_has_ended() -> None:
    """At SIGQUIT a coroutine that has not ended goes with its loop, and uvicorn answers 500 from there."""
    loop = asyncio.new_event_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
        joining = Joining(transport, loop)
        assert not joining.is_closing()
        loop.close()
        assert joining.is_closing(), "or uvicorn goes on to the next request"
        joining.write(b"HTTP/1.1 500")
        joining.close()
        ours.close()
        assert theirs.recv(100) == b""


LARGE = bytes(range(256)) * 30_000


@pytest.mark.parametrize(
    ("sent", "body", "most"),
    [
        (CHUNKED + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n", b"x" * 100_000, 200),
        (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE, LARGE, 500),
    ],
    ids=["a hundred thousand chunks", "a large body"],
)
def test_a_body_arrives_as_few_messages(sent: bytes, body: bytes, most: int) -> None:
    messages: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not messages or messages[-1]["more_body"]:
            messages.append(await receive())
        await answer(send)

    with served(app) as port:
        assert ask(port, sent).startswith(b"HTTP/1.1 200")
    assert b"".join(message["body"] for message in messages) == body
    assert len(messages) < most


CONNECT = b"CONNECT /a HTTP/1.1\r\nContent-Length: 9999999\r\nX: ".ljust(2048 - 4, b"a") + b"\r\n\r\n"


@pytest.mark.parametrize("first", [b"", CONNECT])
def test_of_many_requests_sent_at_once_few_are_parsed_before_their_turn(first: bytes) -> None:
    """Each takes memory from then on. CONNECT has no body, whatever length it names."""
    turn, waiting = asyncio.Event(), []
    connections: list[Connection] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waiting.append(scope["path"])
        await turn.wait()
        await answer(send)

    class Seen(Connection):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.append(self)

    pieces = b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(5000))
    with served(app, Seen) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(first + pieces)
        until(lambda: bool(waiting), "the first")
        assert len(connections[0].pipeline) < 150
        connections[0].loop.call_soon_threadsafe(turn.set)
        if first:  # after it the connection ends
            until(lambda: connections[0].transport.is_closing(), "the end")
            return
        until(lambda: len(waiting) == 5000, "all")
        assert waiting == [f"/{number}" for number in range(5000)]


def test_what_waits_to_be_parsed_is_bounded() -> None:
    """Many send tiny chunks as fast as they can; each has a part of it here, however long its turn takes to come."""
    connections: list[Connection] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await answer(send)

    class Seen(Connection):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.append(self)

    most = 0
    with served(app, Seen) as port, ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        for client in clients:
            client.setblocking(False)
        ends = time.monotonic() + 2
        while time.monotonic() < ends:
            for client in clients:
                with suppress(OSError):
                    client.send(CHUNKED + b"1\r\nx\r\n" * 10_000)
            most = max([most, *(len(connection.unparsed) for connection in connections)])
    assert 0 < most < 65_536 + 2 * 262_144


def test_connections_that_were_reset_are_forgotten() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)

    seen: weakref.WeakSet[Connection] = weakref.WeakSet()

    class Seen(Connection):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            seen.add(self)

    with served(app, Seen) as port:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                connection.recv(10)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        until(lambda: gc.collect() >= 0 and len(seen) < 5, "them to be forgotten")
