"""What decoding may take of this machine. Decoders ask before they take it.

    decode(data, 224, 224)                     # UNLIMITED: as much as it needs
    decode(data, 224, 224, allowance)          # a child of Allowance, such as the gateway's (gateway/decoding.py)

A decoder calls take() once it knows a picture's size, before any pixel is allocated. The caller frees what was taken
when it is done with the picture.
"""

from __future__ import annotations

import math

from loupe.images.room import Room
from loupe.images.weight import Weight


class Allowance:
    deadline = math.inf  # of time.monotonic(): another process is not waited for any longer

    def take(self, weight: Weight) -> None:
        """Wait until a picture of this weight may be decoded. It replaces what was taken for the same picture before.
        Raises a Problem if it may not be."""

    def wait_for(self, room: Room, amount: int) -> None:
        """Take this much of the room. Raises a Problem if it took too long."""
        room.take(amount)

    def spend(self, seconds: float) -> None:
        """Count processor time that another process spent on the picture."""


UNLIMITED = Allowance()
