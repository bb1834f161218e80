"""EfficientNet-Lite0: the published network, its file from a package, and what becomes of it up to a served model."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import skimage
from PIL import Image

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.graph.savedmodel import run
from loupe.training.network import lite_weights
from loupe.training.network.backbones import build_trunk, trunk_layers, with_head
from loupe.training.network.torch_file import MAGIC, VERSION, read
from tests.support.servers import ROOT
from tests.training.test_training import accuracy, paint, refused, train, weights

LITE = ("--backbone", "efficientnetlite0", "--size", "64")
PACKAGE_FILES = [str(file) for file in distribution(lite_weights.PACKAGE).files or []]
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"

# ------------------------------------------------------------------------------------------ it is the published network


def photograph(name: str) -> Any:
    """Return the middle of a photograph, as ImageNet's accuracies are measured."""
    image = Image.open(PHOTOGRAPHS / name).convert("RGB")
    width, height = image.size
    side = min(width, height) * 224 / (224 + 32)
    left, upper = (width - side) / 2, (height - side) / 2
    return np.asarray(
        image.resize((224, 224), Image.Resampling.BICUBIC, box=(left, upper, left + side, upper + side)), np.float32
    )


@pytest.fixture(scope="module")
def published() -> keras.Model:
    """With the head that its file has, for ImageNet's 1,000 classes."""
    model = with_head(build_trunk("efficientnetlite0", 224, 224, weights="imagenet"), classes=1000, head=0, dropout=0)
    model.layers[-1].set_weights(lite_weights.published()["_fc"])
    return model


def test_its_own_head_knows_the_cat_the_coffee_and_the_rocket(published: keras.Model) -> None:
    """Photographs that scikit-image's wheel has, and ImageNet's classes.

    The shares are as measured once. Padding as PyTorch has it, ReLU without its 6, or pixels of 0…1 leave the labels
    as they are, and move a share by a tenth or more.
    """
    pixels = np.stack([photograph(name) for name in ("chelsea.png", "coffee.png", "rocket.jpg")])
    shares = np.asarray(keras.ops.softmax(published(pixels, training=False)))
    tiger_cat, espresso, missile = 282, 967, 657
    assert shares.argmax(axis=1).tolist() == [tiger_cat, espresso, missile]
    np.testing.assert_allclose(shares.max(axis=1), [0.385, 0.951, 0.286], atol=0.01)


def test_it_has_as_many_weights_as_were_published(published: keras.Model) -> None:
    """4.65 million with its head, averages and variances of batch normalisation aside."""
    assert sum(int(np.prod(weight.shape)) for weight in published.trainable_weights) == 4_652_008


# ------------------------------------------------------------------------------------------------- PyTorch's old format


def state_dict(tensors: bytes, *storages: list[float]) -> bytes:
    """Return a file of the format. The storages are called s0, s1, …"""
    names = [f"s{number}" for number in range(len(storages))]
    head = [pickle.dumps(part, 2) for part in (MAGIC, VERSION, {"little_endian": True})]
    numbers = [np.int64(len(values)).tobytes() + np.array(values, "<f4").tobytes() for values in storages]
    return b"".join([*head, b"ccollections\nOrderedDict\n)R(", tensors, b"u.", pickle.dumps(names, 2), *numbers])


