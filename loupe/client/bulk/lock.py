"""Keep two runs from one CSV, and remember which model began it: FILE.part.lock, as long as there is a FILE.part.

with Lock(path) as lock:                 # UserError if another run works on it
    lock.check(model, "models/tires")    # with --resume: UserError if another model began it
    lock.begin(model, "models/tires")    # without
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from loupe.client.bulk.target import part_of
from loupe.client.model import Model
from loupe.errors import UserError


class Lock:
    def __init__(self, table: Path) -> None:
        self._part = part_of(table)
        self.path = self._part.with_name(self._part.name + ".lock")
        self._file: IO[str] | None = None

    def __enter__(self) -> Lock:
        try:
            self._file = self.path.open("a+", encoding="utf-8")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except (BlockingIOError, FileNotFoundError):  # locked, or removed by a run that ended just now
            is_current = False
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}); name another file.") from error
        if not is_current:
            if self._file:
                self._file.close()
            raise UserError(f"Another predict.py works on {self._part}; wait for it, or name another file.")
        return self

    def begin(self, model: Model, where: str) -> None:
        assert self._file
        self._file.truncate(0)
        json.dump(_facts(model, where), self._file)
        self._file.flush()

    def check(self, model: Model, where: str) -> None:
        """Raise UserError if FILE.part was made by another model."""
        assert self._file
        anew = f"delete {self._part} and begin anew without --resume"
        self._file.seek(0)
        try:
            before = dict(json.load(self._file))
        except ValueError as error:
            raise UserError(f"Which model made {self._part} is not known: {self.path} is lost; {anew}.") from error
        now = _facts(model, where)
        if before.get("version") != now["version"]:
            raise UserError(
                f"{self._part} was begun with version {before.get('version')} of the model, and now {now['version']} "
                f"answers: {anew}, or ask for the same --version."
            )
        differing = next((name for name, value in now.items() if before.get(name) != value), None)
        if differing == "labels":
            raise UserError(f"{self._part} was begun with a model of other labels; name the same model, or {anew}.")
        if differing:
            raise UserError(
                f"{self._part} was begun with another model ({differing}: {before.get(differing)}, now "
                f"{now[differing]}); name the same one, or {anew}."
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the lock's file, unless there is something to go on with."""
        assert self._file
        if not self._part.exists():
            self.path.unlink(missing_ok=True)
        self._file.close()


def _facts(model: Model, where: str) -> dict[str, Any]:
    card = model.card
    place = where if "://" in where else os.path.realpath(where)
    return {
        "version": model.version,
        "labels": list(card.labels),
        "model": card.name,
        "precision": card.precision,
        "where": place,
    }
