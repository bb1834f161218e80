"""Which pictures a run held out and which it learnt from, so that its export can be checked and calibrated on them.

    write(run.part / "pictures.json", data)

{"folder": "/home/me/photos", "validation": [["cup/1.jpg", "cup"], …], "training": […]}: paths as the folder has them,
evenly drawn over the classes. Calibration pictures are held out, too, and count as validation here. Names that are no
text are kept as JSON escapes them, and are read back as they were.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from loupe.training.dataset import Dataset
from loupe.training.splits import Indices

VALIDATION, TRAINING = 2000, 300  # pictures, at most


def write(path: Path, data: Dataset) -> None:
    held_out = np.concatenate([data.validation, data.calibration])
    content = {
        "folder": str(data.root.resolve()),
        "validation": _named(data, _even(held_out, data, VALIDATION)),
        "training": _named(data, _even(data.train, data, TRAINING)),
    }
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _even(rows: Indices, data: Dataset, most: int) -> list[int]:
    """One of each class in turn, until there are no more or enough: whatever is cut off the end, the rest is even."""
    mixed = np.random.default_rng(0).permutation(rows)
    turn = np.zeros(len(mixed), np.int64)  # how many of its class stand before it
    for number in range(len(data.labels)):
        of_class = data.classes[mixed] == number
        turn[of_class] = np.arange(of_class.sum())
    order = np.lexsort((data.classes[mixed], turn))
    return [int(row) for row in mixed[order][:most]]


def _named(data: Dataset, rows: list[int]) -> list[list[str]]:
    root = data.root.resolve()
    named = []
    for row in rows:
        path = data.pictures[row].file.path.absolute()
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        named.append([str(inside), data.labels[data.classes[row]]])
    return named
