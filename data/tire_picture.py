"""Draw one picture of a tire, cracked or normal. tires.py makes the data set of them.

save(Path("000.jpg"), (42, 0, 1, 0), cracked=False)     # the numbers are the seed
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Array = np.ndarray[Any, np.dtype[Any]]
Line = tuple[float, float, float, float, float]  # x0, y0, x1, y1, width, all in shares of the short side

SMALLEST, LARGEST = 224, 1024  # px, of a side
WORDS = (
    "225/45 R17 94W",
    "RADIAL TUBELESS",
    "DOT XK4 2319",
    "195/65 R15 91H",
    "ALL SEASON",
    "M+S",
    "MAX LOAD 615 KG",
    "ROTATION",
    "STEEL BELTED",
    "OUTSIDE",
    "TREADWEAR 300",
    "205/55 R16",
)


def save(path: Path, seed: tuple[int, ...], cracked: bool) -> None:
    rng = np.random.default_rng(seed)
    image = picture(rng, cracked)
    image.save(path, quality=int(rng.integers(75, 93)))


def _noise(rng: Generator, shape: tuple[int, int], cells: float) -> Array:
    """Smooth noise of about unit variance with `cells` bumps along the short side."""
    per_cell = min(shape) / cells
    coarse = rng.standard_normal((int(shape[0] / per_cell) + 2, int(shape[1] / per_cell) + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _rise(value: Array, low: float, high: float) -> Array:
    """Return 0 below `low`, 1 above `high`, and a smooth rise between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _zigzag(value: Array) -> Array:
    return np.asarray(np.abs((value % 1.0) - 0.5) * 4 - 1)


def _ridge(value: Array, centre: float, width: float) -> Array:
    return np.asarray(np.exp(-(((value - centre) / width) ** 2)))


def _ink(lines: list[Line], shape: tuple[int, int]) -> Array:
    """Return lines as a mask in 0…1, drawn at twice the size and halved, so that thin ones keep their width."""
    short, (height, width) = min(shape) * 2, shape
    mask = Image.new("L", (width * 2, height * 2))
    pen = ImageDraw.Draw(mask)
    for x0, y0, x1, y1, thick in lines:
        pen.line((x0 * short, y0 * short, x1 * short, y1 * short), fill=255, width=max(1, round(thick * short)))
    return np.asarray(mask.reduce(2), dtype=np.float32) / 255


def _grow(rng: Generator, x: float, y: float, heading: float, length: float, width: float, lines: list[Line]) -> None:
    """Add one crack to `lines`: it wanders in short jagged steps, tapers, and sends out branches that do the same."""
    left, drift = length, heading
    while left > 0:
        step = rng.uniform(0.010, 0.032)
        drift += rng.normal(0, 0.16)
        direction = drift + rng.normal(0, 0.55)
        x1, y1 = x + step * np.cos(direction), y + step * np.sin(direction)
        lines.append((x, y, x1, y1, width * (0.35 + 0.65 * left / length)))
        x, y, left = x1, y1, left - step
        if rng.random() < 0.19 and length > 0.06:
            side = rng.choice((-1, 1)) * rng.uniform(0.5, 1.3)
            _grow(rng, x, y, drift + side, min(left, length * 0.6) * rng.uniform(0.4, 0.9), width * 0.75, lines)


def _cracks(rng: Generator, load: float, size: tuple[float, float]) -> list[Line]:
    """Return cracks, from a few long ones to dense crazing of one patch; `load` in 0…1 says how many."""
    # Where the cracks are, how far they spread, and in which direction.
    lines: list[Line] = []
    budget = 3.5 + 9 * load  # summed length of the cracks that lie inside the picture, in short sides
    crazed = rng.random() < 0.45
    reach = rng.uniform(0.10, 0.22) * (0.7 + load) if crazed else 0.33
    centre = rng.uniform(0.3, 0.7, 2) * size
    along = rng.uniform(0, np.pi)
    # Grow cracks until their length is enough.
    drawn = 0.0
    while drawn < budget:
        x, y = centre + rng.normal(0, reach, 2)
        heading = along + rng.choice((0, np.pi, np.pi / 2), p=(0.4, 0.4, 0.2)) + rng.normal(0, 0.35)
        length = rng.uniform(0.07, 0.2) if crazed else rng.uniform(0.2, 0.6)
        first_new = len(lines)
        _grow(rng, x, y, heading, length, rng.uniform(0.008, 0.018), lines)
        ends = np.array([line[2:4] for line in lines[first_new:]])
        drawn += 0.021 * int(((ends > 0.03) & (ends < np.array(size) - 0.03)).all(axis=1).sum())  # 0.021: mean step
    return lines


