"""Pictures that are none, that lie, that carry bombs, or that few programs write; made on the spot.

NO_PICTURE["a JPEG cut"]()       # bytes; so OTHER_KINDS, HUGE, BESIDE (what lies beside the pixels) and HONEST
"""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.support.hostile import PICTURE
from tests.support.pictures import encoded, exif, picture, png_that_declares

SMALL = picture(24, 18)
SMALL_JPEG = len(encoded(SMALL)) - 2  # bytes after its start


def chunk(name: bytes, data: bytes, spoilt: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ spoilt)


def png_with(*chunks: bytes) -> bytes:
    """These chunks between the header and the pixels."""
    data = encoded(SMALL, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def png_of(width: int, height: int, rows: bytes, bits: int = 8, colour: int = 2, *after: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + b"".join(after)
        + chunk(b"IEND", b"")
    )


BOMB = zlib.compress(bytes(200_000_000), 9)  # two hundred kilobytes


def jpeg_with(marker: int, data: bytes, times: int = 1, jpeg: bytes | None = None) -> bytes:
    """This segment behind the start, as often as said."""
    jpeg = jpeg or encoded(SMALL)
    return jpeg[:2] + (bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data) * times + jpeg[2:]


def jpeg_of_kind(marker: int) -> bytes:
    """The start of frame says that the coding is another one."""
    return encoded(SMALL).replace(b"\xff\xc0", bytes([0xFF, marker]), 1)


def jpeg_with_frame(at: int, value: bytes) -> bytes:
    """Bytes of the frame's header exchanged: precision at 4, height at 5, width at 7, components at 9."""
    data = bytearray(encoded(SMALL))
    start = data.index(b"\xff\xc0") + at
    data[start : start + len(value)] = value
    return bytes(data)


def gif(screen: tuple[int, int], frame: tuple[int, int, int, int], data: bytes = b"\x02\x02\x4c\x01\x00") -> bytes:
    palette = bytes(range(12))
    return (
        b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, 0, 0) + palette + b"," + struct.pack("<HHHHB", *frame, 0)
        + data + b";"
    )  # fmt: skip


