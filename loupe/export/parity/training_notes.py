"""Compare the model and its card with what training noted: the gate's first stage.

    row = compare_with_notes(card, pictures, probabilities, familiarity)

Training notes its answer for each held-out picture (pictures.json); model, temperature, labels and familiarity must
give the same now. Without such notes, labelled pictures at least tell whether the labels can be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import log, perm

import numpy as np

from loupe.card import Card
from loupe.export.parity.tolerance import Array, Row
from loupe.export.replay_pictures import Picture

STAGE = "training"
# Training may compute in half precision, or from features stored in it.
NEAR_TIE = 0.1  # between the two best: such a picture may get either label
CONFIDENCE, MEAN = 0.2, 0.03  # difference of a confidence: for any picture, and in the mean
FAMILIARITY = 0.1  # difference, in the mean

NO_OTHERS: Mapping[str, Array] = {}

FEW = 20  # labelled pictures, too few to tell much
CHANCE = 0.005  # how often an order may fit a model better by chance alone and be told
NAMED = 20  # labels of an order that are told one by one; of more, only those that move
STANDARD_ERRORS, POINTS = 4, 0.05  # how far the accuracy may be below the card's


def compare_with_notes(
    card: Card,
    pictures: tuple[Picture, ...],
    probabilities: Array,
    familiarity: Array | None,
    rescaled: Mapping[str, Array] = NO_OTHERS,
) -> Row:
    """`rescaled` holds the answers to the first pictures had their pixels been scaled otherwise, by --preprocess."""
    noted = [row for row, picture in enumerate(pictures) if picture.noted]
    labelled = [row for row, picture in enumerate(pictures) if picture.label in card.labels]
    accuracy_text = _accuracy_text(card, pictures, probabilities, labelled) if labelled else ""
    if noted:
        fault = _contradiction(card, pictures, probabilities, familiarity, noted)
        return Row(STAGE, len(noted), fault=fault, note="; ".join(filter(None, ("as training noted", accuracy_text))))
    if not labelled:
        return Row(STAGE, note="skipped: no labels are known")
    if better := _better_scaling(card, pictures, probabilities, rescaled):
        return Row(STAGE, len(labelled), fault=better)
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
    card_accuracy, said = card.metrics.get("accuracy"), f"right on {_accuracy(card, truth, answered == truth):.1%}"
    if card_accuracy is None:
        return said
    count, split = card.metrics.get("images"), card.metrics.get("split", "test")
    return f"{said}; its card says {card_accuracy:.1%}" + (f" of {count} {split} pictures" if count else "")


def _implausible(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, labelled: list[int], accuracy_text: str
) -> str | None:
    """Return why these labels or these pixels cannot be the model's, None if they can."""
    truth, answered = _answers(card, pictures, probabilities, labelled)
    count, card_accuracy = len(labelled), card.metrics.get("accuracy")
    if count >= FEW and (order := _better_order(truth, answered, card)):
        return f"is {accuracy_text}, and {order}"
    if card_accuracy is not None:
        likely = (card_accuracy * count + 2) / (count + 4)  # so that a card that says 1.0 allows for chance as well
        standard_error = np.sqrt(likely * (1 - likely) * (1 / count + 1 / max(1, card.metrics.get("images", count))))
        least = card_accuracy - STANDARD_ERRORS * standard_error - POINTS
    else:  # it must be better than one answer for all
        least = max(Counter(truth.tolist()).values()) / count + 1e-9 if count >= FEW else 0.0
    if _accuracy(card, truth, answered == truth) >= least:
        return None
    return f"is {accuracy_text}: these labels or these pixels are not this model's"


def _better_scaling(
    card: Card, pictures: tuple[Picture, ...], probabilities: Array, rescaled: Mapping[str, Array]
) -> str | None:
    """Return what the model is right on, and with which scaling on more than chance explains; None without such a one.
    It must be more than with any order of the labels, too: those may be wrong instead."""
    from scipy.stats import binom

    found: list[tuple[int, str]] = []
    for name, answers in rescaled.items():
        rows = [row for row, picture in enumerate(pictures[: len(answers)]) if picture.label in card.labels]
        truth, answered = _answers(card, pictures, probabilities, rows)
        right, would = answered == truth, _answers(card, pictures, answers, rows)[1] == truth
        gained, lost = int((would & ~right).sum()), int((right & ~would).sum())
        by_chance = binom.logsf(gained - 1, gained + lost, 0.5) + log(len(rescaled))
        if by_chance < log(CHANCE) and would.sum() > _most_right(truth, answered, len(card.labels)):
            text = f"{right.mean():.1%}, and would be on {would.mean():.1%} with --preprocess {name}"
            found.append((int(would.sum()), f"is right on {text}"))
    return max(found)[1] if found else None


def _most_right(truth: Array, answered: Array, labels: int) -> int:
    """Return how many answers are right with the order of the labels that fits best."""
    from scipy.optimize import linear_sum_assignment

    counts = _counted(truth, answered, labels)
    return int(counts[linear_sum_assignment(-counts)].sum())


def _counted(truth: Array, answered: Array, labels: int) -> Array:
    counts = np.zeros((labels, labels))
    np.add.at(counts, (answered, truth), 1)
    return counts


def _better_order(truth: Array, answered: Array, card: Card) -> str | None:
    """Return the order of the labels that fits the answers, if the card's own fits worse by more than chance explains.

    The order with the most right answers is put together of cycles: two labels that are swapped, or several that moved
    on. Each is judged by itself, by the answers that only it or only the card's order makes right (a sign test, or
    McNemar's). There are many cycles to choose from, and the best of many looks good by chance: hence the factor.
    """
    from scipy.optimize import linear_sum_assignment  # imported here since it takes half a second
    from scipy.stats import binom

    labels = len(card.labels)
    counts = _counted(truth, answered, labels)
    _, best = linear_sum_assignment(-(counts + 1e-6 * np.eye(labels)))  # of equally good ones, the card's own
    order = np.arange(labels)
    for cycle in _cycles(best.tolist()):
        gained, lost = int(counts[cycle, best[cycle]].sum()), int(counts[cycle, cycle].sum())
        choices = perm(labels, len(cycle)) // len(cycle)
        if binom.logsf(gained - 1, gained + lost, 0.5) + log(choices) < log(CHANCE):
            order[cycle] = best[cycle]
    if (order == np.arange(labels)).all():
        return None
    right = f"would be on {counts[np.arange(labels), order].sum() / len(truth):.1%}"
    if labels <= NAMED:
        return f"{right} with the labels in the order {', '.join(card.labels[number] for number in order)}"
    moved = [f"{card.labels[order[n]]} for {label}" for n, label in enumerate(card.labels) if order[n] != n]
    return f"{right} with {', '.join(moved[:NAMED])}{' …' * (len(moved) > NAMED)}"


def _cycles(order: list[int]) -> Iterator[list[int]]:
    """Yield the cycles of a permutation that are longer than one."""
    seen: set[int] = set()
    for first in range(len(order)):
        cycle, place = [], first
        while place not in seen:
            seen.add(place)
            cycle.append(place)
            place = order[place]
        if len(cycle) > 1:
            yield cycle
