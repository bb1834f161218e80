"""AVIF and HEIC: few bytes keep their decoders busy for minutes, or fill the memory. So a process of their own decodes
them, which the system ends when it has had its share.

    decode(data, height, width), upright_size(data)      # as those of api.py

What is in such a file is told from its header, and its frames may be others; there may be as many as there are bytes.
The process (sandbox_child.py) starts with the first such picture, is used for one after the other, and ends with its
parent.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from loupe import errors
from loupe.errors import ImageError

SECONDS = 3.0  # of processor time for a picture; the largest honest ones take about one
MEMORY = 2 << 30  # bytes, of addresses
QUESTION = struct.Struct("<IIQ")  # height, width (0: only the size is asked), bytes of the file
ANSWER = struct.Struct("<IQ")  # bytes of what is told as JSON, and of pixels
_lock = threading.Lock()
_helper: tuple[int, subprocess.Popen[bytes]] | None = None  # whose it is, and the process


def decode(data: bytes, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    told, pixels = _ask(data, height, width)
    return np.frombuffer(pixels, np.uint8).reshape(told["size"])


def upright_size(data: bytes) -> tuple[int, int]:
    told, _ = _ask(data, 0, 0)
    height, width = told["size"]
    return height, width


def _ask(data: bytes, height: int, width: int) -> tuple[dict[str, Any], bytes]:
    global _helper
    with _lock:
        if not _helper or _helper[0] != os.getpid() or _helper[1].poll() is not None:
            _helper = os.getpid(), _start()
        helper = _helper[1]
        assert helper.stdin and helper.stdout
        try:
            helper.stdin.write(QUESTION.pack(height, width, len(data)) + data)
            helper.stdin.flush()
            size, count = ANSWER.unpack(_exactly(helper.stdout, ANSWER.size))
            told: dict[str, Any] = json.loads(_exactly(helper.stdout, size))
            pixels = _exactly(helper.stdout, count)
        except BaseException as error:  # also Ctrl-C: else the next picture would get this one's answer
            _helper = None
            _end(helper)
            if not isinstance(error, (OSError, EOFError)):
                raise
            raise ImageError("The picture takes too long to decode, or too much memory; save it as a JPEG.") from None
    if "error" in told:
        raise getattr(errors, told["error"])(told["text"])
    return told, pixels


def _end(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    with suppress(OSError):  # what it has not read
        helper.communicate()


def _start() -> subprocess.Popen[bytes]:
    home = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "loupe.images.sandbox_child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=home, env=environment,
    )  # fmt: skip


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
