"""Read and check the caller's own time limit, the header X-Request-Timeout; and whether he is there at all.

    seconds = read_seconds(request.headers.get("X-Request-Timeout"))        # or NEVER
    deadline = read_deadline(request.headers.get("X-Request-Timeout"))      # of time.monotonic(), or NEVER
    check_caller(deadline)      # raise OutOfTime once it has passed, ClientGone once he closed his connection

The time counts from the moment the request had arrived, so it includes the wait for a thread. It can only shorten the
time that the settings allow.
"""

from __future__ import annotations

import math
import re
import time

from loupe.errors import BadRequest, ClientGone, OutOfTime
from loupe.gateway.observe import record

HEADER = "X-Request-Timeout"
NEVER = math.inf
_SECONDS = re.compile(r"(?=[0-9]*\.?[0-9])[0-9]{0,9}(\.[0-9]{0,9})?")


def read_seconds(text: str | None) -> float:
    if text is None:
        return NEVER
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if seconds <= 0:
        raise BadRequest(f"{HEADER} must be a number of seconds, more than 0, such as 2.5.")
    return seconds


def read_deadline(text: str | None) -> float:
    seconds, entry = read_seconds(text), record.current.get()
    return (entry.began if entry else time.monotonic()) + seconds


def check_caller(deadline: float) -> None:
    entry = record.current.get()
    if entry and entry.client_left():
        raise ClientGone("The client went away before its answer.")
    if time.monotonic() >= deadline:
        raise out_of_time()


def out_of_time() -> OutOfTime:
    return OutOfTime(f"The time that {HEADER} gave is over; allow more, or send fewer pictures at once.")
