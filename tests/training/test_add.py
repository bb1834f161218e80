"""train.py --add: what becomes of accepted corrections, and of the run that they are added to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from loupe.card import Card
from loupe.errors import UserError
from loupe.training.corrections.compare import Comparison
from loupe.training.corrections.correct import Changes, accepted, correct
from loupe.training.data import record
from loupe.training.data.dataset import Dataset, Source, read
from loupe.training.settings import from_record
from tests.support.corrections import put
from tests.support.pictures import encoded, photograph
from tests.support.servers import ROOT
from tests.training.test_correction_loop import mislabel, paint_splits
from tests.training.test_training import accuracy, history, refused, resumed, the_same, train, trained, until

CNN = ("--backbone", "cnn", "--size", "32", "--epochs", "8")
FROZEN = ("--backbone", "cnn", "--size", "32", "--fine-tune", "0", "--epochs", "20", "--lr", "1e-2")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the 30 green training pictures 22 lie among the red ones."""
    data = paint_splits(tmp_path_factory.mktemp("photos") / "photos")
    mislabel(data / "train", "green", "red", 22)
    return data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    return trained(tmp_path_factory.mktemp("whole"), photos, *CNN)


@pytest.fixture
def run(tmp_path: Path, whole: Path) -> Path:
    """A copy of the run, with the features beside it that the run had."""
    shutil.copytree(whole.parent, tmp_path / "runs")
    return tmp_path / "runs" / whole.name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "corrections"


def add(root: Path, run: Path, *flags: str | Path) -> str:
    ran = train("--add", root, "--from", run, "--no-publish", *flags)
    assert ran.returncode == 0, ran.stderr
    return str(ran.stdout)


def moved(photos: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((photos / "train" / "red").glob("moved-*"))]


