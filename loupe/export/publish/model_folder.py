"""A model's folder, models/<name>/: its versions, the numbers ever given, and the lock that guards both.

    home = shelf.home(Path("models"), "tires")
    shelf.versions(home)                     # [1, 2, 3], as a server counts them
    with shelf.locked(home) as ledger:
        shelf.next_number(home, ledger)      # 4, or higher; never one that was given before

What it holds:
    2  3                 versions; servers look at nothing else
    .part-<pid>/         a publication on its way. Its lock is held while its process lives
    .withdrawn-<number>  taken out of service; kept until somebody deletes it
    .removed-<number>    an old version on its way out
    .numbers             every number ever given, written to the disk before it is used; its lock is the folder's
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loupe.card import check_name
from loupe.errors import UserError

PART, WITHDRAWN, REMOVED, LEDGER = ".part-", ".withdrawn-", ".removed-", ".numbers"
ASIDE = re.compile(rf"(?:{re.escape(WITHDRAWN)}|{re.escape(REMOVED)})(\d+)(?:-\d+)?", re.ASCII)
END = 1 << 63  # a version is an int64 on the wire
PATIENCE = 60.0  # seconds for another publication to number, rename and delete


def home(models: Path, name: str) -> Path:
    check_name(name)
    return models / name


def make(home: Path) -> None:
    if not home.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        sync(home.parent)


def versions(home: Path) -> list[int]:
    """Oldest first."""
    return sorted({number for number, _ in entries(home)})


def entries(home: Path) -> list[tuple[int, Path]]:
    """The versions' folders, or links to them. 7 and 007 are one version, for a server too."""
    found = [(number_of(entry), entry) for entry in listed(home)]
    return sorted((number, entry) for number, entry in found if number is not None and entry.is_dir())


def listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def number_of(entry: Path) -> int | None:
    name = entry.name
    number = int(name) if name.isascii() and name.isdigit() else END
    return number if number < END else None


def free(home: Path, name: str) -> Path:
    """The name, or with -2, -3 … behind it, whatever is not taken."""
    names = (f"{name}-{again}" if again > 1 else name for again in range(1, 1_000_000))
    return next(path for path in map(home.joinpath, names) if not os.path.lexists(path))


def delete(entry: Path) -> None:
    if entry.is_symlink() or not entry.is_dir():
        entry.unlink()
    else:
        shutil.rmtree(entry)


def sync(path: Path) -> None:
    """Onto the disk; for a folder, the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ----------------------------------------------------------------------------------------------------------- numbers


@contextmanager
def locked(home: Path) -> Iterator[int]:
    """The ledger, open, its lock held."""
    ledger = _acquire(home)
    try:
        yield ledger
    finally:
        os.close(ledger)


def _acquire(home: Path) -> int:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        ledger = os.open(home / LEDGER, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if take(ledger) and _is(ledger, home / LEDGER):  # it may have been deleted while its lock was waited for
            return ledger
        os.close(ledger)
        time.sleep(0.02)
    raise UserError(f"Another publication has held {home / LEDGER} for {PATIENCE:.0f} s. End it, and try again.")


def take(descriptor: int) -> bool:
    """Its lock, held until it is closed or the process ends, however it ends. False where another holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        os.close(descriptor)
        raise
    return True


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def next_number(home: Path, ledger: int) -> int:
    number = _highest(home, ledger) + 1
    if number >= END:
        raise UserError(f"{home} has used up its numbers. Publish under another name.")
    record(home, ledger, number)
    return number


def catch_up(home: Path, ledger: int) -> None:
    """Before anything is deleted that may be all that tells of a number."""
    highest = _highest(home, ledger)
    if highest not in (0, *_given(ledger)):
        record(home, ledger, highest)


def _highest(home: Path, ledger: int) -> int:
    """Of all that the ledger or a name in the folder tells of; either may lack what the other has."""
    names = listed(home)
    aside = [int(found[1]) for entry in names if (found := ASIDE.fullmatch(entry.name))]
    taken = [number_of(entry) or 0 for entry in names]
    return max([0, *taken, *_given(ledger), *(number for number in aside if number < END)])


def _given(ledger: int) -> list[int]:
    """A line that was torn reads as a smaller number, or as none."""
    with os.fdopen(os.dup(ledger), "rb") as file:
        file.seek(0)
        return [int(line) for line in file if re.fullmatch(rb"\d{1,19}\n", line) and int(line) < END]


def record(home: Path, ledger: int, number: int) -> None:
    """On the disk before it returns. It begins with a new line, since the last one may be torn."""
    line = b"\n%d\n" % number
    if os.write(ledger, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(home / LEDGER))
    os.fsync(ledger)
    sync(home)
