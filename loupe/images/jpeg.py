"""The pixels of a JPEG, decoded straight to where they are wanted.

    image = decoded(data, width, height, smaller=False)      # RGBX; ValueError: ask Pillow

Pillow has libjpeg-turbo write each row into a buffer, and copies it. Rows that begin at a multiple of 32 bytes are
written past the processor's caches; whether that buffer does is chance, and then each row is fetched from memory again:
400×533 pixels take 0.7 ms instead of 0.4. Here the rows are the picture's own, and most begin elsewhere. They have
Pillow's four bytes a pixel, so that Pillow and the resizer take them as they lie.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

BESIDE, STEP = 16, 32  # bytes


def decoded(data: bytes, width: int, height: int, smaller: bool) -> Image.Image:
    """Of that size, which is the picture's or, if `smaller`, what Pillow's draft mode makes of it."""
    size = width * height * 4
    room = np.empty(size + STEP, np.uint8)
    start = (BESIDE - room.ctypes.data) % STEP
    least = {"min_width": width, "min_height": height} if smaller else {}
    pixels = simplejpeg.decode_jpeg(data, "RGBX", buffer=room[start : start + size], **least)
    if pixels.shape != (height, width, 4):
        raise ValueError("its size is another one here")
    return Image.frombuffer("RGBX", (width, height), pixels.reshape(-1), "raw", "RGBX", 0, 1)
