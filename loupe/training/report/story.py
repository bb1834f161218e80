"""All that a report tells of a run, gathered before a line of it is written.

Story(name="tires", dataset=data, predictions=predictions, …)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from markupsafe import Markup

from loupe.training.data.dataset import Dataset
from loupe.training.data.doctor import Findings
from loupe.training.evaluate.calibrate import Calibration
from loupe.training.evaluate.metrics import Predictions
from loupe.training.report import text

Facts = dict[str, Any]  # what a thing is called → a number, a text, yes or no


@dataclass(frozen=True)
class Story:
    """All that a report tells."""

    name: str
    dataset: Dataset
    predictions: Predictions
    split: str  # that was measured: "test", or "validation" where there is none
    model: Facts  # "backbone", "weights", "parameters", "trainable", whatever else describes it
    history: list[Facts]  # an epoch a row: stage, loss, accuracy, val_loss, val_accuracy; more is welcome
    seconds: dict[str, float]  # by stage, in order
    command: str  # that makes this run again
    settings: Facts
    hardware: Facts
    versions: Facts
    data: Facts = field(default_factory=dict)  # such as the folder and the fingerprint
    calibration: Calibration | None = None
    findings: Findings | None = None
    label_errors: list[tuple[int, int, float]] = field(default_factory=list)  # row, likelier class, how sure
    heat: Callable[[Any], Any] | None = None  # uint8 [n, H, W, 3] → [n, h, w] of 0…1
    augmented: Any = None  # [k, views, H, W, 3] of 0…255; the first view of each is the picture as it is
    trials: list[Facts] = field(default_factory=list)  # as tune.Best.trials has them
    notes: list[str] = field(default_factory=list)  # what a person should know of the run: cut short, resumed, …
    finished: datetime = field(default_factory=lambda: datetime.now(UTC))
    total: float | None = None  # seconds that the whole training took until now, where more than its stages is known

    @property
    def took(self) -> float:
        return sum(self.seconds.values()) if self.total is None else self.total

    def named(self, label: str) -> Markup:
        """A class as sentences, tables and cards call it."""
        return text.named(label, self._names.get(label) or text.shortened(label, text.LINE))

    @cached_property
    def _names(self) -> dict[str, str]:
        return dict(zip(self.dataset.labels, text.told_apart(self.dataset.labels, text.LINE), strict=True))
