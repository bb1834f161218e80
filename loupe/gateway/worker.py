"""gunicorn's threaded worker, behind a front that lets no sender hold a thread.

    worker_class = "loupe.gateway.worker.Worker"          # in gunicorn.conf.py

A request is gathered in the worker's own loop, however slowly it comes, and given to a thread when it is whole. So a
thousand slow clients cost a thousand sockets and no thread; each is cut at one deadline for all of its request. Beyond
so many requests in hand the next is told so at once, by its head alone, before its body is read. Probes have threads of
their own. Told to stop, the worker is not ready from then on, goes on for a while, takes what knocked before it closed,
and answers all it has.
"""

from __future__ import annotations

import io
import os
import selectors
import socket
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn import http
from gunicorn.http.errors import InvalidResponseHeader, InvalidResponseHeaderName
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from loupe.errors import BadRequest, Busy, HeadTooLarge, Problem, TooLarge, TooSlow
from loupe.gateway import memory, metrics, operate
from loupe.gateway.connection import Connection, answer
from loupe.gateway.life import handed, stopping
from loupe.gateway.listeners import deafen
from loupe.gateway.settings import Settings

PROBES = (b"/healthz", b"/readyz")
PROBE_THREADS = 2
MOST_ARRIVING = 500  # connections; beyond it the one that has been arriving longest is cut
MOST_GATHERED = 1 << 27  # bytes of requests that are not whole yet, and at least what two of them may have
AT_ONCE = 1 << 18  # bytes read from one connection before others get their turn
LINGER_SECONDS = 5.0  # for a client that is still sending to read why it should not
LINGER_TIMES = 3  # the limit: as much is taken and thrown away meanwhile
LAST_HANDSHAKE_SECONDS = 0.2  # for one that has begun when the worker lets nobody new in
LAST_WORD_SECONDS = 0.5  # for a connection that was just made when the worker closed to say what it wants
LONG_HEAD = "The request's address or headers are too long; send a URL in the body."
NO_HTTP = "This is not a request that HTTP/1.1 knows; send it again with a usual client."
_OURS = (InvalidResponseHeader, InvalidResponseHeaderName, http.errors.ConfigurationProblem)  # not the client's fault


