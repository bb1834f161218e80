"""Decide whether a stage's answers are close enough to the model's own.

    row = compare("session", answers, expected, "float32")
    row.fault                                  # None, or what differs

A picture whose two best labels are within NEAR_TIE may get either of them; every other must keep its label. With many
classes no probability is large, hence NEAR_SHARE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

Advance = Callable[[int], None]  # called with the number of pictures that were done since

NEAR_TIE = 0.02  # of probability, between the two best
NEAR_SHARE = 0.25  # of the best probability; a near-tie must be within this as well
MAX_FAULTS = 2  # faults of a stage that are named; the table's numbers tell the rest
AT_ONCE = 8  # pictures in a batch


@dataclass(frozen=True)
class Bounds:
    largest: float  # difference of a probability, for any picture
    mean: float  # share of probability that moves to other labels, averaged over all pictures
    relabelled: float = 0.0  # share of pictures that may get another label, near-ties not counted
    heatmap: float = 1.0  # mean difference, over the pictures that keep their label
    familiarity: float = 1.0  # difference, for any picture


# float32 differs only by the order of summing. Seen: 1.3e-6 of a probability, 1e-6 of a heat map, 1e-4 of a
# familiarity, which jumps where held-out pictures lie close together.
# bfloat16 keeps 8 bits of a number. Seen on trained networks: 0.015 at most and 0.002 in the mean, 0.016 of a heat map,
# 0.08 of a familiarity. A picture near the border of a sharper network moves more, hence 0.1. A wrong graph is caught
# by the bound of the mean.
# int8 was checked when it was made, by the answers that it turns right and wrong. Here it must only be the same model.
# Seen: 0.14 at most, 0.04 in the mean, 6 of 136 pictures with another label.
BOUNDS = {
    "float32": Bounds(largest=1e-3, mean=5e-4, heatmap=1e-3, familiarity=0.01),
    "bfloat16": Bounds(largest=0.1, mean=0.03, heatmap=0.05, familiarity=0.15),
    "int8": Bounds(largest=1.0, mean=0.15, relabelled=0.1),
}


class Fault(Exception):
    """A stage is wrong. The message follows the stage's name."""


class Unsupported(Exception):
    """OpenVINO cannot compile the network."""


class Skipped(Exception):
    """A stage cannot be run here."""


@dataclass(frozen=True)
class Answers:
    """A stage's answers for all pictures, in their order. ms: the time for one picture."""

    probabilities: Array  # [N, C]
    heatmap: Array | None = None  # [N, h, w]
    familiarity: Array | None = None  # [N]
    ms: float = 0.0
    alone: Array | None = None  # [1, C], of the first picture in a batch of its own


@dataclass(frozen=True)
class Expected:
    """The model's own answers. Heat maps and familiarity are of the first pictures only."""

    probabilities: Array
    heatmap: Array | None = None
    familiarity: Array | None = None


@dataclass(frozen=True)
class Differences:
    """The distance of a stage's answers from the expected ones."""

    relabelled: int  # pictures with another label, near-ties not counted
    near_ties: int  # pictures with another label whose two best were within NEAR_TIE
    largest: float  # of a probability
    mean: float  # as in Bounds


@dataclass(frozen=True)
class Row:
    """A line of the gate's table."""

    stage: str
    pictures: int = 0
    differences: Differences | None = None  # None where there was nothing to compare
    ms: float | None = None
    fault: str | None = None
    note: str = ""  # shown where there is no fault


