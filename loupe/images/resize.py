"""Resize RGB pixels: bilinear, antialiased.

    small = resized(image, height, width, box)                    # uint8 [height, width, 3]
    small = resized(image, height, width, rotated=True)           # of a picture that is turned by a quarter afterwards

Resizing takes the most time of all steps for most pictures. So the crate fast_image_resize does it with the processor's
vector instructions; its pixels are the same with and without them. On Linux on ARM it has no wheel, and Pillow does it
in more than twice the time. A sample of Pillow's is at most 1 level off, and in a photograph 1 in 80 is.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

WITH_VECTORS = find_spec("cykooz_resizer") is not None
if WITH_VECTORS:
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
    from cykooz_resizer.alpha import set_image_mode

    BILINEAR = ResizeAlg.convolution(FilterType.bilinear)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Box = tuple[float, float, float, float]  # left, top, right, bottom: the crop


def resized(image: Image.Image, height: int, width: int, box: Box | None = None, rotated: bool = False) -> Pixels:
    """Return the pixels of an image (RGB, RGBX or opaque RGBA) at the given size. The crate resizes columns first,
    rounds, and then resizes rows; Pillow resizes rows first. `rotated` reverses this order, so that a picture turned
    afterwards has the pixels of one turned before."""
    left, top, right, bottom = box or (0, 0, *image.size)
    old_width, old_height = image.size
    rows_first = rotated == WITH_VECTORS
    intermediate = width * old_height if rows_first else old_width * height
    if intermediate > 2 * (old_width * old_height + width * height):  # 1×65,535 pixels would become 20 million
        rows_first = not rows_first
    if rows_first and WITH_VECTORS:
        image, left, right = _stretched(image, (width, old_height), (left, 0, right, old_height)), 0, width
    elif not rows_first and not WITH_VECTORS:
        image, top, bottom = _stretched(image, (old_width, height), (0, top, old_width, bottom)), 0, height
    small = _stretched(image, (width, height), (left, top, right, bottom))
    return np.frombuffer(small.tobytes(), np.uint8).reshape(height, width, 3)


def _stretched(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    if not WITH_VECTORS:
        image = image.convert("RGB") if image.mode == "RGBA" else image  # its alpha would be multiplied, and rounded
        return image.resize(size, Image.Resampling.BILINEAR, box).convert("RGB")
    left, top, right, bottom = box
    small = Image.new("RGB", size, None)  # not filled: all of it is written over
    set_image_mode(image, "RGB")
    options = ResizeOptions(BILINEAR, crop_box=CropBox(left, top, right - left, bottom - top))
    Resizer().resize_pil(image, small, options)  # a new one each time, since a Resizer keeps its largest buffer
    return small
