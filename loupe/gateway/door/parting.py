"""How gunicorn's loop parts with who connects: answered, refused or cut, and closed so that the answer can be read.

    class Front(Parting): ...             # front.py: how they come in, and what threads do for them

What a client does not take of its answer at once, the loop sends; whoever is refused while still sending is listened to
a little longer; and where there are too many, whoever is missed least goes first.
"""

from __future__ import annotations

import os
import resource
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from loupe.errors import BadRequest, Busy, Problem, TooSlow
from loupe.gateway.door.connection import CLOSED, LEAVING, LINGERING, Connection, answer
from loupe.gateway.observe import recorder
from loupe.gateway.settings import Settings

SPARE_FILES = 100  # descriptors for all else
AT_ONCE = 1 << 18  # bytes read from one connection before others get their turn
SEND_SECONDS = 20.0  # for a client to take its answer
LINGER_SECONDS = 5.0  # for a client that is still sending to read why it should not
LINGER_TIMES = 3  # the limit: as much is taken and thrown away meanwhile
MANY = "More connect at once than this service can listen to; try again in a second."


class Parting(ThreadWorker):  # type: ignore[misc]
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.settings = Settings.from_environment(os.environ)
        self.alive = True
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.worker_connections = max(SPARE_FILES, min(self.cfg.worker_connections, files - SPARE_FILES))
        self.arriving: deque[Connection] = deque()  # in the order of their deadlines
        self.leaving: deque[Connection] = deque()  # their answers are; in the order of their deadlines
        self.lingering: deque[tuple[float, Connection]] = deque()
        self.gathered = 0  # bytes of requests that are not whole yet

    def _stay(self, connection: Connection) -> None:
        """It has its answer, and may send another request."""
        raise NotImplementedError

    def _watch(self, connection: Connection, events: int, see: Callable[[Connection, Any], None]) -> None:
        if connection.watched != see:
            change = self.poller.modify if connection.watched else self.poller.register
            change(connection.sock, events, partial(see, connection))
            connection.watched = see

    def _unwatch(self, connection: Connection) -> None:
        if connection.watched:
            connection.watched = None
            self.poller.unregister(connection.sock)

    # Answers.

    def _answer_taken(self, connection: Connection, keep: bool) -> None:
        """All of it; else the rest goes out as its client takes it."""
        if connection.sock.unsent:
            connection.phase = LEAVING
            connection.deadline = time.monotonic() + SEND_SECONDS
            self.leaving.append(connection)
            self._watch(connection, selectors.EVENT_WRITE, partial(self._send_on, keep))
        else:
            self._answered(connection, keep)

    def _send_on(self, keep: bool, connection: Connection, _: Any) -> None:
        try:
            connection.sock.send_on()
        except OSError:
            keep = False
        else:
            if connection.sock.unsent:
                return
        self.leaving.remove(connection)
        self._unwatch(connection)  # what follows may need no look at its socket for a while
        self._answered(connection, keep)

    def _answered(self, connection: Connection, keep: bool) -> None:
        if keep:
            self._stay(connection)
        else:
            self._linger(connection)

    # Refusals.

    def _refuse(self, connection: Connection, problem: Problem) -> None:
        request, began = connection.request, connection.deadline - self.settings.read_timeout
        request_id = recorder.record_refusal(
            problem, request.head, connection.client, len(request), began,
            counted=connection.server[1] != self.settings.metrics_port,
        )  # fmt: skip
        self._no_longer_arriving(connection)
        with suppress(OSError):
            connection.sock.sendall(answer(problem, request_id))
            connection.sock.send_on()
        self._answer_taken(connection, keep=False)

    def _broke_off(self, connection: Connection) -> None:
        if len(connection.request):  # it may have closed its own end alone, and still listen
            self._refuse(connection, BadRequest("The request broke off before its end; send it again."))
        else:
            self._no_longer_arriving(connection)
            self._close(connection)

    def _cut(self, connection: Connection, reason: Problem | None = None) -> None:
        if len(connection.request):
            slow = TooSlow("The request did not come to its end in time; send it again.")
            self._refuse(connection, reason or slow)
        else:
            self._no_longer_arriving(connection)
            self._close(connection)

    def _no_longer_arriving(self, connection: Connection) -> None:
        self.arriving.remove(connection)
        self.gathered -= len(connection.request)

    # Closing.

    def _linger(self, connection: Connection) -> None:
        """Closed at once, with bytes unread, the system would tell the client of a reset instead of the answer."""
        connection.phase = LINGERING
        try:
            connection.sock.shutdown(socket.SHUT_WR)
            self._watch(connection, selectors.EVENT_READ, self._drain)
        except (OSError, ValueError, KeyError):
            self._close(connection)
            return
        connection.forget()
        connection.to_drain = LINGER_TIMES * self.settings.max_bytes
        self.lingering.append((time.monotonic() + LINGER_SECONDS, connection))

    def _drain(self, connection: Connection, _: Any) -> None:
        try:
            data = connection.sock.recv(AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.to_drain -= len(data)
        if not data or connection.to_drain < 0:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._unwatch(connection)
        self.nr_conns -= 1
        connection.close()

    # For the sake of others.

    def _largest_idle_upload(self) -> Connection:
        """Who has been silent longest, of those with more than their share: in a rush it is not who is nearly done."""
        share = self.gathered / len(self.arriving)
        return min((one for one in self.arriving if len(one.request) >= share), key=lambda one: one.heard_at)

    def _make_room(self) -> bool:
        """Whoever is missed least, and has been here longest."""
        if self.lingering:
            self._drop(self.lingering.popleft()[1])
        elif self.keepalived_conns:
            self._drop(self.keepalived_conns.popleft())
        elif self.arriving:
            self._cut(self.arriving[0], Busy(MANY))
        elif self.leaving:
            self._drop(self.leaving.popleft())
        else:
            return False
        return True

    def _drop(self, connection: Connection) -> None:
        if connection.phase != CLOSED:
            self._close(connection)
