"""What the gateway's workers tell each other of their load, so that the callers of all wait equally long.

    share()                            # in gunicorn's master, before it forks
    tell_connections(20); tell_wait(1); tell_in_hand(12); tell_calls(in_flight=4, waiting=3)
    surplus()                          # how many calls to the model server this worker has beyond its share
    burdens()                          # this worker's, and the least that another has

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
_in_hand_at = -math.inf


class Load(NamedTuple):
    in_hand: float = 0  # requests for predictions, or what is left of the most there were
    in_flight: float = 0  # calls to the model server, or about to be
    waiting: float = 0  # calls for which there is no place
    wait: float = 0  # for a thread, in coarse steps; 0 where it is short
    connections: float = 0
    told_at: float = 0


WIDTH = len(Load._fields)

Burden = tuple[float, float]  # the wait, and then connections
NOTHING: Burden = (0.0, 0.0)
NOBODY: Burden = (math.inf, math.inf)  # who takes no connection


def share() -> None:
    global _cells
    _cells = memoryview(mmap.mmap(-1, CELLS * WIDTH * 8)).cast("d")


def tell_in_hand(in_hand: int) -> None:
    """What is told falls slowly: a caller who has just been answered, and asks again, is away for a moment."""
    global _in_hand_at
    if _cells is not None:
        now = time.monotonic()
        most = _load(_mine()).in_hand * 0.5 ** ((now - _in_hand_at) / HALF_LIFE)
        _in_hand_at = now
        _tell({0: max(in_hand, most)})


def tell_calls(in_flight: int, waiting: int) -> None:
    _tell({1: in_flight, 2: waiting})


def tell_wait(steps: int) -> None:
    _tell({3: steps})


def tell_connections(connections: float) -> None:
    """`inf` from a worker that takes no more."""
    _tell({4: connections})


def _tell(numbers: dict[int, float]) -> None:
    if _cells is not None:
        first = _mine() * WIDTH
        for position, number in {**numbers, WIDTH - 1: time.monotonic()}.items():
            _cells[first + position] = number


def surplus() -> float | None:
    """Return how many calls this worker has in flight beyond its share. Negative: so many are missing. None: no other
    worker's calls wait."""
    return beyond_share(_load(_mine()), _others()) if _cells is not None else None


def burdens() -> tuple[Burden, Burden]:
    """Return this worker's burden, and the least that another has."""
    if _cells is None:
        return NOTHING, NOBODY
    return burden(_load(_mine())), min(map(burden, _others()), default=NOBODY)


def burden(load: Load) -> Burden:
    """Return what tells whether somebody new is better off with another worker. Connections say much about it where all
    ask alike. But silent ones cost nothing, and some cost much, so a wait that is long comes first."""
    if load.connections == math.inf:
        return NOBODY
    return load.wait, load.connections


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