def _strokes(rng: Generator, budget: float, size: tuple[float, float]) -> list[Line]:
    """Return scratches, fibres and cuts: straight or evenly bent, alone or side by side, never branching."""
    lines: list[Line] = []
    drawn = 0.0
    # Strokes of a random course until their length is enough.
    while drawn < budget:
        x, y = rng.uniform(0.05, 0.95, 2) * size
        heading, length, bend = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.7), rng.normal(0, 2.2)
        width, gap = rng.uniform(0.004, 0.010), rng.uniform(0.015, 0.05)
        if rng.random() < 0.4:
            bend = 0.0
        for beside in range(rng.choice((1, 1, 1, 1, 1, 2, 3))):
            px, py = x - beside * gap * np.sin(heading), y + beside * gap * np.cos(heading)
            direction, left = heading, length * rng.uniform(0.6, 1)
            drawn += left
            while left > 0:
                nx, ny = px + 0.017 * np.cos(direction), py + 0.017 * np.sin(direction)
                lines.append((px, py, nx, ny, width * (0.35 + 0.65 * left / length)))
                px, py, direction, left = nx, ny, direction + bend * 0.017, left - 0.017
    return lines


def _tread(rng: Generator, x: Array, y: Array) -> Array:
    """Return the height of the surface: 0 is the bottom of a groove, 1 the top of a block."""
    # Grooves around the tire.
    rib, groove = rng.uniform(0.26, 0.5), rng.uniform(0.035, 0.085)
    bent = x + rng.uniform(0, 0.03) * _zigzag(y / rng.uniform(0.12, 0.3)) + rng.uniform(0, 1)
    number = np.floor(bent / rib)
    deep = 1 - _rise(np.abs(bent % rib - rib / 2) * -1 + rib / 2, groove / 2, groove / 2 + 0.012)
    # Grooves across it.
    pitch, slant = rng.uniform(0.16, 0.36), rng.uniform(-0.8, 0.8)
    mirrored = np.where(number % 2 == 0, 1, rng.choice((-1, 1)))
    along = y + slant * (bent % rib) * mirrored + number * rng.uniform(0, pitch)
    lateral = rng.uniform(0.018, 0.045)
    cross = 1 - _rise(pitch / 2 - np.abs(along % pitch - pitch / 2), lateral / 2, lateral / 2 + 0.01)
    if rng.random() < 0.3:  # a plain rib in every other place
        cross = cross * (number % 2 == 0)
    # Thin cuts between them.
    sipes = rng.integers(0, 4) + 1
    wave = along + rng.uniform(0, 0.012) * _zigzag(bent / rng.uniform(0.04, 0.08))
    apart = pitch / sipes
    thin = 1 - _rise(apart / 2 - np.abs((wave + apart / 2) % apart - apart / 2), 0.002, 0.007)
    # The deepest counts.
    cut = np.maximum(cross * rng.uniform(0.6, 1), thin * rng.uniform(0, 0.6) * (sipes > 1))
    return np.asarray(1 - np.maximum(deep, cut))


