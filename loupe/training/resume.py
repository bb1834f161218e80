"""Which run --resume goes on with, and whether it is the same one: its settings and its data are its own.

name = name_of(Path("runs"))                                # where no name is given: the only unfinished run
with Run(Path("runs"), name) as run:
    refuse_changes(run, {"lr": 2e-3}, {"data": Path("photos")})     # UserError: the run had another rate
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loupe.errors import UserError
from loupe.training.run import Run, unfinished
from loupe.training.settings import flag_of, from_record

CHANGEABLE = {"cache_gb"}  # settings that may change: no result depends on them


def name_of(runs: Path) -> str:
    """Return the name of the only unfinished run."""
    names = unfinished(runs)
    if not names:
        raise UserError(
            f"There is nothing to resume: {runs} has no unfinished run. Without --resume a training begins."
        )
    if len(names) > 1:
        raise UserError(f"--resume needs the run's name: --name NAME. Unfinished in {runs}: {', '.join(names)}.")
    return names[0]


def refuse_changes(run: Run, given: dict[str, Any], paths: dict[str, Path | None]) -> None:
    """Refuse settings and paths that were given and are not those that the run began with."""
    begun = from_record(run.inputs)
    for key, value in given.items():
        if key not in CHANGEABLE | {"name"} and value != getattr(begun, key):
            raise _other(run, flag_of(key), getattr(begun, key), value)
    for key, path in paths.items():
        if path and str(path.resolve()) != run.inputs.get(key):
            raise _other(run, key, run.inputs.get(key), str(path.resolve()))


def _other(run: Run, what: str, had: Any, now: Any) -> UserError:
    begun = f"no {what} of its own" if had is None else f"{what} {had!r}"
    return UserError(
        f"The unfinished run of {run.name} had {begun}, and now it is {now!r}. `{run.resume_command}` goes on as it "
        "began; --fresh in place of --resume discards it."
    )
