"""Bound what decoding takes: memory over all threads of a worker, pixels and processor time of one request.

memory = DecodeMemory(settings.decode_memory)                     # once in each worker
allowance = RequestAllowance(settings, memory, caller_deadline)   # for each request
with allowance.picture():                                         # for each of its pictures, one after the other
    decode(data, 224, 224, allowance)                             # or TooManyPixels, TooSlowToDecode, Busy

A picture is weighed before it is decoded (images/weight.py) and waits until there is room. A thread holds room for one
picture at most and waits while it holds none, so threads never wait for each other in a circle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loupe.errors import Busy, TooManyPixels, TooSlowToDecode
from loupe.gateway.observe import metrics
from loupe.gateway.request.deadline import NEVER
from loupe.gateway.settings import Settings
from loupe.images.allowance import Allowance
from loupe.images.room import Room
from loupe.images.weight import Weight

LIGHT = 8 << 20  # bytes: a picture of less, as most JPEGs are, is not counted and never waits
ALONE = 1.25  # times the room: what one picture may take that is decoded when no other large one is
SMALL_SHARE = 4  # a quarter of the room is kept for small pictures, so that they do not wait for large ones
SMALL = 16  # a picture of at most a sixteenth of the room is small


class DecodeMemory:
    """The room of one worker. What is larger than the share of large pictures is decoded when no other large one is."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._small, self._large = Room(size // SMALL_SHARE), Room(size - size // SMALL_SHARE)
        self.show()

    def room_for(self, amount: int) -> Room | None:
        """Return what a picture waits for, if for anything. Raise TooManyPixels if there is never so much."""
        if amount < LIGHT:
            return None
        if amount > ALONE * self._size:
            raise TooManyPixels(
                f"To decode this picture takes {amount / 1e6:,.0f} MB, more than there is here; send a smaller one, or "
                "a plain JPEG."
            )
        return self._small if amount <= self._size // SMALL else self._large

    def give_back(self, room: Room, amount: int) -> None:
        room.give_back(amount)
        self.show()

    def show(self) -> None:
        with self._lock:  # else an older number might be shown last
            metrics.decode_memory(self._small.taken + self._large.taken, self._size)


class RequestAllowance(Allowance):
    def __init__(self, settings: Settings, memory: DecodeMemory, caller_deadline: float = NEVER) -> None:
        self._settings, self._memory = settings, memory
        self.deadline = caller_deadline
        self._held: tuple[Room, int] | None = None  # for the picture that is being decoded
        self._pixels, self._seconds, self._waited = 0, 0.0, 0.0  # of the request so far
        self._pixels_before = 0  # of the pictures before that one

    def begin(self) -> None:
        """Count pixels anew: the pictures are decoded from the first one on, perhaps again for another version."""
        self._pixels = 0

    @contextmanager
    def picture(self) -> Iterator[None]:
        """Decode one picture within, and give its room back. Raises TooSlowToDecode if those before took long."""
        if self._seconds >= self._settings.decode_timeout:
            raise TooSlowToDecode(
                f"The pictures of this request take more than {self._settings.decode_timeout:g} s to decode; "
                "send fewer at once, or smaller ones."
            )
        self._pixels_before, began = self._pixels, time.thread_time()
        try:
            yield
        finally:
            self._seconds += time.thread_time() - began
            self._give_back()

    def take(self, weight: Weight) -> None:
        self._give_back()
        pixels = self._pixels_before + weight.pixels
        if pixels > self._settings.max_pixels:
            raise TooManyPixels(
                f"The pictures of this request have more than {self._settings.max_pixels / 1e6:g} megapixels; "
                "send fewer at once, or smaller ones."
            )
        self._pixels = pixels
        if room := self._memory.room_for(weight.memory):
            self.wait_for(room, weight.memory)
            self._held = room, weight.memory
            self._memory.show()

    def wait_for(self, room: Room, amount: int) -> None:
        began = time.monotonic()
        left = min(self._settings.max_wait - self._waited, self.deadline - began)
        has_room = room.take(amount, max(0.0, left))
        self._waited += time.monotonic() - began
        if not has_room:
            raise Busy("Large pictures are decoded one after the other, and there are many; try again in a second.")

    def spend(self, seconds: float) -> None:
        self._seconds += seconds

    def _give_back(self) -> None:
        if self._held:
            self._memory.give_back(*self._held)
            self._held = None
