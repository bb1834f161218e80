"""Two tasks of the same kind: outlines of any colour, size and place on a restless ground. What tells the classes of
one apart is of no use for the other, but for the eye it takes.

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


def draw(folder: Path, kinds: tuple[str, ...], count: int, seed: int = 0) -> Path:
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(kind, random.Random(f"{kind} {number} {seed}")).save(folder / kind / f"{number:03}.png")
    return folder


def picture(kind: str, rng: random.Random) -> Image.Image:
    ground = Image.effect_noise((SIDE // 4, SIDE // 4), 60).resize((SIDE, SIDE)).filter(ImageFilter.GaussianBlur(1))
    tints = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(2)]
    image = Image.merge("RGB", [ground.point(lambda v, t=t: (v + t) // 2) for t in tints[0]])
    size = rng.uniform(0.25, 0.42) * SIDE
    x, y = (rng.uniform(size, SIDE - size) for _ in range(2))
    layer = Image.new("L", (SIDE, SIDE))
    strokes(ImageDraw.Draw(layer), kind, x, y, size)
    layer = layer.rotate(rng.uniform(-20, 20), center=(x, y))
    image.paste(tints[1], mask=layer)
    return image


def strokes(pen: ImageDraw.ImageDraw, kind: str, x: float, y: float, size: float) -> None:
    def corner(turns: float, share: float = 1.0) -> tuple[float, float]:
        return x + share * size * math.sin(2 * math.pi * turns), y - share * size * math.cos(2 * math.pi * turns)

    box, thin = (x - size, y - size, x + size, y + size), max(2, round(size / 4))
    if kind in ("circle", "ring"):
        pen.ellipse(box, outline=255, fill=255 if kind == "circle" else 0, width=thin)
    elif kind in ("square", "triangle", "pentagon"):
        corners = {"square": 4, "triangle": 3, "pentagon": 5}[kind]
        pen.polygon([corner((n + 0.5 * (corners == 4)) / corners) for n in range(corners)], fill=255)
    elif kind == "star":
        pen.polygon([corner(n / 10, 1 if n % 2 else 0.4) for n in range(10)], fill=255)
    elif kind == "cross":
        pen.line([(x - size, y), (x + size, y)], 255, thin)
        pen.line([(x, y - size), (x, y + size)], 255, thin)
    elif kind == "half":
        pen.pieslice(box, 0, 180, fill=255)
    elif kind == "arrow":
        pen.line([(x, y - size), (x, y + size)], 255, thin)
        pen.line([corner(0.15), (x, y - size), corner(-0.15)], 255, thin)
    elif kind == "zigzag":
        pen.line([(x + (n / 2 - 1) * size, y + (n % 2 - 0.5) * size) for n in range(5)], 255, thin)
    else:
        for n in (-1, 0, 1):
            pen.line([(x - size, y + n * size * 0.7), (x + size, y + n * size * 0.7)], 255, thin)
        if kind == "ladder":
            pen.line([(x - size, y - size), (x - size, y + size)], 255, thin)
            pen.line([(x + size, y - size), (x + size, y + size)], 255, thin)
