"""Decode bytes to RGB pixels, for training and for serving.

    pixels = decode(data, height=224, width=224)      # uint8 [224, 224, 3]
    height, width = upright_size(data)
    decode(data, 224, 224, allowance)                 # within what the caller may take (allowance.py)

AVIF, HEIC and lossless WebP are decoded in a separate process (sandbox.py), everything else in this one (decode.py).
"""

from __future__ import annotations

from loupe.images import sandbox
from loupe.images.allowance import UNLIMITED, Allowance
from loupe.images.decode import HEIC_BRANDS, can_read_heic, decode_here, upright_size_here
from loupe.images.resize import Pixels


def decode(data: bytes, height: int, width: int, allowance: Allowance = UNLIMITED) -> Pixels:
    """Return the picture in `data` as RGB of the given size. Raises ImageError or a subclass of it, and whatever the
    allowance does."""
    if not _needs_sandbox(data):
        return decode_here(data, height, width, allowance)
    if data[8:12] in HEIC_BRANDS:
        can_read_heic()  # adds HEIF to FORMATS, for messages that list them
    return sandbox.decode(data, height, width, allowance)


def upright_size(data: bytes, allowance: Allowance = UNLIMITED) -> tuple[int, int]:
    """Return height and width of the picture once it is upright. Decoded to these, it is not resized."""
    return (sandbox.upright_size if _needs_sandbox(data) else upright_size_here)(data, allowance)


def _needs_sandbox(data: bytes) -> bool:
    """Return True for AVIF and HEIC, told by their `ftyp` box, and for WebPs whose pixels or alpha are lossless: 300 kB
    of these can hold 65,536 tables for a megapixel, and take 380 MB."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return b"VP8L" in data or b"ALPH" in data
    return data[4:8] == b"ftyp"
