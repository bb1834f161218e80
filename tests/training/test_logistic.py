"""A head on cached features: scaled, begun as the logistic regression, and never worse than that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loupe.training.data.dataset import Dataset, Source, read
from loupe.training.fit import stage as fitting
from loupe.training.fit.batches import Batches, balanced
from loupe.training.fit.feature_cache import Cache
from loupe.training.fit.logistic import STRENGTHS, solve, solve_head
from loupe.training.fit.scaling import Scaled, Scaling, fold
from loupe.training.network.backbones import add_head, build_trunk
from loupe.training.network.devices import prepare
from loupe.training.pipeline import Pipeline
from loupe.training.settings import Settings
from tests.support.shapes import SHAPES, SIDE, draw

RNG = np.random.default_rng(0)
CLASSES, COUNT = 4, 240
TRUTH = RNG.integers(CLASSES, size=COUNT)
UNITS = 10.0 ** RNG.uniform(-3, 1, 30)  # some features vary ten thousand times more than others
FEATURES = ((RNG.normal(0, 1, (CLASSES, 30))[TRUTH] + RNG.normal(0, 2, (COUNT, 30)) + 3) * UNITS).astype(np.float32)
TRAIN, VALIDATION = np.arange(180), np.arange(180, COUNT)


def batches(source: Any, rows: Any = TRAIN, **more: Any) -> Batches:
    return Batches(source, TRUTH, rows, CLASSES, 32, seed=1, **more)


def scaled(features: Any = FEATURES) -> Scaled:
    return Scaled(features, Scaling.of(features, TRAIN))


# ---------------------------------------------------------------------- the solution


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_scikit_learns_solution(weighted: bool) -> None:
    x, shares = scaled()[TRAIN], np.eye(CLASSES)[TRUTH[TRAIN]]
    weights = balanced(TRUTH[TRAIN], CLASSES)[TRUTH[TRAIN]] if weighted else np.ones(len(TRAIN))
    found = solve(x, shares, weights, 0.05, np.zeros((31, CLASSES)))
    judge = LogisticRegression(C=0.05, max_iter=1000, tol=1e-7).fit(x, TRUTH[TRAIN], sample_weight=weights)
    np.testing.assert_allclose(found[:-1], judge.coef_.T, atol=2e-3)


def test_many_problems_solved_in_one_are_the_same_problems() -> None:
    x, shares = scaled()[TRAIN], np.eye(CLASSES)[TRUTH[TRAIN]]
    weights = np.ones((len(TRAIN), 2))
    weights[::3, 1] = 0
    both = solve(x, shares, weights, 0.05, np.zeros((31, 2, CLASSES)))
    for number in (0, 1):
        alone = solve(x, shares, weights[:, number], 0.05, np.zeros((31, CLASSES)))
        np.testing.assert_allclose(both[:, number], alone, atol=3e-3)


def test_its_strength_is_chosen_without_the_validation_pictures(tmp_path: Path) -> None:
    """Their labels are drawn anew: what is solved stays, and what is measured does not."""
    start = solve_head(batches(scaled()), batches(scaled(), VALIDATION), tmp_path / "a.npz")
    other_truth = np.where(np.arange(COUNT) < 180, TRUTH, RNG.integers(CLASSES, size=COUNT))
    drawn = Batches(scaled(), other_truth, VALIDATION, CLASSES, 64)
    other = solve_head(Batches(scaled(), other_truth, TRAIN, CLASSES, 32, seed=1), drawn, tmp_path / "b.npz")
    assert start.strength == other.strength
    assert STRENGTHS[0] < start.strength < STRENGTHS[-1]
    np.testing.assert_array_equal(start.kernel, other.kernel)
    assert other.row["val_loss"] > start.row["val_loss"] + 0.2


def test_every_view_is_learnt_and_none_of_a_picture_held_back_is(tmp_path: Path) -> None:
    """The second views tell the class outright. Judged on the same views, any strength would be right."""
    leak = np.zeros((COUNT, 30), np.float32)
    leak[np.arange(COUNT), TRUTH] = 100
    source = np.concatenate([RNG.normal(0, 1, (COUNT, 30)).astype(np.float32), leak])
    noise = batches(source, views=2)
    start = solve_head(noise, batches(source[:COUNT], VALIDATION), tmp_path / "a.npz")
    assert start.kernel[:CLASSES].trace() > 0, "learnt from the second views"
    assert start.strength <= 1e-3, "judged by the first ones, which tell nothing"


def test_a_class_with_one_picture_and_smoothed_labels_are_no_fault(tmp_path: Path) -> None:
    rows = np.concatenate([TRAIN[TRUTH[TRAIN] < 3], TRAIN[TRUTH[TRAIN] == 3][:1]])
    weights = balanced(TRUTH[rows], CLASSES)
    start = solve_head(
        batches(scaled(), rows, smoothing=0.1, weights=weights), batches(scaled(), VALIDATION), tmp_path / "a.npz"
    )
    assert np.isfinite(start.kernel).all() and start.row["val_accuracy"] > 0.5
    few = solve_head(batches(scaled(), rows[-1:]), batches(scaled(), VALIDATION), tmp_path / "b.npz")
    assert np.isfinite(few.kernel).all()


def test_what_was_solved_is_what_a_resumed_run_begins_from(tmp_path: Path) -> None:
    first = solve_head(batches(scaled()), batches(scaled(), VALIDATION), tmp_path / "a.npz")
    again = solve_head(batches(scaled()), batches(scaled(), VALIDATION), tmp_path / "a.npz")
    np.testing.assert_array_equal(first.kernel, again.kernel)
    assert (again.strength, again.row) == (first.strength, first.row), "seconds included"


# ---------------------------------------------------------------------- the scaling


def test_features_are_scaled_by_what_the_training_pictures_are() -> None:
    judge = StandardScaler().fit(FEATURES[TRAIN].astype(np.float64))
    wanted = (FEATURES - judge.mean_) / np.maximum(judge.scale_, np.quantile(judge.scale_, 0.9) / 100)
    np.testing.assert_allclose(scaled()[np.arange(COUNT)], wanted, rtol=1e-4, atol=1e-4)


def test_what_is_hardly_ever_there_is_not_blown_up() -> None:
    """A dead feature that one more picture wakes would otherwise decide alone."""
    features = RNG.normal(0, 1, (COUNT, 3)).astype(np.float32)
    features[:, 1:] = 0
    features[0, 1] = 1e-6
    features[-1, 1:] = 0.3
    assert np.abs(scaled(features)[VALIDATION]).max() < 100
    assert np.abs(scaled(np.zeros_like(features))[VALIDATION]).max() == 0


@pytest.mark.parametrize("width", [0, 16])
def test_a_folded_head_answers_for_features_as_it_did_for_scaled_ones(width: int) -> None:
    keras.utils.set_random_seed(1)
    features = keras.Input((30,))
    head = keras.Model(features, add_head(features, CLASSES, width, 0.2))
    before = np.asarray(head(scaled()[VALIDATION], training=False))
    fold(head, scaled().scaling)
    np.testing.assert_allclose(np.asarray(head(FEATURES[VALIDATION], training=False)), before, atol=1e-3)


# ---------------------------------------------------------------------- the head of a training


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """Pictures, and a backbone whose features vary a thousand times more or less, one and the other."""
    folder = tmp_path_factory.mktemp("uneven")
    keras.utils.set_random_seed(3)
    trunk = build_trunk("cnn", SIDE, SIDE)
    rng = np.random.default_rng(0)
    for _ in range(40):
        trunk(rng.integers(0, 256, (64, SIDE, SIDE, 3)).astype(np.float32), training=True)
    norm = [layer for layer in trunk.layers if isinstance(layer, keras.layers.BatchNormalization)][-1]
    norm.gamma.assign(10 ** rng.uniform(-3, 0, norm.gamma.shape))
    norm.beta.assign(norm.gamma)
    trunk.save(folder / "backbone.keras")
    draw(folder / "shapes", SHAPES["second"], 200)
    return read(Source(folder / "shapes"), SIDE, SIDE, 1, folder, test_share=0.5), folder


def pipeline(uneven: tuple[Dataset, Path], state: Path, **changes: Any) -> Pipeline:
    data, folder = uneven
    state.mkdir(exist_ok=True)
    settings = {"backbone": "cnn", "weights": str(folder / "backbone.keras"), "size": SIDE, "fine_tune": 0, **changes}
    return Pipeline(Settings().having(settings), data, prepare("float32"), state, Cache(folder / "features", 1e9))


@pytest.fixture(scope="module")
def trained(
    uneven: tuple[Dataset, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pipeline, Any, Path]]:
    state = tmp_path_factory.mktemp("state")
    training = pipeline(uneven, state)
    assert training.train()
    yield training, training.evaluate(), state


def test_a_plain_training_is_no_worse_than_logistic_regression(trained: tuple[Pipeline, Any, Path]) -> None:
    """On such features gradient descent alone got 23 % right, where logistic regression got 40 %."""
    training, result, _ = trained
    data, features = training.data, np.asarray(training.features, np.float32)
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    judge = GridSearchCV(judge, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss")
    judge.fit(features[data.train], data.classes[data.train])
    right = (judge.predict(features[data.test]) == data.classes[data.test]).mean()
    print(f"{result.metrics['accuracy']:.3f}, and logistic regression {right:.3f}")
    assert right > 0.25, "of six classes"
    assert result.metrics["accuracy"] >= right - 0.04


def test_its_history_begins_with_the_logistic_regression_and_the_best_of_it_is_kept(
    trained: tuple[Pipeline, Any, Path],
) -> None:
    training, result, _ = trained
    rows = training.history
    assert [row["stage"] for row in rows[:2]] == ["logistic", "head"]
    assert all(row.keys() == rows[0].keys() for row in rows), "columns of one table"
    validation = training.data.validation
    logits = np.asarray(training.model(training.data.pixels[validation].astype(np.float32), training=False))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(training.data.classes[validation], logits)
    assert float(loss) == pytest.approx(min(row["val_loss"] for row in rows), rel=0.02)


def test_its_head_is_a_plain_one(trained: tuple[Pipeline, Any, Path]) -> None:
    """As the export, the heat map and the cut rely on."""
    names = [layer.name for layer in trained[0].model.layers]
    assert names[names.index("pool") :] == ["pool", "logits"]


class Killed(BaseException):
    """As a SIGKILL, it is caught nowhere."""


def test_a_head_that_was_killed_goes_on_to_the_same_model(
    uneven: tuple[Dataset, Path], tmp_path: Path, trained: tuple[Pipeline, Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(fitting, "SAVE_COST_FACTOR", 0)
    save = fitting.CheckpointCallback.save

    def dies(callback: Any, is_over: bool = False) -> None:
        save(callback, is_over)
        if len(callback.history) == 3:
            raise Killed

    monkeypatch.setattr(fitting.CheckpointCallback, "save", dies)
    with pytest.raises(Killed):
        pipeline(uneven, tmp_path / "state").train()
    monkeypatch.setattr(fitting.CheckpointCallback, "save", save)
    resumed = pipeline(uneven, tmp_path / "state")
    assert resumed.train()
    for mine, other in zip(resumed.model.get_weights(), trained[0].model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    bare = [{key: value for key, value in row.items() if key != "seconds"} for row in resumed.history]
    assert bare == [{key: value for key, value in row.items() if key != "seconds"} for row in trained[0].history]


def test_a_head_of_a_given_width_is_trained_as_it_is(uneven: tuple[Dataset, Path], tmp_path: Path) -> None:
    for changes in ({"head": 8}, {"dropout": 0.1}):
        training = pipeline(uneven, tmp_path / str(changes), **changes, epochs=1)
        assert training.train()
        assert [row["stage"] for row in training.history] == ["head"]
        assert training.model.get_layer("head").units == changes.get("head", 256)


# ---------------------------------------------------------------------- the search


def test_the_search_is_won_by_logistic_regression_where_no_trial_is_better(
    uneven: tuple[Dataset, Path], tmp_path: Path
) -> None:
    """One trial of one epoch learns next to nothing."""
    training = pipeline(uneven, tmp_path / "state", tune=1, epochs=1)
    assert training.train()
    assert [trial["state"] for trial in training.trials] == ["logistic", "complete"]
    assert training.settings.head == 0
    assert [row["stage"] for row in training.history] == ["logistic", "head"]
    best = min(row["val_loss"] for row in training.history)
    assert best <= training.trials[0]["val_loss"]
    assert "logits" in [layer.name for layer in training.model.layers]


def test_a_head_that_the_search_chose_gives_way_if_it_turns_out_worse(
    uneven: tuple[Dataset, Path], tmp_path: Path
) -> None:
    """As after a search at another size: what it left says a hidden layer, which learns nothing at this rate."""
    settings = {"lr": 1e-9, "head": 8, "dropout": 0.0, "decay": 0.0}
    chosen = {"settings": settings, "batch_size": 32, "epochs": 1, "trials": [], "notes": []}
    (tmp_path / "tuned.json").write_text(json.dumps(chosen))
    training = pipeline(uneven, tmp_path, tune=1)
    assert training.train()
    names = [layer.name for layer in training.model.layers]
    assert names[names.index("pool") :] == ["pool", "logits"]
    assert training.settings.head == 0
    assert any("is a logistic regression" in note for note in training.notes)
    best = min(training.history, key=lambda row: row["val_loss"])
    assert best["stage"] == "logistic"
    validation = training.data.validation
    logits = np.asarray(training.model(training.data.pixels[validation].astype(np.float32), training=False))
    right = (logits.argmax(axis=1) == training.data.classes[validation]).mean()
    assert right == pytest.approx(best["val_accuracy"], abs=0.03)


def test_what_is_given_is_not_tuned(uneven: tuple[Dataset, Path], tmp_path: Path) -> None:
    """Of a recipe as well as by a flag; --epochs and --batch-size hold for the trials, too."""
    given = {"lr": 2e-5, "head": 8, "epochs": 2, "batch_size": 7, "optimizer": "sgd", "schedule": "constant"}
    training = pipeline(uneven, tmp_path / "state", tune=2, **given)
    assert training.train()
    assert {(trial["lr"], trial["head"], len(trial["curve"])) for trial in training.trials} == {(2e-5, 8, 2)}
    assert len({(trial["dropout"], trial["decay"]) for trial in training.trials}) == 2, "which were not given"
    settings = training.settings
    assert (settings.lr, settings.head, training.batch_size, training.head_epochs) == (2e-5, 8, 7, 2)
    assert [(row["stage"], row["lr"]) for row in training.history] == [("head", 2e-5)] * 2
