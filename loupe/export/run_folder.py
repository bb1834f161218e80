"""Whether a folder is a finished run, and what it is if not. Without TensorFlow.

check_run(Path("runs/tires"))             # raises UserError
"""

from __future__ import annotations

import fcntl
from pathlib import Path

from loupe.errors import UserError


def check_run(folder: Path) -> None:
    missing = [needed for needed in ("card.json", "model.keras") if not (folder / needed).is_file()]
    inside = sorted(entry.parent.name for entry in folder.glob("[!.]*/card.json"))
    if missing and inside:
        raise UserError(f"{folder} holds runs: name one of them, such as {folder / inside[0]}.")
    if folder.is_dir() and missing:
        raise UserError(f"{folder} holds no {missing[0]}: it is no finished run. Train it again, or name another.")
    if not missing:
        return
    name = folder.name
    if _held(folder.with_name(f".lock-{name}")):
        raise UserError(f"{name} is still training: let it end, then convert {folder}.")
    if folder.with_name(f".part-{name}").is_dir():
        raise UserError(f"The training of {name} did not end: `train.py` with --name {name} --resume goes on with it.")
    there = sorted(entry.name for entry in folder.parent.glob("[!.]*")) if folder.parent.is_dir() else []
    hint = f"{folder.parent} holds {', '.join(there[:8])}" if there else "`python train.py` makes one, runs/tires"
    raise UserError(f"There is nothing at {folder}; {hint}.")


def newer_under_way(folder: Path) -> bool:
    return _held(folder.with_name(f".lock-{folder.name}"))


def _held(lock: Path) -> bool:
    """Whether a training holds it: loupe/training/run.py."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
