"""How many predictions a model server is given at a time: what is learnt, by a clock; and that nobody is lost over it.

The servers of the second part have so many threads, refuse the next call at once as TensorFlow Serving does, and take a
fixed time for each picture (tests/support/replicas.py). `make bench-admission` measures the same at full length.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
import re
import statistics
import time
from collections.abc import Callable

import pytest

from loupe.gateway.model.limit import MOST_PAUSE, PAUSE, SETTLED, TRY_ROUNDS, Limit
from loupe.gateway.neighbours import Load, beyond_share
from tests.support.crowd import crowding
from tests.support.gateways import Gateway, gateway
from tests.support.replicas import replicas, target
from tests.support.servers import free_port, until

# ------------------------------------------------------------------------------------------------------ what is learnt


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def answer_rounds(limit: Limit, rounds: int, waiting: int = 8) -> None:
    """So many times, answers to as many calls as there are places."""
    for _ in range(rounds):
        for _ in range(limit.places):
            limit.answered(math.inf, limit.places, waiting)


def test_it_grows_while_calls_wait_and_never_over_the_most(clock: Clock) -> None:
    limit = Limit(4, 20, clock)
    for places in range(4, 14):
        assert limit.places == places, "a place for each answer"
        limit.answered(clock.now, places, 8)
    limit.refused(clock.now, 14, 8)
    assert limit.places == 12
    limit.refused(clock.now + 1, 12, 8)
    assert limit.places == 10
    limit = Limit(4, 9, clock)
    answer_rounds(limit, 30)
    assert limit.places == 9


@pytest.mark.parametrize(("in_flight", "waiting"), [(3, 5), (4, 0)])
def test_it_does_not_grow_where_it_is_not_the_limit(clock: Clock, in_flight: int, waiting: int) -> None:
    limit = Limit(4, 9, clock)
    for _ in range(100):
        limit.answered(clock.now, in_flight, waiting)
    assert limit.places == 4


def test_it_begins_with_no_more_than_the_most(clock: Clock) -> None:
    assert Limit(8, 2, clock).places == 2


def test_calls_that_were_sent_together_lower_it_once(clock: Clock) -> None:
    limit = Limit(14, 32, clock)
    sent_at, clock.now = clock.now, clock.now + 0.01
    for in_flight in range(14, 4, -1):
        limit.refused(sent_at, in_flight, 8)
    assert limit.places == 12
    limit.refused(clock.now, 12, 8)
    assert limit.places == 10


def test_it_finds_a_small_server_within_a_few_tries_and_never_falls_below_one(clock: Clock) -> None:
    limit, threads, tries = Limit(8, 32, clock), 2, 0
    while limit.places > threads:
        clock.now += 1
        limit.refused(clock.now, limit.places, 8)
        tries += 1
    assert (limit.places, tries <= 8) == (threads, True)
    for _ in range(20):
        clock.now += 1
        limit.refused(clock.now, 1, 8)
    assert limit.places == 1


def test_near_what_was_refused_it_is_tried_seldom_and_a_try_that_fails_changes_nothing(clock: Clock) -> None:
    limit, threads, rounds, tries = Limit(8, 32, clock), 8, 200, 0
    limit.refused(clock.now, threads + 1, 8)
    for _ in range(rounds):
        for _ in range(threads):
            limit.answered(clock.now, threads, waiting=threads)
        clock.now += 0.1
        if limit.places > threads:
            tries += 1
            limit.refused(clock.now, limit.places, 8)
            assert limit.places == threads
    assert 0 < tries <= rounds / TRY_ROUNDS


def test_who_has_more_waiting_for_fewer_places_tries_more_often(clock: Clock) -> None:
    def rounds_to_a_try(places: int, waiting: int) -> int:
        limit = Limit(places + 1, 32, clock)
        limit.refused(clock.now, places + 1, 8)
        assert limit.places == places
        for rounds in range(1000):
            if limit.places > places:
                return rounds
            answer_rounds(limit, 1, waiting)
        raise AssertionError("it is never tried")

    assert rounds_to_a_try(6, 2) >= 1.5 * rounds_to_a_try(4, 4) >= 4 * rounds_to_a_try(2, 6)


def test_with_each_try_that_fails_a_place_goes_where_few_wait(clock: Clock) -> None:
    limit = Limit(6, 32, clock)
    limit.refused(clock.now, 7, 2)
    clock.now += 1
    limit.refused(clock.now, 7, 2)
    assert limit.places == 5
    answer_rounds(limit, 2, waiting=2)
    assert limit.places == 6, "for a round"


def test_what_is_beyond_the_share_is_given_up_at_once_and_what_is_missing_is_tried_within_a_round(clock: Clock) -> None:
    limit = Limit(8, 32, clock)
    limit.refused(clock.now, 7, 8)
    assert limit.places == 6
    limit.answered(clock.now, 6, 8, surplus=1.0)
    assert limit.places == 5
    for places in (5, 6):
        for _ in range(places + 1):
            limit.answered(clock.now, places, 8, surplus=-0.5)
        assert limit.places == places + 1, "though as many were refused"
    limit = Limit(1, 32, clock)
    limit.answered(clock.now, 1, 8, surplus=1.0)
    assert limit.places == 1


def test_where_each_worker_has_its_share_it_is_tried_the_more_seldom_until_a_try_fits(clock: Clock) -> None:
    def answers_to_a_try(surplus: float | None) -> int:
        places = limit.places
        for answers in range(10_000):
            if limit.places > places:
                return answers
            limit.answered(clock.now, places, places, surplus)
        raise AssertionError("it is never tried")

    limit = Limit(5, 32, clock)
    for _ in range(2):
        limit.refused(clock.now, 5, 8)
    assert limit.places == 4
    alone = answers_to_a_try(None)
    limit.refused(clock.now, 5, 8)
    settled = answers_to_a_try(0.0)
    assert settled == pytest.approx(SETTLED * alone, abs=SETTLED)
    limit.answered(clock.now, 5, 5, 0.0)
    assert limit.places == 5, "it fitted"
    assert answers_to_a_try(0.0) < 0.4 * settled


def test_where_more_is_answered_than_was_refused_it_grows_on(clock: Clock) -> None:
    """Another gateway went away."""
    limit = Limit(4, 32, clock)
    limit.refused(clock.now, 5, 8)
    answer_rounds(limit, 60, waiting=32)
    assert limit.places >= 20


def test_after_a_refusal_nothing_is_sent_for_a_pause_that_grows_and_ends_with_an_answer(clock: Clock) -> None:
    limit = Limit(8, 32, clock)

    def pause() -> float:
        limit.refused(clock.now, 1, 8)
        assert not limit.has_room(0)
        began, clock.now = clock.now, limit.opens_at
        assert limit.has_room(0)
        return clock.now - began

    pauses = [pause() for _ in range(100)]
    assert 0.8 * PAUSE <= pauses[0] <= 1.2 * PAUSE
    assert pauses[9] > 5 * pauses[0]
    assert max(pauses) <= 1.2 * MOST_PAUSE
    limit.refused(clock.now, 1, 8)
    limit.answered(clock.now, 1, 0)
    assert limit.has_room(0)


# ------------------------------------------------------------------------------------------------- in simulated time


class Worker:
    def __init__(self, limit: Limit, callers: int) -> None:
        self.limit, self.callers, self.waiting = limit, callers, callers
        self.in_flight = self.answered = 0

    def load(self) -> Load:
        return Load(self.callers, self.in_flight, self.waiting)


def simulate(
    callers: list[int], starts: list[int], seed: int, lasts: float = 60.0, threads: int = 8, neighbours: bool = False
) -> list[float]:
    """Return the answers a second of each worker. Its callers ask again at once; the model server has so many threads
    and takes 0.1 s for each call, which travel for a millisecond. `neighbours` tell each other of their load."""
    random.seed(seed)
    clock, events, numbers, busy = Clock(), list[tuple[float, int, Callable[[], None]]](), itertools.count(), 0
    workers = [Worker(Limit(start, 32, clock), count) for count, start in zip(callers, starts, strict=True)]
    began = clock.now

    def later(seconds: float, happens: Callable[[], None]) -> None:
        when = clock.now + seconds * random.uniform(1, 1.05)
        heapq.heappush(events, (when, next(numbers), happens))

    def send(worker: Worker) -> None:
        while worker.waiting and worker.limit.has_room(worker.in_flight):
            worker.waiting -= 1
            worker.in_flight += 1
            later(0.001, functools.partial(arrive, worker, worker.in_flight, clock.now))
        if worker.waiting and worker.limit.opens_at > clock.now:
            later(worker.limit.opens_at - clock.now + 1e-6, lambda: send(worker))

    def arrive(worker: Worker, in_flight: int, sent_at: float) -> None:
        nonlocal busy
        if busy == threads:
            later(0.001, lambda: back(worker, lambda: worker.limit.refused(sent_at, in_flight, worker.waiting + 1)))
            return
        busy += 1
        later(0.1, lambda: done(worker, in_flight, sent_at))

    def done(worker: Worker, in_flight: int, sent_at: float) -> None:
        nonlocal busy
        busy -= 1
        worker.answered += 1
        others = [each.load() for each in workers if each is not worker and neighbours]
        surplus = beyond_share(worker.load(), others) if others else None
        later(0.001, lambda: back(worker, lambda: worker.limit.answered(sent_at, in_flight, worker.waiting, surplus)))

    def back(worker: Worker, learn: Callable[[], None]) -> None:
        worker.in_flight -= 1
        learn()
        worker.waiting += 1
        send(worker)

    for worker in workers:
        send(worker)
    while clock.now < began + lasts:
        clock.now, _, happens = heapq.heappop(events)
        happens()
    return [worker.answered / lasts for worker in workers]


@pytest.mark.parametrize(
    ("callers", "starts", "share"),
    [
        ([16], [8], 1.0),
        ([16], [1], 1.0),
        ([8, 8], [4, 4], 0.5),
        ([8, 8], [1, 7], 0.5),
        ([8, 4], [4, 4], 0.6),  # 0.67 if they waited equally long
        ([4, 4, 4, 4], [2, 2, 2, 2], 0.25),
    ],
)
def test_workers_use_all_of_a_server_and_share_it(callers: list[int], starts: list[int], share: float) -> None:
    rates = [simulate(callers, starts, seed) for seed in range(5)]
    first = statistics.mean(each[0] for each in rates)
    total = statistics.mean(map(sum, rates))
    print(f"\n{callers}: {total:.1f} a second, of which the first has {first / total:.0%}")
    assert total > 0.95 * 8 / 0.103
    assert abs(first / total - share) < 0.1


@pytest.mark.parametrize("callers", [[8, 8], [7, 25], [51, 12], [31, 33], [8, 8, 8], [4, 4, 4, 4]])
def test_neighbours_have_their_callers_wait_equally_long(callers: list[int]) -> None:
    for seed in range(5):
        rates = simulate(callers, [8] + [1] * (len(callers) - 1), seed, neighbours=True)
        waits = [count / rate for count, rate in zip(callers, rates, strict=True)]
        print(f"{callers}: {sum(rates):.1f} a second, waits of {', '.join(f'{wait:.3f}' for wait in waits)} s")
        assert max(waits) < 1.15 * sum(callers) / sum(rates)
        assert sum(rates) > 0.92 * 8 / 0.103


# -------------------------------------------------------------------------------------------------- a real model server

THREADS, SECONDS = 8, 0.05
ALL_IN = {"LOUPE_THREADS": "16"}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("threads", [1, THREADS])
def test_more_callers_than_it_has_threads_are_all_answered(threads: int, workers: int) -> None:
    with (
        replicas(1, SECONDS / THREADS * threads, threads=threads) as servers,
        gateway(target(servers), LOUPE_WORKERS=str(workers), **ALL_IN) as here,
    ):
        with crowding([here], callers=4 * threads) as seen:
            until(lambda: seen.count() >= 300, "300 answers")
        assert seen.failed.total() == 0, seen.failed


def numbers(at: Gateway) -> dict[str, float]:
    lines = re.findall(r"^loupe_model_calls_(\w+) (\S+)$", at.get("/metrics").body.decode(), re.M)
    return {name: float(value) for name, value in lines}


def test_the_metrics_tell_what_was_found() -> None:
    metrics_port = free_port()
    with (
        replicas(1, SECONDS, threads=3) as servers,
        gateway(target(servers), LOUPE_METRICS_PORT=str(metrics_port), **ALL_IN) as here,
    ):
        at = Gateway(here.process, metrics_port, here.log)
        with crowding([here], callers=12) as seen:
            until(lambda: seen.count() >= 50, "50 answers")
            until(lambda: numbers(at)["limit"] == numbers(at)["in_flight"] == 3, "three of three")
            assert seen.failed.total() == 0, seen.failed
        until(lambda: numbers(at)["in_flight"] == 0, "nothing in flight")


def test_the_card_needs_no_place() -> None:
    """All threads of the model server are taken for longer than a card is used; the card cannot be asked for anew."""
    with replicas(1, 3, threads=2) as servers, gateway(target(servers), **ALL_IN) as here:
        until(lambda: here.get("/readyz").status == 200, "ready")
        with crowding([here], callers=4) as seen:
            time.sleep(2)
            assert here.get("/readyz").status == 200
            assert here.get("/model").status == 200
            until(lambda: seen.count() >= 4, "an answer for each")
        assert seen.failed.total() == 0, seen.failed


def test_one_of_several_that_has_fewer_threads_gets_fewer() -> None:
    port = free_port()
    with replicas(1, SECONDS, port, threads=6) as large, replicas(1, SECONDS, port, first=1, threads=2) as small:
        with gateway(target([*large, *small]), **ALL_IN) as here, crowding([here], callers=16) as seen:
            until(lambda: seen.count() >= 400, "400 answers")
        assert seen.failed.total() == 0, seen.failed
        share = seen.answered[small[0].label] / seen.count()
        assert 0.15 < share < 0.35, seen.answered
