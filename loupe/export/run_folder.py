"""Check that a folder is a finished run, and explain what it is if not. Needs no TensorFlow.

check_run(Path("runs/tires"))             # raises UserError
refuse_unfinished(Path("runs/.part-tires/model.keras"))   # raises UserError
"""

from __future__ import annotations

import fcntl
from pathlib import Path

from loupe.errors import UserError

UNFINISHED = ".part-"  # before the name of a run, while it is trained (loupe/training/run.py)


def check_run(folder: Path) -> None:
    refuse_unfinished(folder)
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
    _refuse_if_unfinished(folder.parent, folder.name)
    # Nothing of that name: say what there is.
    others = sorted(entry.name for entry in folder.parent.glob("[!.]*")) if folder.parent.is_dir() else []
    hint = f"{folder.parent} holds {', '.join(others[:8])}" if others else "`python train.py` makes one, runs/tires"
    raise UserError(f"There is nothing at {folder}; {hint}.")


def refuse_unfinished(path: Path) -> None:
    """Refuse the folder of a training that did not end, and a file in it: what is there is a state on the way."""
    for folder in (path.absolute(), path.absolute().parent):
        if folder.name.startswith(UNFINISHED) and folder.is_dir():
            _refuse_if_unfinished(folder.parent, folder.name.removeprefix(UNFINISHED))


def _refuse_if_unfinished(runs: Path, name: str) -> None:
    if _is_locked(runs / f".lock-{name}"):
        raise UserError(f"{name} is still training: let it end, then convert {runs / name}.")
    if (runs / f"{UNFINISHED}{name}").is_dir():
        raise UserError(f"The training of {name} did not end: `train.py` with --name {name} --resume goes on with it.")


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
