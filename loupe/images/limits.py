"""What a file may hold beside its pixels, judged before a decoder reads it: Pillow reads some of it in Python, byte by
byte or in copies of copies, and ten megabytes made for that purpose take minutes. Here each is read as it is there.

    size = judge(data)       # width and height of a plain JPEG, for which Pillow need not be asked; raises ImageError
"""

from __future__ import annotations

import re

from PIL.JpegImagePlugin import MARKER

from loupe.errors import ImageError

MAX_SEGMENTS = 20_000  # of a JPEG; cameras write about 20, the longest colour profile has 255
MAX_FILLING = 1 << 16  # bytes between them
MAX_EXIF = 16  # pieces of 64 KB; one by the standard
MAX_CHUNKS = 100_000  # of a PNG, whose pixels come in chunks of 8 KB
MAX_PACKED = 20  # of them texts and profiles, which unpack to a megabyte each
MAX_BLOCKS = 20_000  # of 255 bytes, before a GIF's first frame

_SEGMENT = re.compile(rb"[^\xff]*+\xff++([^\xff])")  # its marker, past any filling
_PIXELS, _EXIF, _BASELINE = b"\xda", b"\xe1", b"\xc0"
# Segments that Pillow reads, by the least that it does not stumble over; in EXIF and Photoshop's may be anything.
_READ = {b"\xe0": 16, _EXIF: 1 << 16, b"\xe2": 20, b"\xed": 1 << 16, b"\xee": 14}
_MORE_FRAMES = b"MPF\0"
# Codings that take their time over no bytes at all; nobody writes them.
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def judge(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\xff\xd8\xff"):
        return _judge_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _judge_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _judge_gif(data)
    return None


def _judge_jpeg(data: bytes) -> tuple[int, int] | None:
    """The size of one that is baseline, in colour, and with all of it in its first scan, if Pillow would read nothing
    in it that matters, such as how it is turned."""
    place, filling, exif, plain, size = 2, 0, 0, True, None
    for _ in range(MAX_SEGMENTS):
        found = _SEGMENT.match(data, place)
        marker, after = (found[1], found.end()) if found else (_PIXELS, len(data))
        filling += after - place - 2
        exif += marker == _EXIF and data.startswith(b"Exif\0\0", after + 2)
        if filling > MAX_FILLING or exif > MAX_EXIF:
            break
        if marker == _PIXELS:
            return size if plain and data.startswith(b"\0\x0c\3", after) else None
        if marker in _READ:
            length = int.from_bytes(data[after : after + 2])
            plain = plain and length >= _READ[marker] and not data.startswith(_MORE_FRAMES, after + 2)
        if marker == _BASELINE and data.startswith(b"\0\x11\x08", after) and data.startswith(b"\3", after + 7):
            size = int.from_bytes(data[after + 5 : after + 7]), int.from_bytes(data[after + 3 : after + 5])
        if marker[0] in _ARITHMETIC:
            raise ImageError("This JPEG is coded in a way that is not read here; save it again, as a plain one.")
        place, kind = after, 0xFF00 | marker[0]
        if kind in MARKER:
            has_length = MARKER[kind][2] is not None
            place += max(2, int.from_bytes(data[after : after + 2])) if has_length else 0
        elif kind != 0xFF00:
            return None
    raise ImageError("Too much stands before the pixels of this JPEG; save it again, as a plain one.")


def _judge_png(data: bytes) -> None:
    place, packed = 8, 0
    for _ in range(MAX_CHUNKS):
        kind = data[place + 4 : place + 8]
        packed += kind in (b"iCCP", b"iTXt", b"zTXt")
        if packed > MAX_PACKED:
            break
        if kind in (b"IEND", b""):
            return
        place += 12 + int.from_bytes(data[place : place + 4])
    raise ImageError("Too much stands beside the pixels of this PNG; save it again.")


def _judge_gif(data: bytes) -> None:
    place = 13 + (3 * (2 << (data[10] & 7)) if len(data) > 12 and data[10] & 0x80 else 0)
    in_extension = False
    for _ in range(MAX_BLOCKS):
        first = data[place : place + 1]
        if in_extension:
            size = first[0] if first else 0
            place += 1 + size
            in_extension = size > 0
        elif first in (b",", b";", b""):
            return
        else:
            in_extension = first == b"!"
            place += 1 + in_extension
    raise ImageError("Too much stands before the first frame of this GIF; save it again.")
