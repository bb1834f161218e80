"""Hand things that one thread at a time may use to threads in the order in which they came.

    turns = Turns([request, other_request])
    with turns.take(deadline) as request: ...      # OutOfTurns where the deadline comes first

queue.SimpleQueue would do it but for the order: the thread that gives a thing back is the one that runs, and takes it
again before another has woken. Seen with eight callers: one waited for ten others' turns and more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


def seconds_until(deadline: float | None) -> float:
    """Return for how long a lock may be waited for. No lock takes more than TIMEOUT_MAX, which is for ever."""
    left = threading.TIMEOUT_MAX if deadline is None else max(0.0, deadline - time.monotonic())
    return min(left, threading.TIMEOUT_MAX)


class OutOfTurns(Exception):
    """The deadline was over before a turn came."""


class _Waiter(Generic[T]):
    def __init__(self) -> None:
        self.woken = threading.Lock()
        self.woken.acquire()
        self.thing: T | None = None


class Turns(Generic[T]):
    def __init__(self, things: Sequence[T]) -> None:
        self._free = list(things)
        self._waiters: deque[_Waiter[T]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def take(self, deadline: float | None = None) -> Iterator[T]:
        thing = self._take(deadline)
        try:
            yield thing
        finally:
            self._give(thing)

    def _take(self, deadline: float | None) -> T:
        with self._lock:
            if self._free:
                return self._free.pop()
            waiter = _Waiter[T]()
            self._waiters.append(waiter)
        if not waiter.woken.acquire(timeout=seconds_until(deadline)):
            with self._lock:
                if waiter.thing is None:  # else it was handed over just now
                    self._waiters.remove(waiter)
                    raise OutOfTurns
        assert waiter.thing is not None
        return waiter.thing

    def _give(self, thing: T) -> None:
        with self._lock:
            if not self._waiters:
                self._free.append(thing)
                return
            waiter = self._waiters.popleft()
            waiter.thing = thing
        waiter.woken.release()
