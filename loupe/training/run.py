"""The folder of a run: complete or absent, and resumable while it is unfinished.

    with Run(Path("runs"), "tires", settings) as run:     # run.staging: runs/.part-tires, until the run is finished
        (run.staging / "model.keras") …
        folder = run.keep()                               # runs/tires, replacing an earlier one

A run that was killed leaves its staging folder. `--resume` goes on with it, `--fresh` discards it, and without either
flag the run is refused, so that nothing is lost by mistake. A run that was interrupted by Ctrl-C is also kept as
runs/tires-interrupted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from loupe.errors import UserError

CHANGEABLE = {"cache_gb"}  # settings that --resume may change: no result depends on them
STATE = "state"  # the subfolder with what --resume needs; the finished run does not have it


class Run:
    def __init__(
        self, runs: Path, name: str, inputs: dict[str, Any], resume: bool = False, fresh: bool = False
    ) -> None:
        """Name the run's folders. `inputs` are the settings and the data: a run resumes only if they are the same."""
        self.name, self.inputs, self.resume, self.fresh = name, inputs, resume, fresh
        self.folder = runs / name
        self.staging = runs / f".part-{name}"
        self.state = self.staging / STATE

    def __enter__(self) -> Run:
        try:
            self.staging.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._prepare()
        except OSError as error:
            raise UserError(self._cannot_write(error)) from error
        return self

    def __exit__(
        self, error_class: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._has_progress():
            shutil.rmtree(self.staging, ignore_errors=True)
        elif error_class is KeyboardInterrupt:
            print(f"\n--resume goes on with {self.name}.")
        self._lock_path.unlink(missing_ok=True)
        self._lock.close()

    @property
    def _lock_path(self) -> Path:
        return self.staging.with_name(f".lock-{self.name}")

    def _cannot_write(self, error: OSError) -> str:
        return f"Cannot write to {self.staging.parent} ({error.strerror}). Free it, or name another folder with --runs."

    def write(self, name: str, content: Any) -> None:
        """Write `content` as a JSON file of the run."""
        try:
            (self.staging / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(self._cannot_write(error)) from error

    def _take_lock(self) -> None:
        """Lock the run's name for this process.

        The holder removes the lock file when it ends. So a process that locked a file which was removed meanwhile tries
        again.
        """
        while True:
            self._lock = self._lock_path.open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"Another training of {self.name} is under way. Let it end, or give this one another --name."
                ) from error
            if self._lock_path.exists() and os.path.samestat(os.fstat(self._lock.fileno()), self._lock_path.stat()):
                return
            self._lock.close()

    def _has_progress(self) -> bool:
        """Return True if there is a state to resume from."""
        return any(self.state.glob("*.npz")) or any(self.state.glob("*.journal"))

    def _prepare(self) -> None:
        # An unfinished run goes on if --resume asks for it and it can be read.
        about_file = self.staging / "about.json"
        earlier = _read(about_file)
        if self._has_progress() and not self.fresh:
            if earlier is None:
                raise UserError(f"The unfinished run at {self.staging} is damaged. Discard it by --fresh.")
            if not self.resume:
                raise UserError(
                    f"An unfinished run of {self.name} is at {self.staging}. --resume goes on, --fresh discards it."
                )
            self._check_settings(earlier)
            return
        # Otherwise begin with an empty folder.
        shutil.rmtree(self.staging, ignore_errors=True)
        self.state.mkdir(parents=True)
        self._write_about()

    def _check_settings(self, earlier: dict[str, Any]) -> None:
        current = json.loads(json.dumps(self.inputs))  # as JSON gives it back
        for key in sorted(current.keys() & earlier.keys()):
            if current[key] != earlier[key] and key not in CHANGEABLE:
                raise UserError(
                    f"The unfinished run of {self.name} had {key} {earlier[key]!r}, and now it is {current[key]!r}. "
                    "--resume with the same settings, or discard it by --fresh."
                )
        self.inputs = earlier

    def is_finished_already(self) -> bool:
        """Return True if --resume has nothing to do: a finished run has the same settings and pictures."""
        earlier = _read(self.folder / "about.json") or {}
        return self.resume and earlier == json.loads(json.dumps(self.inputs))

    def check_pictures(self, fingerprint: str) -> None:
        """Refuse to resume with other pictures, labels or splits than the run began with."""
        if self.inputs.setdefault("pictures", fingerprint) != fingerprint:
            raise UserError(
                f"The pictures are not those that the unfinished run of {self.name} began with. Put them back, or "
                "discard it by --fresh."
            )
        try:
            self._write_about()
        except OSError as error:
            raise UserError(self._cannot_write(error)) from error

    def _write_about(self) -> None:
        staging = self.staging / "about.part"
        staging.write_text(json.dumps(self.inputs, indent=2) + "\n")
        staging.replace(self.staging / "about.json")

    def keep(self) -> Path:
        """Move the finished run into place, over an earlier one of its name."""
        folder = self._replace(self.staging, self.folder)  # renamed first: a kill after it leaves a finished run
        shutil.rmtree(folder / STATE, ignore_errors=True)
        return folder

    def keep_interrupted(self) -> Path:
        """Copy the interrupted run to its own folder. The unfinished run stays where it can be resumed."""
        copy = self.staging.with_name(f".copy-{self.name}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.staging, copy, ignore=shutil.ignore_patterns(STATE))
        return self._replace(copy, self.folder.with_name(f"{self.name}-interrupted"))

    def _replace(self, source: Path, target: Path) -> Path:
        replaced = target.with_name(f".old-{target.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        source.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
        return target


def _read(about_file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(about_file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
