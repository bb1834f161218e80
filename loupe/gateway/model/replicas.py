"""Spread calls over the model server's addresses: each goes where the fewest of this process's calls are in flight.

    replicas = Replicas([("model", 8500)], probe)           # in the worker, after its fork
    response = replicas.call(lambda replica, timeout: replica.stubs["Predict"](request, timeout), deadline, Route())
    response = replicas.call(…, place=True)                 # a prediction: waits until the model server can take it

gRPC for Python has no such policy. Its round_robin gives a slow replica as many calls as any other, so that in the end
all callers wait for that one, and looks the name up again only when a connection closes. Its weighted_round_robin needs
reports of load, which TensorFlow Serving does not send. So each address has a channel of its own here:

- Names are looked up every few seconds, in a thread. An address that is no longer found finishes its calls.
- An address is *away* if its last call broke or failed there, or if it was silent for a second with calls in flight and
  then for another to a probe. It is asked again once a probe finds a version of the model ready; these are sent each
  second. A new one begins like that. Where all are away, all are asked.
- Whoever refuses at once has nothing in flight, and is not to be preferred for it: until the next round of probes a
  call that was refused counts as if it were in flight.
- A call that breaks is tried once more, elsewhere if there is another address, as long as most calls succeed. One that
  fails is tried only where there is another address that is not away.
- Each address takes so many predictions at a time (limit.py). One that finds no place waits in a line, first come first
  served, and so does one that was refused: it keeps its number. Whatever else is asked needs no place.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import threading
import time
from bisect import insort
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import grpc

from loupe import proto
from loupe.errors import ModelFull, ModelUnavailable
from loupe.gateway import neighbours
from loupe.gateway.model.channel import Names, open_channel
from loupe.gateway.model.limit import Limit
from loupe.gateway.observe import metrics

LOOK_UP_SECONDS = 5.0  # between two look-ups; WATCH_SECONDS while all addresses are away
WATCH_SECONDS = 1.0  # between two rounds of probes
SILENT_SECONDS = 1.0
PROBE_SECONDS = 1.0
BACKOFF_SECONDS = 0.1
# Nothing else retries. Each call that breaks or fails takes a token, each success gives half a token back. With half of
# the tokens left or fewer nothing is tried again: model servers in trouble get 20 more calls, not twice as many.
TOKENS, TOKENS_BACK = 40.0, 0.5
TOO_LARGE = ("larger than max", "memory", "OOM")  # of gRPC, of our own model server, of TensorFlow on a GPU
NO_ANSWER = "The model server does not answer; try again in a second."
FULL = "The model server had no place for this in time; try again in a second, or allow more time."

METHODS = (proto.PREDICT, proto.GET_MODEL_METADATA, proto.GET_MODEL_STATUS)
_log = logging.getLogger(__name__)


class Outcome(Enum):
    """What the end of a call tells of the replica."""

    ANSWERED = auto()
    LACKING = auto()  # no such version or signature: replaced just now, or a model without a card
    LATE = auto()  # tells nothing: callers may be in a hurry
    FULL = auto()  # it has no thread left for it
    REFUSED = auto()  # perhaps the caller's fault
    FAILED = auto()
    BROKEN = auto()


OUTCOMES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.LATE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Outcome.FULL,
    grpc.StatusCode.UNAVAILABLE: Outcome.BROKEN,
    grpc.StatusCode.CANCELLED: Outcome.BROKEN,
    grpc.StatusCode.FAILED_PRECONDITION: Outcome.FAILED,  # the model is loaded, and cannot compute
    grpc.StatusCode.INTERNAL: Outcome.FAILED,
    grpc.StatusCode.UNKNOWN: Outcome.FAILED,
    grpc.StatusCode.DATA_LOSS: Outcome.FAILED,
    grpc.StatusCode.NOT_FOUND: Outcome.FAILED,
}


class Replica:
    """An address, and what this process knows of it. The lock of Replicas guards it."""

    def __init__(self, address: str, limit: Limit) -> None:
        self.channel = open_channel(address)
        self.stubs: dict[str, Any] = {method.name: proto.call(self.channel, method) for method in METHODS}
        self.limit = limit
        self.predictions = 0  # in flight, each with a place
        self.in_flight = 0  # all calls
        self.refused = 0  # calls since the last round of probes
        self.turn = random.random()  # the smaller, the longer ago it was chosen
        self.is_away = True
        self.waits_since: float | None = None  # begin of the first call since its last answer
        self.is_removed = False


@dataclass
class Route:
    """The replica that was asked last for a request. What else is to be asked for the request is asked there if it can
    be: another replica may serve another version."""

    replica: Replica | None = None


@dataclass(order=True)
class _Waiting:
    """A prediction in the line. The lock of Replicas guards it, too."""

    number: int
    rather_not: Replica | None = field(compare=False)
    replica: Replica | None = field(default=None, compare=False)  # once it has a place there
    event: threading.Event = field(default_factory=threading.Event, compare=False)  # look again


class Replicas:
    def __init__(
        self,
        servers: Collection[tuple[str, int]],
        probe: Any,
        new_limit: Callable[[], Limit] = lambda: Limit(start=8, most=32),
    ) -> None:
        """`servers` are hosts and ports, `probe` is a GetModelStatusRequest."""
        self._names, self._probe_request, self._new_limit = Names(servers), probe, new_limit
        self._lock = threading.Lock()
        self._replicas: dict[str, Replica] = {}  # by address
        self._turns, self._tokens = 0, TOKENS
        self._numbers = itertools.count()
        self._line: list[_Waiting] = []  # by number
        self._looked_up = threading.Event()
        for work in (self._look_up, self._watch):
            threading.Thread(target=_repeat, args=(work,), name="replicas", daemon=True).start()

    def call(self, ask: Callable[[Replica, float], Any], deadline: float, route: Route, *, place: bool = False) -> Any:
        """Return what `ask(replica, seconds)` returns, or raise its last grpc.RpcError. With `place`, wait for one as
        long as the model servers are at their limits; raise ModelFull if the deadline is over first."""
        self._looked_up.wait(deadline - time.monotonic())
        number, wanted, broken = next(self._numbers), route.replica, None
        while True:
            replica = self._take_place(number, wanted, broken, deadline) if place else self._take(wanted, broken)
            try:
                return self._ask(replica, ask, deadline, route, place)
            except grpc.RpcError as error:
                wanted, outcome = None, outcome_of(error)
                if outcome is Outcome.FULL and place:
                    continue
                is_worth_it = outcome is Outcome.BROKEN or (outcome is Outcome.FAILED and self._has_other(replica))
                if broken or not is_worth_it or self._tokens <= TOKENS / 2:
                    raise
                broken = replica
            pause = BACKOFF_SECONDS * random.uniform(0.8, 1.2)
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))  # at the deadline it ends as too late

    def _has_other(self, than: Replica) -> bool:
        with self._lock:
            return any(each is not than and not each.is_away for each in self._replicas.values())

    # Choosing.

    def _take(self, wanted: Replica | None, rather_not: Replica | None) -> Replica:
        """Count a call in flight to the wanted replica, or to another where that is away or removed."""
        with self._lock:
            replica = wanted if _is_there(wanted) else self._choose(rather_not)
            if replica is None:
                raise ModelUnavailable(NO_ANSWER)
            return self._begin(replica)

    def _take_place(self, number: int, wanted: Replica | None, rather_not: Replica | None, deadline: float) -> Replica:
        """As _take, for a prediction. It waits in the line, unless the replica that is wanted is there: the request has
        just been there, and had a place."""
        waiting = _Waiting(number, rather_not)
        with self._lock:
            if wanted and _is_there(wanted):
                return self._begin(wanted, place=True)
            insort(self._line, waiting)
        while True:
            with self._lock:
                now = time.monotonic()  # first: a pause that is over since then counts as one to wait for
                self._give_places()
                if waiting.replica:
                    return waiting.replica
                if now >= deadline or not self._replicas:
                    self._line.remove(waiting)
                    if self._line:
                        self._line[0].event.set()  # it may have waited for this one to look at the clock
                    raise ModelFull(FULL) if self._replicas else ModelUnavailable(NO_ANSWER)
                waiting.event.clear()
                until = min(deadline, self._opens_at(now))
            waiting.event.wait(until - now)

    def _give_places(self) -> None:
        """Give places to those who wait for one, in their order."""
        while self._line and (replica := self._choose(self._line[0].rather_not, place=True)):
            first = self._line.pop(0)
            first.replica = self._begin(replica, place=True)
            first.event.set()

    def _choose(self, rather_not: Replica | None, place: bool = False) -> Replica | None:
        """Return where the fewest calls are in flight, or None. With `place`, where there is one."""
        return min(
            (each for each in self._usable() if not place or each.limit.has_room(each.predictions)),
            key=lambda each: (each is rather_not, each.in_flight + each.refused, each.turn),
            default=None,
        )

    def _usable(self) -> list[Replica]:
        """Return the replicas that are not away; all of them where all are."""
        known = list(self._replicas.values())
        return [each for each in known if not each.is_away] or known

    def _opens_at(self, now: float) -> float:
        """Return when the first pause after a refusal is over, if there is one."""
        return min((each.limit.opens_at for each in self._usable() if each.limit.opens_at > now), default=math.inf)

    # A call's begin and end.

    def _begin(self, replica: Replica, place: bool = False) -> Replica:
        self._turns += 1
        replica.turn = self._turns
        replica.in_flight += 1
        replica.predictions += place
        replica.waits_since = replica.waits_since or time.monotonic()
        self._report()
        return replica

    def _ask(
        self, replica: Replica, ask: Callable[[Replica, float], Any], deadline: float, route: Route, place: bool
    ) -> Any:
        # This one was the last of so many, and if it is answered the model server takes as many.
        sent_at, in_flight, outcome = time.monotonic(), replica.predictions, Outcome.LATE
        route.replica = replica
        try:
            response = ask(replica, max(0.001, deadline - sent_at))
            outcome = Outcome.ANSWERED
            return response
        except grpc.RpcError as error:
            outcome = outcome_of(error)
            raise
        finally:
            with self._lock:
                self._count(outcome)
                if place:
                    self._learn(replica, outcome, sent_at, in_flight)
                self._settle(replica, outcome)
                self._give_places()
                self._report()

    def _count(self, outcome: Outcome) -> None:
        """Take a token for a call that went wrong, and give some back for an answer."""
        if outcome in (Outcome.BROKEN, Outcome.FAILED):
            self._tokens = max(0.0, self._tokens - 1)
        elif outcome is Outcome.ANSWERED:
            self._tokens = min(TOKENS, self._tokens + TOKENS_BACK)

    def _learn(self, replica: Replica, outcome: Outcome, sent_at: float, in_flight: int) -> None:
        """Give a place back, and tell the limit what came of it."""
        replica.predictions -= 1
        if outcome is Outcome.FULL:
            replica.limit.refused(sent_at, in_flight, len(self._line) + 1)
        elif outcome is Outcome.ANSWERED:
            replica.limit.answered(sent_at, in_flight, len(self._line), neighbours.surplus())

    def _settle(self, replica: Replica, outcome: Outcome) -> None:
        """Count a call out, and judge the replica by it."""
        replica.in_flight -= 1
        if outcome in (Outcome.BROKEN, Outcome.FAILED):
            replica.is_away = True
        elif outcome is not Outcome.LATE:
            replica.is_away = replica.is_away and outcome not in (Outcome.ANSWERED, Outcome.FULL)
            replica.refused += outcome in (Outcome.REFUSED, Outcome.FULL)
            replica.waits_since = time.monotonic() if replica.in_flight else None
        self._close_unused(replica)

    def _report(self) -> None:
        known = self._replicas.values()
        in_flight, waiting = sum(each.predictions for each in known), len(self._line)
        places = sum(each.limit.places for each in known)
        # Between an answer and the next call a place is empty for a moment.
        neighbours.tell_calls(min(in_flight + waiting, max(in_flight, places)), waiting)
        metrics.model_calls(in_flight, places)

    # The threads that look after the replicas.

    def _watch(self) -> float:
        """Probe the replicas that are away or silent. Return the seconds until the next time."""
        before = time.monotonic() - SILENT_SECONDS
        with self._lock:
            known = list(self._replicas.values())
            for each in known:
                each.refused = 0
        self._probe([each for each in known if each.is_away or (each.waits_since or before) < before])
        away = sum(each.is_away for each in known)
        metrics.replicas(len(known) - away, away)
        return WATCH_SECONDS

    def _probe(self, replicas: Collection[Replica]) -> None:
        with self._lock:
            there = [each for each in replicas if not each.is_removed]
            for each in there:
                each.in_flight += 1  # its channel stays open
        probes = [
            each.stubs[proto.GET_MODEL_STATUS.name].future(self._probe_request, timeout=PROBE_SECONDS) for each in there
        ]
        outcomes = [_outcome_of_probe(probe) for probe in probes]
        with self._lock:
            for each, outcome in zip(there, outcomes, strict=True):
                self._settle(each, outcome)
            self._give_places()

    def _look_up(self) -> float:
        """Add the addresses that are new, and part with those that are gone. Return the seconds until the next time."""
        found = self._names.look_up()
        added = {address: Replica(address, self._new_limit()) for address in found - set(self._replicas)}
        with self._lock:
            for address in set(self._replicas) - found:
                gone = self._replicas.pop(address)
                gone.is_removed = True
                self._close_unused(gone)
            self._replicas.update(added)
            self._give_places()
            self._report()
        self._looked_up.set()
        # New ones are asked once they answer.
        self._probe(added.values())
        return LOOK_UP_SECONDS if any(not each.is_away for each in self._replicas.values()) else WATCH_SECONDS

    def _close_unused(self, replica: Replica) -> None:
        if replica.is_removed and not replica.in_flight:
            replica.channel.close()


def outcome_of(error: Any) -> Outcome:
    text = error.details() or ""
    if is_missing_signature(error) or (error.code() is grpc.StatusCode.NOT_FOUND and "Specific(" in text):
        return Outcome.LACKING
    if is_too_large(error):
        return Outcome.REFUSED
    return OUTCOMES.get(error.code(), Outcome.REFUSED)


def is_missing_signature(error: Any) -> bool:
    """Return True if the model lacks the signature that was asked for. With the same code TensorFlow Serving says that
    a model cannot compute."""
    return error.code() is grpc.StatusCode.FAILED_PRECONDITION and "Serving signature key" in (error.details() or "")


def is_too_large(error: Any) -> bool:
    """Return True if this call alone was too much, in bytes or in memory. Where only the threads are too few, the text
    is "Server Threadpool Exhausted" or empty."""
    text = error.details() or ""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and any(word in text for word in TOO_LARGE)


def _is_there(replica: Replica | None) -> bool:
    return replica is not None and not replica.is_away and not replica.is_removed


def _outcome_of_probe(probe: Any) -> Outcome:
    """Wait for its answer. A server without a version of the model that is available counts as broken."""
    if probe.code() is grpc.StatusCode.OK:
        is_ready = any(each.state == proto.AVAILABLE for each in probe.result().model_version_status)
        return Outcome.ANSWERED if is_ready else Outcome.BROKEN
    return Outcome.FULL if outcome_of(probe) is Outcome.FULL else Outcome.BROKEN


def _repeat(work: Callable[[], float]) -> None:
    """Do it for ever, whatever happens: a thread that ended would be missed only when a server is."""
    while True:
        try:
            pause = work()
        except Exception:
            _log.exception("The model servers could not be looked after; it is tried again.")
            pause = WATCH_SECONDS
        time.sleep(pause)
