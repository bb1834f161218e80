"""gunicorn's threaded worker, behind a front that lets no client hold a thread (front.py).

    worker_class = "loupe.gateway.door.worker.Worker"          # in gunicorn.conf.py

Each request is cut at one deadline for all of it, and so is each answer that is not taken. Told to stop, the worker is
not ready from then on, goes on for a while, takes what knocked before it closed, and answers all it has.
"""

from __future__ import annotations

import time
from typing import Any

from loupe import malloc
from loupe.errors import Busy
from loupe.gateway.door.connection import CLOSED, LINGERING
from loupe.gateway.door.front import Front
from loupe.gateway.door.listeners import listen_again, stop_accepting
from loupe.gateway.door.parting import MANY
from loupe.gateway.observe.record import stopping

MOST_ARRIVING = 500  # connections; beyond it the one that has been arriving longest is cut
SPARE_CONNECTIONS = 50  # of gunicorn's worker_connections: below them somebody has to go, for others to be let in
LAST_HANDSHAKE_SECONDS = 0.2  # for one that has begun when the worker lets nobody new in
LAST_SILENCE_SECONDS = 2.0  # of one that is sending
LAST_WORD_SECONDS = 0.5  # for a connection that was just made when the worker closed to say what it wants


class Worker(Front):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.notify_at = 0.0
        self.give_back_at = 0.0
        self.deaf = False
        self.stop_at: float | None = None
        self.stopped_at: float | None = None

    def init_process(self) -> None:
        for listener in self.sockets:
            listen_again(listener)
        super().init_process()

    def notify(self) -> None:
        """A file's time is set, for each event of the loop; the arbiter looks once a second."""
        now = time.monotonic()
        if now >= self.notify_at:
            self.notify_at = now + 1
            super().notify()

    def murder_pending(self) -> None:
        """Called by the loop each time round, at least once a second. What has to go for the sake of others goes here,
        and not while events are dispatched: another one of the same turn may be its own."""
        self._settle()
        now = time.monotonic()
        while self.arriving and self.arriving[0].deadline <= now:
            self._cut(self.arriving[0])
        while self.leaving and self.leaving[0].deadline <= now:
            self._drop(self.leaving.popleft())
        while self.lingering and (self.lingering[0][0] <= now or self.lingering[0][1].phase == CLOSED):
            self._drop(self.lingering.popleft()[1])
        while self.gathered > self.most_gathered:
            self._refuse(
                self._largest_idle_upload(), Busy("Too many pictures are arriving at once; try again in a second.")
            )
        while len(self.arriving) > MOST_ARRIVING:
            self._cut(self.arriving[0], Busy(MANY))
        while self.nr_conns > self.worker_connections - SPARE_CONNECTIONS and self._make_room():
            pass
        if self.served_at and now >= self.served_at + malloc.QUIET:
            self.served_at = 0.0
            malloc.give_back()
        elif self.served_at and now >= self.give_back_at:
            self.give_back_at = now + malloc.EVERY
            malloc.give_back(malloc.SPARE)
        if not self.alive:
            self._leave(now)

    def is_parent_alive(self) -> bool:
        if not super().is_parent_alive():
            self.alive = False
        return bool(self.alive)

    def handle_exit(self, sig: int, frame: Any) -> None:
        stopping.set()
        if self.stop_at is None:
            self.stop_at = time.monotonic() + self.settings.stop_delay
        self.method_queue.defer(lambda: None)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        if self.stop_at is not None and self.alive:
            timeout = min(timeout, max(0.0, self.stop_at - time.monotonic()))
        elif self.stopped_at is not None:
            timeout = min(timeout, 0.1)
        super().wait_for_and_dispatch_events(timeout)
        if self.stop_at is not None and self.alive and time.monotonic() >= self.stop_at:
            if not self.deaf and all(stop_accepting(listener, self.ppid) for listener in self.sockets):
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
        """A connection that has said nothing yet is given a moment, and one that stops half way a little more; one that
        only lingers is not waited for."""
        if self.stopped_at is None:  # the parent is gone
            self.stopped_at = now
        if now - self.stopped_at > LAST_WORD_SECONDS:
            for connection in list(self.arriving):
                if not len(connection.request) or now - connection.heard_at > LAST_SILENCE_SECONDS:
                    self._cut(connection)
            if self.nr_conns == sum(one.phase == LINGERING for _, one in self.lingering):
                for _, connection in self.lingering:
                    self._drop(connection)
