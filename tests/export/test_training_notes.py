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
    assert "right on 33.3%, and would be on far more with the labels in another order: red for blue" in str(row.fault)


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
