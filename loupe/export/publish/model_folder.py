"""A model's folder, models/<name>/: its versions, all numbers ever given, and the lock that guards both.

    home = model_folder.home(Path("models"), "tires")
    model_folder.versions(home)                     # [1, 2, 3], as a server counts them
    with model_folder.locked(home) as ledger:
        model_folder.next_number(home, ledger)      # 4, or higher; never one that was given before

What it holds:
    2  3                 versions; servers look at nothing else
    .part-<pid>/         the staging folder of a publication; it is locked as long as its process lives
    .withdrawn-<number>  taken out of service; kept until somebody deletes it
    .removed-<number>    an old version that is being deleted
    .numbers             the ledger: every number ever given, written to the disk before it is used; its lock is the
                         folder's
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loupe.card import check_name
from loupe.errors import UserError

STAGING, WITHDRAWN, REMOVED, LEDGER = ".part-", ".withdrawn-", ".removed-", ".numbers"
MOVED_ASIDE = re.compile(rf"(?:{re.escape(WITHDRAWN)}|{re.escape(REMOVED)})(\d+)(?:-\d+)?", re.ASCII)
NUMBERS_END = 1 << 63  # a version is an int64 in gRPC
LOCK_SECONDS = 60.0  # how long to wait for another publication's lock


def home(models: Path, name: str) -> Path:
    check_name(name)
    return models / name


def make(home: Path) -> bool:
    """Make the folder, and return False if it was there."""
    while not home.is_dir():
        try:
            home.mkdir(parents=True)
        except FileExistsError:
            if not os.path.lexists(home) or home.is_dir():
                continue  # another publication made it, and may have removed it again
            raise
        with suppress(FileNotFoundError):  # as above
            sync(home.parent)
        return True
    return False


def leave(home: Path, made: bool) -> None:
    """Remove the ledger if no number was ever given, and the folder too if it was `made` for that: a publication that
    was refused leaves nothing."""
    with suppress(OSError, UserError):  # why it was refused matters more
        if [entry.name for entry in listed(home)] != [LEDGER]:
            return
        with locked(home, make_folder=False) as ledger:  # another publication may have come meanwhile
            if not os.fstat(ledger).st_size:
                (home / LEDGER).unlink()
                if made:
                    home.rmdir()


def versions(home: Path) -> list[int]:
    """Return the versions' numbers, oldest first."""
    return sorted({number for number, _ in entries(home)})


def entries(home: Path) -> list[tuple[int, Path]]:
    """Return the versions and their folders, or links to folders. 7 and 007 are one version, as for a server."""
    numbered = [(number_of(entry), entry) for entry in listed(home)]
    return sorted((number, entry) for number, entry in numbered if number is not None and entry.is_dir())


def listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def number_of(entry: Path) -> int | None:
    name = entry.name
    number = int(name) if name.isascii() and name.isdigit() else NUMBERS_END
    return number if number < NUMBERS_END else None


def free_path(home: Path, name: str) -> Path:
    """Return the path of that name or, where it is taken, with -2, -3 … appended."""
    names = (f"{name}-{attempt}" if attempt > 1 else name for attempt in range(1, 1_000_000))
    return next(path for path in map(home.joinpath, names) if not os.path.lexists(path))


def delete(entry: Path) -> None:
    if entry.is_symlink() or not entry.is_dir():
        entry.unlink()
    else:
        shutil.rmtree(entry)


def sync(path: Path) -> None:
    """Flush a file to the disk; for a folder, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ----------------------------------------------------------------------------------------------------------- numbers


@contextmanager
def locked(home: Path, make_folder: bool = True) -> Iterator[int]:
    """Take the folder's lock. Yield the ledger's file descriptor."""
    ledger = _acquire(home, make_folder)
    try:
        yield ledger
    finally:
        os.close(ledger)


def _acquire(home: Path, make_folder: bool) -> int:
    limit = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < limit:
        if make_folder:
            make(home)  # another publication may have been refused, and have removed the folder that it made
        try:
            ledger = os.open(home / LEDGER, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except FileNotFoundError:
            if not make_folder or (home / LEDGER).is_symlink():
                raise
            continue  # the folder was removed since
        if try_lock(ledger) and _is_same_file(ledger, home / LEDGER):  # it may have been deleted in the meantime
            return ledger
        os.close(ledger)
        time.sleep(0.02)
    raise UserError(f"Another publication has held {home / LEDGER} for {LOCK_SECONDS:.0f} s. End it, and try again.")


def try_lock(descriptor: int) -> bool:
    """Lock an open file, and return False if another process holds its lock. The lock lasts until the file is closed or
    the process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        os.close(descriptor)
        raise
    return True


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def next_number(home: Path, ledger: int) -> int:
    number = _highest_number(home, ledger) + 1
    if number >= NUMBERS_END:
        raise UserError(f"{home} has used up its numbers. Publish under another name.")
    record(home, ledger, number)
    return number


def record_highest(home: Path, ledger: int) -> None:
    """Write the highest number to the ledger, before a folder is deleted that may be the only trace of it."""
    highest = _highest_number(home, ledger)
    if highest not in (0, *_recorded(ledger)):
        record(home, ledger, highest)


def _highest_number(home: Path, ledger: int) -> int:
    """Return the highest number in the ledger and in the folder's names; either may lack what the other has."""
    entries_there = listed(home)
    moved_aside = [int(match[1]) for entry in entries_there if (match := MOVED_ASIDE.fullmatch(entry.name))]
    numbers = [number_of(entry) or 0 for entry in entries_there]
    return max([0, *numbers, *_recorded(ledger), *(number for number in moved_aside if number < NUMBERS_END)])


def _recorded(ledger: int) -> list[int]:
    """Return the ledger's numbers. A torn line reads as a smaller number, or is skipped."""
    with os.fdopen(os.dup(ledger), "rb") as file:
        file.seek(0)
        return [int(line) for line in file if re.fullmatch(rb"\d{1,19}\n", line) and int(line) < NUMBERS_END]


def record(home: Path, ledger: int, number: int) -> None:
    """Append a number to the ledger and flush it to the disk. The line begins with a line break, since the last line
    may be torn."""
    line = b"\n%d\n" % number
    if os.write(ledger, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home / LEDGER))
    os.fsync(ledger)
    sync(home)
