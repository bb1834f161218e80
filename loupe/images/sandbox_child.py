"""Decode AVIF and HEIC in a process that sandbox.py starts: `python -m loupe.images.sandbox_child`.

A request on standard input is REQUEST and the file. A response on standard output is RESPONSE, its JSON and the pixels.
The system ends the process when a picture takes too much processor time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any

from loupe.errors import ImageError
from loupe.images.decode import decode_here, upright_size_here
from loupe.images.sandbox import MEMORY, REQUEST, RESPONSE, SECONDS


def main() -> None:
    # Limit time and memory.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and this process ends with it
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is doing
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # Keep standard output for responses.
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the responses
    # Answer requests until standard input ends.
    while len(head := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
        height, width, count = REQUEST.unpack(head)
        data, pixels = sys.stdin.buffer.read(count), b""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            if height:
                decoded = decode_here(data, height, width)
                reply: dict[str, Any] = {"size": decoded.shape}
                pixels = decoded.tobytes()
            else:
                reply = {"size": upright_size_here(data)}
        except ImageError as error:
            reply = {"error": type(error).__name__, "text": str(error)}
        except MemoryError:
            reply = {"error": "ImageError", "text": "The picture takes too much memory to decode; save it as a JPEG."}
        signal.setitimer(signal.ITIMER_PROF, 0)
        text = json.dumps(reply).encode()
        responses.write(RESPONSE.pack(len(text), len(pixels)) + text + pixels)
        responses.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
