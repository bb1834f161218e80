"""The process that decodes AVIF and HEIC, started by sandbox.py: `python -m loupe.images.sandbox_child`.

A question on standard input is QUESTION and the file; the answer on standard output is ANSWER, its JSON and the pixels.
The system ends the process when a picture takes more than its share of processor time.
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
from loupe.images.sandbox import ANSWER, MEMORY, QUESTION, SECONDS


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is its parent's to handle, and ends this with it
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is doing
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever some library prints is no answer
    while len(head := sys.stdin.buffer.read(QUESTION.size)) == QUESTION.size:
        height, width, count = QUESTION.unpack(head)
        data, pixels = sys.stdin.buffer.read(count), b""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            if height:
                found = decode_here(data, height, width)
                told: dict[str, Any] = {"size": found.shape}
                pixels = found.tobytes()
            else:
                told = {"size": upright_size_here(data)}
        except ImageError as error:
            told = {"error": type(error).__name__, "text": str(error)}
        except MemoryError:
            told = {"error": "ImageError", "text": "The picture takes too much memory to decode; save it as a JPEG."}
        signal.setitimer(signal.ITIMER_PROF, 0)
        text = json.dumps(told).encode()
        answers.write(ANSWER.pack(len(text), len(pixels)) + text + pixels)
        answers.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