def bmp(width: int, height: int, bits: int, compression: int, data: bytes, size: int = 40) -> bytes:
    header = struct.pack("<IiiHHIIiiII", size, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    palette = b"" if bits > 8 else bytes(4 * 2**bits)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def scanned(times: int, side: int = 6320) -> bytes:
    """A progressive JPEG of flat gray whose scans hold next to nothing: a bit a block, then a few bytes each."""
    blocks = ((side + 7) // 8) ** 2
    table = bytes([1] + [0] * 15)
    head = jpeg_with(0xC4, b"\x10" + table + b"\xe0", jpeg=b"\xff\xd8")  # a code for "nothing in so many blocks"
    head = jpeg_with(0xC4, b"\0" + table + b"\0", jpeg=head)
    head = jpeg_with(0xDB, b"\0" + bytes([1] * 64), jpeg=head)
    head = jpeg_with(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0", jpeg=head)
    runs = blocks // 0x7FFF + 1
    bits = int("0" + "1" * 14, 2)
    packed = sum(bits << (15 * n) for n in range(runs)) << (-15 * runs % 8)
    nothing = packed.to_bytes((15 * runs + 7) // 8, "big").replace(b"\xff", b"\xff\0")
    first = b"\xff\xda\0\x08\1\1\0\0\0\0" + bytes((blocks + 7) // 8)
    return head + first + (b"\xff\xda\0\x08\1\1\0\1\x3f\x10" + nothing) * times + b"\xff\xd9"


def flat_webp(mode: str = "RGB") -> bytes:
    """Forty megapixels in forty bytes, with alpha or without."""
    colour = (128, 128, 128, 90)[: len(mode)]
    return encoded(Image.new(mode, (6320, 6320), colour), "WEBP", lossless=True, method=0, quality=0)


class Bits:
    def __init__(self) -> None:
        self.value = self.count = 0

    def add(self, value: int, count: int) -> None:
        self.value |= value << self.count
        self.count += count


def webp_of_tables(side: int) -> bytes:
    """A lossless WebP with a set of tables for each of its blocks of 4 × 4 pixels, twenty bits each."""
    head = Bits()
    for value, count in ((0x2F, 8), (side - 1, 14), (side - 1, 14), (0, 1 + 3)):  # no alpha, version 0
        head.add(value, count)
    head.add(0b100, 3)  # no transform, no cache, but a picture of tables' numbers
    head.add(0, 3)  # by blocks of 4
    head.add(0, 1)  # without a cache
    for letters in (280, 256):  # green and red: 256 letters of eight bits
        head.add(0, 1)
        head.add(12 - 4, 4)
        for length in (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8):
            head.add(length in (8, 18), 3)
        head.add(0, 1 + 256)
        if letters > 256:
            head.add(1 | (letters - 256 - 11) << 1, 8)
    nothing = 0b0001  # a code of one letter
    for _ in range(3):
        head.add(nothing, 4)
    blocks = (-(-side // 4)) ** 2
    tables = min(blocks, 65_536)
    reverse = [int(f"{byte:08b}"[::-1], 2) for byte in range(256)]
    numbers = b"".join(bytes((reverse[n % tables & 255], reverse[n % tables >> 8])) for n in range(blocks))
    head.add(int.from_bytes(numbers, "little"), 16 * blocks)
    head.add(int("0001" * 5 * tables, 2), 20 * tables)
    data = head.value.to_bytes((head.count + 7) // 8 + 8, "little")
    return riff((b"VP8L", data))


def deep_png() -> bytes:
    """Forty megapixels of eight bytes each, in 310 kB."""
    return png_of(6320, 6320, bytes((6320 * 8 + 1) * 6320), 16, 6)


def tag_of_rationals(size: int) -> bytes:
    """An EXIF block whose orientation is a million fractions."""
    head = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 5, size // 8, 26) + bytes(4)
    return head + struct.pack("<II", 2971215073, 1836311903) * (size // 8)


def gif_with(extension: bytes) -> bytes:
    data = encoded(SMALL, "GIF")
    start = data.index(b",\0\0\0\0")
    return data[:start] + extension + data[start:]


def moving(kind: str, frames: int) -> bytes:
    return encoded(SMALL, kind, save_all=True, append_images=[picture(24, 18, seed=n) for n in range(frames)])


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif_declaring(width: int, height: int) -> bytes:
    data = bytearray(encoded(SMALL, "AVIF"))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", width, height)
    return bytes(data)


def avif_of_frames(times: int) -> bytes:
    """One picture, by its header; in its place the same frame again and again."""
    data = encoded(Image.new("RGB", (4000, 4000), "gray"), "AVIF", speed=10)
    start = data.index(b"mdat") + 4
    frame, length = data[start:], len(data) - start
    assert data.count(struct.pack(">I", length)) == 1
    data = data.replace(struct.pack(">I", length), struct.pack(">I", length * times))
    return data[: start - 8] + struct.pack(">I", length * times + 8) + b"mdat" + frame * times


def box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + name + data


def avif_of_items(count: int) -> bytes:
    names = b"".join(box(b"infe", struct.pack(">IIH", 3 << 24, n + 1, 0) + b"av01\0") for n in range(count))
    inside = box(b"hdlr", bytes(8) + b"pict" + bytes(13)) + box(b"pitm", bytes(4) + b"\0\1")
    inside += box(b"iinf", struct.pack(">II", 1 << 24, count) + names)
    return box(b"ftyp", b"avif\0\0\0\0avifmif1miafMA1B") + box(b"meta", bytes(4) + inside)


# ------------------------------------------------------------------------------------------------------- refused

NO_PICTURE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a byte": lambda: b"\xff",
    "zeros": lambda: bytes(50),
    "megabytes of zeros": lambda: bytes(9_900_000),
    "megabytes of noise": lambda: random.Random(1).randbytes(9_900_000),
    "words": lambda: b"hello",
    "a page": lambda: b"<!doctype html><html><body><svg></svg>",
    "an archive": lambda: b"PK\3\4" + bytes(100),
    "gzip of a picture": lambda: gzip.compress(PICTURE),
    "a program": lambda: b"\x7fELF" + bytes(100),
    "Python's pickle": lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "a film": lambda: b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100),
    "the start of each kind": lambda: b"\xff\xd8\xff\xe0",
    "PNG's mark alone": lambda: b"\x89PNG\r\n\x1a\n",
    "GIF's mark alone": lambda: b"GIF89a",
    "WebP's mark alone": lambda: b"RIFF\xff\xff\xff\xffWEBP",
    "AVIF's mark alone": lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "a JPEG cut": lambda: PICTURE[:-400],
    "a JPEG without its end": lambda: PICTURE[:-2],
    "a PNG cut": lambda: encoded(kind="PNG")[:200],
    "JPEG without a frame": lambda: b"\xff\xd8" + jpeg_with(0xFE, b"x" * 60_000, 100)[2:-800] + b"\xff\xd9",
    "JPEG of no size": lambda: jpeg_with_frame(5, b"\0\0\0\0"),
    "JPEG whose height is to follow (DNL)": lambda: jpeg_with_frame(5, b"\0\0"),
    "JPEG of 12 bits": lambda: jpeg_with_frame(4, b"\x0c"),
    "JPEG of no components": lambda: jpeg_with_frame(9, b"\0"),
    "JPEG of 255 components": lambda: jpeg_with_frame(9, b"\xff"),
    "lossless JPEG": lambda: jpeg_of_kind(0xC3),
    "hierarchical JPEG": lambda: jpeg_of_kind(0xC5),
    "lossless arithmetic JPEG": lambda: jpeg_of_kind(0xCB),
    "JPEG of a thousand scans": lambda: scans(1000),
    "GIF of no size": lambda: gif((0, 0), (0, 0, 0, 0)),
    "GIF without a frame": lambda: b"GIF89a\1\0\1\0\0\0\0;",
    "GIF of extensions alone": lambda: b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\x01x\0" * 1_000_000,
    "GIF of an endless comment": lambda: b"GIF89a\1\0\1\0\0\0\0!\xfe" + (b"\xff" + b"x" * 255) * 35_000,
    "BMP of no bits": lambda: bmp(2, 2, 0, 0, b""),
    "BMP of 65,535 bits": lambda: bmp(2, 2, 65535, 0, b""),
    "BMP whose pixels are a JPEG": lambda: bmp(24, 18, 0, 4, encoded(SMALL)),
    "BMP of an unknown packing": lambda: bmp(2, 2, 24, 99, bytes(16)),
    "BMP of an unknown header": lambda: bmp(2, 2, 24, 0, bytes(16), size=39),
    "BMP of a huge header": lambda: bmp(2, 2, 24, 0, bytes(16), size=2**31 - 1),
    "BMP with no rows": lambda: bmp(2, 0, 24, 0, b""),
    "BMP packed, and short": lambda: bmp(2000, 2000, 8, 1, b"\xff\x07" * 10),
    "PNG of no size": lambda: png_of(0, 0, b""),
    "PNG of 3 bits": lambda: png_of(2, 2, bytes(14), bits=3),
    "PNG of an unknown colour": lambda: png_of(2, 2, bytes(14), colour=5),
    "PNG of too few rows": lambda: png_of(100, 100, bytes(300)),
    "PNG without pixels": lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)),
    "PNG of an unknown filter": lambda: png_of(2, 2, b"\x09" * 14),
    "PNG of nonsense for pixels": lambda: png_with(chunk(b"IDAT", b"x" * 100)),
    "PNG with a chunk beyond its end": lambda: encoded(SMALL, "PNG")[:33] + b"\x7f\xff\xff\xffIDAT" + b"x" * 100,
    "PNG whose header is spoilt": lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13), spoilt=True) + b"x" * 50,
    "WebP of nothing": lambda: riff((b"VP8X", bytes(10))),
    "WebP of endless chunks": lambda: riff((b"VP8X", bytes(10)), *[(b"XMP ", b"x")] * 500_000),
    "AVIF without its pixels": lambda: encoded(SMALL, "AVIF")[:-100],
}


def scans(times: int) -> bytes:
    data = encoded(picture(400, 300), progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * times + b"\xff\xd9"


OTHER_KINDS: dict[str, Callable[[], bytes]] = {
    "SVG": lambda: b"<svg></svg>",
    "SVG with an entity of a file": lambda: (
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b'<svg xmlns="http://www.w3.org/2000/svg"><text>&x;</text></svg>'
    ),
    "EPS": lambda: encoded(SMALL, "EPS"),
    "PDF": lambda: encoded(SMALL, "PDF"),
    "PSD": lambda: b"8BPS\0\1" + bytes(100),
    "FITS": lambda: b"SIMPLE  =                    T" + b" " * 50,
    "TIFF": lambda: encoded(SMALL, "TIFF"),
    "JPEG 2000": lambda: encoded(SMALL, "JPEG2000"),
    "ICO": lambda: encoded(SMALL, "ICO"),
    "CUR": lambda: b"\0\0\2\0\1\0\x10\x10" + bytes(100),
    "PPM": lambda: encoded(SMALL, "PPM"),
    "ICNS": lambda: b"icns" + bytes(100),
    "DDS": lambda: b"DDS " + bytes(120),
    "JPEG XL": lambda: b"\xff\x0a\xfa\x0f" + bytes(100),
    "OpenEXR": lambda: b"\x76\x2f\x31\x01\2\0\0\0" + bytes(100),
    "a PDF that is a JPEG behind its head": lambda: b"%PDF-1.4\n" + PICTURE,
}


HUGE: dict[str, Callable[[], bytes]] = {
    "BMP of packed rows": lambda: bmp(65535, 152, 8, 1, b"\1\1\0\0" * 152),  # which Pillow fills byte by byte
    "PNG of 50,000²": lambda: png_that_declares(50_000, 50_000),
    "PNG of 2³¹": lambda: png_that_declares(2**31 - 1, 2**31 - 1),
    "PNG of a long line": lambda: png_that_declares(2**31 - 1, 1),
    "PNG of just too many": lambda: png_that_declares(6400, 6300),
    "JPEG of 65,500²": lambda: jpeg_with_frame(5, struct.pack(">HH", 65_500, 65_500)),
    "GIF of 65,535²": lambda: gif((65535, 65535), (0, 0, 1, 1)),
    "GIF of a small screen and a huge frame": lambda: gif((1, 1), (0, 0, 65535, 65535)),
    "BMP of 2³¹": lambda: bmp(2**31 - 1, 2**31 - 1, 24, 0, bytes(16)),
    "BMP of negative width": lambda: bmp(-2, 2, 24, 0, bytes(16)),
    "BMP upside down": lambda: bmp(30_000, -30_000, 24, 0, bytes(16)),
    "BMP packed": lambda: bmp(50_000, 50_000, 8, 1, b"\xff\x07" * 100),
    "WebP of 16,384²": lambda: riff((b"VP8X", b"\0\0\0\0" + b"\xff\x3f\0" * 2), (b"VP8 ", b"\0" * 20)),
    "WebP lossless of 16,384²": lambda: riff((b"VP8L", b"\x2f" + b"\xff\xff\xff\x0f" + bytes(30))),
    "AVIF of 60,000²": lambda: avif_declaring(60_000, 60_000),
    "an APNG's frame": lambda: (
        png_that_declares(50_000, 50_000)[:33] + chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    ),
}


BESIDE: dict[str, Callable[[], bytes]] = {
    "text that unpacks to 200 MB": lambda: png_with(chunk(b"zTXt", b"Comment\0\0" + BOMB)),
    "text in the new form": lambda: png_with(chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB)),
    "forty such texts": lambda: png_with(*[chunk(b"zTXt", b"a%d\0\0" % n + BOMB) for n in range(40)]),
    "a profile that unpacks to 200 MB": lambda: png_with(chunk(b"iCCP", b"icc\0\0" + BOMB)),
    "texts without number": lambda: png_with(chunk(b"tEXt", b"a\0b") * 500_000),
    "nine megabytes of text": lambda: png_with(chunk(b"tEXt", b"a\0" + b"b" * 9_000_000)),
    "unknown chunks without number": lambda: png_with(chunk(b"abCd", b"") * 700_000),
    "EXIF in a PNG that unpacks": lambda: png_with(chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB)),
    "pixels that unpack to 200 MB": lambda: png_of(24, 18, bytes(200_000_000)),
    "a spoilt sum over a text": lambda: png_with(chunk(b"tEXt", b"a\0b", spoilt=True)),
    "a spoilt sum over a needless chunk": lambda: png_with(chunk(b"abCd", b"x", spoilt=True)),
    "comments without number in a JPEG": lambda: jpeg_with(0xFE, b"", 2_000_000),
    "EXIF without number": lambda: jpeg_with(0xE1, b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\0" + bytes(60_000), 150),
    "EXIF in pieces without number": lambda: jpeg_with(0xE1, b"Exif\0\0" + bytes(20), 320_000),
    "frames without number in a JPEG": lambda: jpeg_with(0xC0, b"\x08\0\x12\0\x18\3\1\x11\0\2\x11\0\3\x11\0", 500_000),
    "a hundred frames in a JPEG": lambda: jpeg_with(0xC0, b"\x08\0\x12\0\x18\3\1\x11\0\2\x11\0\3\x11\0", 100),
    "segments without length": lambda: jpeg_with(0xFE, b"", 500).replace(b"\xff\xfe\0\2", b"\xff\xf0" * 9_000),
    "an orientation of a million fractions": lambda: png_with(chunk(b"eXIf", tag_of_rationals(9_900_000))),
    "a million fractions in a JPEG": lambda: b"".join(
        [b"\xff\xd8"]
        + [jpeg_with(0xE1, b"Exif\0\0" + tag_of_rationals(9_800_000)[n : n + 65_000])[2:-SMALL_JPEG]
           for n in range(0, 9_800_000, 65_000)]
        + [encoded(SMALL)[2:]]
    ),
    "texts that unpack and are none": lambda: png_with(
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"\xff" * (1 << 20), 9)) * 9000
    ),
    "profiles that unpack, without number": lambda: png_with(
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20), 9)) * 9000
    ),
    "texts of wide letters": lambda: png_with(
        *[chunk(b"iTXt", b"%d\0\1\0\0\0" % n + zlib.compress("\U0001f600".encode() + b"a" * 10**6)) for n in range(63)]
    ),
    "a GIF's comment in small pieces": lambda: gif_with(b"!\xfe" + b"\2ab" * 3_200_000 + b"\0"),
    "a GIF's comments without number": lambda: gif_with(b"!\xfe\1a\0" * 1_900_000),
    "junk in a GIF": lambda: gif_with(b"a" * 9_000_000),
    "a packed BMP of short rows": lambda: bmp(65535, 610, 8, 1, b"\1\5\0\0" * 610),
    "a hundred scans of nothing": lambda: scanned(99),
    "AVIF of one frame, five thousand times": lambda: avif_of_frames(5000),
    "AVIF of items without number": lambda: avif_of_items(400_000),
    "a coding of nothing": lambda: jpeg_of_kind(0xCA),
    "EXIF whose directory is itself": lambda: jpeg_with(
        0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\x87\x69\0\4\0\0\0\1\0\0\0\x08" * 2
    ),
    "EXIF with four billion values": lambda: jpeg_with(
        0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\xff\xff\xff\xff\0\0\0\x08\0\0\0\0"
    ),
    "EXIF with 65,535 tags": lambda: jpeg_with(
        0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\1\x12\0\3\0\0\0\1\0\1\0\0" * 5400
    ),
    "corrupt EXIF": lambda: encoded(exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40),
    "EXIF cut short": lambda: jpeg_with(0xE1, b"Exif\0\0MM"),
    "an orientation of 65,535": lambda: encoded(exif=exif(65535)),
    "an orientation of 0": lambda: encoded(exif=exif(0)),
    "an orientation in words": lambda: jpeg_with(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\4abc\0\0\0\0\0"),
    "a corrupt profile": lambda: encoded(icc_profile=b"\xff" * 300),
    "profiles whose count is wrong": lambda: jpeg_with(0xE2, b"ICC_PROFILE\0\xff\x01" + bytes(100), 300),
    "XMP without end": lambda: jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<x>" * 20_000, 100),
    "a laugh in XMP": lambda: jpeg_with(
        0xE1,
        b"http://ns.adobe.com/xap/1.0/\0<!DOCTYPE x [<!ENTITY a '" + b"lol" * 100 + b"'>"
        + b"".join(b"<!ENTITY a%d '%s'>" % (n, b"&a;" * 10) for n in range(20)) + b"]><x:xmpmeta>&a19;</x:xmpmeta>",
    ),
    "Photoshop's block, broken": lambda: jpeg_with(0xED, b"Photoshop 3.0\08BIM\x04\x04\xff" + b"\xff" * 100),
    "MPO's table, broken": lambda: jpeg_with(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\x03" + b"\xff" * 60),
    "restart markers without number": lambda: encoded(SMALL)[:-2] + b"\xff\xd0" * 2_000_000 + b"\xff\xd9",
    "filling without number": lambda: b"\xff\xd8" + b"\xff" * 5_000_000 + encoded(SMALL)[2:],
    "tables without number": lambda: jpeg_with(0xDB, b"\0" + bytes(range(1, 65)), 100_000),
    "restart intervals without number": lambda: jpeg_with(0xDD, b"\0\1", 1_000_000),
    "a palette in a WebP without end": lambda: encoded(SMALL, "WEBP") + bytes(5_000_000),
}  # fmt: skip


HONEST: dict[str, Callable[[], bytes]] = {
    "PNG, 1 × 1": lambda: encoded(picture(1, 1), "PNG"),
    "JPEG, 1 × 20,000": lambda: encoded(picture(1, 20_000)),
    "JPEG, 20,000 × 1": lambda: encoded(picture(20_000, 1)),
    "JPEG, 65,500 × 1": lambda: encoded(picture(65_500, 1)),
    "GIF, moving, two hundred frames": lambda: moving("GIF", 200),
    "APNG": lambda: moving("PNG", 5),
    "APNG that announces four billion frames": lambda: png_with(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "WebP, moving": lambda: moving("WEBP", 100),
    "WebP, lossless": lambda: encoded(SMALL, "WEBP", lossless=True),
    "WebP, alpha": lambda: encoded(SMALL.convert("RGBA"), "WEBP"),
    "AVIF, moving": lambda: moving("AVIF", 5),
    "AVIF of odd sides": lambda: encoded(picture(33, 77), "AVIF"),
    "BMP, upside down": lambda: bmp(2, -2, 24, 0, bytes(16)),
    "BMP, packed": lambda: bmp(4, 2, 8, 1, b"\4\1\0\0\4\2\0\0\0\1"),
    "BMP of OS/2": lambda: b"BM" + struct.pack("<IHHIIHHHH", 42, 0, 0, 26, 12, 2, 2, 1, 24) + bytes(16),
    "arithmetic JPEG's neighbour, progressive": lambda: encoded(progressive=True),
    "JPEG with restart markers": lambda: encoded(picture(400, 300), restart_marker_blocks=1),
    "JPEG with a thumbnail": lambda: jpeg_with(0xE1, b"Exif\0\0" + bytes(4) + encoded(picture(16, 12))),
    "JPEG with another behind it": lambda: PICTURE + encoded(picture(seed=2)),
    "JPEG with megabytes behind it": lambda: PICTURE + bytes(9_000_000),
    "JPEG that is an archive, too": lambda: PICTURE + b"PK\3\4" + bytes(100) + b"PK\5\6" + bytes(18),
    "GIF that is Java, too": lambda: encoded(SMALL, "GIF") + b"PK\3\4" + bytes(100),
    "JPEG with a page in a comment": lambda: jpeg_with(0xFE, b"<script>alert(1)</script><?php system('id'); ?>"),
    "JPEG of 10,000 comments": lambda: jpeg_with(0xFE, b"x" * 100, 10_000),
    "PNG of a palette with too many colours": lambda: png_with(chunk(b"sPLT", b"a\0\x08" + bytes(6000))),
    "a profile of a megabyte": lambda: encoded(SMALL, icc_profile=random.Random(1).randbytes(1_000_000)),
    "noise in every pixel": lambda: encoded(
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (900, 900, 3), np.uint8)), "PNG"
    ),
}  # fmt: skip
