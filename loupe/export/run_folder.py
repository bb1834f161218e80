"""Check that a folder is a finished run, and explain what it is if not. Needs no TensorFlow.

check_run(Path("runs/tires"))             # raises UserError
"""

from __future__ import annotations

import fcntl
from pathlib import Path

from loupe.errors import UserError


def check_run(folder: Path) -> None:
    # A folder with all its files is a run; one without some holds runs, or is no finished one.
    missing = [needed for needed in ("card.json", "model.keras") if not (folder / needed).is_file()]
    runs_inside = sorted(entry.parent.name for entry in folder.glob("[!.]*/card.json"))
    if missing and runs_inside:
        raise UserError(f"{folder} holds runs: name one of them, such as {folder / runs_inside[0]}.")
    if folder.is_dir() and missing:
        raise UserError(f"{folder} holds no {missing[0]}: it is no finished run. Train it again, or name another.")
    if not missing:
        return
    # There is no such folder: its training may be under way, or have been interrupted.
    name = folder.name
    if _is_locked(folder.with_name(f".lock-{name}")):
        raise UserError(f"{name} is still training: let it end, then convert {folder}.")
    if folder.with_name(f".part-{name}").is_dir():
        raise UserError(f"The training of {name} did not end: `train.py` with --name {name} --resume goes on with it.")
    # Nothing of that name: say what there is.
    others = sorted(entry.name for entry in folder.parent.glob("[!.]*")) if folder.parent.is_dir() else []
    hint = f"{folder.parent} holds {', '.join(others[:8])}" if others else "`python train.py` makes one, runs/tires"
    raise UserError(f"There is nothing at {folder}; {hint}.")


def is_retrained(folder: Path) -> bool:
    """Return True while a newer training of the run is under way."""
    return _is_locked(folder.with_name(f".lock-{folder.name}"))


def _is_locked(lock: Path) -> bool:
    """Return True if a training holds the lock (loupe/training/run.py)."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
