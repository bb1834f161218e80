"""The log: one line a request on stdout, everything else on stderr, each a JSON object (or short text to read).

    logs.start("json")            # or "text": everything that is logged in this process, gunicorn's lines included
    logs.write(entry)             # of a request that ended

A line is plain ASCII and at most MOST_LINE bytes, so that no caller breaks or forges one, and lines of several workers
that share a pipe never mix. The query of an address is not logged: it may hold secrets.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from loupe.cli import plain
from loupe.gateway.observe.record import Entry, current

MOST_LINE = 4000  # bytes; a pipe takes 4,096 in one piece
MOST_TEXT = 300  # characters of a path or the like
QUIET_SECONDS = 60.0  # between two lines of a library that may have one to say for each request
CHATTY = ("opentelemetry", "grpc")

_as_text = False


def start(format: str) -> None:
    global _as_text
    _as_text = format == "text"
    handler = _Handler()
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.captureWarnings(True)
    if not _as_text:
        sys.stdout, sys.stderr = _Printed(1), _Printed(2)
    sys.excepthook = _uncaught
    threading.excepthook = lambda hook: _uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)


def write(entry: Entry) -> None:
    _put(1, _text_of(entry) if _as_text else _line(_fields_of(entry)))


def _fields_of(entry: Entry) -> dict[str, Any]:
    milliseconds: dict[str, float] = {}
    for stage in entry.stages:  # decode and model come again where the model's version changed meanwhile
        milliseconds[stage.name] = round(milliseconds.get(stage.name, 0) + stage.seconds * 1000, 1)
    labels: dict[str, int] = {}
    for prediction in entry.predictions:
        labels[prediction.label] = labels.get(prediction.label, 0) + 1
    known = {
        "trace_id": entry.trace.trace_id if entry.trace else None,
        "code": entry.code,
        "key": entry.key,
        "bytes_in": entry.bytes_in,
        "pictures": entry.pictures,
        "labels": dict(sorted(labels.items(), key=lambda item: -item[1])[:10]),
        "uncertain": sum(prediction.reason is not None for prediction in entry.predictions),
        "version": entry.version,
    }
    return {
        "time": _now(),
        "level": _level(entry.status),
        "message": "request",
        "request_id": entry.request_id,
        "method": entry.method[:32],
        "path": entry.path[:MOST_TEXT],
        "status": entry.status,
        "ms": milliseconds,
        "client": entry.client,
        "process": os.getpid(),
        **{key: value for key, value in known.items() if value},
    }


def _text_of(entry: Entry) -> bytes:
    stages = ", ".join(f"{stage.name} {stage.seconds * 1000:.0f}" for stage in entry.stages)
    words = [
        time.strftime("%H:%M:%S"), str(entry.status), plain(entry.method, 32), plain(entry.path, MOST_TEXT),
        f"({stages} ms)", entry.code or "", ", ".join(dict.fromkeys(p.label for p in entry.predictions[:10])),
        f"version {entry.version}" if entry.version is not None else "",
    ]  # fmt: skip
    return plain(" ".join(filter(None, words))).encode("utf-8", "replace") + b"\n"


def _level(status: int) -> str:
    return "info" if status < 500 else "error" if status in (500, 502) else "warning"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(fields: dict[str, Any]) -> bytes:
    """What is too long loses its front (a traceback) or its end, so that the line stays one and whole."""
    line = json.dumps(fields)
    for name in ("traceback", "message", "labels", "path"):
        if len(line) <= MOST_LINE:
            break
        if name in fields:
            text, over = str(fields[name]), len(line) - MOST_LINE
            room = max(0, len(text) - over - 8)
            fields[name] = "… " + text[len(text) - room :] if name == "traceback" else text[: min(room, 500)] + " …"
            line = json.dumps(fields)
    return line.encode() + b"\n"


def _put(file: int, line: bytes) -> None:
    with suppress(OSError):  # whoever read it is gone
        os.write(file, line)


class _Handler(logging.Handler):
    """Writes past sys.stderr: one call a line, which other processes on the same pipe cannot come between."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(CHATTY):
            now = time.monotonic()
            if now - self._said.get(record.name, -QUIET_SECONDS) < QUIET_SECONDS:
                return
            self._said[record.name] = now
        try:
            _put(2, self._text(record) if _as_text else _line(self._fields(record)))
        except Exception:
            self.handleError(record)

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        entry = current.get()
        fields = {
            "time": _now(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if entry:
            fields["request_id"] = entry.request_id
            if entry.trace:
                fields["trace_id"] = entry.trace.trace_id
        if trace := _traceback(record):
            fields["traceback"] = trace
        return fields

    def _text(self, record: logging.LogRecord) -> bytes:
        lines = [f"{time.strftime('%H:%M:%S')} {record.levelname} {record.getMessage()}"]
        lines += _traceback(record).splitlines()
        return "".join(plain(line) + "\n" for line in lines).encode("utf-8", "replace")

    def handleError(self, record: logging.LogRecord) -> None:
        _put(2, _line({"time": _now(), "level": "error", "message": "a log line could not be written"}))


class _Printed(io.TextIOBase):
    """What some library prints is a line of this log, too."""

    def __init__(self, file: int) -> None:
        self._file, self._begun = file, ""

    def fileno(self) -> int:
        return self._file

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in filter(str.strip, lines):
            _put(self._file, _line({"time": _now(), "level": "info", "message": line, "process": os.getpid()}))
        return len(text)


def _traceback(record: logging.LogRecord) -> str:
    found = record.exc_info
    return "".join(traceback.format_exception(*found)).rstrip() if found and found[0] else ""


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, (SystemExit, KeyboardInterrupt)):
        logging.getLogger("loupe").critical("uncaught", exc_info=(kind, error or kind(), trace))
