"""How long one request may take, as its caller said in X-Request-Timeout.

    deadline = read(request.headers.get("X-Request-Timeout"))      # time.monotonic(); without one, never
    check(deadline)                                                # OutOfTime once it is over

It counts from the moment the request was whole, so what it waited for a thread is in it. It can only shorten what the
settings allow: they stand beside it.
"""

from __future__ import annotations

import math
import re
import time

from loupe.errors import BadRequest, OutOfTime
from loupe.gateway import life

HEADER = "X-Request-Timeout"
NEVER = math.inf
_SECONDS = re.compile(r"(?=[0-9]*\.?[0-9])[0-9]{0,9}(\.[0-9]{0,9})?")


def read(text: str | None) -> float:
    if text is None:
        return NEVER
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if seconds <= 0:
        raise BadRequest(f"{HEADER} must be a number of seconds, more than 0, such as 2.5.")
    entry = life.current.get()
    return (entry.began if entry else time.monotonic()) + seconds


def check(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise over()


def over() -> OutOfTime:
    return OutOfTime(f"The time that {HEADER} gave is over; allow more, or send fewer pictures at once.")
