"""Small pictures for the report as data URIs: thumbnails, and heat maps to lay over them.

    small = thumbnail(Path("photos/hat/1.jpg"))      # None: no longer readable
    small.uri, small.width, small.height
    overlay(heatmap)                                 # a PNG: one colour, more opaque where it is warmer

A thumbnail keeps the picture's own shape, whatever the model's input is, and its bytes are bounded.
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
from PIL import Image

from loupe.errors import ImageError
from loupe.images.api import decode, upright_size
from loupe.images.resize import Pixels

SIDE = 176  # px, the longer one
MAX_BYTES = 9_000  # of a thumbnail of that side; photographs need about half
WARMTH = (255, 72, 0)  # as on the gateway's page
OPAQUE = 0.65  # at most, so that the picture stays visible
SMOOTH = 48  # px, side of a heat map; the browser does the rest


@dataclass(frozen=True)
class Thumbnail:
    uri: str
    width: int
    height: int


def thumbnail(path: Path, side: int = SIDE) -> Thumbnail | None:
    """Return a thumbnail of the file's picture, upright."""
    try:
        data = path.read_bytes()
        height, width = upright_size(data)
        width, height = _fit_size(width, height, side)
        pixels = decode(data, height, width)
    except (ImageError, OSError):
        return None
    return _encode(pixels, side)


def thumbnails(paths: Iterable[Path], side: int = SIDE) -> dict[Path, Thumbnail | None]:
    """Return thumbnails of many files, made in threads."""
    unique_paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of harmless metadata
        return dict(zip(unique_paths, pool.map(lambda path: thumbnail(path, side), unique_paths), strict=True))


def of_pixels(pixels: Any, side: int = SIDE) -> Thumbnail:
    """Return a thumbnail of the model's own input, [H, W, 3] of 0…255."""
    rounded = np.clip(pixels, 0, 255).astype(np.uint8)
    width, height = _fit_size(rounded.shape[1], rounded.shape[0], side)
    return _encode(np.asarray(Image.fromarray(rounded).resize((width, height), Image.Resampling.BICUBIC)), side)


def overlay(heatmap: Any) -> str:
    """Return a heat map to stretch over the picture: [h, w] of 0…1 as one colour, more opaque where it is warmer; "" if
    it is all 0."""
    warmth = np.nan_to_num(np.asarray(heatmap, dtype=np.float32)).clip(0, 1)
    if not warmth.any():
        return ""
    alpha = Image.fromarray((warmth * 255 * OPAQUE).astype(np.uint8)).resize((SMOOTH, SMOOTH), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", alpha.size, WARMTH)
    picture.putalpha(alpha)
    return _data_uri(picture, "PNG", optimize=True)


def _encode(pixels: Pixels, side: int) -> Thumbnail:
    image = Image.fromarray(pixels)
    for quality in (80, 60, 40, 20, 5):
        uri = _data_uri(image, "WEBP", quality=quality)
        if len(uri) * 3 / 4 <= MAX_BYTES * (side / SIDE) ** 2:
            break
    return Thumbnail(uri, image.width, image.height)


def _data_uri(image: Image.Image, image_format: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _fit_size(width: int, height: int, side: int) -> tuple[int, int]:
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))
