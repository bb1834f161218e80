"""What lives while the gateway does: the process, which may be on its way out, and the request in hand.

    stopping.is_set()             # set by the worker when it is told to stop, read by /readyz
    entry = in_hand()             # of the request that this thread answers
    current.get()                 # the same, or None between requests
    entry.stage("fetch", began)   # it ended now

An entry is what the log, the metrics and the trace are told of one request when it ends (recorder.py).
"""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

stopping = threading.Event()


class Trace(NamedTuple):
    """A place in a trace, as W3C's Trace Context has it. Its span is this gateway's answering of one request."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    parent_id: str  # of the caller's span; empty where the trace begins here
    sampled: bool
    state: str  # of other vendors, passed on as it came


class Head(NamedTuple):
    """What is told of a request that nobody has parsed."""

    method: str
    path: str  # the first of it
    headers: dict[str, str]  # of X-Request-ID, traceparent and tracestate those that came, in small letters


class Prediction(NamedTuple):
    label: str
    confidence: float
    familiarity: float | None
    reason: str | None  # why it is not certain


class Stage(NamedTuple):
    name: str
    began: float  # of time.monotonic()
    seconds: float


@dataclass(slots=True)
class Entry:
    request_id: str
    method: str
    path: str
    client: str  # its address
    trace: Trace | None = None
    began: float = field(default_factory=time.monotonic)  # when it had arrived; or began to, if not `arrived`
    endpoint: str = "other"  # one of a few: what a caller sends names no time series
    status: int = 0
    code: str | None = None  # of the problem that is the answer
    key: str | None = None  # the name of the API key that came with it
    stages: list[Stage] = field(default_factory=list)
    bytes_in: int = 0  # head and body
    pictures: int = 0
    predictions: list[Prediction] = field(default_factory=list)
    version: int | None = None  # of the model that answered
    card: Any = None  # its card
    counted: bool = True  # in the metrics
    arrived: bool = True  # False: refused at the worker's front, whole or not; no thread was given to it
    ended: bool = False

    def stage(self, name: str, began: float, seconds: float | None = None) -> None:
        self.stages.append(Stage(name, began, time.monotonic() - began if seconds is None else seconds))


current: ContextVar[Entry | None] = ContextVar("entry", default=None)


def in_hand() -> Entry:
    entry = current.get()
    assert entry is not None
    return entry


class Handed(threading.local):
    """Told by the worker to the thread that it gives a request: when that had arrived, how much it was, its first part
    (which is its head, and in odd cases more)."""

    at = 0.0
    size = 0
    head = b""

    def forget(self) -> None:
        self.at, self.size, self.head = 0.0, 0, b""


handed = Handed()


def stage(name: str, began: float, seconds: float | None = None) -> None:
    if entry := current.get():
        entry.stage(name, began, seconds)


def metadata() -> tuple[tuple[str, str], ...] | None:
    """For a call to the model server: whose request it is part of."""
    entry = current.get()
    if entry is None:
        return None
    pairs = [("x-request-id", entry.request_id)]
    if trace := entry.trace:
        pairs.append(("traceparent", f"00-{trace.trace_id}-{trace.span_id}-{'01' if trace.sampled else '00'}"))
        if trace.state:
            pairs.append(("tracestate", trace.state))
    return tuple(pairs)
