"""How far a stage's answers may lie from the model's own, and whether they do.

    row = judged("session", answers, wanted, "float32")
    row.fault                                  # None, or what differs

A picture whose two best labels are within NEAR_TIE may get either of them; every other must keep its label. Of many
classes no probability is large, hence NEAR_SHARE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

Step = Callable[[int], None]  # told how many pictures more are done

NEAR_TIE = 0.02  # of probability, between the two best
NEAR_SHARE = 0.25  # of the best one, that it must lie within besides
SAID = 2  # faults of a stage that are put into words; its numbers tell the rest
AT_ONCE = 8  # pictures that a stage is asked about


@dataclass(frozen=True)
class Bounds:
    largest: float  # step of a probability, of any picture
    mean: float  # share of its probability that a picture moves to other labels, over all pictures
    turned: float = 0.0  # share of pictures that may get another label, near-ties not counted
    heatmap: float = 1.0  # mean step, of the pictures that keep their label
    familiarity: float = 1.0  # step, of any picture


# float32 differs by the order of adding up alone. Seen: 1.3e-6 of a probability, 1e-6 of a heat map, 1e-4 of a
# familiarity, which steps where held-out pictures lie close together.
# bfloat16 keeps 8 bits of a number. Seen on trained networks: 0.015 at most and 0.002 in the mean, 0.016 of a heat map,
# 0.08 of a familiarity. A picture near the border of a sharper network moves more, hence the distance to 0.1; the mean
# is what a wrong graph cannot keep to.
# int8 was weighed when it was made, by the answers it turns right and wrong; here it must only be the same model. Seen:
# 0.14 at most, 0.04 in the mean, 6 of 136 pictures with another label.
BOUNDS = {
    "float32": Bounds(largest=1e-3, mean=5e-4, heatmap=1e-3, familiarity=0.01),
    "bfloat16": Bounds(largest=0.1, mean=0.03, heatmap=0.05, familiarity=0.15),
    "int8": Bounds(largest=1.0, mean=0.15, turned=0.1),
}


class Fault(Exception):
    """What is wrong with a stage, in words that follow its name."""


class NotTaken(Exception):
    """Why OpenVINO cannot compile it."""


class Skipped(Exception):
    """Why a stage cannot be gone through here."""


@dataclass(frozen=True)
class Answers:
    """Of all pictures, in their order; ms: the time that one took."""

    probabilities: Array  # [N, C]
    heatmap: Array | None = None  # [N, h, w]
    familiarity: Array | None = None  # [N]
    ms: float = 0.0
    alone: Array | None = None  # [1, C], of the first picture where no other came with it


@dataclass(frozen=True)
class Wanted:
    """What the model itself says. Heat maps and familiarity are known of the first pictures alone."""

    probabilities: Array
    heatmap: Array | None = None
    familiarity: Array | None = None


@dataclass(frozen=True)
class Steps:
    """How far answers lie from what was wanted."""

    turned: int  # pictures with another label, near-ties not counted
    near_ties: int  # pictures with another label, the two best of which were within NEAR_TIE
    largest: float  # of a probability
    mean: float  # as in Bounds


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    stage: str
    pictures: int = 0
    steps: Steps | None = None  # None where there was nothing to compare
    ms: float | None = None
    fault: str | None = None
    note: str = ""  # said where there is no fault


def judged(stage: str, answers: Answers, wanted: Wanted, precision: str) -> Row:
    found, true, bounds = answers.probabilities, wanted.probabilities, BOUNDS[precision]
    if found.shape != true.shape:
        return Row(stage, len(found), fault=f"gives answers of shape {list(found.shape)}, not {list(true.shape)}")
    if not np.isfinite(found).all():
        lost = int((~np.isfinite(found)).any(axis=1).sum())
        return Row(stage, len(found), fault=f"gives no number (NaN or infinite) for {lost} of {len(found)} pictures")
    best = np.sort(true, axis=1)
    near = best[:, -1] - best[:, -2] <= np.minimum(NEAR_TIE, NEAR_SHARE * best[:, -1])
    other = found.argmax(axis=1) != true.argmax(axis=1)
    apart = np.abs(found - true)
    steps = Steps(
        int((other & ~near).sum()), int((other & near).sum()), float(apart.max()), float(apart.sum(axis=1).mean() / 2)
    )
    faults = (
        *_company_faults(answers, bounds),
        *_faults(steps, len(found), bounds),
        *_heat_faults(answers, wanted, bounds, ~other),
        *_near_faults(answers, wanted, bounds),
    )
    note = "near enough, in int8" if precision == "int8" else "same"
    return Row(stage, len(found), steps, answers.ms, "; ".join(faults[:SAID]) or None, note)


def _faults(steps: Steps, pictures: int, bounds: Bounds) -> Iterator[str]:
    if steps.turned > bounds.turned * pictures:
        yield f"gives {steps.turned} of {pictures} pictures another label"
    if not steps.largest <= bounds.largest:
        yield f"moves a probability by {steps.largest:.2g}, and {bounds.largest:g} is the most"
    if not steps.mean <= bounds.mean:
        yield f"moves {steps.mean:.2g} of a picture's probability in the mean, and {bounds.mean:g} is the most"


def _company_faults(answers: Answers, bounds: Bounds) -> Iterator[str]:
    if answers.alone is None:
        return
    apart = float(np.abs(answers.alone - answers.probabilities[:1]).max())
    if not apart <= bounds.largest:
        yield f"answers a picture otherwise when others come with it, {apart:.2g} apart"


def _heat_faults(answers: Answers, wanted: Wanted, bounds: Bounds, same: Array) -> Iterator[str]:
    heat, true = answers.heatmap, wanted.heatmap
    if heat is None:
        return
    if heat.ndim != 3 or len(heat) != len(wanted.probabilities):
        yield f"gives heat maps of shape {list(heat.shape)}, and not a map for each picture"
    elif not (heat.min() >= 0 and heat.max() <= 1):  # so that NaN is caught, too
        yield "gives heat maps with values that are not from 0 to 1"
    elif true is not None and heat.shape[1:] != true.shape[1:]:
        yield f"gives heat maps of {list(heat.shape[1:])}, not {list(true.shape[1:])}"
    elif true is not None and same[: len(true)].any():
        apart = float(np.abs(heat[: len(true)] - true)[same[: len(true)]].mean())
        if not apart <= bounds.heatmap:
            yield f"moves heat maps by {apart:.2g} in the mean, and {bounds.heatmap:g} is the most"


def _near_faults(answers: Answers, wanted: Wanted, bounds: Bounds) -> Iterator[str]:
    found, true = answers.familiarity, wanted.familiarity
    if found is None or true is None:
        return
    if found.shape != (len(wanted.probabilities),):
        yield f"gives familiarity of shape {list(found.shape)}, and not a number for each picture"
        return
    if not (found.min() >= 0 and found.max() <= 1):  # so that NaN is caught, too
        yield "gives a familiarity that is not from 0 to 1"
    apart = float(np.abs(found[: len(true)] - true).max())
    if not apart <= bounds.familiarity:
        yield f"moves a familiarity by {apart:.2g}, and {bounds.familiarity:g} is the most"
