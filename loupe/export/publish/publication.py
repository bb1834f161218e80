"""Publish a model where servers look, models/<name>/<next number>/, completely or not at all; take the newest version
back.

    with publication(Path("models"), "tires") as staging:
        ...                                 # write the SavedModel to staging.folder, which does not exist yet
        folder = staging.publish(keep=3)    # models/tires/4
    rollback(Path("models"), "tires")       # 4 is moved aside, servers fall back to 3; the next number is 5

staging.folder is .part-<pid>/<name>/1 in the model's folder. Servers do not see it there, and .part-<pid> is a models
folder of its own, with which a server can be started for a check. A publication that is killed leaves its staging
folder and never half a version; the next publication deletes it. model_folder.py lists what else lies there.
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
from loupe.export.publish.model_folder import REMOVED, STAGING, WITHDRAWN, versions

__all__ = ["Publication", "Rollback", "publication", "rollback", "versions"]

LOCK = ".lock"  # in a staging folder; its process holds its lock
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRORS = (*DISK_FULL, errno.EROFS, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Rollback(NamedTuple):
    withdrawn: int
    serving: int
    moved: Path  # the folder of the withdrawn version


class Publication:
    """A version on its way, in a staging folder. Made by `publication`."""

    def __init__(self, home: Path, staging: Path) -> None:
        self.home = home
        self.folder = staging / home.name / "1"
        self.notes: list[str] = []  # to show to the user once it is published

    def publish(self, keep: int | None = None) -> Path:
        """Rename the staging folder to the next number and return it. With `keep`, only that many of the newest
        versions stay."""
        if keep is not None and keep < 1:
            raise UserError(f"At least one version must be kept, not {keep}.")
        for path in [*self.folder.rglob("*"), self.folder]:
            model_folder.sync(path)  # before the rename, which may reach the disk sooner than the data
        with model_folder.locked(self.home) as ledger:
            folder = self._rename(ledger)
            if keep:
                self._delete_old_versions(keep)
        return folder

    def _rename(self, ledger: int) -> Path:
        while True:
            folder = self.home / str(model_folder.next_number(self.home, ledger))
            try:
                self.folder.rename(folder)
            except OSError:
                if not os.path.lexists(folder):
                    raise
                continue  # somebody made it without taking the lock: take the next number
            model_folder.sync(self.home)
            return folder

    def _delete_old_versions(self, keep: int) -> None:
        """Delete all but the newest versions. Each is renamed first, so that no server sees one with half its files.
        The new version is in service by now, so an error here is a note and not a failure."""
        kept = versions(self.home)[-keep:]
        for number, entry in model_folder.entries(self.home):
            if number not in kept:
                try:
                    model_folder.delete(entry.rename(model_folder.free_path(self.home, f"{REMOVED}{number}")))
                except OSError as error:
                    self.notes.append(f"{entry} could not be deleted: {error.strerror or error}")


@contextmanager
def publication(models: Path, name: str) -> Iterator[Publication]:
    """Make a staging folder, yield the publication, and delete what is left of the folder afterwards."""
    home = model_folder.home(models, name)
    staging, made = None, False
    try:
        # Make the staging folder.
        made = model_folder.make(home)
        with model_folder.locked(home) as ledger:
            model_folder.record_highest(home, ledger)
            _delete_leftovers(home)
            staging, lock = _make_staging(home)
        try:
            # The caller writes and publishes.
            yield Publication(home, staging)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(lock)
    except LoupeError:
        raise
    except Exception as error:
        if disk_error := _disk_error(home, error, begun=staging is not None):
            raise _refusal(home, disk_error) from error
        raise
    finally:
        model_folder.leave(home, made)


def _disk_error(home: Path, error: Exception, begun: bool) -> OSError | None:
    """Return the error if the disk or the model's folder caused it. Other errors of the caller are not explained
    here."""
    if isinstance(error, OSError):
        in_our_folder = not begun or str(error.filename or "").startswith(str(home))
        if in_our_folder or error.errno in DISK_ERRORS:
            return error
    message = str(error)  # TensorFlow, h5py and shutil have the reason in their message only
    numbers = (number for number in DISK_ERRORS if os.strerror(number) in message)
    return next((OSError(number, os.strerror(number), str(home)) for number in numbers), None)


def _make_staging(home: Path) -> tuple[Path, int]:
    """Make a staging folder, and return it and its lock. Another container may have a process of the same id, hence
    `free_path`."""
    staging = model_folder.free_path(home, f"{STAGING}{os.getpid()}")
    try:
        (staging / home.name).mkdir(parents=True)
        lock = os.open(staging / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        model_folder.try_lock(lock)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return staging, lock


def _delete_leftovers(home: Path) -> None:
    """Delete what killed publications left. The folder's lock is held, under which staging folders are made: one whose
    own lock is free belongs to nobody."""
    for entry in model_folder.listed(home):
        if entry.name.startswith(REMOVED) or (entry.name.startswith(STAGING) and not _is_alive(entry)):
            with suppress(OSError):
                model_folder.delete(entry)


def _is_alive(staging: Path) -> bool:
    try:
        lock = os.open(staging / LOCK, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # of another user
        return True
    taken = model_folder.try_lock(lock)
    os.close(lock)
    return not taken


def rollback(models: Path, name: str) -> Rollback:
    """Take the newest version out of service. It is moved aside, not deleted; renamed back, it is in service again."""
    home = model_folder.home(models, name)
    if not versions(home):
        known = ", ".join(sorted(entry.name for entry in model_folder.listed(models) if versions(entry)))
        raise UserError(f"There is no model {name} in {models}{f'; there are: {known}' if known else ', nor another'}.")
    try:
        with model_folder.locked(home) as ledger:
            return _withdraw_newest(home, ledger)
    except OSError as error:
        raise UserError(f"Cannot take a version out of {home}: {_reason(home, error)}.") from error


def _withdraw_newest(home: Path, ledger: int) -> Rollback:
    *older, newest = versions(home)
    if not older:
        raise UserError(f"{home} has no version but {newest}: nothing to fall back to. Publish another one first.")
    model_folder.record(home, ledger, newest)
    for entry in [entry for number, entry in model_folder.entries(home) if number == newest]:
        moved = entry.rename(model_folder.free_path(home, f"{WITHDRAWN}{newest}"))
    model_folder.sync(home)
    return Rollback(newest, older[-1], moved)


def _refusal(home: Path, error: OSError) -> UserError:
    return UserError(f"Cannot publish to {home}: {_reason(home, error)}, or name another folder with --models.")


def _reason(home: Path, error: OSError) -> str:
    """Return what is wrong, where, and what to do about it."""
    for path in [*reversed(home.parents), home]:
        if os.path.exists(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112 (pathlib's raise for some)
            return f"{path} is a file where a folder should be. Move it away"
    where = f"{error.strerror or error} ({error.filename or home})"
    if error.errno in DISK_FULL:
        return f"{where}. Free some space, by deleting old versions for instance"
    return f"{where}. Make it writable" if error.errno in NOT_WRITABLE else f"{where}. Put that right"
