"""Keep the models that are served: one, or those of a --model_config_file, which may change while the server runs.

    models = Models(flags, open_engine, metrics)
    models.start([ServedModel("tires", Path("models/tires"))])
    models.wait_until_settled()
    with models.lease(spec) as version: ...
    models.reload(served_models, deadline)           # HandleReloadConfigRequest

One thread polls every model's folder, and loads one version after the other. A model that a new configuration lacks is
unloaded, and its versions stay listed as END. A label may only be given to a version that is loaded, as in TensorFlow
Serving: at the start, and together with a new version, that needs --allow_version_labels_for_unavailable_models.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpc import StatusCode

from loupe.engines.engine import Opener
from loupe.engines.refused import Refused, invalid, say
from loupe.errors import LoupeError
from loupe.modelserver import config
from loupe.modelserver.config import ServedModel
from loupe.modelserver.flags import Flags
from loupe.modelserver.metrics import Metrics
from loupe.modelserver.versions import Version, Versions

RELOAD_SECONDS = 60.0  # that a reload waits for its new models, at most
TICK = 0.2  # seconds between two looks at whether new models have loaded


class Models:
    def __init__(self, flags: Flags, open_engine: Opener, metrics: Metrics) -> None:
        self._flags = flags
        self._open_engine = open_engine
        self._metrics = metrics
        self._models: dict[str, Versions] = {}
        self._lock = threading.Lock()  # guards _models, and each model's ServedModel
        self._changed = threading.Condition()  # notified when a version of any model has changed
        self._wake = threading.Event()
        self._tell: Callable[[dict[str, Version | None]], None] = lambda serving: None

    def start(self, models: list[ServedModel]) -> None:
        self._apply(models)
        threading.Thread(target=self._keep_polling, name="versions", daemon=True).start()
        if self._flags.model_config_file and self._flags.model_config_file_poll_wait_seconds:
            threading.Thread(target=self._keep_rereading, name="config", daemon=True).start()

    # ------------------------------------------------------------------------------------------------ for callers

    @contextmanager
    def lease(self, spec: Any) -> Iterator[Version]:
        """Yield the version that a ModelSpec asks for. It is not unloaded before the lease ends."""
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        number = self.number(spec)
        versions = self._models.get(spec.name)
        if versions is None:
            asked = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise Refused(StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
        with versions.lease(number) as version:
            yield version

    def number(self, spec: Any) -> int | None:
        """Return the version's number that a ModelSpec asks for, directly or by a label; None for the newest."""
        if spec.version_label:
            versions = self._models.get(spec.name)
            labels = {} if versions is None or versions.dropped else versions.served.labels
            if spec.version_label not in labels:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            return labels[spec.version_label]
        number: int | None = spec.version.value if spec.HasField("version") else None
        return number

    def states(self, name: str) -> list[tuple[int, int, Refused | None]]:
        """Return number, state and error of every version ever seen of the model, newest first."""
        versions = self._models.get(name)
        return versions.states() if versions else []

    def serving(self) -> dict[str, Version | None]:
        """Return the newest loaded version of each model of the configuration."""
        return {name: versions.newest() for name, versions in self._current().items()}

    def after_each_poll(self, tell: Callable[[dict[str, Version | None]], None]) -> None:
        """Call `tell(models.serving())` now and after each look at the folders."""
        self._tell = tell
        tell(self.serving())

    def wait_until_settled(self, is_over: Callable[[], bool]) -> str | None:
        """Wait until every model has a version that is loaded, or it is over. Return the reason if one never will."""
        with self._changed:
            while not is_over():
                versions = self._current().values()
                if reasons := [v.hopeless for v in versions if v.hopeless]:
                    return "; ".join(reasons)
                if all(v.newest() for v in versions):
                    return None
                self._changed.wait(TICK)
        return None

    # ---------------------------------------------------------------------------------------------- configuration

    def reload(self, models: list[ServedModel], deadline: float | None) -> None:
        """Serve these models from now on. Wait, for a minute at most, until those that are new are loaded. Raises
        Refused if one is not."""
        new = self._apply(models)
        until = min(deadline or math.inf, time.monotonic() + RELOAD_SECONDS)
        with self._changed:
            while time.monotonic() < until:
                versions = [self._models[name] for name in new]
                if all(v.newest() or v.failure or v.dropped for v in versions):
                    break
                self._changed.wait(TICK)
        if missing := [name for name in new if not self._models[name].newest()]:
            reasons = [self._models[name].failure or f"{{{{name: {name}}} is not loaded}}" for name in missing]
            text = "".join(f"{reason}, " for reason in reasons)
            raise Refused(StatusCode.UNKNOWN, f"{len(missing)} model(s) did not become available: {{{text}}}")

    def _apply(self, models: list[ServedModel]) -> list[str]:
        """Take a configuration over. Return the names of the models that were not served before."""
        with self._lock:
            self._check_labels(models)
            known, new = dict(self._models), []
            for served in models:
                versions = known.get(served.name)
                if versions is None:
                    known[served.name] = Versions(served, self._flags, self._open_engine, self._metrics, self._changed)
                    new.append(served.name)
                elif versions.dropped:
                    versions.take_up(served)
                    new.append(served.name)
                else:
                    versions.served = served
            for name in known.keys() - {served.name for served in models}:
                known[name].drop()
            self._models = known
        self._wake.set()
        return new

    def _check_labels(self, models: list[ServedModel]) -> None:
        for served in models:
            versions = self._models.get(served.name)
            for label, number in served.labels.items():
                if versions and versions.is_available(number):
                    continue
                moved = versions is not None and versions.served.labels.get(label, number) != number
                allowed = self._flags.force_allow_any_version_labels_for_unavailable_models or (
                    self._flags.allow_version_labels_for_unavailable_models and not moved
                )
                if not allowed:
                    raise Refused(
                        StatusCode.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {served.name}, which is not currently "
                        "available for inference",
                    )

    def _keep_rereading(self) -> None:
        path, last = Path(self._flags.model_config_file), ""
        while True:
            time.sleep(self._flags.model_config_file_poll_wait_seconds)
            try:
                self._apply(config.read_models(path))
                last = ""
            except Exception as error:
                reason = str(error) if isinstance(error, LoupeError) else repr(error)
                if reason != last:  # said once
                    say(f"the configuration stays as it was: {reason}")
                last = reason

    # ------------------------------------------------------------------------------------------------------ folders

    def _current(self) -> dict[str, Versions]:
        return {name: versions for name, versions in self._models.items() if not versions.dropped}

    def _keep_polling(self) -> None:
        while True:
            self._wake.clear()
            for name, versions in self._models.items():
                try:
                    versions.poll()
                except Exception as error:  # whatever happens to the folder, the served version stays
                    say(f"looking for versions of {name} failed: {error!r}")
            try:
                self._tell(self.serving())
            except Exception as error:
                say(f"the models' state could not be told: {error!r}")
            pause = self._flags.file_system_poll_wait_seconds
            all_loaded = all(versions.newest() for versions in self._current().values())
            self._wake.wait(pause or (None if all_loaded else 1))
