"""What a worker takes on: threads, with a queue that is bounded by time, and the memory of bodies.

    uploads = Lane("upload", threads=8)
    uploads.check(3.0)                                  # raise Busy if who came now would wait longer
    turn = uploads.enter(work)                          # a thread does it, after those that came before
    uploads.leave(turn)

    memory = BodyMemory(most=1 << 28, read_seconds=30)
    room = await memory.reserve(9_000_000, received=20_000, max_wait=3.0, cut=…)    # raise Busy if there is none
    memory.free(room)

How long requests take differs a thousandfold, so a number of places tells nothing: the wait is what is bounded.
All but the work itself happens in the event loop, so nothing here is locked.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from loupe.errors import Busy

RECENT_SECONDS, MOST_RECENT = 5.0, 1000  # what ended in that time, so many at most, tells how long the next will take
UNKNOWN_SECONDS = 0.1  # for a request, where none has ended lately
LEAST_SECONDS = 0.0001
GIVEN_UP_SECONDS = 2.0  # a body that has not gone on for so long is cut where there is no room for others
FIRST_SECONDS = 0.5  # in which no body is cut, since its pace cannot be told
LOOK_SECONDS = 0.25  # between two looks for such bodies, while others wait for room

FULL = "More requests wait than can be answered in time; try again when Retry-After says."
CROWDED = "Too many pictures are arriving at once; try again in a second."


class Turn:
    """A request in a lane: it waits for a thread, then it has one."""

    def __init__(self) -> None:
        self.call: Future[Any]
        self.began_at: float | None = None
        self.ended_at: float | None = None


class Lane:
    """Threads for one kind of request, and those that wait for them, first come, first served."""

    def __init__(self, name: str, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, name)
        self._turns: dict[Turn, None] = {}  # in the order they came
        self._recent: deque[tuple[float, float]] = deque()  # when each ended, and how long it had a thread
        self._recent_sum = 0.0

    def __len__(self) -> int:
        return len(self._turns)

    def enter(self, work: Callable[[], Any]) -> Turn:
        turn = Turn()

        def run() -> Any:
            turn.began_at = time.monotonic()
            try:
                return work()
            finally:
                turn.ended_at = time.monotonic()

        turn.call = self._pool.submit(run)
        self._turns[turn] = None
        return turn

    def leave(self, turn: Turn) -> None:
        del self._turns[turn]
        if turn.began_at is not None and turn.ended_at is not None:
            self._recent.append((turn.ended_at, turn.ended_at - turn.began_at))
            self._recent_sum += turn.ended_at - turn.began_at
        self._forget()

    def check(self, patience: float) -> None:
        """Raise Busy if who came now would not be answered within so many seconds. A free thread is taken anyway."""
        late = self.expected_end() - patience
        if late > 0:
            raise Busy(FULL, late)

    def expected_end(self) -> float:
        """Return in how many seconds one who came now would be answered. 0: a thread is free."""
        wait = self.expected_wait()
        return wait + self._service() if wait else 0.0

    def expected_wait(self) -> float:
        """Return how many seconds one who came now would wait for a thread.

        A thread is expected to be free again in the time that requests took lately, or that its own has taken already
        if that is more. So a few long requests leave the others their turns, and a model that begins to hang shows
        before the first call to it has ended. Where all take longer than usual, the next to end may take as long again.
        """
        ahead = len(self._turns) - self._threads
        if ahead < 0:
            return 0.0
        now, service = time.monotonic(), self._service()
        taken = [now - (turn.began_at or now) for turn in itertools.islice(self._turns, self._threads)]
        rate = sum(1 / max(service, each) for each in taken)
        least = min(taken)
        return max((ahead + 1) / rate, least if least > service else 0.0)

    def _service(self) -> float:
        """Return the seconds that a request had its thread, in the mean of those that ended lately."""
        self._forget()
        return max(LEAST_SECONDS, self._recent_sum / len(self._recent)) if self._recent else UNKNOWN_SECONDS

    def _forget(self) -> None:
        old = time.monotonic() - RECENT_SECONDS
        while self._recent and (self._recent[0][0] < old or len(self._recent) > MOST_RECENT):
            self._recent_sum -= self._recent.popleft()[1]


class BodyRoom:
    """What one body has of the memory."""

    def __init__(self, size: int, received: int, cut: Callable[[], None]) -> None:
        self.size = size  # bytes, all that it may become
        self._cut, self.was_cut = cut, False
        self.received = received
        self._reserved_at = self._heard_at = time.monotonic()

    def heard(self, more: int) -> None:
        self.received += more
        self._heard_at = time.monotonic()

    def cut(self) -> None:
        self.was_cut = True
        self._cut()

    def pace(self, now: float) -> float:
        """Return the share of it that comes in a second."""
        return (self.received + 1) / (self.size + 1) / max(now - self._reserved_at, 0.001)

    def is_given_up(self, now: float, least_pace: float) -> bool:
        if now - self._heard_at >= GIVEN_UP_SECONDS:
            return True
        return now - self._reserved_at >= FIRST_SECONDS and self.pace(now) < least_pace


class BodyMemory:
    """The bytes of bodies that are arriving, wait or are in hand. One that is under way has room for all of it."""

    def __init__(self, most: int, read_seconds: float) -> None:
        self.most, self.held = most, 0
        self._least_pace = 1 / read_seconds
        self._arriving: set[BodyRoom] = set()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap: the smallest first, then the oldest
        self._numbers = itertools.count()
        self._looks = False

    def hold(self, size: int) -> BodyRoom:
        """Count a body that is there already."""
        self.held += size
        return BodyRoom(size, size, lambda: None)

    async def reserve(self, size: int, received: int, max_wait: float, cut: Callable[[], None]) -> BodyRoom:
        """Wait until there is room for so much. `cut` is called if it has to be given up for others."""
        if self._fits(size):  # so it is smaller than all that wait
            self.held += size
        else:
            await self._wait_for_room(size, max_wait)
        room = BodyRoom(size, received, cut)
        self._arriving.add(room)
        return room

    def _fits(self, size: int) -> bool:
        """Tell if there is room for so much. What is larger than all has its turn alone."""
        return self.held + size <= self.most or not self.held or not size

    async def _wait_for_room(self, size: int, max_wait: float) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (size, next(self._numbers), granted)
        heapq.heappush(self._waiting, place)
        self._look()
        try:
            async with asyncio.timeout(max_wait):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():  # in the same moment
                self.held -= size
                self._grant()
            elif place in self._waiting:
                self._waiting.remove(place)
                heapq.heapify(self._waiting)
            if isinstance(error, TimeoutError):
                raise Busy(CROWDED) from None
            raise

    def _grant(self) -> None:
        """Give room to those who wait for it: the smallest first, of equal ones the oldest."""
        while self._waiting and self._fits(self._waiting[0][0]):
            size, _, granted = heapq.heappop(self._waiting)
            if not granted.done():
                self.held += size
                granted.set_result(None)

    def _look(self) -> None:
        """Cut bodies that will not come in time, the slowest first, as long as others wait for room."""
        if self._looks:
            return
        now = time.monotonic()
        slow = [room for room in self._arriving if room.is_given_up(now, self._least_pace)]
        for room in sorted(slow, key=lambda room: room.pace(now)):
            if not self._waiting:
                break
            self.free(room)
            room.cut()
        if self._waiting:
            self._looks = True
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._looks = False
        self._look()

    def whole(self, room: BodyRoom) -> None:
        """All of it is there. What was reserved beyond is free."""
        self._arriving.discard(room)
        self._set_size(room, min(room.size, room.received))

    def free(self, room: BodyRoom) -> None:
        self._arriving.discard(room)
        self._set_size(room, 0)

    def _set_size(self, room: BodyRoom, size: int) -> None:
        self.held += size - room.size
        room.size = size
        self._grant()
