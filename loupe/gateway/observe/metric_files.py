"""The files that prometheus_client writes this worker's numbers to, in a folder that all workers share.

    files = MetricFiles(folder)
    files.are_there()             # a cleaner of /tmp may have removed them
    files.make()                  # OSError; the numbers of this worker begin at 0, now and whenever they are made again
    check_folder(folder)          # OSError, before all workers' files are read

prometheus_client opens its files anew, and sets all values to 0, when it finds itself in another process: so it does
after a fork. It is told so when the files were made again.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

TYPES = ("counter", "histogram", "gauge_livesum", "gauge_livemax", "gauge_livemostrecent")
SIZE = 1 << 18  # bytes, enough for more than a thousand time series


class MetricFiles:
    def __init__(self, folder: Path) -> None:
        from prometheus_client import values

        self._folder = folder
        self._paths = [folder / f"{file_type}_{os.getpid()}.db" for file_type in TYPES]
        self._process = _Process()
        values.ValueClass = values.MultiProcessValue(lambda: self._process)  # type: ignore[no-untyped-call]

    def are_there(self) -> bool:
        return all(path.exists() for path in self._paths)

    def make(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(self._folder)
        try:
            for path in self._paths:
                _reserve_disk(path)
        except OSError:
            for path in self._paths:  # without disk space of its own a file may kill the worker
                path.unlink(missing_ok=True)
            raise
        self._process = _Process()


class _Process:
    """The name of this process in its files' names. Each object is another process to prometheus_client."""

    def __str__(self) -> str:
        return str(os.getpid())


def check_folder(folder: Path) -> None:
    """Raise OSError unless it is there and ours. What others put in the place of a removed one may be full of links."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _reserve_disk(path: Path) -> None:
    """Make a file whose disk space is reserved: it is mapped into memory, where a write to a full disk is SIGBUS.

    It gets its name when it is whole, since any worker may be reading all files.
    """
    unfinished = path.with_suffix(".new")
    try:
        unfinished.write_bytes(bytes(SIZE))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
