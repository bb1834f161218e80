"""Serve the newest version: poll the base path for numbered folders, load the newest, unload what it replaces.

    versions = Versions(flags, open_engine, settled=event.set)
    versions.start()
    with versions.lease(spec) as version:
        version.engine.run(...)

A new version is loaded completely before calls go to it; the old one is unloaded when its last call has ended. A
version that does not load leaves the old one serving; it is tried again up to `--max_num_load_retries` times, and at
once when its folder changes. If the newest version is deleted, the one before replaces it; with no version left the
last one stays. Differences from TensorFlow Serving: at the start an older version is tried if the newest does not load
(there only the newest is), and a failed load shows as END between its retries as well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpc import StatusCode

import proto
from loupe.engines import savedmodel
from loupe.engines.engine import Engine, Opener
from loupe.engines.refused import Refused, invalid, say
from loupe.modelserver.flags import Flags

REMINDER_SECONDS = 10.0  # between two log lines that say there is still nothing to serve


@dataclass
class Version:
    """A version: its state, as GetModelStatus reports it, and its model while that is loaded."""

    number: int
    folder: Path
    state: int = proto.START
    error: Refused | None = None
    model: savedmodel.SavedModel | None = None
    engine: Engine | None = None
    in_flight: int = 0
    attempts: int = 0
    retry_at: float = 0.0
    fingerprint: object = field(default=None)  # of its folder, when it was last tried


class Versions:
    def __init__(self, flags: Flags, open_engine: Opener, settled: Callable[[], None]) -> None:
        self.name = flags.model_name
        self.base = Path(flags.model_base_path)
        self.serving: Version | None = None
        self.hopeless: str | None = None  # the reason, once nothing has loaded and nothing will be tried again
        self._flags = flags
        self._open_engine = open_engine
        self._settled = settled
        self._known: dict[int, Version] = {}
        self._changed = threading.Condition()  # guards every Version's state and in_flight
        self._remind_at = 0.0

    def start(self) -> None:
        threading.Thread(target=self._keep_polling, name="versions", daemon=True).start()

    # ------------------------------------------------------------------------------------------------ for callers

    @contextmanager
    def lease(self, spec: Any) -> Iterator[Version]:
        """Yield the version that a ModelSpec asks for. It is not unloaded before the lease ends."""
        with self._changed:
            version = self._find(spec)
            version.in_flight += 1
        try:
            yield version
        finally:
            with self._changed:
                version.in_flight -= 1
                self._changed.notify_all()

    def _find(self, spec: Any) -> Version:
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        refuse_label(spec)
        serving = self.serving
        number = spec.version.value if spec.HasField("version") else None
        if spec.name == self.name and serving is not None and number in (None, serving.number):
            return serving
        asked = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
        raise Refused(StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")

    def states(self) -> list[tuple[int, int, Refused | None]]:
        """Return number, state and error of every version ever seen, newest first."""
        with self._changed:
            return [(v.number, v.state, v.error) for _, v in sorted(self._known.items(), reverse=True)]

    # ------------------------------------------------------------------------------------------------- the folder

    def _keep_polling(self) -> None:
        pause = self._flags.file_system_poll_wait_seconds
        while True:
            try:
                self.poll()
            except Exception as error:  # whatever happens to the folder, the served version stays
                say(f"looking for versions of {self.name} failed: {error!r}")
            if self.hopeless or (self.serving and not pause):
                return
            time.sleep(pause or 1)

    def poll(self) -> None:
        """Look once, and load the newest version that loads."""
        folders = self._folders()
        if not folders:
            self._say_empty()
            return
        self._remind_at = 0.0
        for position, (number, folder) in enumerate(folders):
            if self.serving and self.serving.number == number:
                return
            version = self._version(number, folder)
            if self._is_due(version) and self._load(version, folders[position + 1 :]):
                return
        self._give_up_if_hopeless([number for number, _ in folders])

    def _folders(self) -> list[tuple[int, Path]]:
        try:
            entries = list(self.base.iterdir())
        except OSError:
            return []
        numbered = [(int(e.name), e) for e in entries if e.name.isascii() and e.name.isdigit() and e.is_dir()]
        folders = dict(sorted(pair for pair in numbered if pair[0] < 1 << 63))  # of 007 and 7, the latter
        return sorted(folders.items(), reverse=True)

    def _say_empty(self) -> None:
        if time.monotonic() < self._remind_at:
            return
        first, self._remind_at = self._remind_at == 0.0, time.monotonic() + REMINDER_SECONDS
        problem = "holds no version, a folder named by a number" if self.base.is_dir() else "is no folder"
        if self.serving:
            if first:
                say(f"{self.base} {problem}; version {self.serving.number} of {self.name} stays")
        else:
            hint = "train or convert a model into it, or point --model_base_path elsewhere; " if first else ""
            say(f"{self.base} {problem}: {hint}waiting" if first else f"still waiting: {self.base} {problem}")

    # -------------------------------------------------------------------------------------------------- one version

    def _version(self, number: int, folder: Path) -> Version:
        version = self._known.get(number)
        served_before = version and version.state in (proto.UNLOADING, proto.END) and not version.error
        if version is None or served_before or version.folder != folder:
            version = Version(number, folder)
            with self._changed:
                self._known[number] = version
        return version

    def _is_due(self, version: Version) -> bool:
        fingerprint = _fingerprint(version.folder)
        if version.fingerprint != fingerprint:
            version.fingerprint, version.attempts = fingerprint, 0
            return True
        return version.attempts <= self._flags.max_num_load_retries and time.monotonic() >= version.retry_at

    def _load(self, version: Version, older: list[tuple[int, Path]]) -> bool:
        # Load it.
        started = time.monotonic()
        version.attempts += 1
        with self._changed:
            version.state, version.error = proto.LOADING, None
        try:
            model = savedmodel.read(version.folder, tuple(self._flags.saved_model_tags.split(",")))
            engine = self._open_engine(model)
        except Exception as error:
            refused = error if isinstance(error, Refused) else Refused(StatusCode.INTERNAL, repr(error))
            self._failed(version, refused, older)
            return False
        # Serve it, and unload the version before.
        with self._changed:
            version.model, version.engine, version.state = model, engine, proto.AVAILABLE
            old, self.serving = self.serving, version
            if old:
                old.state = proto.UNLOADING
        say(f"version {version.number} of {self.name} loaded in {time.monotonic() - started:.1f} s by {engine.name}")
        if old:
            threading.Thread(target=self._unload, args=[old], daemon=True).start()
        self._settled()
        return True

    def _failed(self, version: Version, error: Refused, older: list[tuple[int, Path]]) -> None:
        interval = max(0.0, self._flags.load_retry_interval_micros / 1e6)
        version.retry_at = time.monotonic() + interval
        with self._changed:
            version.state, version.error = proto.END, error
        if self.serving:
            next_step = f"version {self.serving.number} stays"
        elif older:
            next_step = f"trying version {older[0][0]}"
        elif version.attempts <= self._flags.max_num_load_retries:
            next_step = f"trying again in {interval:.0f} s"
        else:
            next_step = "giving up"
        say(f"version {version.number} of {self.name} does not load: {error}; {next_step}")

    def _unload(self, version: Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: version.in_flight == 0)
            engine, version.engine, version.model = version.engine, None, None
        if engine:
            engine.close()
        with self._changed:
            version.state = proto.END
        say(f"version {version.number} of {self.name} is unloaded")

    def _give_up_if_hopeless(self, numbers: list[int]) -> None:
        if self.serving or any(self._known[n].attempts <= self._flags.max_num_load_retries for n in numbers):
            return
        newest = self._known[numbers[0]]
        self.hopeless = (
            f"no version of {self.name} under {self.base} loads; version {newest.number}: {newest.error}. "
            "Publish it again, or delete it"
        )
        self._settled()


def refuse_label(spec: Any) -> None:
    if spec.version_label:  # only --model_config_file defines labels
        raise invalid(f"Unrecognized servable version label: {spec.version_label}")


def _fingerprint(folder: Path) -> object:
    """Return the inode, time and size of the files that are read, which change when the folder is written to."""
    files = []
    for name in ("", "saved_model.pb", "variables", savedmodel.CARD, savedmodel.WARMUP):
        try:
            stat = (folder / name).stat()
            files.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            files.append((0, 0, 0))
    return files
