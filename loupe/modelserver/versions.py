"""Keep one model's versions: load those that its policy chooses from its folder, and unload what they replace.

    versions = Versions(served_model, flags, open_engine, metrics, changed)
    versions.poll()                                  # looks once; models.py does it again and again
    with versions.lease(None) as version:            # the newest that is loaded
        version.engine.run(...)

A new version is loaded completely before calls go to it; the old one is unloaded when its last call has ended. A
version that does not load leaves the old ones serving; it is tried again up to `--max_num_load_retries` times, and at
once when its folder changes. If the newest version is deleted, the one before replaces it; with no version left the
last ones stay. Differences from TensorFlow Serving: at the start an older version is tried if the newest does not load
(there only the newest is); a failed load shows as END between its retries as well; versions stay when a folder is
emptied, not only when it is deleted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from grpc import StatusCode

from loupe import malloc, proto
from loupe.engines import savedmodel
from loupe.engines.engine import Engine, Opener
from loupe.engines.refused import Refused, say
from loupe.modelserver.config import ServedModel
from loupe.modelserver.flags import Flags
from loupe.modelserver.metrics import Metrics

REMINDER_SECONDS = 10.0  # between two log lines that say there is still nothing to serve
MAX_ENDED = 1000  # versions that have ended and are still listed


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
    def __init__(
        self,
        served: ServedModel,
        flags: Flags,
        open_engine: Opener,
        metrics: Metrics,
        changed: threading.Condition,
    ) -> None:
        self.served = served
        self.dropped = False  # from the configuration: nothing is loaded any more
        self.failure: str | None = None  # the reason, while nothing is loaded of what a look at the folder found
        self.hopeless: str | None = None  # the reason, while nothing is loaded and nothing will be tried again
        self._changed = changed  # guards every Version's state and in_flight
        self._flags = flags
        self._open_engine = open_engine
        self._metrics = metrics
        self._known: dict[int, Version] = {}
        self._available: dict[int, Version] = {}
        self._remind_at = 0.0

    # ------------------------------------------------------------------------------------------------ for callers

    @contextmanager
    def lease(self, number: int | None) -> Iterator[Version]:
        """Yield the version, or the newest if there is no number. It is not unloaded before the lease ends."""
        with self._changed:
            version = self.newest() if number is None else self._available.get(number)
            if version is None:
                name = self.served.name
                asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                raise Refused(StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
            version.in_flight += 1
        try:
            yield version
        finally:
            with self._changed:
                version.in_flight -= 1
                self._changed.notify_all()

    def newest(self) -> Version | None:
        """Return the newest version that is loaded."""
        with self._changed:
            return self._available[max(self._available)] if self._available else None

    def is_available(self, number: int) -> bool:
        return number in self._available

    def states(self) -> list[tuple[int, int, Refused | None]]:
        """Return number, state and error of every version ever seen, newest first."""
        with self._changed:
            return [(v.number, v.state, v.error) for _, v in sorted(self._known.items(), reverse=True)]

    # ------------------------------------------------------------------------------------------- the configuration

    def drop(self) -> None:
        """Answer no more calls, and unload what is loaded."""
        self.dropped = True
        self._unload_all_but([])

    def take_up(self, served: ServedModel) -> None:
        """Serve the model again after it was dropped. What failed before is forgotten."""
        with self._changed:
            self._known = {number: v for number, v in self._known.items() if not v.error}
            self.failure = self.hopeless = None
            self.served, self.dropped = served, False

    # ------------------------------------------------------------------------------------------------- the folder

    def poll(self) -> None:
        """Look once: load the chosen versions that are not loaded, then unload those that are not chosen."""
        if self.dropped:
            return
        served = self.served
        folders = _folders(served.base)
        chosen = served.policy.choose(list(folders))
        if not chosen:
            self._say_empty(bool(folders))
            return
        self._remind_at = 0.0
        # Load, the newest first.
        for number in chosen:
            self._load_if_due(number, folders)
        # At the start an older version is better than none.
        if not self._available and served.policy.takes_newest:
            for number in sorted(set(folders) - set(chosen), reverse=True):
                if self._load_if_due(number, folders):
                    break
        # Unload what was replaced; if nothing of what is chosen has loaded, all stays.
        if any(number in self._available for number in chosen):
            self._unload_all_but(chosen)
        self._note_failure(list(folders))

    def _say_empty(self, has_others: bool) -> None:
        if time.monotonic() < self._remind_at:
            return
        first, self._remind_at = self._remind_at == 0.0, time.monotonic() + REMINDER_SECONDS
        base, name = self.served.base, self.served.name
        if has_others:
            problem = "holds none of the versions that its policy names"
        elif base.is_dir():
            problem = "holds no version, a folder named by a number"
        else:
            problem = "is no folder"
        if self._available:
            if first:
                numbers = " and ".join(map(str, sorted(self._available)))
                say(f"{base} {problem}; version {numbers} of {name} stays")
        else:
            hint = "train or convert a model into it, or point --model_base_path elsewhere; " if first else ""
            say(f"{base} {problem}: {hint}waiting" if first else f"still waiting: {base} {problem}")

    # -------------------------------------------------------------------------------------------------- one version

    def _load_if_due(self, number: int, folders: dict[int, Path]) -> bool:
        """Load the version unless it is loaded, or has failed and is not yet to be tried again. Return True if it is
        loaded afterwards."""
        if number in self._available:
            return True
        if self.dropped:
            return False
        version = self._version(number, folders[number])
        if not self._is_due(version):
            return False
        older = [other for other in folders if other < number]
        return self._load(version, max(older, default=None))

    def _version(self, number: int, folder: Path) -> Version:
        version = self._known.get(number)
        served_before = version and version.state in (proto.UNLOADING, proto.END) and not version.error
        if version is None or served_before or version.folder != folder:
            version = Version(number, folder)
            with self._changed:
                self._known[number] = version
                self._forget_oldest()
        return version

    def _forget_oldest(self) -> None:
        ended = sorted(number for number, version in self._known.items() if version.state == proto.END)
        for number in ended[: max(0, len(ended) - MAX_ENDED)]:
            del self._known[number]

    def _is_due(self, version: Version) -> bool:
        fingerprint = _fingerprint(version.folder)
        if version.fingerprint != fingerprint:
            version.fingerprint, version.attempts = fingerprint, 0
            return True
        return version.attempts <= self._flags.max_num_load_retries and time.monotonic() >= version.retry_at

    def _load(self, version: Version, older: int | None) -> bool:
        # Load it.
        started = time.monotonic()
        version.attempts += 1
        with self._changed:
            version.state, version.error = proto.LOADING, None
        try:
            model = savedmodel.read(version.folder, tuple(self._flags.saved_model_tags.split(",")))
            engine = self._open_engine(model)
        except Exception as error:
            # A new error: this one's traceback would keep the engine and its weights in memory.
            code = error.code if isinstance(error, Refused) else StatusCode.INTERNAL
            refused = Refused(code, str(error) if isinstance(error, Refused | OSError) else repr(error))
            self._metrics.load_ended(version.folder, loaded=False, seconds=time.monotonic() - started)
            self._failed(version, refused, older)
            return False
        # Serve it, unless it is no longer wanted.
        with self._changed:
            is_wanted = not self.dropped and version.folder.parent == self.served.base
            version.state = proto.AVAILABLE if is_wanted else proto.END
            if is_wanted:
                version.model, version.engine = model, engine
                self._available[version.number] = version
                self.failure = self.hopeless = None
            self._changed.notify_all()
        if not is_wanted:
            engine.close()
            return False
        seconds = time.monotonic() - started
        self._metrics.load_ended(version.folder, loaded=True, seconds=seconds)
        say(f"version {version.number} of {self.served.name} loaded in {seconds:.1f} s by {engine.name}")
        return True

    def _failed(self, version: Version, error: Refused, older: int | None) -> None:
        interval = max(0.0, self._flags.load_retry_interval_micros / 1e6)
        version.retry_at = time.monotonic() + interval
        with self._changed:
            version.state, version.error = proto.END, error
            self._changed.notify_all()
        if serving := self.newest():
            next_step = f"version {serving.number} stays"
        elif older is not None and self.served.policy.takes_newest:
            next_step = f"trying version {older}"
        elif version.attempts <= self._flags.max_num_load_retries:
            next_step = f"trying again in {interval:.0f} s"
        else:
            next_step = "giving up"
        say(f"version {version.number} of {self.served.name} does not load: {error}; {next_step}")

    def _unload_all_but(self, chosen: list[int]) -> None:
        with self._changed:
            replaced = [version for number, version in self._available.items() if number not in chosen]
            for version in replaced:
                version.state = proto.UNLOADING
                del self._available[version.number]
        for version in replaced:
            threading.Thread(target=self._unload, args=[version], name="unload", daemon=True).start()

    def _unload(self, version: Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: version.in_flight == 0)
            engine, version.engine, version.model = version.engine, None, None
        if engine:
            engine.close()
            del engine
            malloc.give_back()
        with self._changed:
            version.state = proto.END
            self._changed.notify_all()
        say(f"version {version.number} of {self.served.name} is unloaded")

    def _note_failure(self, numbers: list[int]) -> None:
        """Note that nothing has loaded of what was tried, and whether anything will be tried again."""
        tried = [self._known[number] for number in numbers if number in self._known and self._known[number].error]
        if self._available or self.dropped or not tried:
            return
        newest = max(tried, key=lambda version: version.number)
        with self._changed:
            self.failure = f"{{{{name: {self.served.name} version: {newest.number}}} due to error: {newest.error}}}"
            if all(version.attempts > self._flags.max_num_load_retries for version in tried):
                self.hopeless = (
                    f"no version of {self.served.name} under {self.served.base} loads; "
                    f"version {newest.number}: {newest.error}. Publish it again, or delete it"
                )
            self._changed.notify_all()


def _folders(base: Path) -> dict[int, Path]:
    try:
        entries = list(base.iterdir())
    except OSError:
        return {}
    numbered = [(int(e.name), e) for e in entries if e.name.isascii() and e.name.isdigit() and e.is_dir()]
    return dict(sorted(pair for pair in numbered if pair[0] < 1 << 63))  # of 007 and 7, the latter


def _fingerprint(folder: Path) -> object:
    """Return the inode, time and size of the files that are read, which change when the folder is written to."""
    files = []
    names = ("", "saved_model.pb", "variables", savedmodel.CARD, savedmodel.WARMUP, savedmodel.SUMS)
    for path in (*(folder / name for name in names), *sorted((folder / "variables").glob("*"))):
        try:
            stat = path.stat()
            files.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            files.append((0, 0, 0))
    return files
