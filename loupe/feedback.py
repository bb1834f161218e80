"""The folder of corrections: pictures that callers say were given the wrong label. The gateway fills it, training
reads it.

    with feedback.locked(root):
        feedback.keep(root, data, "jpg", note)         # root/waiting/<label>/<sha256>.jpg, with its note beside it
    for picture in feedback.pictures(root, "waiting"):
        feedback.read(picture)                         # Correction, or UserError if it is damaged
    feedback.move(root, correction, "accepted")

    <folder>/waiting/cracked/<sha256 of the bytes>.jpg     the picture as it was sent
    <folder>/waiting/cracked/<sha256 of the bytes>.json    its note: what was predicted, by which model, when
    <folder>/accepted/…, <folder>/rejected/…               what a review decided (train.py --review)

A correction is there once its picture is: notes are written first, so that a kill leaves at most a note without a
picture, which counts for nothing. Each file is written beside and renamed, under the lock of the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loupe import files
from loupe.errors import UserError

WAITING, ACCEPTED, REJECTED = STATES = ("waiting", "accepted", "rejected")
LOCK_SECONDS = 10.0  # to wait for the lock; whoever holds it needs milliseconds
MAX_NOTE = 1 << 16  # bytes

_LOCK, _PART = ".lock", ".part"


@dataclass(frozen=True)
class Correction:
    picture: Path
    label: str  # what the caller says it is
    note: dict[str, Any]  # as the gateway wrote it

    @property
    def sha256(self) -> str:
        return self.picture.stem


def check(folder: str) -> None:
    """Raise UserError if corrections cannot be kept in the folder of LOUPE_FEEDBACK_DIR. "" is none, and fine."""
    if not folder:
        return
    root = Path(folder)
    try:
        (root / WAITING).mkdir(parents=True, exist_ok=True)
        for place in (root, root / WAITING):
            with tempfile.TemporaryFile(dir=place):
                pass
        (root / _LOCK).touch()
    except OSError as error:
        raise UserError(
            f"LOUPE_FEEDBACK_DIR: nothing can be written to {folder} ({error.strerror}); name another folder."
        ) from error


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Lock the folder against other threads and processes. Raises TimeoutError, which is an OSError."""
    limit = time.monotonic() + LOCK_SECONDS
    with (root / _LOCK).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise TimeoutError(0, f"another process has held its lock for {LOCK_SECONDS:.0f} s") from None
                time.sleep(0.005)
        yield


def pictures(root: Path, state: str) -> list[Path]:
    """Return the pictures of corrections in this state, by label and the oldest first."""
    found = [
        (folder.name, path.stat().st_mtime, path)
        for folder in _folders(root, state)
        for path in folder.iterdir()
        if path.suffix != ".json" and not path.name.startswith(".")
    ]
    return [path for _, _, path in sorted(found)]


def size(root: Path, state: str) -> tuple[int, int]:
    """Return how many pictures are in this state, and how many bytes they have with their notes."""
    count = total = 0
    for folder in _folders(root, state):
        with os.scandir(
            folder
        ) as entries:  # 20,000 files are looked at for each correction: pathlib is five times slower
            for entry in entries:
                with suppress(FileNotFoundError):  # somebody tidies up by hand
                    total += entry.stat().st_size
                    count += not entry.name.endswith(".json")
    return count, total


def find(root: Path, sha256: str, suffix: str) -> tuple[str, Path] | None:
    """Return the state and the path of the picture with this content, if it is there."""
    for state in STATES:
        for folder in _folders(root, state):
            path = folder / f"{sha256}.{suffix}"
            if path.exists():
                return state, path
    return None


def keep(root: Path, data: bytes, suffix: str, note: dict[str, Any], earlier: Path | None = None) -> None:
    """Keep a picture under its note's label, until it is reviewed. `earlier` is where it lies now, if it does."""
    folder = root / WAITING / files.folder_name(note["label"])
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
    _write(root, picture.with_suffix(".json"), (json.dumps(note, indent=1) + "\n").encode())
    if earlier:
        _rename(earlier, picture)
    else:
        _write(root, picture, data)


def read(picture: Path) -> Correction:
    """Read a picture's note, and check that both are whole."""
    try:
        with files.opened(picture) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        note = read_note(picture)
    except OSError as error:
        raise UserError(f"{picture} cannot be read ({error.strerror}).") from error
    if digest != picture.stem:
        raise UserError(f"{picture} is not the picture that its name tells of: it was damaged or changed.")
    if note is None or files.folder_name(note["label"]) != picture.parent.name:
        raise UserError(f"{picture} has no note of its label beside it that can be read.")
    return Correction(picture, note["label"], note)


def read_note(picture: Path) -> dict[str, Any] | None:
    """Return the note of a picture, None if there is none that can be read."""
    try:
        note = json.loads(files.read(picture.with_suffix(".json"), MAX_NOTE))
        return dict(note) if isinstance(note["label"], str) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def move(root: Path, correction: Correction, state: str) -> bool:
    """Move a correction to another state. Return False if it is not where it was: somebody corrected or removed it."""
    folder = root / state / correction.picture.parent.name
    with locked(root):
        if not correction.picture.exists():
            return False
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / correction.picture.name
        _write(root, target.with_suffix(".json"), (json.dumps(correction.note, indent=1) + "\n").encode())
        _rename(correction.picture, target)
    return True


def _rename(picture: Path, target: Path) -> None:
    """Rename a picture whose note lies at its target already, and remove the note that it leaves behind."""
    if picture == target:
        return
    picture.rename(target)
    picture.with_suffix(".json").unlink(missing_ok=True)


def _write(root: Path, path: Path, data: bytes) -> None:
    part = root / _PART  # one name is enough: the lock is held, and what a kill left is overwritten
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _folders(root: Path, state: str) -> list[Path]:
    home = root / state
    return [entry for entry in home.iterdir() if entry.is_dir()] if home.is_dir() else []
