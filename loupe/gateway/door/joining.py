"""Send what is written in one turn of the loop in one piece, so that a worker that is killed leaves no half answer.

    super().connection_made(Joining(transport, loop))    # in uvicorn's protocol

uvicorn writes the head of an answer and then its body, and asyncio sends each at once. Killed between the two, a worker
leaves its caller with half an answer. Joined they are one packet, and one call of the system, too.

Where the loop has ended, at SIGQUIT, nothing is sent any more: uvicorn answers 500 even then, as its coroutines go.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Joining:
    """A transport. What it does not change is the transport's own."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._loop.is_closed() or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if self._loop.is_closed():
            return
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def _send(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))

    def write_eof(self) -> None:
        self._send()
        self._transport.write_eof()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._send()
        self._transport.close()

    def abort(self) -> None:
        self._held.clear()
        self._transport.abort()
