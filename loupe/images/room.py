"""Share something scarce among threads: bytes of memory, or processes.

    room = Room(640_000_000)
    if room.take(160_000_000, seconds=3):       # False: there was no room in time
        ...
        room.give_back(160_000_000)

First come, first served: whoever needs much is not passed for ever by those who need little. More than there is at all
is given to who is alone. A thread that takes twice without giving back may wait for itself.
"""

from __future__ import annotations

import threading
from collections import deque


class Room:
    def __init__(self, size: int) -> None:
        self.size, self.taken = size, 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    def take(self, amount: int, seconds: float | None = None) -> bool:
        """Take so much once it is free. Return False if it was not within `seconds`; None waits without end."""
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                has_room = self._changed.wait_for(lambda: self._waiting[0] is turn and self._is_free(amount), seconds)
                self.taken += amount * has_room
                return has_room
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()  # the next in line may fit as well

    def give_back(self, amount: int) -> None:
        with self._changed:
            self.taken -= amount
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def _is_free(self, amount: int) -> bool:
        return not self.taken or self.taken + amount <= self.size
