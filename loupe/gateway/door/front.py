"""What is before gunicorn's threads: connections come in, requests are gathered, and whole ones are handed over.

    class Worker(Front): ...              # worker.py: the loop's deadlines, and the way out

A request is gathered in the worker's own loop, however slowly it comes, and given to a thread when it is whole; what a
client does not take of its answer at once, the loop sends as well (parting.py). So a thousand slow clients cost a
thousand sockets and no thread. Beyond so many requests in hand the next is told so at once, by its head alone, before
its body is read.

A thread tells the loop that it is done only if the loop has something to do at once; else it learns it with the next
event: to wake it costs as much as to read a request. An event of one connection may find that another has moved on, and
that one's own event of the same turn comes late: `phase` tells.
"""

from __future__ import annotations

import io
import selectors
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Any

from gunicorn import http
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from loupe import malloc
from loupe.errors import BadRequest, Busy, HeadTooLarge, Problem, TooLarge
from loupe.gateway.door.connection import ARRIVING, IN_HAND, WAITING, Connection, answer
from loupe.gateway.door.framing import head_of
from loupe.gateway.door.parting import AT_ONCE, Parting
from loupe.gateway.door.pool import Pool
from loupe.gateway.observe import metrics, recorder
from loupe.gateway.observe.record import handover, stopping

ALIVE, PROBES = b"/healthz", (b"/healthz", b"/readyz")
PROBE_THREADS = 2
PAGE_FILES = (b"/page/", b"/samples/")
PAGE_PLACES = 32  # a browser asks for twenty files of the page at once; without one of them it stays dead
MOST_GATHERED = 1 << 27  # bytes of requests that are not whole yet, and at least what two of them may have
LONG_HEAD = "The request's address or headers are too long; send a URL in the body."
NO_HTTP = "This is not a request that HTTP/1.1 knows; send it again with a usual client."
_OURS = (InvalidResponseHeader, InvalidResponseHeaderName, http.errors.ConfigurationProblem)  # not the client's fault


