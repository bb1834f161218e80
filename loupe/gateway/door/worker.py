"""gunicorn's worker: uvicorn, told how much it may take, with the Flask app behind the door (asgi.py).

    worker_class = "loupe.gateway.door.worker.Worker"          # in gunicorn.conf.py

Told to stop, a worker says so at /readyz, goes on for LOUPE_DRAIN seconds, closes its listening sockets, and ends when
all that is in hand is answered. gunicorn's master starts workers, watches over them and stops them.

`UvicornWorker` is extended by the public methods of gunicorn's workers: init_process, init_signals, load_wsgi,
handle_exit and handle_quit, and by its own callback_notify, which uvicorn calls once a second.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import time
from contextlib import suppress
from functools import partial
from typing import Any

from uvicorn_worker import UvicornWorker

from loupe import malloc
from loupe.gateway.door.asgi import Door
from loupe.gateway.door.connection import Connection, Limits
from loupe.gateway.door.crowd import Crowd
from loupe.gateway.door.dealing import Dealt
from loupe.gateway.door.environ import Proxies
from loupe.gateway.door.listeners import listen_again, stop_accepting
from loupe.gateway.observe import metrics, tracing
from loupe.gateway.observe.record import stopping
from loupe.gateway.request.fetch import MAX_PARALLEL
from loupe.gateway.settings import ANSWER_SECONDS, Settings

ENOUGH_FILES = 1 << 14  # descriptors
SPARE_FILES = 100  # for all but callers' connections and fetches: the model servers, look-ups, the page's files
FEWEST = 8  # connections
LAST_HANDSHAKE_SECONDS = 0.2  # for one that has begun when nobody new is let in
LAST_SECONDS = 2  # of those that gunicorn gives to the end, for what comes after the last answer
FULL_TABLE = (
    "All %d files that this process may open are open, so nobody can connect; "
    "raise `ulimit -n`, or lower gunicorn's worker_connections."
)

_log = logging.getLogger(__name__)


class Worker(UvicornWorker):  # type: ignore[misc]
    CONFIG_KWARGS = {
        "loop": "asyncio",
        "ws": "none",
        "lifespan": "on",
        "interface": "asgi3",
        "access_log": False,  # recorder writes a line for each request
        "log_level": "critical",  # the door logs its own failures; a caller's mistakes are no events
        "proxy_headers": False,
        "server_header": False,
        "timeout_notify": 1,
        "timeout_graceful_shutdown": int(ANSWER_SECONDS) - LAST_SECONDS,
    }

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.settings = Settings.from_environment(os.environ)
        self.door: Door | None = None
        self.crowd: Crowd | None = None
        self.given_back_at = 0.0
        self.serves = False

    # The start.

    def init_process(self) -> None:
        malloc.settle()
        for listener in self.sockets:
            listen_again(listener)
        metrics.start(self.settings.body_memory)
        limits = Limits(
            read_seconds=self.settings.read_timeout,
            max_bytes=self.settings.max_bytes,
            line=self.cfg.limit_request_line,
            fields=self.cfg.limit_request_fields,
            field=self.cfg.limit_request_field_size,
            uncounted_port=self.settings.metrics_port,
        )
        spare = SPARE_FILES + self.settings.fetches * MAX_PARALLEL
        most = max(FEWEST, min(self.cfg.worker_connections, _files() - spare))
        self.crowd = Crowd(most)
        self.sockets: list[Any] = [Dealt(listener, self.crowd.let_in) for listener in self.sockets]
        self.config.http = partial(Connection, limits, self.crowd)
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)  # until uvicorn has its own, and once it has ended

    def load_wsgi(self) -> None:
        super().load_wsgi()
        app: Any = self.wsgi  # type: ignore[has-type]
        proxies = Proxies(self.cfg.forwarded_allow_ips)
        self.wsgi = self.door = Door(app, self.settings, proxies, self._on_start, tracing.stop)

    def _on_start(self, door: Door) -> None:
        """Take SIGTERM over from uvicorn, which would stop listening at once, and hand it on after LOUPE_DRAIN."""
        assert self.crowd
        self.serves = True
        self.crowd.tell()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_Complaints())
        hand_on = signal.getsignal(signal.SIGTERM)
        assert callable(hand_on)

        def told(number: int, frame: Any) -> None:
            if not stopping.is_set():
                stopping.set()
                loop.call_soon_threadsafe(loop.call_later, self.settings.stop_delay, end)

        def end() -> None:
            is_given = any(isinstance(address, int) for address in self.cfg.address)  # as fd://3
            is_deaf = not is_given and all(stop_accepting(listener, self.ppid) for listener in self.sockets)
            loop.call_later(LAST_HANDSHAKE_SECONDS if is_deaf else 0, stop_listening)

        def stop_listening() -> None:
            assert self.crowd
            self.crowd.close()
            door.hurry()
            hand_on(signal.SIGTERM, None)

        signal.signal(signal.SIGTERM, told)

    # Once a second.

    async def callback_notify(self) -> None:
        await super().callback_notify()
        assert self.crowd and self.door
        self.crowd.forget_lost()
        self.door.tell()
        if os.getppid() != self.ppid:  # the master is gone, so nobody else would end this
            os.kill(os.getpid(), signal.SIGTERM)
        self._give_back_memory()

    def _give_back_memory(self) -> None:
        assert self.door
        now, served_at = time.monotonic(), self.door.served_at
        if served_at and now >= served_at + malloc.QUIET:
            self.door.served_at = 0.0
            malloc.give_back()
        elif served_at and now >= self.given_back_at + malloc.EVERY:
            self.given_back_at = now
            malloc.give_back(malloc.SPARE)

    # The end.

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End at once for SIGQUIT, and where nothing is served yet. Else this is uvicorn, which raises the signal that
        it has ended by once more."""
        if sig == signal.SIGQUIT or not self.serves:
            self.handle_quit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        if self.crowd:
            self.crowd.abandon()
        super().handle_quit(sig, frame)


class _Complaints:
    """What asyncio complains of. That no file can be opened is said once, not each time that somebody connects."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            if not self._said:
                self._said = True
                _log.warning(FULL_TABLE, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            return
        loop.default_exception_handler(context)


def _files() -> int:
    """Return how many files this process may open, after it has asked for enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(ENOUGH_FILES, hard)
    if soft == resource.RLIM_INFINITY:
        return ENOUGH_FILES
    if soft < enough:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
