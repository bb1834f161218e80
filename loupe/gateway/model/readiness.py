"""Whether this gateway is ready, as /readyz says it: slow to give up, quick to believe.

    readiness = Readiness(model.card, lambda: model.answered_at)
    version = readiness.version()             # of the model that is served; or raises the Problem that says why not

Not ready until the model has answered once. From then on a failure counts only when nothing has come from the model
for FAILING_SECONDS: the restart of a model server that all gateways share must not take every one of them out of the
load balancer at once, and one that is gone must show within seconds. An answer, to a probe or to a caller, mends it at
once. What no waiting mends, a model that does not fit, is said at once. Each worker judges by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from loupe.card import Card
from loupe.errors import ModelError, ModelUnavailable, ModelUnfit

FAILING_SECONDS = 3.0


class Readiness:
    def __init__(
        self,
        ask: Callable[[], tuple[int, Card]],
        answered_at: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
        patience: float = FAILING_SECONDS,
    ) -> None:
        self._ask, self._answered_at, self._clock, self._patience = ask, answered_at, clock, patience
        self._turn = threading.Lock()
        self._version: int | None = None  # while ready
        self._failing_since: float | None = None
        self._problem: ModelError = ModelUnavailable("The model has not answered yet; try again in a second.")

    def version(self) -> int:
        if not self._turn.acquire(blocking=False):  # while one asks, the others say what is known
            return self._as_known()
        try:
            return self._asked()
        finally:
            self._turn.release()

    def _as_known(self) -> int:
        version, problem = self._version, self._problem
        if version is None:
            raise problem
        return version

    def _asked(self) -> int:
        started = self._clock()
        try:
            self._version, _ = self._ask()
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
        return self._as_known()
