"""Ask again while a service is away for a moment: it restarts, or it has too much to do.

patiently(lambda: …, seconds=10, stop=event)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from loupe.errors import Busy, ModelGone, ModelUnavailable, Stopping

T = TypeVar("T")

PAUSES = (0.1, 2.0)  # seconds before the second try, and at most before any other


def patiently(ask: Callable[[], T], seconds: float, stop: threading.Event) -> T:
    """Return what `ask` returns. Where it raises ModelUnavailable, Busy or Stopping, try again for so long, unless
    `stop` is set."""
    deadline = time.monotonic() + seconds
    pause, longest = PAUSES
    while True:
        try:
            return ask()
        except ModelGone:  # the server is there, and says so
            raise
        except (ModelUnavailable, Busy, Stopping):
            if time.monotonic() + pause > deadline or stop.wait(pause):
                raise
        pause = min(longest, 2 * pause)
