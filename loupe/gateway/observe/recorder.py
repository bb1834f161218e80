"""Begin and end the entries of requests. Each ended entry goes to the log, the metrics and the trace.

entry = recorder.begin(method, path, client, headers)       # in the thread that answers it
recorder.end(entry, status)
request_id = recorder.record_refusal(problem, …)            # by the worker, without the application
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loupe.errors import ClientGone, Problem
from loupe.gateway.observe import logs, metrics, tracing
from loupe.gateway.observe.record import Entry, Head, current

if TYPE_CHECKING:  # importing it would load numpy and Pillow in gunicorn's master
    from loupe.card import Card
    from loupe.prediction import Prediction

QUIET = ("/healthz", "/readyz", "/metrics")  # logged only if they fail
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def begin(
    method: str,
    path: str,
    client: str,
    headers: tracing.Headers,
    *,
    arrived_at: float = 0.0,
    size: int = 0,
    client_left: Callable[[], bool] = lambda: False,
) -> Entry:
    """Begin the entry of a request, which had `arrived_at` that time with so many bytes, if that is known."""
    entry = Entry(
        _request_id(headers),
        method,
        path,
        client,
        client_left,
        trace=tracing.read(headers),
        endpoint=metrics.endpoint_of(path),
    )
    if arrived_at:
        entry.add_stage("wait", arrived_at)
        entry.began, entry.bytes_in = arrived_at, size
    current.set(entry)
    return entry


def _request_id(headers: tracing.Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else tracing.new_id(16)


def record_answer(entry: Entry, version: int, card: Card, predictions: list[Prediction]) -> None:
    entry.version, entry.card, entry.predictions = version, card, predictions


def end(entry: Entry, status: int) -> None:
    if entry.ended:
        return
    entry.ended, entry.status = True, status
    entry.add_stage("whole" if entry.has_thread else "arriving", entry.began)
    metrics.record(entry)
    if status >= 400 or entry.path not in QUIET:
        logs.write(entry)
        tracing.export(entry)
    current.set(None)


def record_refusal(
    problem: Problem | ClientGone,
    head: Head,
    client: Any,
    size: int,
    began: float,
    *,
    counted: bool = True,
) -> str:
    """Record a request that no thread got, and return its id. `began` is when it began to arrive."""
    # The entry, from the little that is known of the request.
    trace = tracing.read(head.headers)
    entry = Entry(
        _request_id(head.headers),
        head.method,
        head.path,
        str(client[0]) if isinstance(client, tuple) and client else str(client or ""),
        trace=trace if trace.parent_id else None,  # a refusal begins no trace of its own
        began=began or time.monotonic(),
        endpoint=metrics.endpoint_of(head.path),
        code=problem.code,
        bytes_in=size,
        counted=counted,
        has_thread=False,
    )
    # It ends at once.
    end(entry, problem.status)
    return entry.request_id
