"""Each recipe's problem in miniature, in its own layout, with a dozen drawn pictures a class.

    problem = problems.MAKE["kitchenware"](tmp_path)
    problem.data, problem.labels

A class is a shape in a colour on any ground, so it can be learnt. No two pictures are the same, unless a docstring
says so.
"""

from __future__ import annotations

import colorsys
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from data.fetch import CARS, FOOD

KITCHEN = ("cup", "fork", "glass", "knife", "plate", "spoon")
FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


@dataclass(frozen=True)
class Problem:
    data: Path
    labels: tuple[str, ...]
    predicted: list[str] = field(default_factory=list)  # ids that the submission must have, in order


def tires(folder: Path) -> Problem:
    data, labels = folder / "Tire Textures", ("cracked", "normal")
    for split, count in (("training_data", 14), ("testing_data", 6)):
        for label in labels:
            _draw_class(data / split / label, labels.index(label), range(count), f"{label.title()}-{{}}.jpg", split)
    return Problem(data, labels)


def cars(folder: Path) -> Problem:
    for split, count in (("train", 10), ("validation", 4)):
        for number, label in enumerate(CARS):
            _draw_class(folder / "cars" / split / label, number, range(count), split + "-{:05}.jpg", split)
    return Problem(folder / "cars", tuple(sorted(CARS)))


def food(folder: Path) -> Problem:
    for number, label in enumerate(FOOD):
        _draw_class(folder / "food" / label, number, range(12), "{}.jpg")
    return Problem(folder / "food", FOOD)


def kitchenware(folder: Path) -> Problem:
    """Draw pictures with zero-padded ids in any order: two are there twice, one row has no file, nine pictures have no
    label."""
    data, rng = folder / "kitchenware", random.Random(0)
    ids = [f"{number:04}" for number in range(6 * 12 + 9)]
    rng.shuffle(ids)
    known, unknown = ids[:72], ids[72:]
    rows = [(name, KITCHEN[number % 6]) for number, name in enumerate(known)]
    for number, (name, _) in enumerate([*rows, *((name, "") for name in unknown)]):
        _draw(data / "images" / f"{name}.jpg", number % 6, name)
    for (name, label), twin in zip(rows[:2], ("0900", "0901"), strict=True):
        shutil.copy(data / "images" / f"{name}.jpg", data / "images" / f"{twin}.jpg")
        rows.append((twin, label))
    rows.append(("0999", "cup"))  # no such file
    (data / "train.csv").write_text("\n".join(["Id,label", *(f"{name},{label}" for name, label in rows)]) + "\n")
    (data / "test.csv").write_text("\n".join(["Id", *unknown]) + "\n")
    sample = ["Id,label", *(f"{name},{KITCHEN[0]}" for name in unknown)]
    (data / "sample_submission.csv").write_text("\n".join(sample) + "\n")
    return Problem(data, KITCHEN, unknown)


def flowers(folder: Path) -> Problem:
    data = folder / "flower_photos"
    for number, label in enumerate(FLOWERS):
        _draw_class(data / label, number, range(12), "10{:08}_abc_n.jpg")
    (data / "LICENSE.txt").write_text("All images in this archive are licensed under …\n")
    return Problem(data, FLOWERS)


MAKE: dict[str, Callable[[Path], Problem]] = {
    "tires": tires,
    "tires-cnn": tires,
    "cars": cars,
    "food": food,
    "food-resnet50": food,
    "kitchenware": kitchenware,
    "flowers": flowers,
}


def _draw_class(folder: Path, shape: int, numbers: range, name: str, seed: str = "") -> None:
    for number in numbers:
        _draw(folder / name.format(number), shape, f"{seed}{number}")


def _draw(path: Path, shape: int, seed: str) -> None:
    # A gradient with speckles as the ground.
    rng = random.Random(f"{shape} {seed}")
    width, height = rng.randint(100, 180), rng.randint(100, 180)
    image = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((width, height)).convert("RGB")
    pen = ImageDraw.Draw(image)
    for _ in range(40):  # speckles, so that no two are nearly the same
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(1, 6)
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=_colour(rng.random(), 0.2, rng.uniform(0.2, 1))
        )
    # The shape of the class.
    x, y, radius = (
        rng.uniform(0.4, 0.6) * width,
        rng.uniform(0.4, 0.6) * height,
        rng.uniform(0.25, 0.35) * min(width, height),
    )
    corners, turn = 3 + shape % 5, rng.uniform(0, math.tau)
    points = [
        (
            x + radius * math.cos(turn + corner * math.tau / corners),
            y + radius * math.sin(turn + corner * math.tau / corners),
        )
        for corner in range(corners)
    ]
    pen.polygon(points, fill=_colour(shape * 0.381966 + rng.uniform(-0.02, 0.02), 0.9, rng.uniform(0.7, 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * share) for share in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue
