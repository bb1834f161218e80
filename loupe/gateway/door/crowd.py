"""All connections of a worker: which of them end where there are too many, and whose turn it is to be parsed.

crowd = Crowd(most=900)
crowd.put(connection, Phase.SILENT)  # a new one
crowd.put(connection, Phase.ARRIVING)  # it has moved on
crowd.await_turn(connection)  # it has sent much, which is parsed when the others had their turn
crowd.remove(connection)
crowd.let_in()  # somebody, who is put when asyncio comes to it
crowd.tell()  # the other workers how many there are and ask; at least once a second forget_lost(), which tells as well
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from typing import Protocol

from loupe.gateway import neighbours

BETWEEN_TURNS_SECONDS = 0.001  # a loop that never waits leaves the interpreter to no thread, for up to a second
FIRST_WORD_SECONDS = 0.05  # for a new connection to send something, before others end for it, or it for others
NEW_SECONDS = 0.1  # in which one is expected to ask something


class Phase(enum.Enum):
    """What a connection is at. Those in the first phase are missed least."""

    REFUSED = enum.auto()  # it was told why, and has a moment to read it
    SILENT = enum.auto()  # it has not sent a byte yet
    IDLE = enum.auto()  # it has had an answer, and may ask again
    ARRIVING = enum.auto()  # a part of a request has come
    IN_HAND = enum.auto()  # its request is being answered, or waits for that


class Member(Protocol):
    def pace(self) -> float:
        """Tell how fast its request comes, in bytes a second."""

    def take_turn(self) -> None:
        """Parse a little of what came."""

    def give_way(self) -> None:
        """End, so that another can stay."""

    def abandon(self) -> None:
        """Write nothing any more: the worker ends at once."""


class Crowd:
    def __init__(self, most: int) -> None:
        self.most = most
        self._phases: dict[Member, Phase] = {}
        self._members: dict[Phase, dict[Member, None]] = {phase: {} for phase in Phase}  # in the order they came
        self._let_in = 0  # and not put yet
        self._taken = 0  # ever
        self._new: dict[Member, None] = {}  # that have not asked yet
        self._makes_room = self._is_closed = False
        self._turns: deque[Member] = deque()

    def put(self, member: Member, phase: Phase) -> None:
        before = self._phases.get(member)
        if before is phase:
            return
        if before is not None:
            del self._members[before][member]
        self._phases[member] = phase
        self._members[phase][member] = None
        if before is None:
            self._let_in = max(0, self._let_in - 1)
            self._new[member] = None
            asyncio.get_running_loop().call_later(NEW_SECONDS, self._expect_no_more, member)
        if phase not in (Phase.SILENT, Phase.ARRIVING):
            self._new.pop(member, None)
        self.tell()
        if len(self._phases) > self.most and not self._makes_room:
            self._makes_room = True
            asyncio.get_running_loop().call_later(FIRST_WORD_SECONDS, self._make_room)

    def remove(self, member: Member) -> None:
        phase = self._phases.pop(member, None)
        if phase is not None:
            del self._members[phase][member]
            self._expect_no_more(member)

    def _expect_no_more(self, member: Member) -> None:
        self._new.pop(member, None)
        self.tell()

    def let_in(self) -> None:
        self._let_in += 1
        self._taken += 1
        self.tell()

    def tell(self) -> None:
        asking = len(self._members[Phase.IN_HAND]) + len(self._new) + self._let_in
        connections = math.inf if self._is_closed else len(self._phases) + self._let_in
        neighbours.tell_connections(connections, asking, self._taken)

    def forget_lost(self) -> None:
        """Somebody who was let in may never be put. This tells too few for a moment, of those who still will be."""
        self._let_in = 0
        self.tell()

    def close(self) -> None:
        """No new ones come any more."""
        self._is_closed = True
        self.tell()

    def abandon(self) -> None:
        for member in list(self._phases):
            member.abandon()

    def _make_room(self) -> None:
        """Have those end that are missed least: the oldest of them first, of requests the slowest first. Requests in
        hand are answered."""
        self._makes_room = False
        for phase in Phase:
            members = list(self._members[phase]) if phase is not Phase.IN_HAND else []
            if phase is Phase.ARRIVING:
                members.sort(key=lambda member: member.pace())
            for member in members[: max(0, len(self._phases) - self.most)]:
                self.remove(member)
                member.give_way()

    def await_turn(self, member: Member) -> None:
        """Have the member take its turn after all that wait. In between, the loop and the threads do all else."""
        self._turns.append(member)
        if len(self._turns) == 1:
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        try:
            self._turns[0].take_turn()  # after which it may wait again
        finally:
            self._turns.popleft()
            if self._turns:
                asyncio.get_running_loop().call_later(BETWEEN_TURNS_SECONDS, self._next_turn)
