"""Read files in folders that others write to, without waiting for a pipe or reading more than expected.

    with files.opened(path) as file: ...
    data = files.read(path, most=1 << 20)

A path that is no regular file, or one that is too large, raises an OSError as any other failure does. Links are
followed, since model stores use them.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path


def opened(path: Path) -> io.BufferedReader:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer opens at once
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return open(descriptor, "rb")  # noqa: PTH123 (of a descriptor, not of a path)


def read(path: Path, most: int) -> bytes:
    """Read the file; at most `most` bytes are allowed."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
        return file.read(size)