class Worker(ThreadWorker):  # type: ignore[misc]
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.settings = Settings.from_environment(os.environ)
        self.alive = True
        self.arriving: deque[Connection] = deque()  # in the order of their deadlines
        self.lingering: deque[tuple[float, Connection]] = deque()
        self.notify_at = 0.0
        self.gathered = 0
        self.scratch = memoryview(bytearray(AT_ONCE))
        self.in_hand = 0
        self.deaf = False
        self.stop_at: float | None = None
        self.stopped_at: float | None = None

    def init_process(self) -> None:
        memory.settle()
        self.probe_pool = ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="probe")
        metrics.start(self.settings.threads + self.settings.queue)
        super().init_process()

    # Taking connections.

    def accept(self, listener: socket.socket) -> bool:
        try:
            client, address = listener.accept()
        except OSError:  # taken by another worker, or gone again
            return False
        self.nr_conns += 1
        connection = Connection(self.cfg, client, address, listener.getsockname(), self.settings.max_bytes)
        if len(self.arriving) >= MOST_ARRIVING:
            self._cut(self.arriving[0])
        self._arrive(connection)
        return True

    def on_client_socket_readable(self, conn: Connection, client: Any) -> None:
        """A kept-alive connection has another request."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._arrive(conn)

    def _arrive(self, connection: Connection) -> None:
        connection.deadline = time.monotonic() + self.settings.read_timeout
        connection.admitted = False
        self.arriving.append(connection)
        self.gathered += len(connection.request)
        self.poller.register(connection.sock, selectors.EVENT_READ, partial(self._gather, connection))
        if not self._go_on(connection):
            self._gather(connection, connection.sock)  # most requests are there already

    def _gather(self, connection: Connection, _: Any) -> None:
        left = AT_ONCE
        while left > 0:
            try:
                size = connection.sock.recv_into(self.scratch, left)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._broke_off(connection)
                return
            left -= size
            self.gathered += size
            connection.request.take(self.scratch[:size])
            if self._go_on(connection):
                return

    def _broke_off(self, connection: Connection) -> None:
        if len(connection.request):  # it may have closed its own end alone, and still listen
            self._refuse(connection, BadRequest("The request broke off before its end; send it again."))
        else:
            self._no_longer_arriving(connection)
            self._close(connection)

    def _go_on(self, connection: Connection) -> bool:
        """Whether it is decided what becomes of this request."""
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
        elif not probe and self._is_full() and (request.state != "body" or not connection.admitted):
            self._refuse(connection, Busy("As many requests are in hand as this service takes; try again in a second."))
        elif request.state in ("whole", "odd"):
            self._no_longer_arriving(connection)
            self._hand_over(connection, probe)
        elif self.gathered > max(MOST_GATHERED, 2 * self.settings.max_bytes):
            self._refuse(connection, Busy("Too many pictures are arriving at once; try again in a second."))
        else:
            connection.admitted = True
            if request.expects_word:
                request.expects_word = False
                with suppress(OSError):
                    connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            return False
        return True

    def _is_full(self) -> bool:
        return self.in_hand >= self.settings.threads + self.settings.queue

    def _no_longer_arriving(self, connection: Connection) -> None:
        self.arriving.remove(connection)
        self.gathered -= len(connection.request)
        with suppress(OSError, KeyError, ValueError):
            self.poller.unregister(connection.sock)

    # Whole requests, to the threads and back.

    def _hand_over(self, connection: Connection, probe: bool) -> None:
        connection.whole_at = time.monotonic()
        pool = self.probe_pool if probe else self.tpool
        self.in_hand += not probe
        metrics.in_flight(self.in_hand)
        done: Future[Any] = pool.submit(self.handle, connection)
        done.add_done_callback(lambda future: self.method_queue.defer(self._finished, connection, future, probe))

    def handle_request(self, req: Any, conn: Connection) -> bool:
        if conn.body is not None:  # as it is: gunicorn would copy it together from small pieces
            req.body, conn.body = io.BytesIO(conn.body), None
        return bool(super().handle_request(req, conn))

    def _finished(self, connection: Connection, future: Future[Any], probe: bool) -> None:
        self.in_hand -= not probe
        metrics.in_flight(self.in_hand)
        keep = not future.cancelled() and not future.exception() and future.result()
        if not keep:
            self._linger(connection)
            return
        connection.sock.setblocking(False)
        if len(connection.request):
            self._arrive(connection)
            return
        connection.set_timeout()
        if not self.alive:  # its client was told that it may send another
            connection.timeout = min(connection.timeout, time.monotonic() + STOP_KEEPALIVE_LINGER)
        self.keepalived_conns.append(connection)
        read = partial(self.on_client_socket_readable, connection)
        self.poller.register(connection.sock, selectors.EVENT_READ, read)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """What gunicorn's parser refuses, in the form of every other error."""
        if isinstance(exc, (http.errors.LimitRequestLine, http.errors.LimitRequestHeaders)):
            problem: Problem = HeadTooLarge(LONG_HEAD)
        elif isinstance(exc, http.errors.ParseException) and not isinstance(exc, _OURS):
            problem = BadRequest(NO_HTTP)
        else:
            super().handle_error(req, client, addr, exc)
            return
        request_id = operate.refused(problem, "", "", addr, handed.size, handed.at)
        with suppress(OSError):
            client.sendall(answer(problem, request_id))

    # Refusing, and closing so that the refusal can be read.

    def _refuse(self, connection: Connection, problem: Problem) -> None:
        request, began = connection.request, connection.deadline - self.settings.read_timeout
        request_id = operate.refused(
            problem, request.method, request.target, connection.client, len(request), began,
            counted=connection.server[1] != self.settings.metrics_port,
        )  # fmt: skip
        self._no_longer_arriving(connection)
        with suppress(OSError):
            connection.sock.send(answer(problem, request_id))
        self._linger(connection)

    def _cut(self, connection: Connection) -> None:
        if len(connection.request):
            self._refuse(connection, TooSlow("The request did not come to its end in time; send it again."))
        else:
            self._no_longer_arriving(connection)
            self._close(connection)

    def _linger(self, connection: Connection) -> None:
        """Closed at once, with bytes unread, the system would tell the client of a reset instead of the answer."""
        try:
            connection.sock.setblocking(False)
            connection.sock.shutdown(socket.SHUT_WR)
            self.poller.register(connection.sock, selectors.EVENT_READ, partial(self._drain, connection))
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
            self.poller.unregister(connection.sock)
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self.nr_conns -= 1
        connection.close()
        connection.forget()
        connection.closed = True

    # The loop: deadlines, and the way out.

    def notify(self) -> None:
        """A file's time is set, for each event of the loop; the arbiter looks once a second."""
        now = time.monotonic()
        if now >= self.notify_at:
            self.notify_at = now + 1
            super().notify()

    def murder_pending(self) -> None:
        """Called by the loop each time round, at least once a second."""
        now = time.monotonic()
        while self.arriving and self.arriving[0].deadline <= now:
            self._cut(self.arriving[0])
        while self.lingering and (self.lingering[0][0] <= now or self.lingering[0][1].closed):
            connection = self.lingering.popleft()[1]
            if not connection.closed:
                self.poller.unregister(connection.sock)
                self._close(connection)
        if not self.alive:
            self._leave(now)

    def is_parent_alive(self) -> bool:
        if not super().is_parent_alive():
            self.alive = False
        return bool(self.alive)

    def handle_exit(self, sig: int, frame: Any) -> None:
        stopping.set()
        if self.stop_at is None:
            self.stop_at = time.monotonic() + self.settings.drain
        self.method_queue.defer(lambda: None)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self.stop_at is not None and self.alive:
            timeout = min(timeout, max(0.0, self.stop_at - time.monotonic()))
        elif self.stopped_at is not None:
            timeout = min(timeout, 0.1)
        super().wait_for_and_dispatch_events(timeout)
        if self.stop_at is not None and self.alive and time.monotonic() >= self.stop_at:
            if not self.deaf and all(deafen(listener, self.ppid) for listener in self.sockets):
                self.deaf, self.stop_at = True, time.monotonic() + LAST_HANDSHAKE_SECONDS
                return
            self._stop_listening()
            self.alive = False
            self.stopped_at = time.monotonic()

    def _stop_listening(self) -> None:
        """Closed now, not when all is answered: whoever knocks meanwhile would wait for nothing and be reset."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            while self.accept(listener):
                pass
            listener.close()

    def _leave(self, now: float) -> None:
        """A connection that has said nothing yet is given a moment; one that only lingers is not waited for."""
        if self.stopped_at is None:  # the parent is gone
            self.stopped_at = now
        if now - self.stopped_at > LAST_WORD_SECONDS:
            for connection in [one for one in self.arriving if not len(one.request)]:
                self._cut(connection)
            if self.nr_conns == sum(not connection.closed for _, connection in self.lingering):
                for _, connection in self.lingering:
                    if not connection.closed:
                        self._close(connection)
