"""How long one request may take, as its caller said in X-Request-Timeout.

    deadline = read_deadline(request.headers.get("X-Request-Timeout"))      # time.monotonic(); without one, never
    check_deadline(deadline)                                                # OutOfTime once it is over

It counts from the moment the request was whole, so what it waited for a thread is in it. It can only shorten what the
settings allow: they stand beside it.
"""

from __future__ import annotations

import math
import re
import time

from loupe.errors import BadRequest, OutOfTime
from loupe.gateway.observe import record

HEADER = "X-Request-Timeout"
NEVER = math.inf
_SECONDS = re.compile(r"(?=[0-9]*\.?[0-9])[0-9]{0,9}(\.[0-9]{0,9})?")


def read_deadline(text: str | None) -> float:
    if text is None:
        return NEVER
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if seconds <= 0:
        raise BadRequest(f"{HEADER} must be a number of seconds, more than 0, such as 2.5.")
    entry = record.current.get()
    return (entry.began if entry else time.monotonic()) + seconds


def check_deadline(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise out_of_time()


def out_of_time() -> OutOfTime:
    return OutOfTime(f"The time that {HEADER} gave is over; allow more, or send fewer pictures at once.")
