"""Read files in folders that others write to, without waiting for a pipe or reading more than expected.

    with files.opened(path) as file: ...
    data = files.read(path, most=1 << 20)
    folder = home / files.folder_name(label)

A path that is no regular file, or one that is too large, raises an OSError as any other failure does. Links are
followed, since model stores use them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from pathlib import Path
from urllib.parse import quote

LONGEST_NAME = 120  # bytes of a label's folder; file systems take 255


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


def folder_name(label: str) -> str:
    """Return the folder's name for a label. Most stay as they are; in others each odd byte becomes %XX. It never is a
    path, and never hidden. Labels that are too long are cut, and keep a checksum of the whole."""
    name = "".join(char if _is_plain(char) else quote(char, safe="", errors="surrogatepass") for char in label)
    name = f"%2E{name[1:]}" if name.startswith(".") else name or "%"
    if len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(label.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{name.encode()[: LONGEST_NAME - 17].decode(errors='ignore')}%{digest}"


def _is_plain(char: str) -> bool:
    return char.isprintable() and char not in '%/\\:*?"<>|'