def _sidewall(rng: Generator, x: Array, y: Array, turn: float, zoom: float, shape: tuple[int, int]) -> Array:
    # Coordinates around the hub.
    far = rng.uniform(0.9, 3.0)  # distance to the hub, in short sides
    out, arc = np.hypot(x, y - far) - far, np.arctan2(x, far - y) * far
    # Curvature, ridges, serrations and a seam.
    surface = 0.75 + 0.3 * np.cos(out * rng.uniform(1.5, 5) + rng.uniform(0, 6))
    for _ in range(rng.integers(2, 7)):
        surface += rng.uniform(-0.4, 0.4) * _ridge(out, rng.uniform(-0.7, 0.7), rng.uniform(0.004, 0.03))
    if rng.random() < 0.6:  # a band of serrations
        start = rng.uniform(-0.6, 0.4)
        band = _rise(out, start, start + 0.01) - _rise(out, start + 0.15, start + 0.16)
        surface += 0.15 * band * np.sin(arc * rng.uniform(60, 160))
    if rng.random() < 0.4:  # where two halves of the mould met
        surface += 0.3 * _ridge(arc, rng.uniform(-0.4, 0.4), 0.004)
    # Lettering.
    if rng.random() < 0.75:
        surface += 0.3 * _lettering(rng, far, turn, zoom, shape)
    return np.asarray(np.clip(surface, 0, 1.4))


def _lettering(rng: Generator, far: float, turn: float, zoom: float, shape: tuple[int, int]) -> Array:
    """Return raised letters, filled or in outline, along a circle around the hub."""
    # The text, its size, and where it begins.
    short = min(shape)
    mask = Image.new("L", (shape[1], shape[0]))
    size = rng.uniform(0.07, 0.2)
    font = ImageFont.load_default(size * short)
    text = str(rng.choice(WORDS))
    radius, outline = far + rng.uniform(-0.3, 0.3), rng.random()
    angle = -len(text) * size * 0.3 / far + rng.normal(0, 0.1)
    # Turn each letter to the circle, and paste it.
    for letter in text:
        x, y = radius * np.sin(angle) / zoom, (far - radius * np.cos(angle)) / zoom
        px, py = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
        tile = Image.new("L", (int(size * short * 2),) * 2)
        middle = size * short
        if outline < 0.5:
            ImageDraw.Draw(tile).text(
                (middle, middle), letter, 0, font, "mm", stroke_width=max(1, short // 150), stroke_fill=255
            )
        else:
            ImageDraw.Draw(tile).text((middle, middle), letter, 255, font, "mm")
        tile = tile.rotate(-np.degrees(angle + turn), Image.Resampling.BILINEAR)
        corner = (int(px * short + shape[1] / 2 - middle), int(py * short + shape[0] / 2 - middle))
        layer = Image.new("L", mask.size)
        layer.paste(tile, corner)
        mask = ImageChops.lighter(mask, layer)
        angle += font.getlength(letter) / short * 1.12 / radius + 0.004
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(short / 400)), dtype=np.float32) / 255


def _stones(rng: Generator, height: Array, albedo: Array) -> None:
    """Add small stones and chips, as bumps of their own brightness."""
    rows, columns = height.shape
    short = min(rows, columns)
    for _ in range(rng.poisson(5)):
        radius = rng.uniform(0.006, 0.022) * short
        cy, cx = rng.uniform(0, rows), rng.uniform(0, columns)
        top, left = max(0, int(cy - 2 * radius)), max(0, int(cx - 2 * radius))
        window = np.s_[top : min(rows, int(cy + 2 * radius) + 1), left : min(columns, int(cx + 2 * radius) + 1)]
        yy, xx = np.mgrid[window]
        away = np.hypot(yy - cy, (xx - cx) * rng.uniform(0.6, 1.5)) / radius
        inside = 1 - _rise(away.astype(np.float32), 0.75, 1.05)
        height[window] = height[window] * (1 - inside) + inside * (1 - 0.3 * away**2)
        albedo[window] *= 1 + inside * rng.uniform(-0.5, 1.2)


