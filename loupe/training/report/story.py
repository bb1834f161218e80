"""Everything that a report needs to know about a run.

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

Facts = dict[str, Any]  # name → a number, a text, yes or no


@dataclass(frozen=True)
class Story:
    """The input of a report."""

    name: str
    dataset: Dataset
    predictions: Predictions
    split: str  # the one that was measured: "test", or "validation" if there is none
    model: Facts  # "backbone", "weights", "parameters", "trainable", whatever else describes it
    history: list[Facts]  # a row for each epoch: stage, loss, accuracy, val_loss, val_accuracy and more
    seconds: dict[str, float]  # by stage, in order
    command: str  # that repeats this run
    settings: Facts
    hardware: Facts
    versions: Facts
    data: Facts = field(default_factory=dict)  # such as the folder and the fingerprint
    calibration: Calibration | None = None
    findings: Findings | None = None
    label_errors: list[tuple[int, int, float]] = field(default_factory=list)  # row, likelier class, chance
    doubted: list[tuple[int, int]] = field(default_factory=list)  # row, likelier class; where no label looks wrong
    heat: Callable[[Any], Any] | None = None  # uint8 [n, H, W, 3] → [n, h, w] of 0…1
    augmented: Any = None  # [k, views, H, W, 3] of 0…255; the first view of each is the picture as it is
    trials: list[Facts] = field(default_factory=list)  # as tune.Best.trials has them
    notes: list[str] = field(default_factory=list)  # for people: cut short, resumed, …
    finished: datetime = field(default_factory=lambda: datetime.now(UTC))
    total: float | None = None  # seconds of the whole training so far, if known; else the stages' sum

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values()) if self.total is None else self.total

    def label_html(self, label: str) -> Markup:
        """Return a class's name for sentences, tables and cards."""
        return text.label_html(label, self._short_names.get(label) or text.shortened(label, text.LINE))

    @cached_property
    def _short_names(self) -> dict[str, str]:
        return dict(zip(self.dataset.labels, text.distinct_names(self.dataset.labels, text.LINE), strict=True))
