"""The pixels of a JPEG, decoded straight to where they are wanted.

    pixels = decoded(data, width, height, smaller=False)      # uint8 [height, width, 3]; ValueError: ask Pillow

Pillow has libjpeg-turbo write each row into a buffer, and copies it. Rows that begin at a multiple of 32 bytes are
written past the processor's caches; whether that buffer does is chance, and then each row is fetched from memory again:
400×533 pixels take 0.7 ms instead of 0.4. Here the rows are the picture's own, and hardly any begins there.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from loupe.resizing import Pixels

BESIDE, STEP = 8, 32  # bytes
LARGEST = 1 << 25  # bytes: on their way to be resized the pixels are copied twice, where Pillow's are not


def decoded(data: bytes, width: int, height: int, smaller: bool) -> Pixels:
    """Of that size, which is the picture's or, if `smaller`, what Pillow's draft mode makes of it."""
    size = width * height * 3
    if size > LARGEST:
        raise ValueError("too large to be copied")
    room = np.empty(size + STEP, np.uint8)
    start = (BESIDE - room.ctypes.data) % STEP
    least = {"min_width": width, "min_height": height} if smaller else {}
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=room[start : start + size], **least)
    if pixels.shape != (height, width, 3):
        raise ValueError("its size is another one here")
    return pixels
