"""Training in one stage: what is kept, what is gone on with, and when it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from loupe.errors import UserError
from loupe.training.fit import stage as fitting
from loupe.training.fit.batches import Batches, balanced
from loupe.training.fit.stage import Outcome, Stage, fit

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(120, 6)).astype(np.float32)
TRUTH = (POINTS @ RNG.normal(size=(6, 3))).argmax(axis=1).astype(np.int64)
TRAIN, VALIDATION = np.arange(90), np.arange(90, 120)


def network() -> keras.Model:
    keras.utils.set_random_seed(7)
    x = keras.Input((6,))
    hidden = keras.layers.Dropout(0.3)(keras.layers.Dense(16, activation="relu")(x))
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.BatchNormalization()(hidden)))


def stage(**more: Any) -> Stage:
    return Stage("head", **{"epochs": 6, "lr": 0.01, "seed": 42} | more)


def train(
    state: Path, model: keras.Model | None = None, truth: Any = TRUTH, enough: float = math.inf, **more: Any
) -> tuple[keras.Model, Outcome]:
    model = model or network()
    batches = Batches(POINTS, truth, TRAIN, 3, 16, seed=42)
    validation = Batches(POINTS, truth, VALIDATION, 3, 64)
    return model, fit(model, stage(**more), batches, validation, state, enough)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Outcome, bytes]:
    """A stage that came to its end, and the state it left."""
    state = tmp_path_factory.mktemp("finished") / "s.npz"
    return *train(state), state.read_bytes()


def loss_of(model: keras.Model) -> float:
    shares = np.eye(3)[TRUTH[VALIDATION]]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    return float(loss(shares, model(POINTS[VALIDATION], training=False)))


class Stop(keras.callbacks.Callback):  # type: ignore[misc]
    """Raises in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, epoch: int, error: type[BaseException]) -> None:
        super().__init__()
        self.epoch, self.error, self.now = epoch, error, -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.now = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.now == self.epoch and batch == 2:
            raise self.error


def stopped(monkeypatch: pytest.MonkeyPatch, model: keras.Model, stop: Stop) -> None:
    plain = model.fit
    monkeypatch.setattr(
        model, "fit", lambda *args, callbacks, **more: plain(*args, callbacks=[*callbacks, stop], **more)
    )


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": "sgd", "ema": 0.9, "schedule": "plateau"},
        *(pytest.param(more, marks=pytest.mark.slow) for more in ({}, {"schedule": "plateau"}, {"ema": 0.9})),
    ],
    ids=str,
)
def test_a_run_that_died_in_an_epoch_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    monkeypatch.setattr(fitting, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(fitting, "SAVE_COST_FACTOR", 0)
    undisturbed, wanted = train(tmp_path / "one.npz", **more)
    dying = network()
    stopped(monkeypatch, dying, Stop(3, SystemExit))
    with pytest.raises(SystemExit):
        train(tmp_path / "two.npz", dying, **more)
    resumed, got = train(tmp_path / "two.npz", **more)
    assert [_bare(row) for row in got.history] == [_bare(row) for row in wanted.history]
    for one, other in zip(undisturbed.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def _bare(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


def test_the_model_ends_with_the_weights_of_its_smallest_validation_loss(tmp_path: Path) -> None:
    model, outcome = train(tmp_path / "s.npz", epochs=10, lr=0.2, schedule="constant")
    losses = [row["val_loss"] for row in outcome.history]
    assert losses.index(min(losses)) < len(losses) - 1, "a rate this high overshoots"
    assert outcome.best_loss == min(losses)
    assert loss_of(model) == pytest.approx(min(losses), abs=1e-5)


@pytest.mark.slow
def test_averaged_weights_are_what_is_measured_and_kept(tmp_path: Path) -> None:
    model, outcome = train(tmp_path / "s.npz", ema=0.8)
    assert loss_of(model) == pytest.approx(outcome.best_loss, abs=1e-5)


def test_a_later_stage_never_replaces_what_was_better(tmp_path: Path) -> None:
    model, first = train(tmp_path / "one.npz")
    before = model.get_weights()
    model, second = train(tmp_path / "two.npz", model, enough=first.best_loss, lr=1.0, schedule="constant", epochs=2)
    assert second.best_loss == first.best_loss
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ctrl_c_leaves_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    stopped(monkeypatch, model, Stop(3, KeyboardInterrupt))
    model, outcome = train(tmp_path / "s.npz", model)
    assert not outcome.finished
    assert len(outcome.history) == 3
    assert loss_of(model) == pytest.approx(outcome.best_loss, abs=1e-5)


def test_it_ends_once_nothing_got_better_for_long_enough(tmp_path: Path) -> None:
    _, outcome = train(tmp_path / "s.npz", epochs=200, lr=0.3, patience=4, schedule="constant")
    losses = [row["val_loss"] for row in outcome.history]
    assert len(losses) == losses.index(min(losses)) + 1 + 4
    assert outcome.finished


def test_a_finished_stage_is_not_trained_again(tmp_path: Path, finished: tuple[keras.Model, Outcome, bytes]) -> None:
    first, before, state = finished
    (tmp_path / "s.npz").write_bytes(state)
    again, after = train(tmp_path / "s.npz")
    assert after.history == before.history, "seconds included"
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_that_is_no_number_ends_training(tmp_path: Path) -> None:
    _, outcome = train(tmp_path / "s.npz", lr=1e30, optimizer="sgd", schedule="constant", epochs=50)
    assert len(outcome.history) < 50


def test_a_damaged_state_is_told_in_one_line(tmp_path: Path, finished: tuple[keras.Model, Outcome, bytes]) -> None:
    whole = finished[2]
    (tmp_path / "s.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="--fresh"):
        train(tmp_path / "s.npz")


def test_a_state_of_another_network_is_refused(tmp_path: Path, finished: tuple[keras.Model, Outcome, bytes]) -> None:
    (tmp_path / "s.npz").write_bytes(finished[2])
    x = keras.Input((6,))
    with pytest.raises(UserError, match="another network"):
        train(tmp_path / "s.npz", keras.Model(x, keras.layers.Dense(3)(x)))


def test_smoothing_and_class_weights_reach_the_loss_of_training_alone() -> None:
    weights = balanced(np.array([0, 0, 0, 1, 2, 2]), 3)
    batches = Batches(POINTS, TRUTH, TRAIN, 3, 16, seed=1, smoothing=0.3, weights=weights)
    x, y, w = batches[0]
    assert y.max() == pytest.approx(0.8) and y.min() == pytest.approx(0.1)
    assert set(np.round(w, 4)) <= set(np.round(weights, 4))
    assert np.average(weights, weights=[3, 1, 2]) == pytest.approx(1)


def test_every_epoch_takes_another_cached_view_in_another_order() -> None:
    views = np.concatenate([POINTS, POINTS + 100])
    batches = Batches(views, TRUTH, TRAIN, 3, 90, seed=1, views=2)
    first, truth = batches[0]
    batches.begin(1)
    second, _ = batches[0]
    assert first.max() < 50 < second.min()
    assert not np.array_equal(first, second - 100)
    batches.begin(2)
    assert batches[0][0].max() < 50
