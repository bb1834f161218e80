"""Pictures that tell what the model is like: its worst mistakes, its doubts, and what augmentation makes of some.

cases(story, judged)["mistakes"], sheet(story)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loupe.training.evaluate.metrics import Judged
from loupe.training.report import thumbnails
from loupe.training.report.story import Facts, Story
from loupe.training.report.text import relative
from loupe.training.report.thumbnails import Shown

CASES = 24  # mistakes shown, and as many uncertain pictures
SHEET_SIDE = 128  # px
SHEET_ROWS, SHEET_VIEWS = 8, 10


@dataclass(frozen=True)
class Case:
    """One picture and what the model made of it."""

    path: str
    shown: Shown
    heat: str
    guess: str
    confidence: float
    right: bool
    other: str  # the truth, or the second best where the best is the truth
    instead: float  # the confidence that the other got


def cases(story: Story, judged: Judged) -> Facts:
    confidence = judged.confidence
    wrong = np.flatnonzero(~judged.right)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:CASES]
    doubtful = np.setdiff1d(np.argsort(confidence, kind="stable")[: CASES * 2], mistakes)
    doubtful = doubtful[np.argsort(confidence[doubtful], kind="stable")][:CASES]
    places = [*mistakes, *doubtful]
    shown = _looked_at(story, judged, places)
    return {
        "mistakes": shown[: len(mistakes)], "more": len(wrong) - len(mistakes), "doubtful": shown[len(mistakes) :],
        "heat": any(case.heat for case in shown),
    }  # fmt: skip


def _looked_at(story: Story, judged: Judged, places: Sequence[Any]) -> list[Case]:
    data, rows = story.dataset, [int(judged.rows[place]) for place in places]
    small = thumbnails.thumbnails(data.pictures[row].file.path for row in rows)
    heat = story.heat(np.stack([data.pixels[row] for row in rows])) if story.heat and rows else [()] * len(rows)
    found = []
    for place, row, warm in zip(places, rows, heat, strict=True):
        path = data.pictures[row].file.path
        probabilities = judged.probabilities[place].clip(1e-9, 1 - 1e-9)  # nothing is certain but for rounding
        guess, truth = judged.guess[place], judged.truth[place]
        right = bool(guess == truth)
        other = np.argsort(-probabilities, kind="stable")[1] if right else truth
        found.append(
            Case(
                relative(path, data.root),
                small[path] or thumbnails.of_pixels(data.pixels[row]),
                thumbnails.overlay(warm) if len(warm) else "",
                data.labels[guess],
                float(probabilities[guess]),
                right,
                data.labels[other],
                float(probabilities[other]),
            )
        )
    return found


def sheet(story: Story) -> list[list[Shown]]:
    if story.augmented is None:
        return []
    views = story.augmented[:SHEET_ROWS, :SHEET_VIEWS]
    return [[thumbnails.of_pixels(view, SHEET_SIDE) for view in row] for row in views]
