"""Keep TensorFlow's own notes off the terminal: its C++ side writes some to stderr whatever log level is asked for.

    with quiet():
        ...
    with quiet(stdout=True):      # around converters, which chat there as well
        ...
If what is inside fails for a reason that is not ours to explain, the notes are shown after all.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from loupe.errors import LoupeError


@contextmanager
def quiet(stdout: bool = False) -> Iterator[None]:
    hushed = (1, 2) if stdout else (2,)
    _flush()
    kept = {number: os.dup(number) for number in hushed}
    with tempfile.TemporaryFile() as notes:
        for number in hushed:
            os.dup2(notes.fileno(), number)
        try:
            yield
        except BaseException as error:
            _flush()
            if not isinstance(error, LoupeError | KeyboardInterrupt):
                notes.seek(0)
                os.write(kept[2], notes.read())
            raise
        finally:
            _flush()
            for number, terminal in kept.items():
                os.dup2(terminal, number)
                os.close(terminal)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
