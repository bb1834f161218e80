"""Keep TensorFlow's log lines off the terminal: its C++ code writes some to stderr at any log level.

    with quiet():
        ...
    with quiet(stdout=True):      # around converters, which print there as well
        ...

If the code inside fails with an error that is no LoupeError, the lines are shown after all.
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
    # Redirect the streams to a file.
    streams = (1, 2) if stdout else (2,)
    _flush()
    terminals = {stream: os.dup(stream) for stream in streams}
    with tempfile.TemporaryFile() as log:
        for stream in streams:
            os.dup2(log.fileno(), stream)
        try:
            yield
        except BaseException as error:
            _flush()
            if not isinstance(error, LoupeError | KeyboardInterrupt):
                log.seek(0)
                os.write(terminals[2], log.read())
            raise
        # Put the terminal back.
        finally:
            _flush()
            for stream, terminal in terminals.items():
                os.dup2(terminal, stream)
                os.close(terminal)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
