"""Pictures for the tests, made on the spot.

encoded(picture(64, 48), "PNG")
AWKWARD["JPEG, CMYK"]()          # bytes; the name says what is awkward about them, LOSSLESS which keep every bit
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def picture(width: int = 64, height: int = 48, mode: str = "RGB", seed: int = 1) -> Image.Image:
    """Soft coloured noise: something different in every corner."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image | None = None, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image or picture()).save(file, kind, **options)
    return file.getvalue()


def png_that_declares(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    return _png(width, height, 8, 2, b"")


def _png(width: int, height: int, bits: int, colour: int, rows: bytes, interlaced: bool = False) -> bytes:
    """What Pillow does not write: `rows` as the PNG specification wants them, each behind its filter's byte."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: int) -> bytes:
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


def photograph(width: int, height: int, seed: int = 1) -> Image.Image:
    """Something like one: detail at every scale, a few hard edges, a little of a sensor's noise."""
    random = np.random.default_rng(seed)
    light = np.full((height, width, 3), 120, np.float32)
    for octave in range(2, 10):
        few = random.normal(128, 60 / octave, (2**octave, 2**octave, 3)).clip(0, 255).astype(np.uint8)
        light += np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128
    y, x = np.ogrid[:height, :width]
    for _ in range(12):
        across, down, radius = random.random(3) * (width, height, min(width, height) / 6)
        light[(x - across) ** 2 + (y - down) ** 2 < radius**2] += random.normal(0, 30, 3)
    light += random.normal(0, 2, (height, width, 1))
    return Image.fromarray(light.clip(0, 255).astype(np.uint8))


def _clear() -> Image.Image:
    """Opaque at the left, and clear at the right."""
    image = picture(mode="RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(255, 0, image.width).astype(np.uint8), (image.height, 1))))
    return image


def _clear_palette() -> bytes:
    """Each colour of the palette as opaque as it likes."""
    return encoded(picture().quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))


def _deep(mode: str = "RGB") -> bytes:
    """A PNG of 16 bits a sample in 2, 3 or 4 channels."""
    values = np.asarray(_clear().convert(mode)).astype(np.uint16) * 257 ^ 0x5A  # low bytes of their own
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return _png(width, height, 16, {2: 4, 3: 2, 4: 6}[channels], rows)


def _interlaced() -> bytes:
    """A PNG in the seven passes of Adam7."""
    values = np.asarray(picture())
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = (values[top::down, left::right] for top, left, down, right in passes)
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    return _png(values.shape[1], values.shape[0], 8, 2, rows, interlaced=True)


def _frames(kind: str, **options: Any) -> bytes:
    return encoded(kind=kind, save_all=True, append_images=[picture(seed=n) for n in (2, 3)], **options)


def _turned(orientation: int) -> Callable[[], bytes]:
    """A JPEG large enough to be decoded smaller, of sides that 2 does not divide."""
    return lambda: encoded(picture(641, 427), exif=exif(orientation), quality=90)


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


_GREY16 = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21
LOSSLESS: dict[str, Callable[[], bytes]] = {
    "PNG, grey": lambda: encoded(picture(mode="L"), "PNG"),
    "PNG, grey and alpha": lambda: encoded(_clear().convert("LA"), "PNG"),
    "PNG, RGBA": lambda: encoded(_clear(), "PNG"),
    "PNG, palette": lambda: encoded(picture().quantize(64), "PNG"),
    "PNG, palette of 4": lambda: encoded(picture().quantize(4), "PNG", bits=2),
    "PNG, palette and alpha": _clear_palette,
    "PNG, 1 bit": lambda: encoded(picture(mode="1"), "PNG"),
    "PNG, 16 bits of grey": lambda: encoded(Image.fromarray(_GREY16), "PNG"),
    "PNG, 16 bits of grey and alpha": lambda: _deep("LA"),
    "PNG, 16 bits of RGB": _deep,
    "PNG, 16 bits of RGBA": lambda: _deep("RGBA"),
    "PNG, a clear colour": lambda: encoded(Image.new("RGB", (9, 7), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
    "PNG, a clear grey": lambda: encoded(picture(mode="L").quantize(4).convert("L"), "PNG", transparency=108),
    "PNG, interlaced": _interlaced,
    "PNG, lying": lambda: encoded(kind="PNG", exif=exif(6)),
    "GIF, clear": lambda: encoded(_clear(), "GIF"),
    "GIF, moving": lambda: _frames("GIF"),
    "WebP, lossless": lambda: encoded(_clear(), "WEBP", lossless=True, exact=True),
    "BMP": lambda: encoded(kind="BMP"),
    "BMP, palette": lambda: encoded(picture().quantize(16), "BMP"),
    "PNG, 1 × 1": lambda: encoded(picture(1, 1), "PNG"),
    "PNG, 1 × 20,000": lambda: encoded(picture(1, 20_000), "PNG"),
    "PNG, 20,000 × 1": lambda: encoded(picture(20_000, 1), "PNG"),
    "PNG, 3 × 5": lambda: encoded(picture(3, 5), "PNG"),
}
AWKWARD: dict[str, Callable[[], bytes]] = LOSSLESS | {
    "JPEG, 4:2:0": lambda: encoded(subsampling="4:2:0"),
    "JPEG, 4:4:4": lambda: encoded(subsampling="4:4:4"),
    "JPEG, RGB": lambda: encoded(keep_rgb=True),
    "JPEG, grey": lambda: encoded(picture(mode="L")),
    "JPEG, CMYK": lambda: encoded(picture(mode="CMYK")),
    "JPEG, CMYK with a profile": lambda: encoded(picture(mode="CMYK"), icc_profile=_profile()),
    "JPEG, progressive": lambda: encoded(picture(641, 427), progressive=True),
    "JPEG, damaged EXIF": lambda: encoded(exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40),
    "JPEG, damaged profile": lambda: encoded(icc_profile=b"\xff" * 300),
    "JPEG, 1 × 1": lambda: encoded(picture(1, 1)),
    "JPEG, 1 × 20,000": lambda: encoded(picture(1, 20_000)),
    "JPEG, 4,000 × 3,000": lambda: encoded(picture(4000, 3000)),
    **{f"JPEG, orientation {n}": _turned(n) for n in range(1, 9)},
    "MPO": lambda: _frames("MPO"),
    "WebP": lambda: encoded(_clear(), "WEBP"),
    "WebP, moving": lambda: _frames("WEBP"),
    "AVIF": lambda: encoded(kind="AVIF"),
    "AVIF, lying": lambda: encoded(kind="AVIF", exif=exif(6)),
}
