"""Learn how many predictions a model server takes from this worker at a time.

    limit = Limit(start=4, most=32)
    limit.has_room(in_flight)                               # may one more be sent now?
    limit.answered(sent_at, in_flight, waiting, surplus)    # one was; it was the last of so many when it was sent
    limit.refused(sent_at, in_flight, waiting)              # one came back with RESOURCE_EXHAUSTED

A model server takes as many calls as it has threads (TensorFlow Serving: four for each processor) and refuses the next
one at once. It tells nobody how many it has, and other workers and gateways ask it as well. So each worker finds its
share by trying, as TCP does; workers share nothing that a killed one could keep. Those of one gateway tell each other
how much they have to do (neighbours.py), and so settle sooner.

- Answers raise the limit while calls wait: by a place each until the first refusal, then by one in a round, which is as
  many answers as there are places.
- One place more than fits, as far as is known, is a try. It is made the sooner, the more calls wait for each place, and
  taken back if it is refused. Where fewer wait than half the places, one of these goes with it for a round: a worker
  whose callers wait longer finds room for its own tries. So the shares settle where callers wait equally long.
- A worker that has more calls in flight than is its share of the gateway's gives a place up with an answer, as long as
  calls wait elsewhere; one that has fewer tries with each answer. Where each has its share, a try mostly takes a
  neighbour's place, whose call then waits a round longer. So tries are rarer there, until one fits.
- A refusal of what did fit means that others came. It lowers the limit by a seventh, once for all calls that were sent
  before it.
- After a refusal nothing is sent until an answer comes back, which frees a thread, or a pause is over. Pauses grow to
  half a second: a server that refuses everything is asked twice a second by each worker, however many callers wait.

tests/gateway/test_limit.py has a model of it in simulated time, which the constants were chosen with.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

FALL = 6 / 7
TRY_ROUNDS, MOST_TRY_ROUNDS = 8, 12  # until a try, where as many calls wait as there are places; and at most
SETTLED = 6  # times as many, where each worker has its share
NEARLY = 0.3  # places more or less than that are its share, too
GIVEN_UP, CLAIMED = 0.75, -0.5  # places beyond the worker's share
PAUSE, MOST_PAUSE = 0.01, 0.5  # seconds, for each refusal since the last answer


class Limit:
    def __init__(self, start: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._value, self._most, self._clock = float(min(start, most)), most, clock
        self._too_many = math.inf  # as many in flight were refused, or were not tried since
        self._fell_at = self.opens_at = -math.inf
        self._try_fitted = False  # the last one
        self._refusals = 0  # since the last answer

    @property
    def places(self) -> int:
        return int(self._value)

    def has_room(self, in_flight: int) -> bool:
        return in_flight < self.places and self._clock() >= self.opens_at

    def answered(self, sent_at: float, in_flight: int, waiting: int, surplus: float | None = None) -> None:
        """`waiting` calls find no place. This worker has so many calls more in flight than is its share. None: no other
        worker's calls wait."""
        self.opens_at, self._refusals = -math.inf, 0
        if in_flight >= self._too_many and sent_at >= self._fell_at:  # else the refusal is the newer word
            self._too_many, self._try_fitted = in_flight + 1, True
        if surplus is not None and surplus >= GIVEN_UP:
            self._try_fitted = False
            self._too_many = min(self._too_many, self.places)  # it was borrowed, and to have it again is a try
            self._value = max(1.0, self.places - 1.0)
        elif waiting and in_flight >= self.places:
            self._value = max(1.0, min(self._value + self._step(waiting, surplus), self._most))

    def _step(self, waiting: int, surplus: float | None) -> float:
        """Return by how much one answer changes the limit."""
        if self._too_many == math.inf or (surplus is not None and surplus <= CLAIMED):
            return 1.0
        rounds = 1 / self._value  # that this answer is
        if self.places + 1 < self._too_many:
            return rounds
        urge = min(1.0, max((waiting / self.places) ** 2 / TRY_ROUNDS, 1 / MOST_TRY_ROUNDS))
        is_settled = surplus is not None and abs(surplus) <= NEARLY and not self._try_fitted
        return rounds * urge / (SETTLED if is_settled else 1)

    def refused(self, sent_at: float, in_flight: int, waiting: int) -> None:
        if sent_at < self._fell_at:
            return
        fitted = in_flight - 1
        if in_flight < self._too_many:
            self._value = max(1.0, min(self._value, in_flight) * FALL)
        else:
            self._value = max(1.0, fitted - (2 * waiting < fitted))
        self._too_many, self._try_fitted, self._fell_at = in_flight, False, self._clock()
        self._refusals += 1
        self.opens_at = self._fell_at + min(self._refusals * PAUSE, MOST_PAUSE) * random.uniform(0.8, 1.2)
