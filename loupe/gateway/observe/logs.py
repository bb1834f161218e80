"""Write the log: one line for each request on stdout, everything else on stderr, as JSON or as short text.

    logs.start("json")            # or "text"; for all logging in this process, gunicorn's lines included
    logs.write(entry)             # of a request that ended

A line is plain ASCII and at most MAX_LINE bytes. So callers cannot break or forge lines, and lines of several workers
that share a pipe never mix. The query of an address is not logged, since it may hold secrets.

Nobody waits for a log that is not read: its lines wait in a queue (line_writer.py), and are dropped when that is full.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from loupe.cli import plain
from loupe.gateway.observe import metrics
from loupe.gateway.observe.line_writer import LineWriter
from loupe.gateway.observe.record import Entry, current

MAX_LINE = 4000  # bytes; a write of up to 4,096 to a pipe is never split
MAX_TEXT = 300  # characters of a path or the like
LIBRARY_SECONDS = 60.0  # between two lines of the same RATE_LIMITED logger, which may log at each request
RATE_LIMITED = ("opentelemetry", "grpc")
LAST_SECONDS = 1.0  # when the process ends: for lines that wait to be written

_as_text = False
_writers: dict[int, LineWriter] = {}  # by file descriptor


def start(format: str) -> None:
    """Start logging in this process and those that it forks."""
    global _as_text
    _as_text = format == "text"
    for file in (1, 2):
        _writers[file] = LineWriter(file, _missing_lines)
        os.register_at_fork(after_in_child=_writers[file].start_anew)
    atexit.register(_flush)
    handler = _StderrHandler()
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.captureWarnings(True)
    if not _as_text:
        sys.stdout, sys.stderr = _PrintToLog(1), _PrintToLog(2)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda hook: _log_uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)


def write(entry: Entry) -> None:
    _write(1, _request_text(entry) if _as_text else _json_line(_request_fields(entry)))
    # Count dropped lines here, where no lock is held. A destructor may have dropped one in the midst of other counting.
    for writer in _writers.values():
        if dropped := writer.take_dropped():
            metrics.dropped_lines(dropped)


def _request_fields(entry: Entry) -> dict[str, Any]:
    # Sums over stages and predictions. A stage comes twice if the model's version changed meanwhile.
    milliseconds: dict[str, float] = {}
    for stage in entry.stages:
        milliseconds[stage.name] = round(milliseconds.get(stage.name, 0) + stage.seconds * 1000, 1)
    labels: dict[str, int] = {}
    for prediction in entry.predictions:
        labels[prediction.label] = labels.get(prediction.label, 0) + 1
    # Fields that are left out when empty.
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
    # Fields that every line has.
    return {
        "time": _now(),
        "level": _level(entry.status),
        "message": "request",
        "request_id": entry.request_id,
        "method": entry.method[:32],
        "path": entry.path[:MAX_TEXT],
        "status": entry.status,
        "ms": milliseconds,
        "client": entry.client,
        "process": os.getpid(),
        **{key: value for key, value in known.items() if value},
    }


def _request_text(entry: Entry) -> bytes:
    stages = ", ".join(f"{stage.name} {stage.seconds * 1000:.0f}" for stage in entry.stages)
    words = [
        time.strftime("%H:%M:%S"), str(entry.status), plain(entry.method, 32), plain(entry.path, MAX_TEXT),
        f"({stages} ms)", entry.code or "", ", ".join(dict.fromkeys(p.label for p in entry.predictions[:10])),
        f"version {entry.version}" if entry.version is not None else "",
    ]  # fmt: skip
    return plain(" ".join(filter(None, words))).encode("utf-8", "replace") + b"\n"


def _level(status: int) -> str:
    return "info" if status < 500 else "error" if status in (500, 502) else "warning"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json_line(fields: dict[str, Any]) -> bytes:
    """Return one line of JSON. Cut long fields to fit: a traceback at its start, all others at their end."""
    line = json.dumps(fields)
    for name in ("traceback", "message", "labels", "path"):
        if len(line) <= MAX_LINE:
            break
        if name in fields:
            text, excess = str(fields[name]), len(line) - MAX_LINE
            room = max(0, len(text) - excess - 8)
            fields[name] = "… " + text[len(text) - room :] if name == "traceback" else text[: min(room, 500)] + " …"
            line = json.dumps(fields)
    return line.encode() + b"\n"


def _write(file: int, line: bytes) -> None:
    if writer := _writers.get(file):
        writer.write(line)


def _flush() -> None:
    deadline = time.monotonic() + LAST_SECONDS
    for writer in _writers.values():
        writer.flush(deadline)


def _missing_lines(count: int) -> bytes:
    text = f"{count} lines of the log are missing here: it was not read, or could not be written"
    if _as_text:
        return f"{time.strftime('%H:%M:%S')} WARNING {text}\n".encode()
    return _json_line({"time": _now(), "level": "warning", "message": text, "process": os.getpid()})


class _StderrHandler(logging.Handler):
    """Write each line to stderr as a whole, past sys.stderr, so that lines of several processes never mix."""

    def __init__(self) -> None:
        super().__init__()
        self._logged_at: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(RATE_LIMITED):
            now = time.monotonic()
            if now - self._logged_at.get(record.name, -LIBRARY_SECONDS) < LIBRARY_SECONDS:
                return
            self._logged_at[record.name] = now
        try:
            _write(2, self._text(record) if _as_text else _json_line(self._fields(record)))
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
        if trace := _format_traceback(record):
            fields["traceback"] = trace
        return fields

    def _text(self, record: logging.LogRecord) -> bytes:
        lines = [f"{time.strftime('%H:%M:%S')} {record.levelname} {record.getMessage()}"]
        lines += _format_traceback(record).splitlines()
        return "".join(plain(line) + "\n" for line in lines).encode("utf-8", "replace")

    def handleError(self, record: logging.LogRecord) -> None:
        _write(2, _json_line({"time": _now(), "level": "error", "message": "a log line could not be written"}))


class _PrintToLog(io.TextIOBase):
    """A stream in place of sys.stdout and sys.stderr that logs each printed line."""

    def __init__(self, file: int) -> None:
        self._file, self._unfinished = file, ""

    def fileno(self) -> int:
        return self._file

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in filter(str.strip, lines):
            _write(self._file, _json_line({"time": _now(), "level": "info", "message": line, "process": os.getpid()}))
        return len(text)


def _format_traceback(record: logging.LogRecord) -> str:
    error = record.exc_info
    return "".join(traceback.format_exception(*error)).rstrip() if error and error[0] else ""


def _log_uncaught(error_type: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(error_type, (SystemExit, KeyboardInterrupt)):
        logging.getLogger("loupe").critical("uncaught", exc_info=(error_type, error or error_type(), trace))
