"""Write to stdout, whatever becomes of it: a reader that goes away (`| head`), a full disk, `>&-`.

keep_streams()                # at the start: closed streams lead to nowhere
stdout.write("a line\n")      # ReaderGone, or another UserError
"""

from __future__ import annotations

import errno
import io
import os
import sys

from loupe.errors import UserError


class ReaderGone(UserError):
    pass


def keep_streams() -> None:
    """Give streams that are closed to /dev/null, before a file gets their numbers. What stdout's encoding lacks is
    escaped."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: PTH123, SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def write(text: str, *, flush: bool = False) -> None:
    try:
        sys.stdout.write(text)
        if flush:
            sys.stdout.flush()
    except OSError as error:
        raise failed(error) from error


def flush() -> None:
    write("", flush=True)


def failed(error: OSError) -> UserError:
    """Return the error for people. What is still to be written is dropped: Python would try it again at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    if isinstance(error, BrokenPipeError):
        return ReaderGone("Whoever read the output has gone.")
    full = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
    return UserError(f"stdout cannot be written: {full}.")
