"""What the gateway's workers tell each other of their load, so that the callers of all wait equally long.

    share(threads=8)                   # in gunicorn's master, before it forks
    tell_connections(20, asking=12, taken=700); tell_waits(1, 0); tell_in_hand(uploads=12, fetches=0)
    tell_calls(in_flight=4, waiting=3)
    surplus()                          # how many calls to the model server this worker has beyond its share
    burdens()                          # this worker's, and the least that another has
    taken()                            # connections that the others have taken, ever

Connections may be dealt out evenly (door/dealing.py), and yet one worker has seven requests and the other 25. Each
worker has a cell of a memory that all see, writes to it alone, at least once a second, and reads those of the others.
Nothing is locked or owed: the cell of a worker that was killed is soon old, and nobody heeds it.
"""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Iterable
from typing import NamedTuple

CELLS = 61  # a worker's is its number modulo this; two of the same gateway seldom meet, and then tell half the truth
FRESH_SECONDS = 1.5
HALF_LIFE = 0.5  # seconds in which what is told of requests in hand falls by half, at the most

_cells: memoryview[float] | None = None
_threads = 0
_in_hand_at = -math.inf


class Load(NamedTuple):
    in_hand: float = 0  # requests for predictions, or what is left of the most there were
    in_flight: float = 0  # calls to the model server, or about to be
    waiting: float = 0  # calls for which there is no place
    uploads: float = 0  # in hand now, or waiting for a thread
    fetches: float = 0  # the same of requests that fetch, for which there are other threads
    wait: float = 0  # of an upload for a thread, in coarse steps; 0 where it is short
    fetch_wait: float = 0
    connections: float = 0
    asking: float = 0  # of these: with a request in hand, or so new that one is about to come
    taken: float = 0  # connections, ever
    told_at: float = 0


WIDTH = len(Load._fields)
POSITIONS = {name: position for position, name in enumerate(Load._fields)}

Burden = tuple[float, int, float]  # see burden()
NOTHING: Burden = (0.0, 0, 0.0)
NOBODY: Burden = (math.inf, 2, math.inf)  # who takes no connection


def share(threads: int) -> None:
    """Each worker has so many threads for uploads."""
    global _cells, _threads
    _threads = threads
    _cells = memoryview(mmap.mmap(-1, CELLS * WIDTH * 8)).cast("d")


def tell_in_hand(uploads: int, fetches: int) -> None:
    """What is told of both falls slowly: a caller who has just been answered, and asks again, is away for a moment."""
    global _in_hand_at
    if _cells is not None:
        now = time.monotonic()
        most = _load(_mine()).in_hand * 0.5 ** ((now - _in_hand_at) / HALF_LIFE)
        _in_hand_at = now
        _tell(in_hand=max(uploads + fetches, most), uploads=uploads, fetches=fetches)


def tell_calls(in_flight: int, waiting: int) -> None:
    _tell(in_flight=in_flight, waiting=waiting)


def tell_waits(upload: int, fetch: int) -> None:
    _tell(wait=upload, fetch_wait=fetch)


def tell_connections(connections: float, asking: int, taken: int) -> None:
    """`inf` from a worker that takes no more."""
    _tell(connections=connections, asking=asking, taken=taken)


def _tell(**numbers: float) -> None:
    if _cells is not None:
        first = _mine() * WIDTH
        numbers["told_at"] = time.monotonic()
        for name, number in numbers.items():
            _cells[first + POSITIONS[name]] = number


def surplus() -> float | None:
    """Return how many calls this worker has in flight beyond its share. Negative: so many are missing. None: no other
    worker's calls wait."""
    return beyond_share(_load(_mine()), _others()) if _cells is not None else None


def burdens() -> tuple[Burden, Burden]:
    """Return this worker's burden, and the least that another has."""
    if _cells is None:
        return NOTHING, NOBODY
    mine, *others = (burden(load, _threads) for load in (_load(_mine()), *_others()))
    return mine, min(others, default=NOBODY)


def taken() -> float:
    """Return how many connections the others have taken, ever."""
    return sum(load.taken for load in _others()) if _cells is not None else 0.0


def burden(load: Load, threads: int) -> Burden:
    """Return what a new connection is dealt by; the first number that differs decides.

    First the wait. Then 2 where no thread for uploads is free, else 1 where fetches wait, else 0. Then connections:
    they tell the load where all clients ask alike, but silent ones cost nothing, and a single one may cost much.
    """
    if load.connections == math.inf:
        return NOBODY
    is_full = max(load.uploads, load.asking - load.fetches) >= threads
    return load.wait, 2 if is_full else int(load.fetch_wait > 0), load.connections


def _mine() -> int:
    return os.getpid() % CELLS


def _others() -> list[Load]:
    """Return the loads of the workers that told theirs lately."""
    assert _cells is not None
    fresh, mine = time.monotonic() - FRESH_SECONDS, _mine()
    told_at = enumerate(_cells[WIDTH - 1 :: WIDTH])
    return [_load(number) for number, at in told_at if at > fresh and number != mine]


def _load(number: int) -> Load:
    assert _cells is not None
    return Load(*_cells[number * WIDTH : (number + 1) * WIDTH])


def beyond_share(mine: Load, others: Iterable[Load]) -> float | None:
    """Return how many calls I have in flight beyond what my requests are of all requests. Those of a worker where no
    call waits for a place do not count."""
    loads = [mine, *(load for load in others if load.waiting)]
    in_hand = sum(load.in_hand for load in loads)
    if len(loads) == 1 or not in_hand:
        return None
    return mine.in_flight - sum(load.in_flight for load in loads) * mine.in_hand / in_hand
