"""Familiarity: how like the training pictures something is, measured by features alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loupe.errors import UserError
from loupe.familiarity import AXES, Familiarity, fit

WIDTH = 40


def features(count: int, seed: int, width: int = WIDTH) -> tuple[Any, Any]:
    """Three classes, each about its own direction; never negative, as after a ReLU."""
    random = np.random.default_rng(seed)
    classes = np.arange(count) % 3
    middles = np.random.default_rng(0).uniform(0, 4, (3, width))
    strength = random.uniform(0.5, 2, (count, 1))
    return (strength * np.maximum(middles[classes] + random.normal(0, 0.5, (count, width)), 0)).astype("f4"), classes


@pytest.fixture(scope="module")
def fitted() -> Familiarity:
    return fit(*features(300, 1), features(200, 2)[0])


def test_the_score_is_the_share_of_held_out_pictures_that_lay_farther(fitted: Familiarity) -> None:
    held_out, others = features(200, 2)[0], features(50, 3)[0]
    far = fitted.distances(held_out)
    wanted = [(far > distance).mean() for distance in fitted.distances(others)]
    assert np.abs(fitted.score(others) - wanted).max() < 0.01
    assert fitted.score(others).dtype == np.float32


def test_of_pictures_not_seen_one_in_twenty_is_called_unfamiliar_and_of_strangers_all(fitted: Familiarity) -> None:
    assert 0.02 < (fitted.score(features(2000, 4)[0]) < 0.05).mean() < 0.10
    strangers = np.random.default_rng(5).uniform(0, 4, (100, WIDTH)).astype("f4")
    assert (fitted.score(strangers) < 0.05).mean() == 1


def test_how_strongly_a_network_answers_does_not_make_it_familiar(fitted: Familiarity) -> None:
    some = features(20, 6)[0]
    assert np.abs(fitted.score(some) - fitted.score(some * 5)).max() < 1e-3


def test_it_reads_back_as_it_was_saved(fitted: Familiarity, tmp_path: Path) -> None:
    fitted.save(tmp_path / "familiarity.npz")
    again = Familiarity.load(tmp_path / "familiarity.npz")
    some = features(20, 7)[0]
    assert (again.score(some) == fitted.score(some)).all()
    (tmp_path / "familiarity.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="train again"):
        Familiarity.load(tmp_path / "familiarity.npz")


def test_it_stays_small_with_many_features(tmp_path: Path) -> None:
    wide = fit(*features(120, 1, 2048), features(60, 2, 2048)[0])
    assert wide.axes.shape == (2048, AXES)
    wide.save(tmp_path / "familiarity.npz")
    assert (tmp_path / "familiarity.npz").stat().st_size < 3e6


def test_dead_features_equal_pictures_and_a_class_of_one_are_no_trouble() -> None:
    some, classes = features(60, 1)
    some[:, :10] = 0
    classes[0] = 7
    fitted = fit(some, classes, np.repeat(some[:1], 30, axis=0))
    scores = fitted.score(np.concatenate([some, np.zeros((2, WIDTH), "f4")]))
    assert np.isfinite(scores).all()
    assert scores.min() >= 0
    assert scores.max() <= 1
