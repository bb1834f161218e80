"""Room that threads share: who gets it, in which order, and how long they wait."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from loupe.images.room import Room
from tests.support.servers import until


def waiting(room: Room, amount: int, order: list[int]) -> threading.Thread:
    """A thread that waits for so much, and notes when it has it. Returns once it is in line."""

    def take() -> None:
        room.take(amount)
        order.append(amount)

    before = room.waiting
    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    until(lambda: room.waiting == before + 1, "its place in line")
    return thread


def test_what_fits_is_taken_at_once_and_what_does_not_is_refused_in_time() -> None:
    room = Room(10)
    assert room.take(6) and room.take(4)
    assert not room.take(1, 0)
    started = time.monotonic()
    assert not room.take(1, 0.1)
    assert time.monotonic() - started >= 0.1
    room.give_back(4)
    assert room.take(1, 0)
    assert room.taken == 7


def test_first_come_first_served_so_that_a_large_one_is_never_passed() -> None:
    room, order = Room(10), list[int]()
    assert room.take(8)
    large = waiting(room, 9, order)
    small = waiting(room, 1, order)  # which would fit now
    assert not room.take(1, 0)
    assert order == []
    room.give_back(8)
    large.join(5)
    small.join(5)
    assert order == [9, 1]


def test_more_than_there_is_goes_to_who_is_alone() -> None:
    room, order = Room(10), list[int]()
    assert room.take(1)
    huge = waiting(room, 100, order)
    assert order == []
    room.give_back(1)
    huge.join(5)
    assert order == [100]
    assert not room.take(1, 0)
    room.give_back(100)
    assert room.take(10, 0)


def test_who_gives_up_lets_the_next_one_in() -> None:
    room, order = Room(10), list[int]()
    assert room.take(8)
    patience = threading.Thread(target=room.take, args=(9, 0.2))
    patience.start()
    until(lambda: room.waiting == 1, "its place in line")
    small = waiting(room, 2, order)
    patience.join(5)
    small.join(5)
    assert order == [2]
    assert (room.taken, room.waiting) == (10, 0)


def test_a_thousand_at_once_never_take_more_than_there_is_and_all_get_some() -> None:
    room, most = Room(100), 0
    chance = random.Random(1)
    amounts = [chance.randint(1, 130) for _ in range(1000)]
    lock = threading.Lock()

    def use(amount: int) -> bool:
        nonlocal most
        if not room.take(amount, 60):
            return False
        with lock:
            most = max(most, room.taken)
        time.sleep(0)
        room.give_back(amount)
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(use, amounts))
    assert 100 <= most <= 130
    assert room.taken == 0
