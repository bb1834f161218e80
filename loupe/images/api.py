"""Decode bytes to RGB pixels, for training and for serving.

    pixels = decode(data, height=224, width=224)      # uint8 [224, 224, 3]
    height, width = upright_size(data)

AVIF and HEIC are decoded in a separate process (sandbox.py), everything else in this one (decode.py).
"""

from __future__ import annotations

from loupe.images import sandbox
from loupe.images.decode import HEIC_BRANDS, can_read_heic, decode_here, upright_size_here
from loupe.images.resize import Pixels


def decode(data: bytes, height: int, width: int) -> Pixels:
    """Return the picture in `data` as RGB of the given size. Raises ImageError or a subclass of it."""
    if not _needs_sandbox(data):
        return decode_here(data, height, width)
    if data[8:12] in HEIC_BRANDS:
        can_read_heic()  # adds HEIF to FORMATS, for messages that list them
    return sandbox.decode(data, height, width)


def upright_size(data: bytes) -> tuple[int, int]:
    """Return height and width of the picture once it is upright. Decoded to these, it is not resized."""
    return (sandbox.upright_size if _needs_sandbox(data) else upright_size_here)(data)


def _needs_sandbox(data: bytes) -> bool:
    """Return True for AVIF and HEIC, told by their `ftyp` box."""
    return data[4:8] == b"ftyp"