def tensor(name: str, storage: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Return a name and its tensor, pickled as PyTorch does."""
    shapes = b"".join(b"(" + b"".join(b"I%d\n" % number for number in numbers) + b"t" for numbers in (shape, strides))
    where = b"(Vstorage\nctorch\nFloatStorage\nVs%d\nVcpu\nI0\nNtQ" % storage
    built = b"ctorch._utils\n_rebuild_tensor_v2\n(" + where + b"I%d\n" % offset + shapes + b"I00\nNtR"
    return b"V%s\n" % name.encode() + built


def test_a_tensor_is_the_part_of_its_storage_that_its_strides_name() -> None:
    tensors = tensor("whole", 0, 0, (2,), (1,)) + tensor("turned", 1, 1, (2, 3), (1, 2))
    arrays = read(state_dict(tensors, [8, 9], [0, 1, 2, 3, 4, 5, 6, 7]))
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "whole": [8, 9], "turned": [[1, 3, 5], [2, 4, 6]]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (9,), (1,)), (7, (2,), (1,)), (0, (2, 2), (1, 8)), (0, (2,), (-1,))]
)
def test_a_tensor_that_leads_out_of_its_storage_is_refused(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError):
        read(state_dict(tensor("far", 0, offset, shape, strides), [0.0] * 8))


@pytest.mark.parametrize(
    "call",
    [
        b"cos\nsystem\n(V%s\ntR.",
        b"cbuiltins\nexec\n(Vopen('%s', 'w')\ntR.",
        b"(Vtouch %s\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93(V%s\ntR.",
    ],
)
@pytest.mark.parametrize("place", [0, 3, 4])
def test_a_file_that_names_another_function_is_refused_and_does_nothing(
    tmp_path: Path, call: bytes, place: int
) -> None:
    """First it is shown to be hostile: pickle itself calls the function, and a file appears."""
    target = str(tmp_path / "made").encode()
    hostile = call.replace(b"%s", target if b"touch" in call or b"exec" in call else b"touch " + target)
    pickle.loads(hostile)
    (tmp_path / "made").unlink()
    whole: list[object] = [MAGIC, VERSION, {"little_endian": True}, {}, []]
    parts = [pickle.dumps(part, 2) for part in whole]
    parts[place] = hostile
    with pytest.raises(pickle.UnpicklingError, match="which no tensor needs"):
        read(b"".join(parts))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------- the package: missing, damaged


def copied(folder: Path) -> Path:
    """Copy the installed package into a folder, and return its file of weights."""
    for name in PACKAGE_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(distribution(lite_weights.PACKAGE).locate_file(name)), folder / name)
    return folder / lite_weights.FILE


def flipped(content: bytes) -> bytes:
    """One bit of one of the last weights."""
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content, None),
        (lambda content: content[:-1], "damaged, or is not the published file"),
        (flipped, "damaged, or is not the published file"),
        (lambda content: pickle.dumps({"_conv_stem.weight": 1}), "damaged, or is not the published file"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_not_the_published_one_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str | None
) -> None:
    file = copied(tmp_path)
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    monkeypatch.syspath_prepend(tmp_path)
    if said is None:
        lite_weights.check()
        return
    with pytest.raises(UserError, match=f"{re.escape(str(file))} .*{said}.*`{lite_weights.REPAIR}` puts"):
        lite_weights.check()


def test_a_damaged_file_ends_a_training_before_it_reads_pictures(tmp_path: Path) -> None:
    file = copied(tmp_path / "site")
    file.write_bytes(flipped(file.read_bytes()))
    ran = train(paint(tmp_path / "photos", 4), *LITE, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")})
    assert str(file) in refused(ran)
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """This environment's packages but one, as links."""
    folder = tmp_path / "site"
    folder.mkdir()
    ours = {name.partition("/")[0] for name in PACKAGE_FILES}
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name not in ours:
            (folder / path.name).symlink_to(path)
    return folder


def test_where_the_package_is_missing_the_command_that_installs_it_is_named(tmp_path: Path, site: Path) -> None:
    """-S leaves this environment's own packages out, and PYTHONPATH brings the links in."""
    command: list[str | Path] = [sys.executable, "-S", ROOT / "train.py", paint(tmp_path / "photos", 4), *LITE]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert "`make BACKBONE=efficientnetlite0 train` installs them" in refused(ran)
    assert not (tmp_path / "runs").exists()


def test_that_command_installs_the_package_and_trains_from_its_weights() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "BACKBONE=efficientnetlite0", "train"], cwd=ROOT, capture_output=True, text=True
    )
    assert re.search(r"environment\.py .*\befficientnetlite0\n", done.stdout), done.stderr
    assert 'train.py --backbone "efficientnetlite0" --weights imagenet' in done.stdout


# ------------------------------------------------------------------------------------------- trained, published, served


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training from ImageNet's weights, published."""
    folder = tmp_path_factory.mktemp("frozen")
    places = ("--runs", folder / "runs", "--models", folder / "models", "--name", "mine")
    ran = train(paint(folder / "photos", 16), *LITE, *places, "--epochs", "4", "--lr", "1e-2")
    assert ran.returncode == 0, ran.stderr
    return folder


def test_a_frozen_one_learns_passes_the_gate_and_shows_where_it_looked(frozen: Path) -> None:
    assert accuracy(frozen / "runs" / "mine") == 1
    version = frozen / "models" / "mine" / "1"
    card = Card.read(version / "assets.extra" / "card.json")
    assert card.backbone == {"name": "efficientnetlite0", "weights": "imagenet", "fine_tuned_layers": 0}
    assert card.parity and card.parity["disagreements"] == 0
    assert card.parity["stages"] == ["session", "openvino", "service"]
    picture = np.asarray(Image.open(frozen / "photos" / "red" / "000.png").resize((64, 64)))
    answer = run(version, "serving_default", {"image": picture[None]})
    assert card.labels[int(answer["probabilities"].argmax())] == "red"
    assert answer["heatmap"].shape == (1, 2, 2) and answer["heatmap"].max() == 1


def test_frozen_layers_keep_the_published_weights(frozen: Path) -> None:
    model = keras.saving.load_model(frozen / "runs" / "mine" / "model.keras", compile=False)
    learnt = [layer for layer in trunk_layers(model) if layer.weights]
    for layer, arrays in zip(learnt, lite_weights.published().values(), strict=False):
        for mine, theirs in zip(layer.get_weights(), arrays, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_an_earlier_run_is_fine_tuned_without_the_package(frozen: Path) -> None:
    """The package that Python finds first is damaged, and is not looked at."""
    copied(frozen / "site").write_bytes(b"")
    earlier, environment = frozen / "runs" / "mine", {"PYTHONPATH": str(frozen / "site")}
    flags = ("--weights", earlier, "--epochs", "4", "--lr", "1e-2", "--fine-tune", "8", "--fine-tune-epochs", "2")
    places = ("--runs", frozen / "runs", "--name", "tuned", "--no-publish")
    ran = train(frozen / "photos", *LITE, *flags, *places, env=environment)
    assert ran.returncode == 0, ran.stderr
    tuned = frozen / "runs" / "tuned"
    assert Card.read(tuned / "card.json").backbone == {
        "name": "efficientnetlite0", "weights": "mine", "fine_tuned_layers": 8
    }  # fmt: skip
    before, after = weights(earlier), weights(tuned)
    changed = [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]
    assert not any(changed[:-20]) and any(changed[:-4]), "the last convolution, and nothing of what is before it"
