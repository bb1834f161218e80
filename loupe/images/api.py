"""The one path from bytes to RGB pixels, for training and for serving.

    pixels = decode(data, height=224, width=224)      # uint8 [224, 224, 3]
    height, width = upright_size(data)

AVIF and HEIC are decoded in a process of their own (sandbox.py), everything else in this one (decode.py).
"""

from __future__ import annotations

from loupe.images import sandbox
from loupe.images.decode import HEIC_BRANDS, decode_here, heic_is_read, upright_size_here
from loupe.images.resize import Pixels


def decode(data: bytes, height: int, width: int) -> Pixels:
    """Return the picture in `data` as RGB of that size. Raises ImageError or a child of it."""
    if not _needs_sandbox(data):
        return decode_here(data, height, width)
    if data[8:12] in HEIC_BRANDS:
        heic_is_read()  # for FORMATS to say so
    return sandbox.decode(data, height, width)


def upright_size(data: bytes) -> tuple[int, int]:
    """Return height and width as the picture is meant to be seen. Decoded to these, it is not resized."""
    return (sandbox.upright_size if _needs_sandbox(data) else upright_size_here)(data)


def _needs_sandbox(data: bytes) -> bool:
    """Tell AVIF and HEIC by their `ftyp` box."""
    return data[4:8] == b"ftyp"
