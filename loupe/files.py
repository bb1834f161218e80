"""Files in folders that others write to: a pipe is not waited for, and no more is read than was reckoned with.

    with files.opened(path) as file: ...
    data = files.read(path, most=1 << 20)

What is no regular file, or too large, is an OSError like any other. Links are followed: model stores are made of them.
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
    """`most`: bytes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most} bytes", str(path))
        return file.read(size)