def green(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(-60, 60, (8, 8, 3))
    return encoded(Image.fromarray(np.clip(coarse + (30, 180, 40), 0, 255).astype(np.uint8)).resize((50, 40)), "PNG")


def trunk(run: Path) -> list[Any]:
    model = keras.saving.load_model(run / "model.keras", compile=False)
    names = [layer.name for layer in model.layers]
    return [weight for layer in model.layers[: names.index("pool")] for weight in layer.get_weights()]


def split_of(run: Path, name: str) -> list[str]:
    data = record.read(run / "data.json")
    return [data.pictures[row].sha256 for row in getattr(data, name)]


# ------------------------------------------------------------------------------------------------ from end to end


@pytest.mark.parametrize(
    ("recorded", "head"),
    [
        ({"backbone": "cnn", "dropout": 0.2}, 0),  # two runs of 1.0.0
        ({"backbone": "mobilenetv2", "dropout": 0.2}, 256),
        ({"backbone": "mobilenetv2", "command": "python train.py photos"}, 0),
        ({"backbone": "mobilenetv2", "command": "python train.py photos --dropout 0.3", "dropout": 0.3}, 256),
    ],
)
def test_a_run_keeps_the_head_that_it_was_trained_with(recorded: dict[str, Any], head: int) -> None:
    assert from_record(recorded).resolved.head == head


def test_a_network_that_was_trained_whole_is_frozen_and_its_head_learns_anew(
    root: Path, run: Path, whole: Path, photos: Path
) -> None:
    for data in moved(photos):
        put(root, "green", data, state="accepted")
    for seed in range(3):
        put(root, "green", green(seed), state="accepted")
    put(root, "red", green(99))
    put(root, "red", green(98), state="rejected")
    said = add(root, run)
    assert "added              3 pictures: green 3" in said
    assert "relabelled         22 pictures: green 22" in said
    assert "of the same 60 test pictures" in said and "worse  " not in said
    assert accuracy(run) >= accuracy(whole) + 0.2
    assert history(run)[0]["stage"] == "logistic", "which the new head begins as"
    # Measured by the same pictures, on the same backbone, and of the same name.
    before, after = Card.read(whole / "card.json"), Card.read(run / "card.json")
    assert (after.name, after.labels, after.backbone) == (before.name, before.labels, before.backbone)
    assert before.training["images"] == {"blue": 30, "green": 8, "red": 52}
    assert after.training["images"] == {"blue": 30, "green": 33, "red": 30}
    for name in ("validation", "calibration", "test"):
        assert split_of(run, name) == split_of(whole, name)
    for mine, other in zip(trunk(run), trunk(whole), strict=True):
        np.testing.assert_array_equal(mine, other)
    made = {entry.name for entry in run.iterdir()}
    assert made >= {"model.keras", "card.json", "report.html", "pictures.json", "data.json", "about.json"}
    assert {entry.name for entry in run.parent.iterdir()} == {"mine", ".features"}, "nothing is left behind"
    # Once more, with one more: what was learnt from is not counted twice.
    finished = after.training["finished"]
    assert "nothing to add" in add(root, run)
    assert Card.read(run / "card.json").training["finished"] == finished
    put(root, "green", green(7), state="accepted")
    said = add(root, run)
    assert "added              1 pictures: green 1" in said
    assert "known              25 are in the run already" in said
    assert Card.read(run / "card.json").training["images"] == {"blue": 30, "green": 34, "red": 30}
    for mine, other in zip(trunk(run), trunk(whole), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_no_picture_is_opened_whose_features_are_kept_and_the_error_says_which_are_missing(
    tmp_path: Path, root: Path, photos: Path
) -> None:
    data = shutil.copytree(photos, tmp_path / "photos")
    run = trained(tmp_path, data, *FROZEN)
    shutil.rmtree(data)
    put(root, "green", green(1), state="accepted")
    said = add(root, run)
    assert "added              1 pictures: green 1" in said
    assert "1 computed" in said, "of the new one"
    assert "report.html" in said and (run / "report.html").exists()
    # The features are gone as well now; and a second correction needs them.
    shutil.rmtree(run.parent / ".features")
    put(root, "green", green(2), state="accepted")
    before = (run / "card.json").read_text()
    said = refused(train("--add", root, "--from", run, "--no-publish"))
    assert str(data) in said and "Bring the run's pictures back" in said
    assert (run / "card.json").read_text() == before
    # With the pictures back they are computed again.
    shutil.copytree(photos, data)
    assert "added              1 pictures: green 1" in add(root, run)


@pytest.mark.slow
def test_a_run_of_a_csv_that_was_tuned_varied_and_fine_tuned_keeps_all_of_that(
    tmp_path: Path, root: Path, photos: Path
) -> None:
    data = tmp_path / "table"
    (data / "images").mkdir(parents=True)
    rows = ["id,label"]
    for path in sorted((photos / "train").glob("*/*.png")):
        name = f"{path.parent.name}-{path.name}"
        shutil.copy(path, data / "images" / name)
        rows.append(f"{name},{path.parent.name}")
    (data / "train.csv").write_text("\n".join(rows) + "\n")
    flags = (*FROZEN[:4], "--fine-tune", "4", "--fine-tune-epochs", "2", "--fine-tune-lr", "1e-3")
    run = trained(tmp_path, data, *flags, "--tune", "3", "--head", "64", "--views", "2", "--flip", "horizontal")
    before = shutil.copytree(run, tmp_path / "before")
    for picture_bytes in moved(photos):
        put(root, "green", picture_bytes, state="accepted")
    put(root, "green", green(1), state="accepted")
    said = add(root, run)
    assert "2 views of each" in said
    card, earlier = Card.read(run / "card.json"), Card.read(before / "card.json")
    assert card.backbone == earlier.backbone
    trials = [json.loads((folder / "metrics.json").read_text())["trials"] for folder in (before, run)]
    assert trials[0] == trials[1] and len(trials[0]) == 3
    heads = [keras.saving.load_model(folder / "model.keras", compile=False).layers[-1] for folder in (before, run)]
    assert heads[0].kernel.shape == heads[1].kernel.shape == (64, 3)
    for mine, other in zip(trunk(run), trunk(before), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert "known" in add(root, run)


@pytest.mark.slow
def test_what_was_killed_goes_on_as_if_nothing_had_happened(root: Path, run: Path, tmp_path: Path) -> None:
    for seed in range(12):
        put(root, "green", green(seed), state="accepted")
    undisturbed = shutil.copytree(run.parent, tmp_path / "other") / run.name
    add(root, undisturbed)
    command: list[str | Path] = [
        sys.executable, "-u", ROOT / "train.py", "--add", root, "--from", run, "--no-publish"
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(process, " 4/8")
    process.kill()
    process.wait()
    again = f"`python train.py --resume --name mine --runs {run.parent}` goes on"
    assert again in refused(train("--add", root, "--from", run, "--no-publish"))
    other = refused(train("--add", tmp_path / "others", "--from", run, "--resume"))
    assert "had corrections" in other and again in other
    the_same(resumed(tmp_path), undisturbed)


@pytest.mark.slow
def test_wrong_labels_among_the_corrections_do_not_get_past_the_validation_pictures(
    root: Path, run: Path, whole: Path, photos: Path
) -> None:
    """All blue pictures but one are said to be red: the epoch that is kept is one that had not learnt it."""
    for path in sorted((photos / "train" / "blue").iterdir())[1:]:
        put(root, "red", path.read_bytes(), state="accepted")
    add(root, run)
    assert accuracy(run) >= accuracy(whole) - 0.1


# ------------------------------------------------------------------------------------------------ what changes


@pytest.fixture(scope="module")
def data(whole: Path) -> Dataset:
    return record.read(whole / "data.json")


def corrected(data: Dataset, root: Path, tmp_path: Path) -> tuple[Dataset, Changes]:
    corrections, problems = accepted(root)
    return correct(data, corrections, problems, tmp_path)


def test_the_record_gives_back_the_data_set(whole: Path, data: Dataset, tmp_path: Path) -> None:
    record.write(tmp_path / "data.json", data)
    assert (tmp_path / "data.json").read_text() == (whole / "data.json").read_text()
    assert data.pixels.shape == (len(data.pictures), 32, 32, 3)
    rows = data.test[:3]
    pixels = data.pixels[rows]
    assert pixels.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(pixels[1], data.pixels[int(rows[1])])


def test_pictures_that_measure_are_left_out_and_so_are_copies_of_them(root: Path, tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / "photos" / ("one", "other")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(150, 100, number).save(path)
    data = read(Source(tmp_path / "photos"), 64, 64, 1, tmp_path)
    for rows in (data.validation, data.calibration, data.test):
        put(root, "one", data.pictures[rows[0]].file.path.read_bytes(), state="accepted")
    copy = Image.open(data.pictures[data.test[1]].file.path).resize((120, 80))
    put(root, "one", encoded(copy, quality=80), state="accepted")
    put(root, "one", encoded(photograph(150, 100, 99)), state="accepted")
    changed, changes = corrected(data, root, tmp_path)
    assert (changes.measuring, changes.added, changes.count) == (4, Counter(one=1), 1)
    assert changed.digest != data.digest
    np.testing.assert_array_equal(changed.test, data.test)


def test_a_picture_of_two_labels_that_was_left_out_is_learnt_from_once_it_is_corrected(
    tmp_path: Path, root: Path, photos: Path
) -> None:
    folder = shutil.copytree(photos, tmp_path / "photos")
    shutil.copy(folder / "train" / "blue" / "001.png", folder / "train" / "green" / "same.png")
    before = read(Source(folder), 32, 32, 1, tmp_path)
    put(root, "blue", (folder / "train" / "blue" / "001.png").read_bytes(), state="accepted")
    changed, changes = corrected(before, root, tmp_path)
    assert (len(before.train), len(changed.train), changes.relabelled) == (89, 90, Counter(blue=1))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "damaged or changed"),
        (lambda path: path.with_suffix(".json").unlink(), "no note of its label"),
    ],
)
def test_damaged_corrections_are_named_and_the_others_count(
    data: Dataset, root: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(put(root, "green", green(1), state="accepted"))
    put(root, "green", green(2), state="accepted")
    _, changes = corrected(data, root, tmp_path)
    assert changes.added == Counter(green=1)
    (problem,) = changes.problems
    assert said in problem
    assert problem in changes.table()


def test_a_picture_that_lies_under_two_labels_is_taken_once_and_told(data: Dataset, root: Path, tmp_path: Path) -> None:
    path = put(root, "green", green(1), state="accepted")
    other = root / "accepted" / "red" / path.name
    other.parent.mkdir()
    shutil.copy(path, other)
    other.with_suffix(".json").write_text('{"label": "red"}')
    _, changes = corrected(data, root, tmp_path)
    assert (changes.count, len(changes.problems)) == (1, 1)


def test_whether_it_is_worse_is_no_matter_of_chance() -> None:
    assert not Comparison("test", 120, 100, 98, gained=4, lost=6).is_worse
    assert not Comparison("test", 120, 60, 100, gained=41, lost=1).is_worse
    assert not Comparison("test", 120, 100, 100, gained=0, lost=0).is_worse
    assert Comparison("test", 120, 100, 90, gained=2, lost=12).is_worse
    assert Comparison("test", 120, 100, 95, gained=0, lost=5).is_worse
    assert "worse  " in Comparison("test", 120, 100, 90, gained=2, lost=12).lines()
    assert "83.3% → 81.7% of the same 120" in Comparison("test", 120, 100, 98, gained=4, lost=6).lines()
    assert "worse  " not in Comparison("test", 120, 100, 98, gained=4, lost=6).lines()


# ------------------------------------------------------------------------------------------------ what is refused


def test_labels_of_a_run_stay_as_they_are(root: Path, run: Path) -> None:
    put(root, "violet\x1b", green(1), state="accepted")
    said = refused(train("--add", root, "--from", run, "--no-publish"))
    assert "1 corrections say 'violet\\x1b', which the run does not know" in said
    assert {entry.name for entry in run.parent.iterdir()} == {"mine"}


def test_a_class_is_not_left_without_pictures(data: Dataset, root: Path, tmp_path: Path) -> None:
    for row in data.train[data.classes[data.train] == data.labels.index("green")]:
        put(root, "red", data.pictures[row].file.path.read_bytes(), state="accepted")
    with pytest.raises(UserError, match="leave 'green' without a training picture"):
        corrected(data, root, tmp_path)


def test_what_waits_has_to_be_looked_at_first(root: Path, run: Path) -> None:
    put(root, "green", green(1))
    assert "train.py --review" in refused(train("--add", root, "--from", run))
    assert "holds no accepted corrections" in refused(train("--add", root / "nowhere", "--from", run))


def test_what_is_no_finished_run_says_so(root: Path, run: Path, tmp_path: Path) -> None:
    put(root, "green", green(1), state="accepted")
    assert "is no finished run" in refused(train("--add", root, "--from", tmp_path))
    (run / "data.json").write_text("{")
    assert "the run is damaged" in refused(train("--add", root, "--from", run))
    (run / "data.json").unlink()
    assert "trained before --add was there" in refused(train("--add", root, "--from", run))
