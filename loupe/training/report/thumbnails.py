"""Small pictures for the report, as data URIs: thumbnails, heat maps to lay over them.

    shown = thumbnail(Path("photos/hat/1.jpg"))      # None: no longer readable
    shown.uri, shown.width, shown.height
    overlay(heatmap)                                 # a PNG: one colour, as opaque as it is warm

A thumbnail keeps the picture's own shape, whatever the model's input makes of it, and its bytes are bounded.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from loupe.errors import ImageError
from loupe.images.api import decode
from loupe.images.resize import Pixels

SIDE = 176  # px, the longer one
MOST_BYTES = 9_000  # of a thumbnail of that side; photographs need about half
WARMTH = (255, 72, 0)  # as on the gateway's page
OPAQUE = 0.65  # at most, so that the picture under it is still seen
SMOOTH = 48  # px, side of a heat map; the browser does the rest

_LYING = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Shown:
    uri: str
    width: int
    height: int


def thumbnail(path: Path, side: int = SIDE) -> Shown | None:
    """The picture in the file, upright."""
    try:
        width, height = _fitted(*_upright_size(path), side)
        pixels = decode(path.read_bytes(), height, width)
    except (ImageError, OSError, ValueError, Image.DecompressionBombError):
        return None
    return _shown(pixels, side)


def thumbnails(paths: Iterable[Path], side: int = SIDE) -> dict[Path, Shown | None]:
    """Of many files at once, in threads."""
    wanted = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of metadata that does no harm
        return dict(zip(wanted, pool.map(lambda path: thumbnail(path, side), wanted), strict=True))


def of_pixels(pixels: Any, side: int = SIDE) -> Shown:
    """What the model itself saw, [H, W, 3] of 0…255."""
    exact = np.clip(pixels, 0, 255).astype(np.uint8)
    width, height = _fitted(exact.shape[1], exact.shape[0], side)
    return _shown(np.asarray(Image.fromarray(exact).resize((width, height), Image.Resampling.BICUBIC)), side)


def overlay(heatmap: Any) -> str:
    """To be stretched over the picture: [h, w] of 0…1 as one colour, more opaque where it is warmer; "" where nothing
    is."""
    warmth = np.nan_to_num(np.asarray(heatmap, dtype=np.float32)).clip(0, 1)
    if not warmth.any():
        return ""
    alpha = Image.fromarray((warmth * 255 * OPAQUE).astype(np.uint8)).resize((SMOOTH, SMOOTH), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", alpha.size, WARMTH)
    picture.putalpha(alpha)
    return _uri(picture, "PNG", optimize=True)


def _shown(pixels: Pixels, side: int) -> Shown:
    image = Image.fromarray(pixels)
    for quality in (80, 60, 40, 20, 5):
        uri = _uri(image, "WEBP", quality=quality)
        if len(uri) * 3 / 4 <= MOST_BYTES * (side / SIDE) ** 2:
            break
    return Shown(uri, image.width, image.height)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _upright_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        lying = image.getexif().get(ExifTags.Base.Orientation) in _LYING
        return (image.height, image.width) if lying else image.size


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
