"""Decide the answer to /readyz: ready once the model has computed a picture, not ready only after lasting failures.

    readiness = Readiness(model.card, model.try_out, lambda: model.answered_at, lambda: model.failing_since)
    version = readiness.version()             # of the model that is served; raises a Problem if not ready

A model that loads may not be able to compute. So each version is tried once, in each worker, with one grey picture. The
trial has a thread of its own and as much time as any request: the first picture of a large model takes long. Meanwhile
the answer stays what it was. It is tried again where every prediction has failed for FAILING_SECONDS, though the model
gives its card.

From then on a failure counts only if the model has not answered for FAILING_SECONDS. So the restart of a model server
that all gateways share does not take all of them out of the load balancer, and a model server that is gone shows within
seconds. With one answer, to a probe or to a caller, the gateway is ready again. A model that does not fit, or fails its
trial, makes it not ready at once, since waiting does not help. Each worker decides for itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from loupe.card import Card
from loupe.errors import ModelError, ModelTooSlow, ModelUnavailable, ModelUnfit

FAILING_SECONDS = 3.0
TRIAL_SECONDS = 0.5  # for which a probe waits for a trial: most take less
MOST_TRIED = 16  # versions that are remembered
WAITS = "The model has not answered yet; try again in a second."
FAILS = "The model server answers, and no prediction comes of it; try again in a second."
TRIES = "The model computes its first picture and is not ready yet; try again in a second."

Version = tuple[int, Card]

_log = logging.getLogger(__name__)


class Readiness:
    def __init__(
        self,
        ask: Callable[[], Version],
        try_out: Callable[[], Version],
        answered_at: Callable[[], float],
        failing_since: Callable[[], float | None],
        *,
        clock: Callable[[], float] = time.monotonic,
        patience: float = FAILING_SECONDS,
    ) -> None:
        """`ask` returns the version that is served, `try_out` the version that has computed a picture; the others when
        the model answered last, and since when every prediction failed."""
        self._ask, self._try_out, self._answered_at, self._clock = ask, try_out, answered_at, clock
        self._predictions_failing_since, self._patience = failing_since, patience
        self._asking = threading.Lock()
        self._version: int | None = None  # while ready
        self._failing_since: float | None = None
        self._problem: ModelError = ModelUnavailable(WAITS)
        self._tried: dict[int, Card] = {}  # versions that have computed a picture, and their cards
        self._trial: _Trial | None = None

    def version(self) -> int:
        if not self._asking.acquire(blocking=False):  # another thread asks the model; answer with the last result
            return self._last_known()
        try:
            return self._ask_model()
        finally:
            self._asking.release()

    def _last_known(self) -> int:
        version, problem = self._version, self._problem
        if version is None:
            raise problem
        return version

    def _ask_model(self) -> int:
        started = self._clock()
        try:
            version, card = self._ask()
            is_failing = self._is_failing()
            if is_failing:
                self._tried.pop(version, None)
            if self._tried.get(version) == card or self._has_computed(version, card):
                self._version = version
            elif is_failing:
                self._version, self._problem = None, ModelUnavailable(FAILS)
        except ModelUnfit as problem:
            self._version, self._problem = None, problem
        except ModelError as problem:
            self._problem = problem
            if self._failing_since is None:
                self._failing_since = started
            if self._clock() - max(self._failing_since, self._answered_at()) >= self._patience:
                self._version = None
        else:
            self._failing_since = None
        return self._last_known()

    def _is_failing(self) -> bool:
        since = self._predictions_failing_since()
        return since is not None and self._clock() - since >= self._patience

    def _has_computed(self, version: int, card: Card) -> bool:
        """Have the version tried. Return False if it is not known yet that it can compute; raise the ModelError if it
        cannot."""
        if self._version is None:
            self._problem = ModelUnavailable(TRIES)
        trial = self._trial = self._trial or _Trial(self._try_out)
        if not trial.ended.wait(TRIAL_SECONDS):
            return False
        self._trial = None
        if isinstance(trial.problem, ModelTooSlow):  # it had all the time that a request may have
            self._version, self._problem = None, trial.problem
            return False
        if trial.problem:
            raise trial.problem
        while len(self._tried) >= MOST_TRIED:
            self._tried.pop(next(iter(self._tried)))
        self._tried.update([trial.tried] if trial.tried else [])
        return self._tried.get(version) == card  # another may have been served meanwhile


class _Trial:
    """One trial, in a thread of its own."""

    def __init__(self, try_out: Callable[[], Version]) -> None:
        self.ended = threading.Event()
        self.tried: Version | None = None
        self.problem: ModelError | None = None
        threading.Thread(target=self._run, args=(try_out,), name="trial", daemon=True).start()

    def _run(self, try_out: Callable[[], Version]) -> None:
        try:
            self.tried = try_out()
        except ModelError as problem:
            self.problem = problem
        except Exception:
            _log.exception("The model could not be tried; the next probe tries again.")
        finally:
            self.ended.set()
