"""Threads that take calls, as gunicorn's threaded worker wants them.

    pool = Pool(8, "request")
    pool.submit(serve, connection)        # from one thread alone
    pool.shutdown()                       # for good, once all that was submitted is done

concurrent.futures makes a future of each call, for a result that nobody here asks for, and hands it to any thread; this
one goes to the thread that became idle last, whose memory the processor still knows. Of the processor's time for a
request, pixels left out, that is a fifteenth.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Call = tuple[Callable[..., Any], tuple[Any, ...]]

_log = logging.getLogger(__name__)


class Pool:
    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._lock = threading.RLock()  # a signal may have the loop's thread shut down in the midst of submit()
        self._threads: list[tuple[threading.Thread, SimpleQueue[Call | None]]] = []  # and what each waits for
        self._idle: list[SimpleQueue[Call | None]] = []  # of those that wait
        self._waiting: deque[Call] = deque()
        self._ends = False
        atexit.register(self._join)  # else what is under way would fall over what Python takes down around it

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        with self._lock:
            if self._idle:
                inbox = self._idle.pop()
            elif len(self._threads) < self._size:
                inbox = self._start()
            else:
                self._waiting.append((call, arguments))
                return
        inbox.put((call, arguments))

    def shutdown(self, wait: bool = False) -> None:
        """`wait` is gunicorn's, which never does."""
        with self._lock:
            self._ends = True
            self._idle.clear()
            for _, inbox in self._threads:  # all: who is idle no more may be about to get a call that never comes
                inbox.put(None)

    def _join(self) -> None:
        self.shutdown()
        for thread, _ in self._threads:
            thread.join()

    def _start(self) -> SimpleQueue[Call | None]:
        """When there is something to do, and nobody idle."""
        inbox: SimpleQueue[Call | None] = SimpleQueue()
        name = f"{self._name}_{len(self._threads)}"
        thread = threading.Thread(target=self._work, args=(inbox,), name=name, daemon=True)
        thread.start()
        self._threads.append((thread, inbox))
        return inbox

    def _work(self, inbox: SimpleQueue[Call | None]) -> None:
        while call := inbox.get():
            while call:
                self._do(*call)
                with self._lock:
                    call = self._waiting.popleft() if self._waiting else None
                    if not call and self._ends:
                        return
                    if not call:
                        self._idle.append(inbox)

    def _do(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            call(*arguments)
        except BaseException:  # a thread that ended would be missed
            _log.exception("%s failed", self._name)