def picture(rng: Generator, cracked: bool) -> Image.Image:
    """Draw one picture. `cracked` only decides between cracks and, in most other pictures, more smooth lines."""
    # The size, and coordinates that are turned and zoomed.
    side = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    shape = tuple(int(np.clip(side * f, SMALLEST, LARGEST)) for f in (1, np.exp(rng.normal(0, 0.2))))
    rows, columns = shape if rng.random() < 0.5 else shape[::-1]
    shape, short = (rows, columns), min(shape)
    turn, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2)
    v, u = np.mgrid[:rows, :columns].astype(np.float32)
    u, v = (u - columns / 2) / short, (v - rows / 2) / short
    x, y = zoom * (u * np.cos(turn) + v * np.sin(turn)), zoom * (v * np.cos(turn) - u * np.sin(turn))
    x = x + rng.uniform(0, 0.02) * _noise(rng, shape, 3)
    # The tire itself.
    tread = rng.random() < 0.5
    height = _tread(rng, x, y) if tread else _sidewall(rng, x, y, turn, zoom, shape)
    albedo = np.exp(0.04 * _noise(rng, shape, 4) + 0.03 * _noise(rng, shape, 20) + 0.05 * _noise(rng, shape, 120))
    _stones(rng, height, albedo)

    # Cracks and other lines, carved or pale.
    size, load, depth = (columns / short, rows / short), rng.beta(1.0, 1.4), rng.uniform(0.7, 0.95)
    decoys = rng.uniform(0.2, 0.8) * (rng.random() < 0.4)
    if not cracked:
        decoys += (0.5 + 3 * load) * (rng.random() < 0.6)
    carved = _ink(_strokes(rng, decoys, size), shape) * rng.uniform(0.4, 0.9)
    if cracked:
        carved = np.maximum(carved, _ink(_cracks(rng, load, size), shape))
    pale = _ink(_strokes(rng, rng.uniform(0, 2.5), size), shape) * rng.uniform(0, 0.6)
    # Light it and take the picture.
    grey = _light(rng, height - 0.5 * depth * carved, u, v) * albedo * (0.5 + 0.5 * np.clip(height, 0, 1))
    grey = grey * (1 - depth * carved) + pale * grey.mean() * _rise(height, 0.3, 0.8)
    return _expose(rng, grey, spread=rng.uniform(26, 40) if tread else rng.uniform(20, 34))


def _light(rng: Generator, height: Array, u: Array, v: Array) -> Array:
    """Light the height map: Lambert shading, a gradient across the picture, and a soft highlight."""
    down, right = np.gradient(height)
    light_angle = rng.uniform(0, 2 * np.pi)
    slope = (right * np.cos(light_angle) + down * np.sin(light_angle)) * min(height.shape) * 0.02
    shade = 1 + rng.uniform(0.25, 0.6) * np.tanh(slope)
    gradient_angle = rng.uniform(0, 2 * np.pi)
    shade *= 1 + rng.uniform(0, 0.5) * (u * np.cos(gradient_angle) + v * np.sin(gradient_angle))
    spot = np.exp(-((u - rng.uniform(-0.5, 0.5)) ** 2 + (v - rng.uniform(-0.5, 0.5)) ** 2) / rng.uniform(0.02, 0.25))
    return np.asarray(shade + rng.uniform(0, 0.6) * spot * np.clip(height, 0, 1), dtype=np.float32)


def _expose(rng: Generator, grey: Array, spread: float) -> Image.Image:
    """Add dust, lens and sensor. Mean and spread are set to drawn values, so that neither can tell the class."""
    shape = (grey.shape[0], grey.shape[1])
    grey = (grey - grey.mean()) / grey.std() * spread + rng.uniform(75, 140)
    dust = _rise(_noise(rng, shape, rng.uniform(2, 6)), 0.3, 2.0) * rng.uniform(0, 0.35)
    tint = np.array((1.12, 1.0, 0.82)) * rng.uniform(90, 150)
    cast = 1 + rng.normal(0, 0.025, 3)
    rgb = (grey * (1 - dust))[..., None] * cast + dust[..., None] * tint
    image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.0025) * min(shape)))
    grain = rng.standard_normal((*shape, 1), dtype=np.float32) * rng.uniform(1, 6)
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
