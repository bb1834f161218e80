"""The state of this process (is it stopping?) and of the request that the current thread answers.

    stopping.is_set()                 # set by the worker when it is told to stop, read by /readyz
    entry = current_entry()           # of the request that this thread answers
    current.get()                     # the same, or None between requests
    entry.add_stage("fetch", began)   # the stage ends now

When a request ends, its entry goes to the log, the metrics and the trace (recorder.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # importing it would load numpy and Pillow in gunicorn's master
    from loupe.prediction import Prediction

stopping = threading.Event()


class Trace(NamedTuple):
    """A span in a trace (W3C Trace Context): this gateway's handling of one request."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16
    parent_id: str  # the caller's span; empty if the trace begins here
    sampled: bool
    state: str  # the header tracestate, passed on unchanged


class Head(NamedTuple):
    """The parts of a request's head that are recorded where it was refused."""

    method: str
    path: str  # at most 300 characters
    headers: dict[str, str]  # by their names in lower case

    @classmethod
    def of(cls, method: str, path: str, lines: Iterable[tuple[bytes, bytes]]) -> Head:
        headers: dict[str, str] = {}
        for name, value in lines:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            headers[key] = f"{headers[key]},{text}" if key in headers else text
        return cls(method, path[:300], headers)


class Stage(NamedTuple):
    name: str
    began: float  # in time.monotonic()
    seconds: float


@dataclass(slots=True)
class Entry:
    request_id: str
    method: str
    path: str
    client: str  # the client's address
    client_left: Callable[[], bool] = lambda: False  # has he closed his connection?
    trace: Trace | None = None
    began: float = field(default_factory=time.monotonic)  # when it had arrived; if refused before, when it began to
    endpoint: str = "other"  # one of a fixed list, so that callers cannot add time series
    status: int = 0
    code: str | None = None  # the problem's code, if the answer is one
    key: str | None = None  # the name of the caller's API key
    stages: list[Stage] = field(default_factory=list)
    bytes_in: int = 0  # of head and body
    pictures: int = 0
    predictions: list[Prediction] = field(default_factory=list)
    version: int | None = None  # the version of the model that answered
    card: Any = None  # that version's card
    counted: bool = True  # False: left out of the metrics
    has_thread: bool = True  # False: refused by the worker before a thread got it
    ended: bool = False

    def add_stage(self, name: str, began: float, seconds: float | None = None) -> None:
        self.stages.append(Stage(name, began, time.monotonic() - began if seconds is None else seconds))


current: ContextVar[Entry | None] = ContextVar("entry", default=None)


def current_entry() -> Entry:
    entry = current.get()
    assert entry is not None
    return entry


def add_stage(name: str, began: float, seconds: float | None = None) -> None:
    if entry := current.get():
        entry.add_stage(name, began, seconds)


def grpc_metadata() -> tuple[tuple[str, str], ...] | None:
    """Return the gRPC metadata that ties a call to the current request: its id and its trace."""
    entry = current.get()
    if entry is None:
        return None
    pairs = [("x-request-id", entry.request_id)]
    if trace := entry.trace:
        pairs.append(("traceparent", f"00-{trace.trace_id}-{trace.span_id}-{'01' if trace.sampled else '00'}"))
        if trace.state:
            pairs.append(("tracestate", trace.state))
    return tuple(pairs)
