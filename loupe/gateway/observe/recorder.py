"""What is told of a request to the log, the metrics and the trace, when it ends.

entry = recorder.begin(method, path, client, headers)       # in the thread that answers it
recorder.end(entry, status)
request_id = recorder.refused(problem, …)                   # at the worker's front, without the application
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from loupe.errors import Problem
from loupe.gateway.observe import logs, metrics, tracing
from loupe.gateway.observe.record import Entry, Head, Prediction, current, handed

if TYPE_CHECKING:  # at run time it would bring numpy and Pillow into gunicorn's master
    from loupe.card import Card

QUIET = ("/healthz", "/readyz", "/metrics")  # not logged unless they fail
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def begin(method: str, path: str, client: str, headers: tracing.Headers) -> Entry:
    entry = Entry(
        _request_id(headers),
        method,
        path,
        client,
        trace=tracing.read(headers),
        endpoint=metrics.endpoint(path),
    )
    if handed.at:
        entry.stage("wait", handed.at)
        entry.began, entry.bytes_in = handed.at, handed.size
        handed.forget()
    current.set(entry)
    return entry


def _request_id(headers: tracing.Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else tracing.new_id(16)


def answered(entry: Entry, version: int, card: Card, predictions: list[Prediction]) -> None:
    entry.version, entry.card, entry.predictions = version, card, predictions


def end(entry: Entry, status: int) -> None:
    if entry.ended:
        return
    entry.ended, entry.status = True, status
    entry.stage("whole" if entry.arrived else "arriving", entry.began)
    metrics.record(entry)
    if status >= 400 or entry.path not in QUIET:
        logs.write(entry)
        tracing.export(entry)
    current.set(None)


def refused(
    problem: Problem, head: Head, client: Any, size: int, began: float, *, arrived: bool = False, counted: bool = True
) -> str:
    """Gives the request's id. `arrived`: it was given a thread, which `began` to wait for then."""
    trace = tracing.read(head.headers)
    entry = Entry(
        _request_id(head.headers),
        head.method,
        head.path,
        str(client[0]) if isinstance(client, tuple) and client else str(client or ""),
        trace=trace if trace.parent_id else None,  # none is begun for what is only refused
        began=began or time.monotonic(),
        endpoint=metrics.endpoint(head.path),
        code=problem.code,
        bytes_in=size,
        counted=counted,
        arrived=arrived,
    )
    handed.forget()
    end(entry, problem.status)
    return entry.request_id
