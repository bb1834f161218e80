"""Decode pictures in a process that sandbox.py starts: `python -m loupe.images.sandbox_child`.

A request on standard input is REQUEST and the file. A response on standard output is RESPONSE, its JSON and the pixels.
The system ends the process when a picture takes too much processor time, and refuses it more memory than the request
says.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import AvifImagePlugin

from loupe import malloc
from loupe.errors import ImageError
from loupe.images.decode import decode_here, upright_size_here
from loupe.images.sandbox import MEMORY, READY, REQUEST, RESPONSE, SECONDS

SPARE = 64 << 20  # bytes of address space: for stacks, the file, and what Python itself takes meanwhile


def main() -> None:
    # Limit time and memory.
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes at once: the parent ends when it is done,
        signal.signal(number, signal.SIG_IGN)  # and this process with it
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is doing
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    malloc.settle()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # more have stacks of their own, and cost as much time in all
    # Keep standard output for responses.
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up among the responses
    responses.write(READY)
    responses.flush()
    # Answer requests until standard input ends.
    while len(head := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
        height, width, memory, count = REQUEST.unpack(head)
        data, pixels = sys.stdin.buffer.read(count), b""
        _limit_memory(memory)
        began = time.process_time()
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
        reply["seconds"] = time.process_time() - began
        text = json.dumps(reply).encode()
        responses.write(RESPONSE.pack(len(text), len(pixels)) + text + pixels)
        responses.flush()
        del data, pixels
        malloc.give_back()  # an idle process keeps nothing
        _limit_memory(MEMORY)


def _limit_memory(more: int) -> None:
    """Let this process take so much more than it has now."""
    with suppress(OSError, ValueError):  # macOS has neither the file nor the limit
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (min(now + more + SPARE, MEMORY), MEMORY))


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