def compare(stage: str, answers: Answers, expected: Expected, precision: str) -> Row:
    """Compare a stage's answers with the expected ones, within the bounds for `precision`."""
    # Without a number for each class of each picture there is nothing to compare.
    got, model, bounds = answers.probabilities, expected.probabilities, BOUNDS[precision]
    if got.shape != model.shape:
        return Row(stage, len(got), fault=f"gives answers of shape {list(got.shape)}, not {list(model.shape)}")
    if not np.isfinite(got).all():
        lost = int((~np.isfinite(got)).any(axis=1).sum())
        return Row(stage, len(got), fault=f"gives no number (NaN or infinite) for {lost} of {len(got)} pictures")
    # Measure the differences.
    best = np.sort(model, axis=1)
    near_tie = best[:, -1] - best[:, -2] <= np.minimum(NEAR_TIE, NEAR_SHARE * best[:, -1])
    relabelled = got.argmax(axis=1) != model.argmax(axis=1)
    difference = np.abs(got - model)
    differences = Differences(
        int((relabelled & ~near_tie).sum()),
        int((relabelled & near_tie).sum()),
        float(difference.max()),
        float(difference.sum(axis=1).mean() / 2),
    )
    # Collect what exceeds the bounds.
    faults = (
        *_batching_faults(answers, bounds),
        *_probability_faults(differences, len(got), bounds),
        *_heatmap_faults(answers, expected, bounds, ~relabelled),
        *_familiarity_faults(answers, expected, bounds),
    )
    note = "near enough, in int8" if precision == "int8" else "same"
    return Row(stage, len(got), differences, answers.ms, "; ".join(faults[:MAX_FAULTS]) or None, note)


def _probability_faults(differences: Differences, pictures: int, bounds: Bounds) -> Iterator[str]:
    if differences.relabelled > bounds.relabelled * pictures:
        yield f"gives {differences.relabelled} of {pictures} pictures another label"
    if not differences.largest <= bounds.largest:
        yield f"moves a probability by {differences.largest:.2g}, and {bounds.largest:g} is the most"
    if not differences.mean <= bounds.mean:
        yield f"moves {differences.mean:.2g} of a picture's probability in the mean, and {bounds.mean:g} is the most"


def _batching_faults(answers: Answers, bounds: Bounds) -> Iterator[str]:
    if answers.alone is None:
        return
    difference = float(np.abs(answers.alone - answers.probabilities[:1]).max())
    if not difference <= bounds.largest:
        yield f"answers a picture otherwise when others come with it, {difference:.2g} apart"


def _heatmap_faults(answers: Answers, expected: Expected, bounds: Bounds, same_label: Array) -> Iterator[str]:
    heatmap, model = answers.heatmap, expected.heatmap
    if heatmap is None:
        return
    if heatmap.ndim != 3 or len(heatmap) != len(expected.probabilities):
        yield f"gives heat maps of shape {list(heatmap.shape)}, and not a map for each picture"
    elif not (heatmap.min() >= 0 and heatmap.max() <= 1):  # written so that NaN fails too
        yield "gives heat maps with values that are not from 0 to 1"
    elif model is not None and heatmap.shape[1:] != model.shape[1:]:
        yield f"gives heat maps of {list(heatmap.shape[1:])}, not {list(model.shape[1:])}"
    elif model is not None and same_label[: len(model)].any():
        difference = float(np.abs(heatmap[: len(model)] - model)[same_label[: len(model)]].mean())
        if not difference <= bounds.heatmap:
            yield f"moves heat maps by {difference:.2g} in the mean, and {bounds.heatmap:g} is the most"


def _familiarity_faults(answers: Answers, expected: Expected, bounds: Bounds) -> Iterator[str]:
    got, model = answers.familiarity, expected.familiarity
    if got is None or model is None:
        return
    if got.shape != (len(expected.probabilities),):
        yield f"gives familiarity of shape {list(got.shape)}, and not a number for each picture"
        return
    if not (got.min() >= 0 and got.max() <= 1):  # written so that NaN fails too
        yield "gives a familiarity that is not from 0 to 1"
    difference = float(np.abs(got[: len(model)] - model).max())
    if not difference <= bounds.familiarity:
        yield f"moves a familiarity by {difference:.2g}, and {bounds.familiarity:g} is the most"
