"""How slow this machine is just now, for tests that compare wall-clock time with a constant.

    assert time.monotonic() - started < seconds(2)      # two on a quiet machine, more on a slow or a busy one

A constant that fits the machine it was chosen on fails on a laptop that does something else beside. So a fixed piece of
work is timed once per process, as the first of these tests begins, and set against what it took where the constants
were chosen. Only what must not take longer is scaled, never what must take at least so long, and never shortened: a
fast machine has no less time. Tests that do so are marked `timing` and run alone, one after the other.
"""

from __future__ import annotations

import functools
import statistics
import time

import numpy as np

# Seconds of one turn below which nothing is scaled. Two idle cores took 0.014 to 0.035, by what their neighbours did.
REFERENCE = 0.035
TURNS = 7


def seconds(quiet: float) -> float:
    """So many on a quiet machine, and as many more here as this one is slower."""
    return quiet * pace()


@functools.cache
def pace() -> float:
    """1.0 where the constants were chosen, and on any faster machine. The median: one turn that nothing disturbs says
    little of what the tests will meet, and neither does one that was held up."""
    return max(1.0, statistics.median(_turn() for _ in range(TURNS)) / REFERENCE)


def _turn() -> float:
    """Python and arrays, of about equal parts, as a request costs both."""
    began = time.perf_counter()
    counted: dict[int, int] = {}
    for number in range(60_000):
        counted[number % 97] = counted.get(number % 97, 0) + number
    square = np.random.default_rng(0).random((300, 300))
    for _ in range(2):
        square = square @ square
        square /= square.max()
    np.sort(square, axis=None)
    return time.perf_counter() - began
