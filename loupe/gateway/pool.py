"""Threads that take calls, as gunicorn's threaded worker wants them.

    pool = Pool(8, "request")
    pool.submit(serve, connection)        # from one thread alone
    pool.shutdown(wait=False)

concurrent.futures makes a future of each call, for a result that nobody here asks for, and hands it to any thread; this
one goes to the thread that became idle last, whose memory the processor still knows.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_log = logging.getLogger(__name__)
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Pool:
    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._lock = threading.Lock()
        self._started = 0
        self._idle: list[SimpleQueue[Call | None]] = []  # one for each idle thread
        self._waiting: deque[Call] = deque()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        with self._lock:
            if self._idle:
                inbox = self._idle.pop()
            elif self._started < self._size:
                inbox = self._start()
            else:
                self._waiting.append((call, arguments))
                return
        inbox.put((call, arguments))

    def shutdown(self, wait: bool = False) -> None:
        with self._lock:
            for inbox in self._idle:
                inbox.put(None)

    def _start(self) -> SimpleQueue[Call | None]:
        self._started += 1
        inbox: SimpleQueue[Call | None] = SimpleQueue()
        threading.Thread(target=self._work, args=(inbox,), name=f"{self._name}_{self._started}", daemon=True).start()
        return inbox

    def _work(self, inbox: SimpleQueue[Call | None]) -> None:
        while job := inbox.get():
            while job:
                call, arguments = job
                try:
                    call(*arguments)
                except BaseException:
                    _log.exception("a thread's work failed")
                del call, arguments
                with self._lock:
                    job = self._waiting.popleft() if self._waiting else None
                    if not job:
                        self._idle.append(inbox)
