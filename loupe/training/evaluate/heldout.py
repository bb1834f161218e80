"""Which pictures a run held out and which it learnt from, so that its export can be checked and calibrated on them.

    write(run.part / "pictures.json", data, result.held)

{"folder": "/home/me/photos", "training": [["cup/1.jpg", "cup"], …],
"validation": [["cup/7.jpg", "cup", "mug", 0.61, 0.34], …]}: paths as the folder has them, evenly drawn over the
classes; of a held-out picture also what the network answered, how sure, and how familiar it found it (null where that
is not measured). An export must say the same. Calibration pictures are held out, too, and count as validation here.
Names that are no text are kept as JSON escapes them, and are read back as they were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from loupe.training.data.dataset import Dataset
from loupe.training.data.splits import Indices
from loupe.training.evaluate.metrics import Predictions

VALIDATION, TRAINING = 2000, 300  # pictures, at most


def write(path: Path, data: Dataset, held: Predictions) -> None:
    place = {int(row): number for number, row in enumerate(held.rows)}
    rows = _even(held.rows, data, VALIDATION)
    answers = [_answer(data, held, place[row]) for row in rows]
    content = {
        "folder": str(data.root.resolve()),
        "training": _named(data, _even(data.train, data, TRAINING)),
        "validation": [named + answer for named, answer in zip(_named(data, rows), answers, strict=True)],
    }
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _answer(data: Dataset, held: Predictions, number: int) -> list[Any]:
    probabilities = held.probabilities[number]
    familiarity = None if held.familiarity is None else round(float(held.familiarity[number]), 4)
    return [data.labels[int(probabilities.argmax())], round(float(probabilities.max()), 6), familiarity]


def _even(rows: Indices, data: Dataset, most: int) -> list[int]:
    """One of each class in turn, until there are no more or enough: whatever is cut off the end, the rest is even."""
    mixed = np.random.default_rng(0).permutation(rows)
    turn = np.zeros(len(mixed), np.int64)  # how many of its class stand before it
    for number in range(len(data.labels)):
        of_class = data.classes[mixed] == number
        turn[of_class] = np.arange(of_class.sum())
    order = np.lexsort((data.classes[mixed], turn))
    return [int(row) for row in mixed[order][:most]]


def _named(data: Dataset, rows: list[int]) -> list[list[Any]]:
    root = data.root.resolve()
    named: list[list[Any]] = []
    for row in rows:
        path = data.pictures[row].file.path.absolute()
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        named.append([str(inside), data.labels[data.classes[row]]])
    return named
