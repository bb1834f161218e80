"""Pictures of none of the usual classes, such as clothing or food: made on the spot, nothing is downloaded.

    for kind, pictures in strangers().items(): ...      # kind → Pillow pictures, RGB

Photographs that come with scikit-image and scikit-learn (whole, and three pieces of each), drawn tires, noise of
several grains, gradients, pages of text, and screens full of windows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.tires import draw

COUNT = 60  # of each kind that is drawn
SIDE = 256  # px
# Of scikit-image's own pictures; which of them come with the package, and which it would download, differs.
NAMES = ("astronaut", "brick", "camera", "cat", "cell", "chelsea", "clock", "coffee", "coins", "grass", "gravel",
         "hubble_deep_field", "immunohistochemistry", "microaneurysms", "moon", "retina", "rocket")  # fmt: skip
WORDS = ("the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "with", "they", "this", "have")
Rng = np.random.Generator


def strangers(seed: int = 1) -> dict[str, list[Image.Image]]:
    makers: dict[str, Callable[[Rng], Image.Image]] = {
        "noise": noise, "gradients": gradient, "text": page, "screens": screen
    }  # fmt: skip
    rng = np.random.default_rng(seed)
    pictures = {name: [make(rng) for _ in range(COUNT)] for name, make in makers.items()}
    return {"photographs": photographs(rng), "tires": tires()} | pictures


def photographs(rng: Rng) -> list[Image.Image]:
    import skimage.data
    from sklearn.datasets import load_sample_images

    arrays: list[Any] = list(load_sample_images().images)
    for name in NAMES:
        try:
            arrays.append(getattr(skimage.data, name)())
        except (ModuleNotFoundError, OSError, ConnectionError):  # this build would download it
            continue
    wholes = [Image.fromarray(array).convert("RGB") for array in arrays]
    return wholes + [piece(whole, rng) for whole in wholes for _ in range(3)]


def piece(image: Image.Image, rng: Rng) -> Image.Image:
    side = int(min(image.size) * rng.uniform(0.4, 0.8))
    left, top = rng.integers(0, image.width - side), rng.integers(0, image.height - side)
    return image.crop((int(left), int(top), int(left) + side, int(top) + side))


def tires() -> list[Image.Image]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tires"
        draw(folder, splits={"testing_data": COUNT})
        return [Image.open(file).convert("RGB") for file in sorted(folder.rglob("*.jpg"))]


def noise(rng: Rng) -> Image.Image:
    grain = int(rng.choice([2, 8, 32, 128, SIDE]))
    values = rng.normal(rng.uniform(60, 190), rng.uniform(20, 80), (grain, grain, int(rng.choice([1, 3]))))
    small = Image.fromarray(np.broadcast_to(np.clip(values, 0, 255), (grain, grain, 3)).astype(np.uint8))
    return small.resize((SIDE, SIDE), Image.Resampling(int(rng.choice([0, 2]))))


def gradient(rng: Rng) -> Image.Image:
    along = np.linspace(0, 1, SIDE)
    turn = rng.uniform(0, 2 * np.pi)
    slope = along[None, :] * np.cos(turn) + along[:, None] * np.sin(turn)
    share = ((slope - slope.min()) / np.ptp(slope))[..., None]
    start, end = rng.uniform(0, 255, (2, 3))
    return Image.fromarray((start + (end - start) * share).astype(np.uint8))


def page(rng: Rng) -> Image.Image:
    image = Image.new("RGB", (SIDE * 2, SIDE * 3), tuple(int(v) for v in rng.integers(225, 256, 3)))
    sheet, size = ImageDraw.Draw(image), int(rng.integers(10, 32))
    font, y = ImageFont.load_default(size), 20.0
    while y < image.height - 20:
        line = " ".join(rng.choice(WORDS, int(rng.integers(2, 900 // (size * 3)))))
        sheet.text((20, y), line, fill=(20, 20, 30), font=font)
        y += size * float(rng.choice([1.3, 1.3, 1.3, 2.6]))
    return image


def screen(rng: Rng) -> Image.Image:
    image = Image.new("RGB", (SIDE * 3, SIDE * 2), tuple(int(v) for v in rng.integers(0, 256, 3)))
    sheet, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for _ in range(int(rng.integers(2, 6))):
        left, top = int(rng.integers(0, SIDE * 2)), int(rng.integers(0, SIDE))
        right, bottom = left + int(rng.integers(150, SIDE * 2)), top + int(rng.integers(120, SIDE))
        shade = int(rng.choice([30, 60, 240, 255]))
        sheet.rectangle((left, top, right, bottom), fill=(shade,) * 3, outline=(128, 128, 128))
        sheet.rectangle((left, top, right, top + 22), fill=tuple(int(v) for v in rng.integers(60, 200, 3)))
        for y in range(top + 30, bottom - 18, 20):
            words = " ".join(rng.choice(WORDS, 5))
            sheet.text((left + 10, y), words, fill=(255 - shade,) * 3, font=font)
    return image
