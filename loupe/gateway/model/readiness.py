"""Decide the answer to /readyz: not ready only after lasting failures, ready again with the first success.

    readiness = Readiness(model.card, lambda: model.answered_at)
    version = readiness.version()             # of the model that is served; raises a Problem if not ready

The gateway is not ready until the model has answered once. From then on a failure counts only if the model has not
answered for FAILING_SECONDS. So the restart of a model server that all gateways share does not take all of them out of
the load balancer, and a model server that is gone shows within seconds. With one answer, to a probe or to a caller, the
gateway is ready again. A model that does not fit makes it not ready at once, since waiting does not help. Each worker
decides for itself.
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
        self._asking = threading.Lock()
        self._version: int | None = None  # while ready
        self._failing_since: float | None = None
        self._problem: ModelError = ModelUnavailable("The model has not answered yet; try again in a second.")

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
        return self._last_known()
