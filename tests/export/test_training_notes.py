"""The gate's first stage: what training noted of its pictures, the model with its card must still say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.convert import Options, convert
from loupe.export.parity.tolerance import Row
from loupe.export.parity.training_notes import compare_with_notes
from loupe.export.replay_pictures import Picture, TrainingNote
from loupe.export.source import read_run
from tests.support.networks import LABELS, coarse, finished_run, known, lively, network

CARD = Card("toy", LABELS, 48, 64)
WORDS = Path("picture")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with notes of what its network said of 24 pictures."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("noted")
    model = lively(network())
    run = finished_run(folder / "run", model, familiar=True)
    source, pixels = read_run(run), coarse(24, (48, 64, 3), 9)
    answers, near = source.reference(pixels), known(model).score(features(source, pixels))
    (folder / "photos").mkdir()
    listed = []
    for row, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / "photos" / f"{row}.png")
        top = int(answers[row].argmax())
        listed.append([f"{row}.png", LABELS[top], LABELS[top], float(answers[row, top]), float(near[row])])
    content = {"folder": str(folder / "photos"), "training": [], "validation": listed}
    (run / "pictures.json").write_text(json.dumps(content))
    return run


def features(source: Any, pixels: Any) -> Any:
    import keras

    from loupe.gradcam import split

    pooled = keras.Model(source.model.input, split(source.model)[0].output)
    return pooled.predict(pixels.astype(np.float32), verbose=0)


def edited(run: Path, folder: Path, edit: Callable[[Path], None]) -> Path:
    shutil.copytree(run, folder)
    edit(folder)
    return folder


def test_a_run_as_it_was_trained_passes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flask", None)  # without the service, whose start takes a second
    convert(read_run(run), Options(tmp_path))
    assert "as training noted" in capsys.readouterr().out


def labels(folder: Path) -> None:
    change(folder, lambda card: replace(card, labels=(LABELS[1], LABELS[0], LABELS[2])))


def temperature(folder: Path) -> None:
    change(folder, lambda card: replace(card, temperature=40.0))


def model(folder: Path) -> None:
    other = lively(network())
    other.layers[-1].kernel.assign(-other.layers[-1].kernel)
    other.save(folder / "model.keras")


def familiarity(folder: Path) -> None:
    before = known(lively(network()))
    replace(before, marks=before.marks * 0.1).save(folder / "familiarity.npz")


def change(folder: Path, how: Callable[[Card], Card]) -> None:
    (folder / "card.json").write_text(how(Card.read(folder / "card.json")).to_json())


@pytest.mark.parametrize(
    "fault", [temperature, familiarity, *(pytest.param(fault, marks=pytest.mark.slow) for fault in (labels, model))]
)
def test_a_file_of_another_run_is_caught(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path], None]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flask", None)
    source = read_run(edited(run, tmp_path / "run", fault))
    with pytest.raises(UserError, match="the stage training .* than training noted"):
        convert(source, Options(tmp_path / "models"))
    assert not list((tmp_path / "models").glob("toy/[!.]*"))


# ------------------------------------------------------------------------------------- labelled pictures without notes


def compared(card: Card, truth: Any, answered: Any, sure: float = 0.9) -> Row:
    classes = len(card.labels)
    probabilities = np.full((len(truth), classes), (1 - sure) / (classes - 1))
    probabilities[np.arange(len(truth)), answered] = sure
    return compare_with_notes(card, tuple(Picture(WORDS, card.labels[place]) for place in truth), probabilities, None)


def test_labels_in_the_wrong_order_are_told_with_the_right_one() -> None:
    truth = np.arange(24) % 3
    row = compared(replace(CARD, labels=("blue", "green", "red")), truth, 2 - truth)
    assert "right on 33.3%, and would be on 100.0% with the labels in the order red, green, blue" in str(row.fault)


def drawn(classes: int, accuracy: float, seed: int) -> tuple[Any, Any]:
    """Thirty pictures a class, and the answers of a model that rather takes 0 for 1, 2 for 3, …, and the other way."""
    random = np.random.default_rng((classes, seed))
    truth = np.arange(30 * classes) % classes
    neighbour, any_other = truth ^ 1, (truth + random.integers(1, classes, len(truth))) % classes
    mistakes = np.where(random.random(len(truth)) < 0.2, neighbour, any_other)
    return truth, np.where(random.random(len(truth)) < accuracy, truth, mistakes)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_two_swapped_labels_are_told_though_most_answers_stay_right(classes: int) -> None:
    names = tuple(f"label {number}" for number in range(classes))
    told = 0
    for seed in range(40):
        truth, answered = drawn(classes, 0.85, seed)
        swapped = np.array([1, 0, *range(2, classes)])[answered]
        fault = str(compared(replace(CARD, labels=names), truth, swapped).fault)
        told += f"with the labels in the order label 1, label 0{''.join(f', {name}' for name in names[2:])}" in fault
    assert told >= 39


@pytest.mark.parametrize("classes", [2, 4, 10])
@pytest.mark.parametrize("accuracy", [0.4, 0.6, 0.85])
def test_the_right_order_of_a_mediocre_model_is_never_told_to_be_wrong(classes: int, accuracy: float) -> None:
    card = replace(CARD, labels=tuple(f"label {number}" for number in range(classes)))
    accuracy = max(accuracy, 1 / classes + 0.1)
    for seed in range(200):
        truth, answered = drawn(classes, accuracy, seed)
        assert "in the order" not in str(compared(card, truth, answered).fault), seed


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_of_a_model_at_chance_no_order_is_told(classes: int) -> None:
    card, told = replace(CARD, labels=tuple(f"label {number}" for number in range(classes))), 0
    for seed in range(400):
        random = np.random.default_rng((classes, seed))
        truth, answered = np.arange(30 * classes) % classes, random.integers(0, classes, 30 * classes)
        told += "in the order" in str(compared(card, truth, answered).fault)
    assert told <= 4, "of 400; by its own reckoning at most one in two hundred"


def test_three_labels_that_moved_on_and_two_swapped_ones_are_told_at_once_and_of_many_only_those_that_moved() -> None:
    names = tuple(f"label {number}" for number in range(30))
    truth = np.arange(30 * 20) % 30
    order = np.array([1, 2, 0, 4, 3, *range(5, 30)])
    fault = str(compared(replace(CARD, labels=names), truth, order.argsort()[truth]).fault)
    moved = "label 1 for label 0, label 2 for label 1, label 0 for label 2, label 4 for label 3, label 3 for label 4"
    assert fault.startswith(f"is right on 83.3%, and would be on 100.0% with {moved}")


def test_two_hundred_labels_that_moved_on_are_told() -> None:
    card = replace(CARD, labels=tuple(f"label {number}" for number in range(200)))
    truth = np.arange(2000) % 200
    fault = str(compared(card, truth, (truth + 1) % 200).fault)
    assert "and would be on 100.0% with label 199 for label 0, label 0 for label 1" in fault and fault.endswith(" …")


def test_a_model_that_is_no_better_than_one_answer_for_all_is_refused() -> None:
    truth = np.arange(30) % 3
    assert "not this model's" in str(compared(CARD, truth, np.zeros(30, int)).fault)
    assert compared(CARD, truth, np.where(np.arange(30) < 18, truth, 0)).fault is None


def test_of_few_pictures_little_is_told() -> None:
    row = compared(CARD, np.array([0, 1, 2]), np.array([1, 1, 1]))
    assert row.fault is None
    assert "too few pictures to tell much" in row.note


def test_an_accuracy_that_was_measured_on_eight_pictures_proves_little() -> None:
    truth = np.arange(60) % 3
    answered = np.where(np.arange(60) < 45, truth, (truth + 1) % 3)
    card = replace(CARD, metrics={"accuracy": 1.0, "images": 8})
    assert compared(card, truth, answered).fault is None
    assert compared(replace(card, metrics={"accuracy": 1.0, "images": 2000}), truth, answered).fault


def test_two_of_many_labels_that_were_swapped_show_in_what_training_noted() -> None:
    """Test 40 classes and 120 pictures, of which six change: too few to show in an accuracy."""
    card = replace(CARD, labels=tuple(f"label {n}" for n in range(40)))
    truth = np.arange(120) % 40
    then = tuple(Picture(WORDS, card.labels[n], TrainingNote(card.labels[n], 0.9, None)) for n in truth)
    probabilities = np.full((120, 40), 0.1 / 39)
    probabilities[np.arange(120), truth] = 0.9
    assert compare_with_notes(card, then, probabilities, None).fault is None
    swapped = replace(card, labels=("label 1", "label 0", *card.labels[2:]))
    assert "gives 6 of 120 pictures another label" in str(compare_with_notes(swapped, then, probabilities, None).fault)


def test_what_half_precision_rounds_in_training_is_no_fault() -> None:
    then = (Picture(WORDS, "a", TrainingNote("a", 0.52, 0.4)), Picture(WORDS, "b", TrainingNote("b", 0.97, 0.9)))
    now = np.array([[0.48, 0.51, 0.01], [0.02, 0.96, 0.02]])
    assert compare_with_notes(CARD, then, now, np.array([0.45, 0.86])).fault is None


# ------------------------------------------------------------------------------------------- pixels scaled another way


def rescaled_row(answered: Any, others: dict[str, Any], labels: tuple[str, ...] = ("red", "green", "blue")) -> Row:
    truth, rows = np.arange(24) % 3, np.arange(24)
    pictures = tuple(Picture(WORDS, ("red", "green", "blue")[place]) for place in truth)
    probabilities = {name: np.eye(3)[np.asarray(answers)[rows]] for name, answers in others.items()}
    return compare_with_notes(replace(CARD, labels=labels), pictures, np.eye(3)[answered], None, probabilities)


def test_pixels_scaled_the_wrong_way_are_told_with_the_right_one() -> None:
    """A model of 97.8 % was published with a scaling by which it was right on 57.8: more than one answer for all is."""
    truth = np.arange(24) % 3
    mostly = np.where(np.arange(24) < 14, truth, (truth + 1) % 3)
    row = rescaled_row(mostly, {"rescale": truth, "none": np.zeros(24, int), "resnet50": np.where(truth, truth, 1)})
    assert row.fault == "is right on 58.3%, and would be on 100.0% with --preprocess rescale"


def test_another_scaling_that_is_no_better_or_by_chance_is_not_told() -> None:
    truth = np.arange(24) % 3
    two_wrong = np.where(np.arange(24) < 2, (truth + 1) % 3, truth)
    assert rescaled_row(truth, {"rescale": truth, "none": two_wrong}).fault is None
    assert rescaled_row(two_wrong, {"rescale": truth}).fault is None, "two of 24 are chance"


def test_labels_in_the_wrong_order_are_not_taken_for_a_wrong_scaling() -> None:
    """With these, a scaling by which it says the same of all is right on more."""
    truth = np.arange(24) % 3
    row = rescaled_row(truth, {"none": np.zeros(24, int)}, ("green", "blue", "red"))
    assert "would be on 100.0% with the labels in the order red, green, blue" in str(row.fault)
