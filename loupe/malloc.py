"""How a server borrows memory from the system: pictures are large, short-lived, and handled in many threads.

    settle()                              # once a worker of the gateway, before its first request
    give_back(spare=SPARE)                # now and then: what is free goes back to the system

Left alone, glibc does two things that do not suit it. Each thread has a heap of its own, which returns its pages after
every picture and takes new ones for the next: an eighth of a request's processor time. And the size from which pieces
are borrowed one by one, and given back at once, grows up to 32 MiB as such pieces are freed: from then on the pixels of
the largest pictures come from the heaps too, and stay. After 24 of 39 megapixels a worker of 8 threads kept 618 MB;
with one heap and a fixed bound it keeps about 100 MB. A heap only shrinks from its end, and whatever lives longest may
lie there: so the pages of its holes are given back, too. Another C library is left alone.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

LARGE = 1 << 23  # bytes: more than anything needs that was drafted to a model's size, and less than Pillow's blocks
EVERY = 5.0  # seconds of work, in which holes may lie idle
QUIET = 0.9  # seconds without any
SPARE = 1 << 24  # bytes at the heap's end that are kept for the next pictures, while some come
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1  # as malloc.h numbers them


def settle() -> None:
    with suppress(AttributeError, OSError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, LARGE), (_TRIM_THRESHOLD, SPARE)):
            mallopt(name, value)


def give_back(spare: int = 0) -> None:
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(spare)
