"""Pictures that show how the model answers: its worst mistakes, its doubts, and augmented views.

cases(story, evaluation)["mistakes"], sheet(story)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loupe.training.evaluate.metrics import Evaluation
from loupe.training.report import thumbnails
from loupe.training.report.story import Facts, Story
from loupe.training.report.text import relative_path
from loupe.training.report.thumbnails import Thumbnail

CASES = 24  # mistakes shown, and as many uncertain pictures
SURE, FEWEST = 0.95, 6  # confidence from which on an answer is not among the uncertain ones, but for the first few
SHEET_SIDE = 128  # px
SHEET_ROWS, SHEET_VIEWS = 8, 10


@dataclass(frozen=True)
class Case:
    """A picture and the model's answer to it."""

    path: str
    thumbnail: Thumbnail
    heat: str
    guess: str
    confidence: float
    right: bool
    other_label: str  # the truth; or the second best guess if the best is right
    other_confidence: float  # confidence in other_label


def cases(story: Story, evaluation: Evaluation) -> Facts:
    """Return the worst mistakes and the least certain answers."""
    # The most confident mistakes, and the least confident of all others.
    confidence = evaluation.confidence
    wrong = np.flatnonzero(~evaluation.right)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:CASES]
    least = np.argsort(confidence, kind="stable")[: CASES * 2]
    doubtful = np.setdiff1d(least[: max(FEWEST, int((confidence < SURE).sum()))], mistakes)
    doubtful = doubtful[np.argsort(confidence[doubtful], kind="stable")][:CASES]
    # Both with thumbnails and heat maps. Of a run's earlier data set pictures may be gone.
    mistakes, doubtful = (
        np.array([position for position in some if story.dataset.has_pixels(int(evaluation.rows[position]))], np.int64)
        for some in (mistakes, doubtful)
    )
    positions = [*mistakes, *doubtful]
    shown = _cases_of(story, evaluation, positions)
    return {
        "mistakes": shown[: len(mistakes)], "more": len(wrong) - len(mistakes), "doubtful": shown[len(mistakes) :],
        "heat": any(case.heat for case in shown),
    }  # fmt: skip


def _cases_of(story: Story, evaluation: Evaluation, positions: Sequence[Any]) -> list[Case]:
    # Thumbnails and heat maps of all at once.
    data, rows = story.dataset, [int(evaluation.rows[position]) for position in positions]
    thumbnails_of = thumbnails.thumbnails(data.pictures[row].file.path for row in rows)
    heatmaps = story.heat(np.stack([data.pixels[row] for row in rows])) if story.heat and rows else [()] * len(rows)
    # A case for each picture.
    result = []
    for position, row, heatmap in zip(positions, rows, heatmaps, strict=True):
        path = data.pictures[row].file.path
        probabilities = evaluation.probabilities[position].clip(1e-9, 1 - 1e-9)  # only rounding makes 0 and 1
        guess, truth = evaluation.guess[position], evaluation.truth[position]
        right = bool(guess == truth)
        other = np.argsort(-probabilities, kind="stable")[1] if right else truth
        result.append(
            Case(
                relative_path(path, data.root),
                thumbnails_of[path] or thumbnails.of_pixels(data.pixels[row]),
                thumbnails.overlay(heatmap) if len(heatmap) else "",
                data.labels[guess],
                float(probabilities[guess]),
                right,
                data.labels[other],
                float(probabilities[other]),
            )
        )
    return result


def sheet(story: Story) -> list[list[Thumbnail]]:
    """Return thumbnails of pictures and their augmented views, a row for each picture."""
    if story.augmented is None:
        return []
    views = story.augmented[:SHEET_ROWS, :SHEET_VIEWS]
    return [[thumbnails.of_pixels(view, SHEET_SIDE) for view in row] for row in views]
