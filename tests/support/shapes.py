"""Draw two similar tasks: outlines of any colour, size and place on a noisy ground. The classes of one task are of no
use for the other; only what a network learns about outlines is.

    draw(folder, SHAPES["first"], count=60)
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SHAPES = {
    "first": ("circle", "square", "triangle", "cross", "star", "bars"),
    "second": ("pentagon", "half", "arrow", "ladder", "ring", "zigzag"),
}
SIDE = 48


def draw(folder: Path, shapes: tuple[str, ...], count: int, seed: int = 0) -> Path:
    for shape in shapes:
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(shape, random.Random(f"{shape} {number} {seed}")).save(folder / shape / f"{number:03}.png")
    return folder


def picture(shape: str, rng: random.Random) -> Image.Image:
    # Pillow's effect_noise is not used: what it draws depends on what this process drew before.
    levels = bytes(min(255, max(0, round(rng.gauss(128, 60)))) for _ in range((SIDE // 4) ** 2))
    noise = Image.frombytes("L", (SIDE // 4, SIDE // 4), levels)
    ground = noise.resize((SIDE, SIDE)).filter(ImageFilter.GaussianBlur(1))
    tints = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(2)]
    image = Image.merge("RGB", [ground.point(lambda level, tint=tint: (level + tint) // 2) for tint in tints[0]])
    size = rng.uniform(0.25, 0.42) * SIDE
    x, y = (rng.uniform(size, SIDE - size) for _ in range(2))
    layer = Image.new("L", (SIDE, SIDE))
    strokes(ImageDraw.Draw(layer), shape, x, y, size)
    layer = layer.rotate(rng.uniform(-20, 20), center=(x, y))
    image.paste(tints[1], mask=layer)
    return image


def strokes(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, size: float) -> None:
    def corner(turns: float, share: float = 1.0) -> tuple[float, float]:
        return x + share * size * math.sin(2 * math.pi * turns), y - share * size * math.cos(2 * math.pi * turns)

    # Each shape by lines around its middle.
    box, thin = (x - size, y - size, x + size, y + size), max(2, round(size / 4))
    if shape in ("circle", "ring"):
        pen.ellipse(box, outline=255, fill=255 if shape == "circle" else 0, width=thin)
    elif shape in ("square", "triangle", "pentagon"):
        corners = {"square": 4, "triangle": 3, "pentagon": 5}[shape]
        pen.polygon([corner((number + 0.5 * (corners == 4)) / corners) for number in range(corners)], fill=255)
    elif shape == "star":
        pen.polygon([corner(number / 10, 1 if number % 2 else 0.4) for number in range(10)], fill=255)
    elif shape == "cross":
        pen.line([(x - size, y), (x + size, y)], 255, thin)
        pen.line([(x, y - size), (x, y + size)], 255, thin)
    elif shape == "half":
        pen.pieslice(box, 0, 180, fill=255)
    elif shape == "arrow":
        pen.line([(x, y - size), (x, y + size)], 255, thin)
        pen.line([corner(0.15), (x, y - size), corner(-0.15)], 255, thin)
    elif shape == "zigzag":
        pen.line([(x + (number / 2 - 1) * size, y + (number % 2 - 0.5) * size) for number in range(5)], 255, thin)
    else:
        for number in (-1, 0, 1):
            pen.line([(x - size, y + number * size * 0.7), (x + size, y + number * size * 0.7)], 255, thin)
        if shape == "ladder":
            pen.line([(x - size, y - size), (x - size, y + size)], 255, thin)
            pen.line([(x + size, y - size), (x + size, y + size)], 255, thin)
