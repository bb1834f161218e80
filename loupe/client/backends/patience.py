"""Ask again while a service is away for a moment: it restarts, it changes versions, it has too much to do.

patiently(lambda: …, seconds=10)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from loupe.errors import Busy, ModelUnavailable, Stopping

T = TypeVar("T")

PAUSES = (0.1, 2.0)  # seconds before the second try, and at most before any other


def patiently(ask: Callable[[], T], seconds: float) -> T:
    """Return what `ask` returns. Where it raises ModelUnavailable, Busy or Stopping, try again for so long."""
    deadline = time.monotonic() + seconds
    pause, longest = PAUSES
    while True:
        try:
            return ask()
        except (ModelUnavailable, Busy, Stopping):
            if time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(longest, 2 * pause)
