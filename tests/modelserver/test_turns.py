"""Whose turn it is: the first that came, each alone with what it got, and nobody beyond its deadline."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from loupe.engines.turns import OutOfTurns, Turns
from tests.support.servers import until


def test_turns_come_in_the_order_of_asking() -> None:
    turns = Turns(["thing"])
    order: list[int] = []

    def ask(number: int) -> None:
        with turns.take():
            order.append(number)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(20)]
    with turns.take():
        for waiting, thread in enumerate(threads, 1):
            thread.start()
            until(lambda: len(turns._waiters) == waiting, "the thread to wait")  # noqa: B023
    for thread in threads:
        thread.join(60)
    assert order == list(range(20))


def test_nothing_is_ever_in_two_hands() -> None:
    turns, held, most = Turns([object(), object()]), set(), []
    lock = threading.Lock()

    def ask(_: int) -> None:
        with turns.take() as thing:
            with lock:
                assert id(thing) not in held
                held.add(id(thing))
                most.append(len(held))
            time.sleep(0)
            with lock:
                held.remove(id(thing))

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(ask, range(2000)))) == 2000
    assert max(most) <= 2


def test_a_turn_that_does_not_come_in_time_is_given_up_and_lost_by_nobody() -> None:
    turns = Turns(["thing"])
    with turns.take():
        with pytest.raises(OutOfTurns), turns.take(time.monotonic() + 0.05):
            pass
        with pytest.raises(OutOfTurns), turns.take(time.monotonic() - 1):
            pass
    with turns.take(time.monotonic() - 1) as thing:  # it is free: nobody waits
        assert thing == "thing"


def test_turns_handed_over_at_the_very_deadline_are_not_lost() -> None:
    turns = Turns(["thing"])

    def ask(_: int) -> bool:
        try:
            with turns.take(time.monotonic() + 0.0005):
                time.sleep(0.0005)
            return True
        except OutOfTurns:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(ask, range(2000)))
    with turns.take(time.monotonic() + 1) as thing:
        assert thing == "thing"
