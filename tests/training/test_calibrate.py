"""A calibration that is fitted on the calibration pictures holds on others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loupe.training.data.splits import FEWEST
from loupe.training.evaluate.calibrate import Calibration, calibrate
from loupe.training.evaluate.metrics import ece, measure, softmax

CLASSES = 5


def answers(count: int, seed: int, boast: float = 1.0, skill: float = 3.0) -> tuple[Any, Any]:
    """Logits and truth: calibrated at `boast` 1, by the way the truth is drawn from them; over-confident above."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, skill, (count, CLASSES))
    truth = np.array([random.choice(CLASSES, p=row) for row in softmax(logits)])
    return logits * boast, truth


def fitted(logits: Any, truth: Any, wanted: float | None = None) -> Calibration:
    random = np.random.default_rng(0)
    features = random.normal(0, 1, (len(truth), 8)).astype("f4") + truth[:, None]
    return calibrate(logits, features, truth, features + 0.1, truth, wanted)


def test_an_accuracy_is_rounded_once() -> None:
    truth = np.zeros(341, int)
    logits = np.eye(2)[[0] * 275 + [1] * 66]  # 80.645 % are right
    assert f"{measure(logits, truth, ('a', 'b'))['accuracy']:.1%}" == "80.6%"


@pytest.mark.parametrize("boast", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_the_network_boasts(boast: float) -> None:
    assert fitted(*answers(2000, 1, boast)).temperature == pytest.approx(boast, rel=0.15)


def test_the_error_of_calibration_falls_to_less_than_half_on_pictures_that_fitted_nothing() -> None:
    calibration = fitted(*answers(300, 1, boast=3))
    logits, truth = answers(2000, 2, boast=3)
    right = logits.argmax(axis=1) == truth
    before, after = (ece(softmax(logits / t).max(axis=1), right) for t in (1, calibration.temperature))
    assert after < before / 2
    assert calibration.ece_after < calibration.ece_before / 2


def test_a_temperature_that_makes_the_error_worse_in_cross_validation_is_left_at_1() -> None:
    """These logits are calibrated as they are; on 200 pictures 1.13 seems to be a little better."""
    calibration = fitted(*answers(200, 1))
    assert calibration.temperature == 1
    assert calibration.ece_after == calibration.ece_before
    assert len(calibration.notes) == 1
    assert "stays at 1: 1.13, which was fitted, makes the calibration error worse" in calibration.notes[0]
    helpful = fitted(*answers(200, 1, boast=2))
    assert helpful.temperature > 1.5 and helpful.ece_after < helpful.ece_before


def test_what_is_certain_is_right_as_often_as_wanted_on_other_pictures() -> None:
    logits, truth = answers(5000, 99, boast=2)
    precisions, coverages = [], []
    for seed in range(20):
        calibration = fitted(*answers(250, seed, boast=2), 0.95)
        if calibration.certain_at is None:
            continue
        certain = softmax(logits / calibration.temperature).max(axis=1) >= calibration.certain_at
        precisions.append((logits.argmax(axis=1) == truth)[certain].mean())
        coverages.append(certain.mean())
    assert len(precisions) >= 15
    assert np.mean(precisions) >= 0.95
    assert np.mean(coverages) > 0.25, "and it is not bought by calling nothing certain"


def test_a_precision_that_cannot_be_shown_gives_no_limit_and_a_note() -> None:
    calibration = fitted(*answers(40, 1), 0.98)
    assert calibration.certain_at is None
    assert calibration.certain_note is not None
    assert calibration.certain_note.startswith("0.98 was asked for, and is not given, because there is no confidence")
    assert "at least 48 calibration pictures without a mistake" in calibration.certain_note
    assert "there are 40. Give more pictures" in calibration.certain_note
    at_chance = fitted(*answers(200, 1, skill=0.1), 0.98)
    assert at_chance.certain_at is None
    assert "was asked for, and is not given" in str(at_chance.certain_note)
    given = fitted(*answers(2000, 1), 0.9)
    assert given.certain_at and given.certain_note is None


def test_no_limit_is_fitted_where_none_is_wanted() -> None:
    calibration = fitted(*answers(200, 1, boast=2))
    assert (calibration.certain_at, calibration.certain_note, calibration.notes) == (None, None, [])
    assert calibration.unfamiliar_below == 0.05


def test_with_too_few_pictures_nothing_is_fitted_and_a_note_says_so() -> None:
    for count in (0, FEWEST - 1):
        calibration = fitted(*answers(count, 1), 0.98)
        assert (calibration.temperature, calibration.certain_at, calibration.familiarity) == (1.0, None, None)
        assert calibration.unfamiliar_below is None
        assert "too few" in calibration.notes[0]
        assert str(calibration.certain_note).startswith(
            f"0.98 was asked for, and is not given, because {count} pictures"
        )
        assert fitted(*answers(count, 1)).certain_note is None, "nothing was asked for"


def test_where_every_answer_is_right_confidence_stays_below_certainty() -> None:
    truth = np.arange(100) % CLASSES
    logits = np.eye(CLASSES)[truth] * 4
    calibration = fitted(logits, truth)
    confidence = softmax(logits / calibration.temperature).max()
    assert 0.97 < confidence < 0.999
