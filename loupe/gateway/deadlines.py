"""How long one request may take, as its caller said in X-Request-Timeout.

    deadline = read(request.headers.get("X-Request-Timeout"))      # time.monotonic(); without one, never
    check(deadline)                                                # OutOfTime once it is over

It counts from the moment the request was whole, so what it waited for a thread is in it. It can only shorten what the
settings allow: they stand beside it. Where none is in hand to say when that was, as outside of our worker, it counts
from now.
"""

from __future__ import annotations

import math
import re
import time
from contextvars import ContextVar

from loupe.errors import BadRequest, OutOfTime

HEADER = "X-Request-Timeout"
NEVER = math.inf
_SECONDS = re.compile(r"(?=[0-9]*\.?[0-9])[0-9]{0,9}(\.[0-9]{0,9})?")

whole_at: ContextVar[float] = ContextVar("whole_at")  # time.monotonic(); set by the worker in each request's thread


def read(text: str | None) -> float:
    if text is None:
        return NEVER
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if seconds <= 0:
        raise BadRequest(f"{HEADER} must be a number of seconds, more than 0, such as 2.5.")
    return whole_at.get(time.monotonic()) + seconds


def check(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise over()


def over() -> OutOfTime:
    return OutOfTime(f"The time that {HEADER} gave is over; allow more, or send fewer pictures at once.")
