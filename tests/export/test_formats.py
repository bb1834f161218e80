"""Test `--to`: Keras's exporters write the same network, and the card says what it is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import openvino
import pytest
import tensorflow as tf

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.graph.simplify import flat
from loupe.export.source import Source, read_run
from loupe.export.variants import formats
from loupe.export.variants.formats import FILES, write
from loupe.training.network.backbones import BACKBONES, build_trunk, with_head
from tests.support.networks import LABELS, coarse, finished_run, network
from tests.support.servers import ROOT

TARGETS = sorted(FILES)
IMAGES = coarse(7, (48, 64, 3), 11)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return read_run(finished_run(tmp_path_factory.mktemp("formats") / "run", familiar=True))


@pytest.fixture(scope="module", params=TARGETS)
def written(request: pytest.FixtureRequest, source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(source, request.param, tmp_path_factory.mktemp("out") / request.param)


def answers(folder: Path, pixels: Any) -> Any:
    """Ask the file as somebody would who knows only its names."""
    target = folder.name
    file, fed = str(folder / FILES[target]), pixels.astype(np.float32)
    if target == "litert":
        with warnings.catch_warnings(action="ignore"):
            runner = tf.lite.Interpreter(file).get_signature_runner()
        return runner(image=fed)["probabilities"]
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model({"image": fed})["probabilities"]


def test_it_answers_as_the_network_for_any_number_of_pictures(written: Path, source: Source) -> None:
    wanted = source.reference(IMAGES)
    assert np.ptp(wanted, axis=0).min() > 1e-3, "the pictures are told apart"
    for count in (7, 1, 3):
        assert np.abs(answers(written, IMAGES[:count]) - wanted[:count]).max() < 1e-5


def test_a_network_whose_layers_bear_the_usual_names_is_written(tmp_path: Path) -> None:
    """Test layers named as in a fresh process, where Keras counts from the start: its `rescaling` was ours, too."""
    layers = keras.layers
    image = keras.Input((48, 64, 3), name="image")
    x = layers.Rescaling(1 / 255, name="rescaling")(image)
    x = layers.Conv2D(4, 3, name="softmax")(x)
    x = layers.GlobalAveragePooling2D(name="probabilities")(x)
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    usual = read_run(finished_run(tmp_path / "run", model))
    folder = write(usual, "openvino", tmp_path / "openvino")
    assert np.abs(answers(folder, IMAGES) - usual.reference(IMAGES)).max() < 1e-5


def test_the_card_beside_it_says_what_is_in_it(written: Path) -> None:
    card = Card.read(written / "card.json")
    assert (card.labels, card.height, card.width, card.precision) == (LABELS, 48, 64, "float32")
    assert (card.heatmap, card.unfamiliar_below) == (False, None), "probabilities alone are in it"
    assert card.parity and card.parity["stages"] == [written.name]
    assert card.parity["disagreements"] == 0
    assert 0 <= card.parity["largest_difference"] < 1e-5
    assert card.parity["images"] >= 2
    extra = {"model.bin"} if written.name == "openvino" else set()
    assert {path.name for path in written.iterdir()} == {"card.json", FILES[written.name]} | extra
    assert [path.name for path in written.parent.iterdir()] == [written.name], "nothing is left beside"


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.slow
def test_every_backbone_in_every_format(tmp_path: Path, name: str) -> None:
    keras.utils.set_random_seed(4)
    model = with_head(build_trunk(name, 80, 75), classes=3, head=8, dropout=0.2)
    source = read_run(finished_run(tmp_path / "run", model, height=80, width=75))
    images = coarse(5, (80, 75, 3), 7)
    for target in TARGETS:
        folder = write(source, target, tmp_path / target)
        assert np.abs(answers(folder, images) - source.reference(images)).max() < 1e-4


@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=[pytest.mark.slow] * (target == "litert")) for target in TARGETS]
)
def test_another_network_than_the_original_is_not_written(source: Source, tmp_path: Path, target: str) -> None:
    wrong = flat(network())
    wrong.get_layer("scale").scale = 2 / 127.5
    with pytest.raises(UserError, match=f"The {target} file (gives|moves) .*nothing is written"):
        write(replace(source, model=wrong), target, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_one_line(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each cause gives one line.
    def refused(match: str, source: Source, target: str, folder: Path) -> None:
        with pytest.raises(UserError, match=match) as caught:
            write(source, target, folder)
        assert "\n" not in str(caught.value)

    refused("only be exported as it is", replace(source, model=None), "onnx", tmp_path / "out")
    (tmp_path / "file").touch()
    refused("Not a directory.*--out", source, "onnx", tmp_path / "file" / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    refused("something else.*--out", source, "onnx", tmp_path / "mine")
    refused("something else.*--out", source, "onnx", tmp_path / "file")
    (tmp_path / "none").mkdir()
    monkeypatch.setattr("loupe.export.replay_pictures.SAMPLES", tmp_path / "none")
    refused("--images", source, "onnx", tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else name)
    refused("needs onnx: `pipenv sync --categories export`", source, "onnx", tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else name)
    refused("needs openvino: `pipenv sync --categories modelserver`", source, "onnx", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "none"]


def test_a_layer_that_a_format_has_no_operator_for_is_one_line(source: Source, tmp_path: Path) -> None:
    model = network()
    odd = keras.layers.Lambda(lambda x: x + 0 * tf.cast(tf.strings.length(tf.strings.as_string(x)), tf.float32))
    with pytest.raises(UserError, match="Keras cannot write this network as litert: ") as caught:
        write(replace(source, model=keras.Model(model.input, odd(model.output))), "litert", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_and_a_full_disk_leaves_it(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(source, "openvino", tmp_path / "out")
    renamed = replace(source, card=replace(source.card, name="second"))
    assert write(renamed, "openvino", tmp_path / "out") == folder
    assert Card.read(folder / "card.json").name == "second"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(formats, "_replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write(source, "openvino", tmp_path / "out")
    assert Card.read(folder / "card.json").name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_converters_chat_nowhere(source: Source, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from loupe.export.variants import formats
from loupe.export.source import read_run
source = read_run(Path({str(source.run)!r}))
for kind in {TARGETS!r}:
    print(formats.write(source, kind, Path({str(tmp_path)!r}, kind)).name)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout.split(), done.stderr) == (TARGETS, "")
    assert list((tmp_path / "here").iterdir()) == []
