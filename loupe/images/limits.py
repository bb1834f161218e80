"""Limit how large a picture may be, and what a file may hold beside its pixels, before a decoder reads it.

    size = check_limits(data)       # width and height of a plain JPEG, which needs no Pillow; raises ImageError

Pillow reads metadata in Python, byte by byte or with repeated copies: ten megabytes made for that purpose take minutes.
Here metadata is skipped without a copy.
"""

from __future__ import annotations

import re

from PIL.JpegImagePlugin import MARKER

from loupe.errors import ImageError

MAX_PIXELS = 40_000_000
MAX_SIDE = 65_535  # as in a JPEG; Pillow keeps a pointer for each row, and 40 million rows cost 1.4 GB
MAX_SEGMENTS = 20_000  # of a JPEG; cameras write about 20, the longest colour profile has 255
MAX_FILL_BYTES = 1 << 16  # between segments
MAX_EXIF_SEGMENTS = 16  # of 64 KB; the standard has one
MAX_CHUNKS = 100_000  # of a PNG; its pixels come in chunks of 8 KB
MAX_COMPRESSED = 20  # PNG chunks of texts and profiles; each unpacks to up to a megabyte
MAX_BLOCKS = 20_000  # of 255 bytes, before a GIF's first frame

_SEGMENT = re.compile(rb"[^\xff]*+\xff++([^\xff])")  # the marker, after any fill bytes
_SCAN, _EXIF, _BASELINE = b"\xda", b"\xe1", b"\xc0"
# Segments that Pillow reads, and the least length that it reads without an error. EXIF and Photoshop segments may hold
# anything, so with them a JPEG never counts as plain.
_LEAST_LENGTH = {b"\xe0": 16, _EXIF: 1 << 16, b"\xe2": 20, b"\xed": 1 << 16, b"\xee": 14}
_MORE_FRAMES = b"MPF\0"
# Arithmetic coding keeps a decoder busy for long with no bytes at all, and nobody writes it.
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def check_limits(data: bytes) -> tuple[int, int] | None:
    """Raise ImageError if the file holds too much beside its pixels. Return width and height of a plain JPEG, else
    None."""
    if data.startswith(b"\xff\xd8\xff"):
        return _check_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    return None


def _check_jpeg(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a plain JPEG: baseline, in colour, all components in the first scan, and no metadata
    that matters to Pillow, such as an orientation."""
    position, fill_bytes, exif, plain, size = 2, 0, 0, True, None
    for _ in range(MAX_SEGMENTS):
        # Find the next marker, and count what stands before it.
        segment = _SEGMENT.match(data, position)
        marker, start = (segment[1], segment.end()) if segment else (_SCAN, len(data))
        fill_bytes += start - position - 2
        exif += marker == _EXIF and data.startswith(b"Exif\0\0", start + 2)
        if fill_bytes > MAX_FILL_BYTES or exif > MAX_EXIF_SEGMENTS:
            break
        # The pixels begin: the size is known if all before them was plain.
        if marker == _SCAN:
            return size if plain and data.startswith(b"\0\x0c\3", start) else None
        if marker in _LEAST_LENGTH:
            length = int.from_bytes(data[start : start + 2])
            plain = plain and length >= _LEAST_LENGTH[marker] and not data.startswith(_MORE_FRAMES, start + 2)
        if marker == _BASELINE and data.startswith(b"\0\x11\x08", start) and data.startswith(b"\3", start + 7):
            size = int.from_bytes(data[start + 5 : start + 7]), int.from_bytes(data[start + 3 : start + 5])
        if marker[0] in _ARITHMETIC:
            raise ImageError("This JPEG is coded in a way that is not read here; save it again, as a plain one.")
        # Go on behind the segment.
        position, code = start, 0xFF00 | marker[0]
        if code in MARKER:
            has_length = MARKER[code][2] is not None
            position += max(2, int.from_bytes(data[start : start + 2])) if has_length else 0
        elif code != 0xFF00:
            return None
    raise ImageError("Too much stands before the pixels of this JPEG; save it again, as a plain one.")


def _check_png(data: bytes) -> None:
    position, compressed = 8, 0
    for _ in range(MAX_CHUNKS):
        chunk_type = data[position + 4 : position + 8]
        compressed += chunk_type in (b"iCCP", b"iTXt", b"zTXt")
        if compressed > MAX_COMPRESSED:
            break
        if chunk_type in (b"IEND", b""):
            return
        position += 12 + int.from_bytes(data[position : position + 4])
    raise ImageError("Too much stands beside the pixels of this PNG; save it again.")


def _check_gif(data: bytes) -> None:
    position = 13 + (3 * (2 << (data[10] & 7)) if len(data) > 12 and data[10] & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_BLOCKS):
        first = data[position : position + 1]
        if in_extension:
            size = first[0] if first else 0
            position += 1 + size
            in_extension = size > 0
        elif first in (b",", b";", b""):
            return
        else:
            in_extension = first == b"!"
            position += 1 + in_extension
    raise ImageError("Too much stands before the first frame of this GIF; save it again.")
