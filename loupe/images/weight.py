"""Tell what decoding a picture takes, before it is decoded.

    weight = weigh(image, 0, height=224, width=224)          # of an image that Pillow has opened
    weight = weigh_plain_jpeg(400, 533, 224, 224)
    weight = weigh_by_header(data, 224, 224)                 # of what is decoded in another process (sandbox.py)
    weight.pixels, weight.memory

The memory is the most that a picture takes at any one time, in bytes. tests/images/test_weight.py measures it for each
format and mode, at 10 megapixels and more, and fails where it is more than is said here, or less than half of it.
"""

from __future__ import annotations

import math
import re
import struct
from itertools import islice
from typing import NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from loupe.images.limits import MAX_PIXELS

# Bytes a pixel: of the decoded picture, of what the decoder keeps beside it, and of its copy as RGB where it needs one.
# Measured by VmHWM with Pillow 13.0, libwebp 1.6 and libavif 1.4, at 40 megapixels.
BY_FORMAT = {
    "WEBP": 16.5,  # two canvases, the bytes and the picture: 16.0 to 16.5, lossless or not, with or without alpha
    "AVIF": 16.0,  # 9.2 to 11.5; 10 and 12 bits, which nothing here can write, are estimated
    "HEIF": 16.0,
}
BY_MODE = {
    "RGB": 4.5,  # 4.1: Pillow keeps four bytes for three
    "RGBA": 4.5,  # 4.3, put before a background in place
    "RGBX": 4.5,
    "CMYK": 8.5,  # 8.1
    "LA": 8.5,  # 8.3
    "L": 5.5,  # 5.2
    "P": 6.5,  # 5.2; a GIF whose frames replace each other 6.4
    "1": 5.5,  # 5.1
}
DEEP = 10.5  # 16 bits of grey, 10.0; and modes that are not known
WITH_CLEAR_COLOUR = 8.5  # RGB that becomes RGBA, 8.3
COEFFICIENT = 2  # bytes that a JPEG of several scans keeps for each sample of the whole picture, however small it comes
OF_RESULT = 7  # bytes for each pixel of the result: Pillow's copy and the array
MAX_SIZES = 1000  # of an AVIF or HEIC: one for each of its tiles
_SIZE = re.compile(rb"ispe.{4}(.{8})", re.DOTALL)


class Weight(NamedTuple):
    pixels: int  # as they are decoded: a large JPEG is decoded smaller
    memory: int  # bytes


def weigh(image: Image.Image, pixels_of_scans: int, height: int, width: int) -> Weight:
    """Weigh an opened image, already set up to be decoded smaller if it will be. `pixels_of_scans`: the whole picture's
    if it is a JPEG of several scans, else 0."""
    each = BY_FORMAT.get(image.format or "") or BY_MODE.get(image.mode, DEEP)
    if image.mode == "RGB" and "transparency" in image.info:
        each = max(each, WITH_CLEAR_COLOUR)
    coefficients = COEFFICIENT * _samples(image) * pixels_of_scans if isinstance(image, JpegImageFile) else 0
    return _weight(*image.size, each, height, width, int(coefficients))


def weigh_plain_jpeg(own_width: int, own_height: int, height: int, width: int) -> Weight:
    return _weight(own_width, own_height, BY_MODE["RGB"], height, width)


def weigh_by_header(data: bytes, height: int, width: int) -> Weight:
    """Weigh a WebP, AVIF or HEIC by the largest size that it declares. It may lie; sandbox.py holds it to it."""
    is_webp = data.startswith(b"RIFF")
    sizes = [_webp_size(data)] if is_webp else _boxed_sizes(data)
    allowed = [size for size in sizes if math.prod(size) <= MAX_PIXELS]  # larger ones are refused once it is opened
    own_width, own_height = max(allowed, key=math.prod, default=(1, 1))
    return _weight(own_width, own_height, BY_FORMAT["WEBP" if is_webp else "AVIF"], height, width)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height, by the first chunk."""
    first, bits = data[12:16], int.from_bytes(data[21:25], "little")
    if first == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if first == b"VP8L":
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _boxed_sizes(data: bytes) -> list[tuple[int, int]]:
    """Return the sizes in an AVIF's or HEIC's `ispe` boxes: its own, and those of its tiles."""
    return [struct.unpack(">II", match[1]) for match in islice(_SIZE.finditer(data), MAX_SIZES)]


def _samples(image: JpegImageFile) -> float:
    """Return the samples for each pixel: 3 of colour, or 1.5 where colour has half the width and height."""
    shares = [(max(1, across), max(1, down)) for _, across, down, _ in image.layer]
    whole = max(across for across, _ in shares) * max(down for _, down in shares)
    return sum(across * down for across, down in shares) / whole


def _weight(own_width: int, own_height: int, each: float, height: int, width: int, more: int = 0) -> Weight:
    """Add up the picture, the first pass of resizing (resize.py) and the result."""
    pixels, result = own_width * own_height, width * height
    first_pass = min(max(width * own_height, own_width * height), 2 * (pixels + result))
    return Weight(pixels, int(each * pixels) + more + 4 * first_pass + OF_RESULT * result)