class Front(Parting):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cfg.set("sendfile", False)  # it would wait for the client
        self.most_gathered = max(MOST_GATHERED, 2 * self.settings.max_bytes)
        self.scratch = memoryview(bytearray(AT_ONCE))
        self.in_hand = 0
        self.served_at = 0.0  # the last request since all free memory was given back
        self.let_go: deque[bool] = deque()  # by the threads, for the loop: that one is no longer in hand
        self.finished: deque[tuple[Connection, bool]] = deque()  # and what becomes of its connection

    def init_process(self) -> None:
        malloc.settle()
        for name, setting in self.cfg.settings.items():  # gunicorn calls two functions for each, fifty times a request
            self.cfg.__dict__[name] = setting.get()
        self.alive_pool = Pool(1, "alive")  # whatever the model keeps waiting
        self.probe_pool = Pool(PROBE_THREADS, "probe")
        metrics.start(self.settings.threads + self.settings.queue)
        super().init_process()

    def get_thread_pool(self) -> Pool:
        return Pool(self.settings.threads, "request")

    # Taking connections.

    def accept(self, listener: socket.socket) -> bool:
        self._settle()
        try:
            client, address = listener.accept()
        except OSError:  # taken by another worker, or gone again
            return False
        self.nr_conns += 1
        connection = Connection(self.cfg, client, address, listener.getsockname(), self.settings.max_bytes)
        self._arrive(connection)
        return True

    def _readable(self, connection: Connection, _: Any) -> None:
        self._settle()
        if connection.phase == ARRIVING:
            self._gather(connection)
        elif connection.phase == WAITING:  # it has another request
            self.keepalived_conns.remove(connection)
            self._arrive(connection)
        elif connection.phase == IN_HAND:  # it sends on, or hung up, before it has its answer: to be seen to after that
            self._unwatch(connection)
            self._settle()  # or now: the thread that has just finished may not have seen that nobody watches

    def _arrive(self, connection: Connection) -> None:
        connection.phase = ARRIVING
        connection.deadline = time.monotonic() + self.settings.read_timeout
        connection.admitted = False
        self.arriving.append(connection)
        self.gathered += len(connection.request)
        if not self._go_on(connection) and not self._gather(connection):  # most requests are there already
            self._watch(connection, selectors.EVENT_READ, self._readable)

    def _gather(self, connection: Connection) -> bool:
        """Whether it is decided what becomes of this connection's request."""
        left = AT_ONCE
        while left > 0 and self.gathered <= self.most_gathered:
            try:
                size = connection.sock.recv_into(self.scratch, left)
            except BlockingIOError:
                return False
            except OSError:
                size = 0
            if not size:
                self._broke_off(connection)
                return True
            left -= size
            connection.heard_at = time.monotonic()
            before = len(connection.request)
            connection.request.take(self.scratch[:size])
            self.gathered += len(connection.request) - before  # an Expect header is left out
            if self._go_on(connection):
                return True
        return False

    def _go_on(self, connection: Connection) -> bool:
        """Whether what came so far decides it."""
        request = connection.request
        if request.state == "head":
            return False
        probe = request.target in PROBES or connection.server[1] == self.settings.metrics_port
        if request.state == "no_http":
            self._refuse(connection, BadRequest(NO_HTTP))
        elif request.state == "long_head":
            self._refuse(connection, HeadTooLarge(LONG_HEAD))
        elif request.state == "too_large":
            limit = self.settings.max_bytes
            self._refuse(
                connection, TooLarge(f"The body is larger than {limit:,} bytes; send less, or smaller pictures.")
            )
        elif not probe and self._is_full(request.target) and (request.state != "body" or not connection.admitted):
            self._refuse(connection, Busy("As many requests are in hand as this service takes; try again in a second."))
        elif request.state in ("whole", "odd"):
            self._no_longer_arriving(connection)
            self._hand_over(connection, probe)
        else:
            connection.admitted = True
            if request.expects_word:
                request.expects_word = False
                with suppress(OSError):
                    connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            return False
        return True

    def _is_full(self, target: bytes) -> bool:
        """Whether one more for this target would be too many. The page and its files have some places more."""
        self._count_down()
        more = PAGE_PLACES if target == b"/" or target.startswith(PAGE_FILES) else 0
        return self.in_hand >= self.settings.threads + self.settings.queue + more

    # Whole requests, to the threads and back.

    def _hand_over(self, connection: Connection, probe: bool) -> None:
        connection.phase = IN_HAND
        connection.whole_at = time.monotonic()
        alive = connection.request.target == ALIVE
        pool = self.alive_pool if alive else self.probe_pool if probe else self.tpool
        self.in_hand += not probe
        metrics.in_flight(self.in_hand)
        pool.submit(self._serve, connection, probe)

    def _serve(self, connection: Connection, probe: bool) -> None:
        """In a thread."""
        keep = False
        try:
            keep = bool(self.handle(connection))
            connection.forget_request()
        finally:
            self.let_go.append(not probe)  # before its client has the answer, and sends the next one
            try:
                connection.sock.send_on()
            except OSError:  # nobody is there to take it
                keep = False
            self.finished.append((connection, keep))
            more = connection.sock.unsent or len(connection.request)
            if more or not keep or not connection.watched or stopping.is_set():  # in this order: see _readable
                self.method_queue.defer(self._settle)

    def handle_request(self, req: Any, conn: Connection) -> bool:
        if conn.body is not None:
            req.body, conn.body = io.BytesIO(conn.body), None  # as it is: gunicorn would copy it from small pieces
        return bool(super().handle_request(req, conn))

    def _settle(self) -> None:
        """What the threads have finished since the last time."""
        self._count_down()
        while self.finished:
            self._answer_taken(*self.finished.popleft())

    def _count_down(self) -> None:
        while self.let_go:
            self.served_at = time.monotonic()
            self.in_hand -= self.let_go.popleft()
            metrics.in_flight(self.in_hand)

    def _stay(self, connection: Connection) -> None:
        if len(connection.request):
            self._arrive(connection)
            return
        connection.phase = WAITING
        connection.set_timeout()
        if not self.alive:  # its client was told that it may send another
            connection.timeout = min(connection.timeout, time.monotonic() + STOP_KEEPALIVE_LINGER)
        self.keepalived_conns.append(connection)
        self._watch(connection, selectors.EVENT_READ, self._readable)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """What gunicorn's parser refuses, in the form of every other error."""
        if isinstance(exc, (http.errors.LimitRequestLine, http.errors.LimitRequestHeaders)):
            problem: Problem = HeadTooLarge(LONG_HEAD)
        elif isinstance(exc, http.errors.ParseException) and not isinstance(exc, _OURS):
            problem = BadRequest(NO_HTTP)
        else:
            super().handle_error(req, client, addr, exc)
            return
        head = head_of(handover.head)
        request_id = recorder.record_refusal(problem, head, addr, handover.size, handover.arrived_at, has_thread=True)
        with suppress(OSError):
            client.sendall(answer(problem, request_id))
