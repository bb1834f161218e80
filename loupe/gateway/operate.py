"""What is told of a request to the log, the metrics and the trace, when it ends.

entry = operate.begin(method, path, client, headers)       # in the thread that answers it
operate.end(entry, status)
request_id = operate.refused(problem, …)                   # at the worker's front, without the application
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loupe.errors import Problem
from loupe.gateway import logs, metrics, tracing
from loupe.gateway.life import Entry, Prediction, current, handed

if TYPE_CHECKING:  # gunicorn's master, which imports this with the worker, asks no model
    from loupe.gateway.client import Answer

QUIET = ("/healthz", "/readyz", "/metrics")  # not logged unless they fail
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def begin(method: str, path: str, client: str, headers: tracing.Headers) -> Entry:
    given = headers.get("X-Request-ID", "")
    entry = Entry(
        given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex,
        method,
        path,
        client,
        trace=tracing.read(headers),
        endpoint=metrics.endpoint(path),
    )
    if handed.at:
        entry.stage("wait", handed.at)
        entry.began, entry.bytes_in = handed.at, handed.size
        handed.at, handed.size = 0.0, 0
    current.set(entry)
    return entry


def answered(entry: Entry, answer: Answer, doubt: Callable[[Answer, int, float], str | None]) -> None:
    """What the model said; `doubt` tells why a row of it is not certain."""
    entry.version, entry.card = answer.version, answer.card
    tops = answer.probabilities.argmax(axis=1).tolist()
    familiarity = None if answer.familiarity is None else answer.familiarity.tolist()
    for row, top in enumerate(tops):
        confidence = float(answer.probabilities[row, top])
        entry.predictions.append(
            Prediction(
                answer.card.labels[top],
                confidence,
                None if familiarity is None else familiarity[row],
                doubt(answer, row, confidence),
            )
        )


def end(entry: Entry, status: int) -> None:
    if entry.ended:
        return
    entry.ended, entry.status = True, status
    entry.stage("whole", entry.began)
    metrics.record(entry)
    if status >= 400 or entry.path not in QUIET:
        logs.write(entry)
        tracing.export(entry)
    current.set(None)


def refused(
    problem: Problem,
    method: bytes | str,
    path: bytes | str,
    client: Any,
    size: int,
    began: float,
    *,
    counted: bool = True,
) -> str:
    """Gives the request's id. All that is known of it is what its first bytes say, if those are a request at all."""
    path = _text(path)
    entry = Entry(
        uuid.uuid4().hex,
        _text(method),
        path,
        str(client[0]) if isinstance(client, tuple) and client else str(client or ""),
        began=began or time.monotonic(),
        endpoint=metrics.endpoint(path),
        code=problem.code,
        bytes_in=size,
        counted=counted,
    )
    end(entry, problem.status)
    return entry.request_id


def _text(given: bytes | str) -> str:
    return given.decode("utf-8", "replace") if isinstance(given, bytes) else given
