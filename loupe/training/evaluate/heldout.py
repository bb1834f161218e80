"""Write which pictures a run held out and which it learnt from: its export is checked and quantised on them.

    write(run.staging / "pictures.json", data, result.heldout)

{"folder": "/home/me/photos", "training": [["cup/1.jpg", "cup"], …],
"validation": [["cup/7.jpg", "cup", "mug", 0.61, 0.34], …]}: paths are relative to the folder, evenly drawn over the
classes. A held-out picture also has the network's answer, its confidence and its familiarity (null if not measured). An
export must answer the same. Calibration pictures are held out, too, and count as validation here. Names that are not
valid text are stored as JSON escapes them, and are read back unchanged.
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


def write(path: Path, data: Dataset, heldout: Predictions) -> None:
    position = {int(row): number for number, row in enumerate(heldout.rows)}
    rows = _even(heldout.rows, data, VALIDATION)
    answers = [_answer(data, heldout, position[row]) for row in rows]
    content = {
        "folder": str(data.root.resolve()),
        "training": _named(data, _even(data.train, data, TRAINING)),
        "validation": [named + answer for named, answer in zip(_named(data, rows), answers, strict=True)],
    }
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _answer(data: Dataset, heldout: Predictions, number: int) -> list[Any]:
    probabilities = heldout.probabilities[number]
    familiarity = None if heldout.familiarity is None else round(float(heldout.familiarity[number]), 4)
    return [data.labels[int(probabilities.argmax())], round(float(probabilities.max()), 6), familiarity]


def _even(rows: Indices, data: Dataset, limit: int) -> list[int]:
    """Return at most `limit` rows, one of each class in turn, so that they stay even wherever the list is cut off."""
    shuffled = np.random.default_rng(0).permutation(rows)
    rank = np.zeros(len(shuffled), np.int64)  # how many of the same class come before
    for number in range(len(data.labels)):
        of_class = data.classes[shuffled] == number
        rank[of_class] = np.arange(of_class.sum())
    order = np.lexsort((data.classes[shuffled], rank))
    return [int(row) for row in shuffled[order][:limit]]


def _named(data: Dataset, rows: list[int]) -> list[list[Any]]:
    root = data.root.resolve()
    named: list[list[Any]] = []
    for row in rows:
        path = data.pictures[row].file.path.absolute()
        relative = path.relative_to(root) if path.is_relative_to(root) else path
        named.append([str(relative), data.labels[data.classes[row]]])
    return named
