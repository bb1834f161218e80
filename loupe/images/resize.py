"""RGB pixels of another size: bilinear, antialiased.

    small = resized(image, height, width, box)                    # uint8 [height, width, 3]
    lying = resized(image, height, width, on_its_side=True)       # to be turned by a quarter

A resize is the dearest step of most pictures, so it is done with the processor's vector instructions, by the crate
fast_image_resize: its pixels are the same with and without them. Where that has no wheel (Linux on ARM) it is Pillow,
in twice the time and more; a sample of Pillow's is at most 1 level off, and in a photograph 1 in 80 is.
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
Box = tuple[float, float, float, float]  # left, top, right, bottom: what of the picture is wanted


def resized(image: Image.Image, height: int, width: int, box: Box | None = None, on_its_side: bool = False) -> Pixels:
    """`image` is RGB or RGBX, which is the same but for its name. The crate resizes columns, rounds, and resizes rows,
    Pillow rows first; `on_its_side` has it the other way round, so that after the turn it is as if before."""
    left, top, right, bottom = box or (0, 0, *image.size)
    across, down = image.size
    rows_first = on_its_side == WITH_VECTORS
    between = width * down if rows_first else across * height
    if between > 2 * (across * down + width * height):  # of 1×65,535 pixels 20 million
        rows_first = not rows_first
    if rows_first and WITH_VECTORS:
        image, left, right = _stretched(image, (width, down), (left, 0, right, down)), 0, width
    elif not rows_first and not WITH_VECTORS:
        image, top, bottom = _stretched(image, (across, height), (0, top, across, bottom)), 0, height
    small = _stretched(image, (width, height), (left, top, right, bottom))
    return np.frombuffer(small.tobytes(), np.uint8).reshape(height, width, 3)


def _stretched(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    if not WITH_VECTORS:
        return image.resize(size, Image.Resampling.BILINEAR, box).convert("RGB")
    left, top, right, bottom = box
    small = Image.new("RGB", size, None)  # of no colour: it is all written over
    set_image_mode(image, "RGB")
    options = ResizeOptions(BILINEAR, crop_box=CropBox(left, top, right - left, bottom - top))
    Resizer().resize_pil(image, small, options)  # a new one: kept, it would keep its largest buffer
    return small
