"""Put a model where servers look: models/<name>/<next number>/, whole or not at all. And take the newest back.

    with publication(Path("models"), "tires") as part:
        ...                              # write the SavedModel to part.folder, which is not there yet, and check it
        folder = part.publish(keep=3)    # models/tires/4
    rollback(Path("models"), "tires")    # 4 is moved aside, servers fall back to 3; the next number is 5

part.folder is .part-<pid>/<name>/1 in the model's folder: hidden from servers that look there, and .part-<pid> is a
models folder of its own, which a server can be started with for a check. Killed at any moment, a publication leaves a
part and never half a version; the next one clears it away. model_folder.py tells what else lies there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from loupe.errors import LoupeError, UserError
from loupe.export.publish import model_folder
from loupe.export.publish.model_folder import PART, REMOVED, WITHDRAWN, versions

__all__ = ["Publication", "Rollback", "publication", "rollback", "versions"]

LOCK = ".lock"  # of a part
FULL = (errno.ENOSPC, errno.EDQUOT)
OF_THE_DISK = (*FULL, errno.EROFS, errno.EFBIG)
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


class Rollback(NamedTuple):
    withdrawn: int
    serving: int
    moved: Path  # where the withdrawn version lies


class Publication:
    """Made by `publication`."""

    def __init__(self, home: Path, part: Path) -> None:
        self.home = home
        self.folder = part / home.name / "1"
        self.notes: list[str] = []  # for a person to read once it is published

    def publish(self, keep: int | None = None) -> Path:
        """The version's folder. With `keep`, only so many of the newest versions stay."""
        if keep is not None and keep < 1:
            raise UserError(f"At least one version must be kept, not {keep}.")
        for path in [*self.folder.rglob("*"), self.folder]:
            model_folder.sync(path)  # before it has its name: a rename may reach the disk sooner than the bytes do
        with model_folder.locked(self.home) as ledger:
            folder = self._rename(ledger)
            if keep:
                self._thin_out(keep)
        return folder

    def _rename(self, ledger: int) -> Path:
        while True:
            folder = self.home / str(model_folder.next_number(self.home, ledger))
            try:
                self.folder.rename(folder)
            except OSError:
                if not os.path.lexists(folder):
                    raise
                continue  # made meanwhile by somebody who takes no lock: the next number
            model_folder.sync(self.home)
            return folder

    def _thin_out(self, keep: int) -> None:
        """Each is renamed before it is deleted, so that no server sees one with half its files. The new version is in
        service by now: what cannot be deleted is no reason to say that it is not."""
        kept = versions(self.home)[-keep:]
        for number, entry in model_folder.entries(self.home):
            if number not in kept:
                try:
                    model_folder.delete(entry.rename(model_folder.free(self.home, f"{REMOVED}{number}")))
                except OSError as error:
                    self.notes.append(f"{entry} could not be deleted: {error.strerror or error}")


@contextmanager
def publication(models: Path, name: str) -> Iterator[Publication]:
    home = model_folder.home(models, name)
    part = None
    try:
        model_folder.make(home)
        with model_folder.locked(home) as ledger:
            model_folder.catch_up(home, ledger)
            _clear(home)
            part, lock = _begin(home)
        try:
            yield Publication(home, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            os.close(lock)
    except LoupeError:
        raise
    except Exception as error:
        if fault := _fault(home, error, begun=part is not None):
            raise _refusal(home, fault) from error
        raise


def _fault(home: Path, error: Exception, begun: bool) -> OSError | None:
    """Of the disk, or of the model's folder. Other faults of what is done in between are not ours to explain."""
    if isinstance(error, OSError):
        ours = not begun or str(error.filename or "").startswith(str(home))
        if ours or error.errno in OF_THE_DISK:
            return error
    told = str(error)  # TensorFlow, h5py and shutil say it in words
    found = (number for number in OF_THE_DISK if os.strerror(number) in told)
    return next((OSError(number, os.strerror(number), str(home)) for number in found), None)


def _begin(home: Path) -> tuple[Path, int]:
    """A folder to write in, and its lock. Another container may have a process of the same id, hence `free`."""
    part = model_folder.free(home, f"{PART}{os.getpid()}")
    try:
        (part / home.name).mkdir(parents=True)
        lock = os.open(part / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        model_folder.take(lock)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return part, lock


def _clear(home: Path) -> None:
    """With the folder's lock held, under which parts are begun: one whose own lock is free is nobody's."""
    for entry in model_folder.listed(home):
        if entry.name.startswith(REMOVED) or (entry.name.startswith(PART) and not _alive(entry)):
            with suppress(OSError):
                model_folder.delete(entry)


def _alive(part: Path) -> bool:
    try:
        lock = os.open(part / LOCK, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # another user's
        return True
    taken = model_folder.take(lock)
    os.close(lock)
    return not taken


def rollback(models: Path, name: str) -> Rollback:
    """Take the newest version out of service: moved aside, not deleted. Renamed back, it is in service again."""
    home = model_folder.home(models, name)
    if not versions(home):
        known = ", ".join(sorted(entry.name for entry in model_folder.listed(models) if versions(entry)))
        raise UserError(f"There is no model {name} in {models}{f'; there are: {known}' if known else ', nor another'}.")
    try:
        with model_folder.locked(home) as ledger:
            return _withdraw(home, ledger)
    except OSError as error:
        raise UserError(f"Cannot take a version out of {home}: {_reason(home, error)}.") from error


def _withdraw(home: Path, ledger: int) -> Rollback:
    *older, newest = versions(home)
    if not older:
        raise UserError(f"{home} has no version but {newest}: nothing to fall back to. Publish another one first.")
    model_folder.record(home, ledger, newest)
    for entry in [entry for number, entry in model_folder.entries(home) if number == newest]:
        moved = entry.rename(model_folder.free(home, f"{WITHDRAWN}{newest}"))
    model_folder.sync(home)
    return Rollback(newest, older[-1], moved)


def _refusal(home: Path, error: OSError) -> UserError:
    return UserError(f"Cannot publish to {home}: {_reason(home, error)}, or name another folder with --models.")


def _reason(home: Path, error: OSError) -> str:
    """What is wrong, where, and what to do about it."""
    for path in [*reversed(home.parents), home]:
        if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112 (pathlib's raise for some)
            return f"{path} is a file where a folder should be. Move it away"
    where = f"{error.strerror or error} ({error.filename or home})"
    if error.errno in FULL:
        return f"{where}. Free some space, by deleting old versions for instance"
    return f"{where}. Make it writable" if error.errno in DENIED else f"{where}. Put that right"
