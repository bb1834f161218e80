"""Decode AVIF and HEIC in a separate process.

    decode(data, height, width), upright_size(data)      # like those of api.py

A few bytes can keep their decoders busy for minutes, or fill the memory, and no check of the header helps: the frames
may differ from it, and there may be as many as there are bytes. So the system ends the process once it has used too
much time or memory. The process (sandbox_child.py) starts with the first such picture, decodes one after the other, and
ends with its parent.
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

SECONDS = 3.0  # of processor time for a picture; the largest real ones take about one
MEMORY = 2 << 30  # bytes of address space
REQUEST = struct.Struct("<IIQ")  # height, width (both 0: return the size only), length of the file
RESPONSE = struct.Struct("<IQ")  # length of the JSON reply, length of the pixels
_lock = threading.Lock()
_helper: tuple[int, subprocess.Popen[bytes]] | None = None  # the pid of its parent, and the process


def decode(data: bytes, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    reply, pixels = _call(data, height, width)
    return np.frombuffer(pixels, np.uint8).reshape(reply["size"])


def upright_size(data: bytes) -> tuple[int, int]:
    reply, _ = _call(data, 0, 0)
    height, width = reply["size"]
    return height, width


def _call(data: bytes, height: int, width: int) -> tuple[dict[str, Any], bytes]:
    global _helper
    with _lock:
        # Start the process if there is none, or if this process was forked since.
        if not _helper or _helper[0] != os.getpid() or _helper[1].poll() is not None:
            _helper = os.getpid(), _start()
        helper = _helper[1]
        assert helper.stdin and helper.stdout
        # Send the request, read the response.
        try:
            helper.stdin.write(REQUEST.pack(height, width, len(data)) + data)
            helper.stdin.flush()
            size, count = RESPONSE.unpack(_read_exactly(helper.stdout, RESPONSE.size))
            reply: dict[str, Any] = json.loads(_read_exactly(helper.stdout, size))
            pixels = _read_exactly(helper.stdout, count)
        except BaseException as error:  # also on Ctrl-C: else the next picture would get this one's response
            _helper = None
            _stop(helper)
            if not isinstance(error, (OSError, EOFError)):
                raise
            raise ImageError("The picture takes too long to decode, or too much memory; save it as a JPEG.") from None
    # Raise what the process could not decode.
    if "error" in reply:
        raise getattr(errors, reply["error"])(reply["text"])
    return reply, pixels


def _stop(helper: subprocess.Popen[bytes]) -> None:
    helper.kill()
    with suppress(OSError):  # about a request that it has not read
        helper.communicate()


def _start() -> subprocess.Popen[bytes]:
    home = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "loupe.images.sandbox_child"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=home, env=environment,
    )  # fmt: skip


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
