"""Compare the head before the corrections with the new one, on the pictures that measure.

comparison = compare(run.folder, pipeline, result)       # before the run's folder is replaced
print(comparison.lines())
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from scipy.stats import binomtest

from loupe.training.evaluate.evaluate import Result
from loupe.training.network.backbones import cut
from loupe.training.pipeline import Pipeline

NOISE = 0.05  # a difference that chance makes less often than that is none of chance


@dataclass(frozen=True)
class Comparison:
    """The head before the corrections and the new one, on the same pictures."""

    split: str
    count: int
    before: int  # right answers
    after: int
    gained: int  # pictures that only the new head gets right
    lost: int  # pictures that only the head before got right

    @property
    def is_worse(self) -> bool:
        """True if it lost more pictures than chance explains, were both heads equally good (a sign test)."""
        if self.lost <= self.gained:
            return False
        return bool(binomtest(self.lost, self.lost + self.gained, alternative="greater").pvalue < NOISE)

    def lines(self) -> str:
        change = f"{self.before / self.count:.1%} → {self.after / self.count:.1%}"
        lines = [
            f"before → after     {change} of the same {self.count:,} {self.split} pictures",
            f"                   {self.gained:,} more are right, {self.lost:,} no longer",
        ]
        if self.is_worse:
            lines += [
                "worse              than before, and by more than chance explains: look at what was accepted, and",
                "                   at the labels of these pictures; `convert.py --rollback` takes a version back",
            ]
        return "\n".join(lines)


def compare(base: Path, pipeline: Pipeline, result: Result) -> Comparison:
    """Compare on the measured pictures. Both heads get the same features, because the backbone is the same."""
    rows = result.predictions.rows
    truth = pipeline.data.classes[rows]
    _, head = cut(keras.saving.load_model(base / "model.keras", compile=False), 0)
    features = np.asarray(pipeline.features[rows], np.float32)
    was_right = np.asarray(head(features, training=False)).argmax(axis=1) == truth
    is_right = result.predictions.logits.argmax(axis=1) == truth
    return Comparison(
        result.split, len(rows), int(was_right.sum()), int(is_right.sum()),
        int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum()),
    )  # fmt: skip
