"""The folder of a run: complete or absent, and resumable while it is unfinished.

    with Run(Path("runs"), "tires", inputs) as run:     # run.staging: runs/.part-tires, until the run is finished
        (run.staging / "model.keras") …
        folder = run.keep()                             # runs/tires, replacing an earlier one
    with Run(Path("runs"), "tires") as run:             # go on with the unfinished one
        run.inputs                                      # what it began with

A run that was killed leaves its staging folder. `--resume` goes on with it, `--fresh` discards it, and without either
flag the run is refused, so that nothing is lost by mistake. A run that was interrupted by Ctrl-C is also kept as
runs/tires-interrupted.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from loupe.errors import UserError

DEFAULT_RUNS = Path("runs")
STAGING = ".part-"
STATE = "state"  # the subfolder with what --resume needs; the finished run does not have it


class Run:
    def __init__(self, runs: Path, name: str, inputs: dict[str, Any] | None = None, fresh: bool = False) -> None:
        """Name the run's folders. `inputs` are the settings and the data that it begins with. Without them an
        unfinished run goes on, with its own; and if there is none, it is no run that begins."""
        self.name, self.fresh, self.resume = name, fresh, inputs is None
        self.inputs: dict[str, Any] = inputs or {}
        self.folder = runs / name
        self.staging = runs / f"{STAGING}{name}"
        self.state = self.staging / STATE
        self.kept = False  # True once the run is in place

    def __enter__(self) -> Run:
        if self.resume and not self.staging.is_dir():
            raise UserError(self._nothing_to_resume())
        try:
            self.staging.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                self._prepare()
            except BaseException:
                self._release_lock()
                raise
        except OSError as error:
            raise UserError(self._cannot_write(error)) from error
        return self

    def __exit__(
        self, error_class: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted, told = error_class is KeyboardInterrupt, str(error or "")
        goes_on = self._has_progress() or (interrupted and "pictures" in self.inputs and self.staging.is_dir())
        if not goes_on:
            shutil.rmtree(self.staging, ignore_errors=True)
        self._release_lock()
        if interrupted and not told:
            raise KeyboardInterrupt(self._after_interrupt(goes_on)) from error

    def _after_interrupt(self, goes_on: bool) -> str:
        """Say what is kept after Ctrl-C, and how to go on."""
        if self.kept:
            return f"the run is whole, and not published: `python convert.py {self.folder}` does it"
        if not goes_on:
            return "nothing was learnt yet, and nothing is kept: the same command begins again"
        kept = "what was learnt so far is kept" if self._has_progress() else "nothing was learnt yet"
        return f"{kept}: `{self.resume_command}` goes on"

    @property
    def resume_command(self) -> str:
        """The whole command that goes on with this run."""
        runs = self.folder.parent
        where = [] if runs == DEFAULT_RUNS else ["--runs", str(runs)]
        return shlex.join(["python", "train.py", "--resume", "--name", self.name, *where])

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

    def _release_lock(self) -> None:
        self._lock_path.unlink(missing_ok=True)
        self._lock.close()

    def _has_progress(self) -> bool:
        """Return True if there is a state to resume from."""
        return any(self.state.glob("*.npz")) or any(self.state.glob("*.journal"))

    def _prepare(self) -> None:
        # Go on with what is there.
        earlier = _read(self.staging / "about.json")
        if self.resume:
            if earlier is None:
                raise UserError(self._nothing_to_resume())
            self.inputs = earlier
            return
        # What was learnt is not lost by mistake.
        if self._has_progress() and not self.fresh:
            raise UserError(
                f"An unfinished run of {self.name} is at {self.staging}. `{self.resume_command}` goes on, "
                "--fresh discards it."
            )
        # Begin with an empty folder.
        shutil.rmtree(self.staging, ignore_errors=True)
        self.state.mkdir(parents=True)
        self._write_about()

    def _nothing_to_resume(self) -> str:
        if self._has_progress():
            return f"The unfinished run at {self.staging} is damaged. Discard it by --fresh."
        if (self.folder / "card.json").is_file():
            return (
                f"There is nothing to resume: {self.folder} is finished. `python convert.py {self.folder}` publishes "
                "it; without --resume it is trained anew."
            )
        others = unfinished(self.folder.parent)
        hint = f"unfinished there: {', '.join(others)}" if others else "without --resume a training begins"
        return f"There is nothing to resume: {self.folder.parent} has no unfinished run {self.name}; {hint}."

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
        self.kept = True
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


def unfinished(runs: Path) -> list[str]:
    """Return the names of the runs that --resume can go on with."""
    return sorted(path.parent.name.removeprefix(STAGING) for path in runs.glob(f"{STAGING}*/about.json"))


def _read(about_file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(about_file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
