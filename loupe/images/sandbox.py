"""Decode in separate processes: AVIF, HEIC and lossless WebP.

    decode(data, height, width), upright_size(data)      # like those of api.py

A few bytes can keep their decoders busy for minutes, or fill the memory, and no check of the header helps: the frames
may differ from it, and there may be as many as there are bytes. So the system ends a process once a picture has used
too much time, or more memory than its header tells. A process (sandbox_child.py) is started when it is needed and none
is idle, decodes one picture after the other, and ends with its parent. There are at most PROCESSES of them: whoever
comes next waits for one, first come, first served, and a picture that keeps one busy leaves the others.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from loupe import errors
from loupe.errors import Busy, ImageError
from loupe.images.allowance import UNLIMITED, Allowance
from loupe.images.room import Room
from loupe.images.weight import weigh_by_header

PROCESSES = 2
SECONDS = 3.0  # of processor time for a picture; the largest real ones take about one
START_SECONDS = 0.4  # of processor time: another is started instead of one that was ended
PATIENCE = 15.0  # seconds to spend these in, or to start in: a process that stands still is ended, too
MEMORY = 2 << 30  # bytes of address space, whatever a picture weighs
REQUEST = struct.Struct("<IIQQ")  # height, width (both 0: return the size only), the picture's memory, its length
READY = b"!"  # sent by a process that has started
RESPONSE = struct.Struct("<IQ")  # length of the JSON reply, length of the pixels
NOT_NOW = "The picture could not be decoded in time; try again in a second, or send it as a JPEG."


def decode(
    data: bytes, height: int, width: int, allowance: Allowance = UNLIMITED
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    reply, pixels = _pool().call(data, height, width, allowance)
    return np.frombuffer(pixels, np.uint8).reshape(reply["size"])


def upright_size(data: bytes, allowance: Allowance = UNLIMITED) -> tuple[int, int]:
    reply, _ = _pool().call(data, 0, 0, allowance)
    height, width = reply["size"]
    return height, width


class _Child:
    """One process, and the socket that is its standard input and output."""

    def __init__(self) -> None:
        home = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
        self._socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "loupe.images.sandbox_child"],
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL, cwd=home, env=environment,
            )  # fmt: skip
        self._started, self._is_ready = time.monotonic(), False

    def get_ready(self, deadline: float) -> bool:
        """Wait until it has started. Return False if it needs longer; it goes on with it."""
        try:
            self._is_ready = self._is_ready or self._read(1, deadline) == READY
        except TimeoutError:
            if time.monotonic() - self._started > PATIENCE:
                raise
        return self._is_ready

    def ask(self, request: bytes, deadline: float) -> tuple[dict[str, Any], bytes]:
        """Send the request and read the response. Raises TimeoutError at the deadline, another OSError if the process
        has ended."""
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        self._socket.sendall(request)
        size, count = RESPONSE.unpack(self._read(RESPONSE.size, deadline))
        reply: dict[str, Any] = json.loads(self._read(size, deadline))
        return reply, self._read(count, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionResetError
            view = view[count:]
        return bytes(data)

    def was_killed(self) -> bool:
        """Tell if somebody else ended it, such as the system for want of memory. Its picture may be all right."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        return self.process.returncode in (-signal.SIGKILL, -signal.SIGTERM)

    def end(self) -> None:
        self.process.kill()
        self._socket.close()
        self.process.wait()


class _Pool:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self._places = Room(PROCESSES)
        self.idle: list[_Child] = []

    def call(self, data: bytes, height: int, width: int, allowance: Allowance) -> tuple[dict[str, Any], bytes]:
        # Wait for memory, and only then for a process: many that are large and slow leave one to those that are small.
        weight = weigh_by_header(data, height, width)
        if height:
            allowance.take(weight)
        allowance.wait_for(self._places, 1)
        try:
            reply, pixels = self._ask(REQUEST.pack(height, width, weight.memory, len(data)) + data, allowance)
        finally:
            self._places.give_back(1)
        # Raise what the process could not decode.
        if "error" in reply:
            raise getattr(errors, reply["error"])(reply["text"])
        return reply, pixels

    def _ask(self, request: bytes, allowance: Allowance) -> tuple[dict[str, Any], bytes]:
        """Ask an idle process, or a new one. Whatever goes wrong ends it: its next response would be this one's."""
        try:
            child = self._take_idle() or _Child()
        except OSError as error:  # no memory, or no more processes
            raise Busy(NOT_NOW) from error
        deadline = min(allowance.deadline, time.monotonic() + PATIENCE)
        try:
            is_ready = child.get_ready(deadline)
            reply, pixels = child.ask(request, deadline) if is_ready else ({}, b"")
        except BaseException as error:
            was_killed = isinstance(error, ConnectionError) and child.was_killed()
            child.end()
            allowance.spend(SECONDS + START_SECONDS)  # at most, and mostly just that
            if not isinstance(error, OSError):
                raise
            with suppress(OSError):
                self.idle.append(_Child())  # so that the next picture need not wait for its start
            if isinstance(error, TimeoutError) or was_killed:
                raise Busy(NOT_NOW) from None
            raise ImageError("The picture takes too long to decode, or too much memory; save it as a JPEG.") from None
        self.idle.append(child)
        if not is_ready:
            raise Busy(NOT_NOW)
        allowance.spend(reply["seconds"])
        return reply, pixels

    def _take_idle(self) -> _Child | None:
        with suppress(IndexError):  # none is idle
            while True:
                child = self.idle.pop(0)  # the one that has had most time to start
                if child.process.poll() is None:
                    return child
                child.end()  # the system ended it, for want of memory
        return None


_last: _Pool | None = None


def _pool() -> _Pool:
    """Return this process's pool: one that was forked must not share its parent's."""
    global _last
    pool = _last
    if pool is None or pool.owner != os.getpid():
        pool = _last = _Pool()
    return pool
