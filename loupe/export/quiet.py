"""Keep TensorFlow's own notes off the terminal: its C++ side writes some to stderr whatever log level is asked for.

    with quiet():
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
def quiet() -> Iterator[None]:
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if not isinstance(error, LoupeError):
                notes.seek(0)
                os.write(terminal, notes.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
