"""Write lines to stdout or stderr, without ever waiting for whoever reads them.

    out = LineWriter(1, notice=lambda lost: b"%d lines are missing here\\n" % lost)
    out.write(b"a line\\n")         # now, or soon by a thread; if too many wait already, it is dropped and counted
    out.take_dropped()             # how many were dropped since this was last asked
    out.flush(deadline)            # wait until all that is queued is written, but no longer

A regular file takes a line at once. The reader of a pipe, a socket or a terminal may stand still, and a write would
wait for it. So lines for these are queued, and a thread writes them. O_NONBLOCK would not do: it is a property of the
pipe, which other processes share. logging's QueueListener would not do either: it waits for its thread without end.

`write` may interrupt itself, since destructors and signal handlers log, too: SimpleQueue and RLock allow that.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

MAX_QUEUED = 1000  # lines, of 4 kB at most
REST_SECONDS = 0.02  # of the thread once all is written: under load it is woken for many lines at once


class LineWriter:
    def __init__(self, file: int, notice: Callable[[int], bytes]) -> None:
        """`notice` makes the line that says how many are missing."""
        self._file, self._notice = file, notice
        self._is_file = _is_regular_file(file)
        self.start_anew()

    def start_anew(self) -> None:
        """Forget what is queued: after a fork it is the parent's, and so is the thread."""
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._unsaid = self._uncounted = 0  # lines that were dropped

    def write(self, line: bytes) -> None:
        if self._is_file:
            self._write_now(line)
        elif self._queue.qsize() < MAX_QUEUED:
            self._queue.put(line)
            self._start_thread()
        else:
            self._drop()

    def take_dropped(self) -> int:
        if not self._uncounted:
            return 0
        with self._lock:
            count, self._uncounted = self._uncounted, 0
            return count

    def flush(self, deadline: float) -> None:
        """Wait until what was queued is written, or until the deadline, in time.monotonic()."""
        if self._thread:
            written = threading.Event()
            self._queue.put(written)
            written.wait(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        if self._thread:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_queued, name="log", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the system gives no more threads: the next line tries again
                    self._thread = None

    def _write_queued(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._write_now(item)
            if self._queue.empty():
                time.sleep(REST_SECONDS)

    def _write_now(self, line: bytes) -> None:
        try:
            _write_whole(self._file, line)
        except OSError:  # a full disk, or nobody is left at the other end
            self._drop()
            return
        if self._unsaid and self._queue.empty():
            with self._lock:
                count, self._unsaid = self._unsaid, 0
            with suppress(OSError):
                _write_whole(self._file, self._notice(count))

    def _drop(self) -> None:
        with self._lock:
            self._unsaid += 1
            self._uncounted += 1


def _is_regular_file(file: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file).st_mode)
    except OSError:  # it is closed
        return False


def _write_whole(file: int, line: bytes) -> None:
    while line:
        try:
            line = line[os.write(file, line) :]
        except BlockingIOError:  # its other users made it not wait
            select.select([], [file], [])
