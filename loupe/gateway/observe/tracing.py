"""Read W3C Trace Context, and send spans with OpenTelemetry if its packages are installed and an endpoint is set.

    trace = tracing.read(headers)         # the caller's trace, continued, or a new one
    tracing.start()                       # in the worker, after the fork
    tracing.export(entry)                 # a span for the request and one for each stage, sent in the background
    tracing.stop()                        # waits up to STOP_SECONDS for spans that are not sent yet

Without `opentelemetry-sdk`, `opentelemetry-exporter-otlp-proto-grpc` and OTEL_EXPORTER_OTLP_ENDPOINT, OpenTelemetry is
not imported. If the collector is gone, only spans are lost: they wait in a queue that drops the oldest.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from importlib.util import find_spec
from typing import Any, Protocol

from loupe.gateway.observe.record import Entry, Trace


class Headers(Protocol):
    def get(self, name: str, otherwise: str, /) -> str: ...


STOP_SECONDS = 2.0
NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
MAX_STATE = 512  # characters

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
_STATE = re.compile(r"[\x20-\x7e]+", re.ASCII)
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))
_log = logging.getLogger(__name__)
_exporter: _Exporter | None = None


def new_id(size: int) -> str:
    """Return a random id of `size` bytes as hexadecimal digits. It is not secret, so `random` is good enough."""
    return f"{random.getrandbits(8 * size):0{2 * size}x}"


def read(headers: Headers) -> Trace:
    """Return the caller's trace, continued by a span of this gateway, or a new trace."""
    parent = _match_parent(headers.get("traceparent", "").strip())
    span_id = new_id(8)
    if not parent:
        return Trace(new_id(16), span_id, "", _exporter is not None, "")
    state = headers.get("tracestate", "").strip()
    valid = len(state) <= MAX_STATE and state.count(",") < 32 and _STATE.fullmatch(state)
    return Trace(parent[1], span_id, parent[2], bool(int(parent[3], 16) & 1), state if valid else "")


def _match_parent(text: str) -> re.Match[str] | None:
    """Match a traceparent header. Later versions of the format may append fields, which are ignored."""
    parent = _PARENT.match(text)
    if not parent or text[parent.end() :] and (text[:2] == "00" or text[parent.end()] != "-"):
        return None
    return parent


def start() -> None:
    global _exporter
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    try:
        if not all(find_spec(name) for name in NEEDED):
            return
        _exporter = _Exporter()
    except ModuleNotFoundError:
        return
    except Exception:  # a wrong OpenTelemetry setting must not stop the gateway
        _log.exception("OpenTelemetry did not start; requests are not traced")


def export(entry: Entry) -> None:
    if _exporter and entry.trace:
        _exporter.export(entry, entry.trace)


def stop() -> None:
    if _exporter:
        shutdown = threading.Thread(target=_exporter.provider.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(STOP_SECONDS)


class _Exporter:
    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        os.environ.setdefault("OTEL_SERVICE_NAME", "loupe-gateway")
        self._ids = _id_generator()
        self.provider = TracerProvider(id_generator=self._ids, shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self.provider.get_tracer("loupe.gateway")
        self._api = trace

    def export(self, entry: Entry, trace: Trace) -> None:
        """Export one span for the request and one for each stage. Spans are created after the fact."""
        # The request's span, with the id that the model server was given as its parent.
        offset = time.time() - time.monotonic()
        *stages, whole = entry.stages
        self._ids.chosen.trace_id, self._ids.chosen.span_id = int(trace.trace_id, 16), int(trace.span_id, 16)
        span = self._tracer.start_span(
            f"{entry.method if entry.method in _METHODS else 'HTTP'} {entry.endpoint}",
            context=self._parent_context(trace),
            kind=self._api.SpanKind.SERVER,
            start_time=_nanoseconds(offset + entry.began),
            attributes=_attributes(entry),
        )
        if entry.status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        # A child for each stage; all times lie in the past.
        inside = self._api.set_span_in_context(span)
        for stage in stages:
            child = self._tracer.start_span(stage.name, context=inside, start_time=_nanoseconds(offset + stage.began))
            child.end(_nanoseconds(offset + stage.began + stage.seconds))
        span.end(_nanoseconds(offset + whole.began + whole.seconds))

    def _parent_context(self, trace: Trace) -> Any:
        from opentelemetry.context import Context

        if not trace.parent_id:
            return Context()
        parent = self._api.SpanContext(
            int(trace.trace_id, 16),
            int(trace.parent_id, 16),
            is_remote=True,
            trace_flags=self._api.TraceFlags(trace.sampled),
            trace_state=self._api.TraceState.from_header([trace.state]),
        )
        return self._api.set_span_in_context(self._api.NonRecordingSpan(parent), Context())


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _attributes(entry: Entry) -> dict[str, Any]:
    known = {
        "http.request.method": entry.method[:32],
        "http.response.status_code": entry.status,
        "url.path": entry.path[:300],
        "client.address": entry.client,
        "error.type": entry.code,
        "loupe.request_id": entry.request_id,
        "loupe.pictures": entry.pictures,
        "loupe.model_version": entry.version,
    }
    return {key: value for key, value in known.items() if value is not None}


def _id_generator() -> Any:
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class ChosenIds(RandomIdGenerator):
        """Give out the ids in `chosen` once, then random ones. The model server was told the chosen ones before."""

        chosen = threading.local()

        def generate_span_id(self) -> int:
            chosen = self.chosen.__dict__.pop("span_id", None)
            return super().generate_span_id() if chosen is None else int(chosen)

        def generate_trace_id(self) -> int:
            chosen = self.chosen.__dict__.pop("trace_id", None)
            return super().generate_trace_id() if chosen is None else int(chosen)

    return ChosenIds()
