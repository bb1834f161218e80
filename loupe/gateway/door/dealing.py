"""Deal connections out evenly among a gateway's workers, so that the callers of each wait equally long.

    worker.sockets = [Dealt(listener, crowd.let_in) for listener in worker.sockets]    # before asyncio gets them

The system gives a connection to the worker that asks first, and asyncio asks until none is left: of 16 callers that
come at once one worker got 15. No library does otherwise. So a worker that knows of one with less to do leaves the next
to it for a moment. Where nobody takes it, it takes all that come in the next tenth of a second. Less to do has where
the wait is short and a thread is free, and of equal ones who has fewer connections (neighbours.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from loupe.gateway import neighbours

NAP_SECONDS = 0.0005  # the loop waits so long before it is told of the connection again
PATIENCE_SECONDS = 0.06  # a worker with its first requests in hand was seen to take none for 38 ms
LONG_PATIENCE_SECONDS = 0.25  # where one would wait here, or be refused
ALONE_SECONDS = 0.1  # for which it takes all, after nobody took what it left


class Dealt:
    """A listening socket. gunicorn's are no socket.socket either: asyncio needs the methods alone."""

    def __init__(self, listener: Any, let_in: Callable[[], None]) -> None:
        self._listener, self._let_in = listener, let_in
        self._left_at = self._asked_at = -math.inf  # when it left a connection to another worker, first and last
        self._taken = 0.0  # connections by the others until then
        self._alone_until = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def accept(self) -> Any:
        now = time.monotonic()
        mine, least = neighbours.burdens()
        if least < mine and now >= self._alone_until:
            patience = LONG_PATIENCE_SECONDS if least[:2] < mine[:2] else PATIENCE_SECONDS
            # Has somebody taken one since, or was nothing left since? The loop asks again at once while one waits.
            taken = neighbours.taken()
            if taken > self._taken or now > self._asked_at + patience:
                self._left_at = now
            self._asked_at, self._taken = now, taken
            if now < self._left_at + patience:
                time.sleep(NAP_SECONDS)
                raise BlockingIOError
            self._alone_until, self._asked_at = now + ALONE_SECONDS, -math.inf
        accepted = self._listener.accept()
        self._let_in()
        return accepted
