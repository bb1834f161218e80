"""Compare the model and its card with what training noted: the gate's first stage.

    row = compare_with_notes(card, pictures, probabilities, familiarity)

Training notes its answer for each held-out picture (pictures.json); model, temperature, labels and familiarity must
give the same now. Without such notes, labelled pictures at least tell whether the labels can be right.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from loupe.card import Card
from loupe.export.parity.tolerance import Array, Row
from loupe.export.replay_pictures import Picture

STAGE = "training"
# Training may compute in half precision, or from features stored in it.
NEAR_TIE = 0.1  # between the two best: such a picture may get either label
CONFIDENCE, MEAN = 0.2, 0.03  # difference of a confidence: for any picture, and in the mean
FAMILIARITY = 0.1  # difference, in the mean

FEW = 20  # labelled pictures, too few to tell much
LEAST_GAIN = 0.3  # share of all pictures that another order of the labels must set right to be reported
STANDARD_ERRORS, POINTS = 4, 0.05  # how far the accuracy may be below the card's


def compare_with_notes(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, familiarity: Array | None
) -> Row:
    noted = [row for row, picture in enumerate(pictures) if picture.noted]
    labelled = [row for row, picture in enumerate(pictures) if picture.label in card.labels]
    accuracy_text = _accuracy_text(card, pictures, probabilities, labelled) if labelled else ""
    if noted:
        fault = _contradiction(card, pictures, probabilities, familiarity, noted)
        return Row(STAGE, len(noted), fault=fault, note="; ".join(filter(None, ("as training noted", accuracy_text))))
    if not labelled:
        return Row(STAGE, note="skipped: no labels are known")
    few = "; too few pictures to tell much" if len(labelled) < FEW else ""
    return Row(
        STAGE,
        len(labelled),
        fault=_implausible(card, pictures, probabilities, labelled, accuracy_text),
        note=accuracy_text + few,
    )


def _contradiction(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, familiarity: Array | None, noted: list[int]
) -> str | None:
    """Return how the model contradicts training's notes, None if it does not."""
    # Compare each picture's label, confidence and familiarity.
    relabelled, differences, shifts = 0, [], []
    for row in noted:
        note = pictures[row].noted
        assert note
        best, second = np.sort(probabilities[row])[[-1, -2]]
        if card.labels[int(probabilities[row].argmax())] == note.label:
            differences.append(abs(best - note.confidence))
        else:
            relabelled += best - second > NEAR_TIE
        if familiarity is not None and note.familiarity is not None and row < len(familiarity):
            shifts.append(abs(familiarity[row] - note.familiarity))
    # Report the gravest difference.
    if relabelled:
        return (
            f"gives {relabelled} of {len(noted)} pictures another label than training noted: is this card of this "
            "model?"
        )
    if differences and (max(differences) > CONFIDENCE or np.mean(differences) > MEAN):
        return (
            f"is up to {max(differences):.2g} more or less sure than training noted: is the card's temperature its own?"
        )
    if shifts and np.mean(shifts) > FAMILIARITY:
        return (
            f"finds pictures {np.mean(shifts):.2g} more or less familiar than training noted: is familiarity.npz its "
            "own?"
        )
    return None


def _accuracy(card: Card, truth: Array, right: Array) -> float:
    """Return the share of right answers, or the share weighted by the class sizes in training, whichever is larger. The
    pictures are drawn evenly, and a card's accuracy is not; either may be the fairer."""
    class_sizes, counts = card.training.get("images", {}), Counter(truth.tolist())
    weights = np.array(
        [class_sizes.get(card.labels[number], 0) / counts[number] for number in truth.tolist()], np.float64
    )
    return float(max(right.mean(), (right * weights).sum() / weights.sum() if weights.sum() else 0.0))


def _answers(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, labelled: list[int]
) -> tuple[Array, Array]:
    truth = np.array([card.labels.index(str(pictures[row].label)) for row in labelled])
    return truth, probabilities[labelled].argmax(axis=1)


def _accuracy_text(card: Card, pictures: tuple[Picture, ...], probabilities: Array, labelled: list[int]) -> str:
    truth, answered = _answers(card, pictures, probabilities, labelled)
    card_accuracy = card.metrics.get("accuracy")
    return f"right on {_accuracy(card, truth, answered == truth):.1%}" + (
        "" if card_accuracy is None else f"; its card says {card_accuracy:.1%}"
    )


def _implausible(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, labelled: list[int], accuracy_text: str
) -> str | None:
    """Return why these labels or these pixels cannot be the model's, None if they can."""
    truth, answered = _answers(card, pictures, probabilities, labelled)
    count, card_accuracy = len(labelled), card.metrics.get("accuracy")
    if count >= FEW and (order := _better_order(truth, answered, card)):
        return f"is {accuracy_text}, and would be on far more with the labels {order}"
    if card_accuracy is not None:
        likely = (card_accuracy * count + 2) / (count + 4)  # so that a card that says 1.0 allows for chance as well
        standard_error = np.sqrt(likely * (1 - likely) * (1 / count + 1 / max(1, card.metrics.get("images", count))))
        least = card_accuracy - STANDARD_ERRORS * standard_error - POINTS
    else:  # it must be better than one answer for all
        least = max(Counter(truth.tolist()).values()) / count + 1e-9 if count >= FEW else 0.0
    if _accuracy(card, truth, answered == truth) >= least:
        return None
    return f"is {accuracy_text}: these labels or these pixels are not this model's"


def _better_order(truth: Array, answered: Array, card: Card) -> str | None:
    """Return the labels in the order that fits the answers best, if it fits far better than the card's."""
    from scipy.optimize import linear_sum_assignment  # imported here since it takes half a second

    counts = np.zeros((len(card.labels),) * 2)
    np.add.at(counts, (answered, truth), 1)
    _, order = linear_sum_assignment(-counts)
    best, now = counts[np.arange(len(order)), order].sum() / len(truth), counts.trace() / len(truth)
    if best - now < LEAST_GAIN or best < 0.5:
        return None
    moved = [f"{card.labels[order[n]]} for {label}" for n, label in enumerate(card.labels) if order[n] != n]
    return f"in another order: {', '.join(moved[:6])}{' …' * (len(moved) > 6)}"
