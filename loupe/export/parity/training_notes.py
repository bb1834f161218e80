"""The gate's first stage: does the model, with its card, still say what it said when it was trained?

    row = trained(card, pictures, probabilities, familiarity)

Training notes what it answered for each held-out picture (pictures.json); then model, temperature, labels and
familiarity must give the same now. Without such notes, labelled pictures tell at least whether the labels can be right.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from loupe.card import Card
from loupe.export.parity.tolerance import Array, Row
from loupe.export.replay_pictures import Picture

STAGE = "training"
# Training may compute in half precision, or from features that are kept so.
NEAR_TIE = 0.1  # between the two best: such a picture may have got either label
CONFIDENCE, MEAN = 0.2, 0.03  # step of a confidence: of any picture, and in the mean
FAMILIARITY = 0.1  # step, in the mean

FEW = 20  # labelled pictures, of which little can be told
FAR = 0.3  # of all pictures, that another order of the labels must set right
STANDARD_ERRORS, POINTS = 4, 0.05  # by which the model may be less often right than its card says


def trained(card: Card, pictures: tuple[Picture, ...], probabilities: Array, familiarity: Array | None) -> Row:
    noted = [row for row, picture in enumerate(pictures) if picture.answered]
    labelled = [row for row, picture in enumerate(pictures) if picture.label in card.labels]
    told = _told(card, pictures, probabilities, labelled) if labelled else ""
    if noted:
        fault = _otherwise(card, pictures, probabilities, familiarity, noted)
        return Row(STAGE, len(noted), fault=fault, note="; ".join(filter(None, ("as training noted", told))))
    if not labelled:
        return Row(STAGE, note="skipped: no labels are known")
    few = "; too few pictures to tell much" if len(labelled) < FEW else ""
    return Row(STAGE, len(labelled), fault=_unlikely(card, pictures, probabilities, labelled, told), note=told + few)


def _otherwise(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, familiarity: Array | None, noted: list[int]
) -> str | None:
    """What is not as training noted it."""
    turned, steps, near = 0, [], []
    for row in noted:
        then = pictures[row].answered
        assert then
        best, second = np.sort(probabilities[row])[[-1, -2]]
        if card.labels[int(probabilities[row].argmax())] == then.label:
            steps.append(abs(best - then.confidence))
        else:
            turned += best - second > NEAR_TIE
        if familiarity is not None and then.familiarity is not None and row < len(familiarity):
            near.append(abs(familiarity[row] - then.familiarity))
    if turned:
        return f"gives {turned} of {len(noted)} pictures another label than training noted: is this card of this model?"
    if steps and (max(steps) > CONFIDENCE or np.mean(steps) > MEAN):
        return f"is up to {max(steps):.2g} more or less sure than training noted: is the card's temperature its own?"
    if near and np.mean(near) > FAMILIARITY:
        return (
            f"finds pictures {np.mean(near):.2g} more or less familiar than training noted: is familiarity.npz its own?"
        )
    return None


def _accuracy(card: Card, truth: Array, right: Array) -> float:
    """The share of right answers, or that weighted as the classes were in training: the pictures are drawn evenly, and
    a card's accuracy is not. The better of the two, since either may be the fairer."""
    share, present = card.training.get("images", {}), Counter(truth.tolist())
    weights = np.array([share.get(card.labels[place], 0) / present[place] for place in truth.tolist()], np.float64)
    return float(max(right.mean(), (right * weights).sum() / weights.sum() if weights.sum() else 0.0))


def _answers(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, labelled: list[int]
) -> tuple[Array, Array]:
    truth = np.array([card.labels.index(str(pictures[row].label)) for row in labelled])
    return truth, probabilities[labelled].argmax(axis=1)


def _told(card: Card, pictures: tuple[Picture, ...], probabilities: Array, labelled: list[int]) -> str:
    truth, answered = _answers(card, pictures, probabilities, labelled)
    said = card.metrics.get("accuracy")
    return f"right on {_accuracy(card, truth, answered == truth):.1%}" + (
        "" if said is None else f"; its card says {said:.1%}"
    )


def _unlikely(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, labelled: list[int], told: str
) -> str | None:
    """Why these labels or these pixels cannot be the model's."""
    truth, answered = _answers(card, pictures, probabilities, labelled)
    count, said = len(labelled), card.metrics.get("accuracy")
    if count >= FEW and (order := _better_order(truth, answered, card)):
        return f"is {told}, and would be on far more with the labels {order}"
    if said is not None:
        likely = (said * count + 2) / (count + 4)  # so that a card that says 1.0 allows for chance, too
        scatter = np.sqrt(likely * (1 - likely) * (1 / count + 1 / max(1, card.metrics.get("images", count))))
        least = said - STANDARD_ERRORS * scatter - POINTS
    else:  # better than one answer for all
        least = max(Counter(truth.tolist()).values()) / count + 1e-9 if count >= FEW else 0.0
    if _accuracy(card, truth, answered == truth) >= least:
        return None
    return f"is {told}: these labels or these pixels are not this model's"


def _better_order(truth: Array, answered: Array, card: Card) -> str | None:
    """The labels in the order that fits the answers best, where that is another one by far."""
    from scipy.optimize import linear_sum_assignment  # half a second, and only where labels are known

    counts = np.zeros((len(card.labels),) * 2)
    np.add.at(counts, (answered, truth), 1)
    _, order = linear_sum_assignment(-counts)
    best, now = counts[np.arange(len(order)), order].sum() / len(truth), counts.trace() / len(truth)
    if best - now < FAR or best < 0.5:
        return None
    moved = [f"{card.labels[order[n]]} for {label}" for n, label in enumerate(card.labels) if order[n] != n]
    return f"in another order: {', '.join(moved[:6])}{' …' * (len(moved) > 6)}"
