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
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
    from cykooz_resizer.alpha import set_image_mode

    BILINEAR = ResizeAlg.convolution(FilterType.bilinear)
    WHOLE = ResizeOptions(BILINEAR)

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Box = tuple[float, float, float, float]  # left, top, right, bottom: what of the picture is wanted


def resized(
    image: Image.Image | Pixels, height: int, width: int, box: Box | None = None, on_its_side: bool = False
) -> Pixels:
    """`image` is RGB or RGBX, which is the same but for its name. The crate resizes columns, rounds, and resizes rows,
    Pillow rows first; `on_its_side` has it the other way round, so that after the turn it is as if before."""
    if on_its_side:
        across, down = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        left, top, right, bottom = box or (0, 0, across, down)
        if WITH_VECTORS:
            image, box = resized(image, down, width, (left, 0, right, down)), (0, top, width, bottom)
        else:
            image, box = resized(image, height, across, (0, top, across, bottom)), (left, 0, right, height)
    if not WITH_VECTORS:
        whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR, box).convert("RGB"))
    options = WHOLE
    if box:
        left, top, right, bottom = box
        options = ResizeOptions(BILINEAR, crop_box=CropBox(left, top, right - left, bottom - top))
    if isinstance(image, Image.Image):
        small = Image.new("RGB", (width, height))
        set_image_mode(image, "RGB")
        Resizer().resize_pil(image, small, options)  # a new one: kept, it would keep its largest buffer
        return np.asarray(small)
    whole = ImageData(image.shape[1], image.shape[0], PixelType.U8x3, image.tobytes())
    target = ImageData(width, height, PixelType.U8x3)
    Resizer().resize(whole, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3)
