"""Training from end to end, as people run it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from loupe.card import Card
from loupe.training.artifacts import summarize
from loupe.training.evaluate.calibrate import Calibration
from loupe.training.settings import ALL, Settings
from tests.support.servers import ROOT
from tests.support.shapes import SHAPES, SIDE, draw

COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 40), "red": (200, 40, 30)}
SMALL = ("--backbone", "cnn", "--size", "32", "--epochs", "2")


def paint(folder: Path, count: int, labels: tuple[str, ...] = ("blue", "red")) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = np.random.default_rng((number, *label.encode())).integers(-60, 60, (8, 8, 3))
            pixels = np.clip(coarse + COLOURS[label], 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((50, 40)).save(folder / label / f"{number:03}.png")
    return folder


def train(*arguments: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None, patience: float = 300) -> Any:
    command: list[str | Path] = [sys.executable, ROOT / "train.py", *arguments]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=patience)


def trained(folder: Path, data: Path, *flags: str | Path, name: str = "mine") -> Path:
    ran = train(data, "--name", name, "--runs", folder / "runs", "--no-publish", *flags)
    assert ran.returncode == 0, ran.stderr
    return folder / "runs" / name


def resumed(folder: Path, name: str = "mine") -> Path:
    """Go on by the run's name alone, as a user would who has forgotten the rest."""
    ran = train("--resume", "--name", name, "--runs", folder / "runs")
    assert ran.returncode == 0, ran.stderr
    assert "not published" in ran.stdout, "as it was told when it began"
    return folder / "runs" / name


def started(folder: Path, *arguments: str | Path, name: str = "mine") -> subprocess.Popen[str]:
    command: list[str | Path] = [sys.executable, "-u", ROOT / "train.py"]
    places: list[str | Path] = ["--runs", folder / "runs", "--name", name]
    return subprocess.Popen(
        [*command, *arguments, *places, "--no-publish"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until(process: subprocess.Popen[str], said: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if said in line:
            return
    raise AssertionError(f"it ended without {said!r}")


def until_there(folder: Path, pattern: str = "") -> None:
    """Wait for a file, or for one of a pattern in a folder."""
    limit = time.monotonic() + 120
    while not (any(folder.glob(pattern)) if pattern else folder.exists()):
        assert time.monotonic() < limit, f"no {folder / pattern}"
        time.sleep(0.005)


def refused(ran: Any) -> str:
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    said = str(ran.stderr).strip()
    assert len(said.splitlines()) == 1, said
    return said


def history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def weights(run: Path) -> list[Any]:
    return list(keras.saving.load_model(run / "model.keras", compile=False).get_weights())


def accuracy(run: Path) -> float:
    return float(json.loads((run / "metrics.json").read_text())["accuracy"])


EPOCHS = 8
LONG = (*SMALL[:4], "--epochs", str(EPOCHS), "--flip", "both", "--lr", "1e-3", "--certain", "0.8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("photos") / "photos", 30)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    return trained(tmp_path_factory.mktemp("undisturbed"), photos, *LONG)


# ---------------------------------------------------------------------- what is refused, before anything is trained


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--colour", "red"], "--colour"),
        (["--epochs", "0"], "--epochs"),
        (["--size", "9"], "--size"),
        (["--lr", "much"], "--lr"),
        (["--epcohs", "3"], "--epochs"),
        (["--backbone", "xceptoin"], "xception?"),
        (["--backbone", "xception", "--size", "64"], "71"),
        (["--zoom", "2", "1"], "--zoom"),
        (["--fine-tune", "--flip", "both"], "--fine-tune needs a value after it."),
        (["--zoom", "2"], "--zoom needs 2 values after it."),
        (["--name", "../elsewhere"], "--name"),
        (["--resume", "--fresh"], "one of the two"),
        (["--recipe", "tyres"], "tires"),
        (["--backbone", "cnn", "--tune", "3"], "--fine-tune 0"),
        (["--backbone", "cnn", "--fine-tune", "0", "--views", "3"], "--flip"),
        (["--validation", "0.5", "--test", "0.5"], "0.8"),
        (["--models", "/proc/nowhere"], "--models"),
        (["--tune", "3", "--lr", "1", "--head", "0", "--decay", "0"], "--tune has nothing to choose"),
    ],
)
def test_a_wrong_flag_or_value_is_one_line_that_names_it(tmp_path: Path, flags: list[str], named: str) -> None:
    assert named in refused(train(tmp_path, "--runs", tmp_path / "runs", *flags))


def test_data_that_cannot_be_trained_on_are_one_line_and_leave_no_run(tmp_path: Path) -> None:
    paint(tmp_path / "one", 10, labels=("red",))
    for data, named in ((tmp_path / "nowhere", "nowhere"), (tmp_path / "one", "1 class,")):
        assert named in refused(train(data, "--runs", tmp_path / "runs", "--no-publish"))
        assert not list((tmp_path / "runs").iterdir())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 10)
    (tmp_path / "file").touch()
    said = refused(train(tmp_path / "photos", "--runs", tmp_path / "file" / "runs", "--no-publish"))
    assert "--runs" in said


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_before_is_still_there(
    tmp_path: Path, photos: Path, undisturbed: Path
) -> None:
    """A file may grow to 200 kB here, which the features fit in and the model does not."""
    run = shutil.copytree(undisturbed, tmp_path / "runs" / "mine")
    before = (run / "card.json").read_text()
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command: list[str | Path] = [
        sys.executable,
        "-c",
        code,
        ROOT / "train.py",
        photos,
        "--name",
        "mine",
        "--no-publish",
    ]
    ran = subprocess.run(
        [*command, "--runs", tmp_path / "runs", *SMALL], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert "Free it" in refused(ran)
    assert (run / "card.json").read_text() == before


def test_check_tells_what_is_wrong_and_trains_nothing(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 9)
    (tmp_path / "photos" / "red" / "empty.jpg").touch()
    ran = train("--check", tmp_path / "photos", "--runs", tmp_path / "runs", "--models", tmp_path / "models")
    assert ran.returncode == 1, ran.stderr
    assert ran.stdout.count("empty.jpg") == 1
    assert not (tmp_path / "runs").exists() and not (tmp_path / "models").exists()


def test_check_asks_for_no_name_and_is_content_where_there_is_no_error(tmp_path: Path) -> None:
    ran = train("--check", paint(tmp_path / "写真", 9))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("写真: 2 classes, ")
    assert "warning" in ran.stdout
    assert "--name" in refused(train(tmp_path / "写真"))


# ---------------------------------------------------------------------- what a run is


def test_a_folder_becomes_a_run_with_everything_that_tells_of_it(undisturbed: Path) -> None:
    run = undisturbed
    made = {entry.name for entry in run.iterdir()}
    assert made >= {"model.keras", "card.json", "metrics.json", "history.csv", "dataset.json", "report.html"}
    assert made >= {"pictures.json"}, "which ones an export is checked on"
    assert "curves.png" in made
    assert [entry.name for entry in run.parent.iterdir()] == ["mine"], "nothing is left behind"
    card, metrics = Card.read(run / "card.json"), json.loads((run / "metrics.json").read_text())
    assert (card.name, card.labels, card.height, card.width) == ("mine", ("blue", "red"), 32, 32)
    assert card.metrics["accuracy"] == metrics["accuracy"]
    assert card.training["images"] == metrics["images"]["train"]
    assert card.metrics["confusion"] == metrics["confusion"]
    assert sum(count for *_, count in card.metrics["reliability"]) == 8
    assert sum(map(sum, metrics["confusion"])) == sum(metrics["images"]["test"].values()) == 8
    assert len(history(run)) == EPOCHS


@pytest.mark.parametrize(("suspects", "temperature"), [(0, 1.0), (3, 1.4)])
def test_the_terminal_says_how_many_labels_may_be_wrong_and_what_calibration_did(
    suspects: int, temperature: float
) -> None:
    metrics = {"accuracy": 0.9, "ece": 0.12, "ece_before": 0.15, "images": {"test": {"a": 6, "b": 4}}}
    predictions, calibration = SimpleNamespace(rows=range(10)), Calibration(temperature)
    result: Any = SimpleNamespace(metrics=metrics, calibration=calibration, predictions=predictions, split="test")
    pipeline: Any = SimpleNamespace(notes=[], seconds={"head": 3.0})
    said = summarize(result, pipeline, suspects, Path("runs/mine"), 60.0)
    told = "labels             3 may be wrong: the report shows them, runs/mine/label_errors.csv lists them" in said
    assert told == bool(suspects)
    assert ("calibration error  0.120\n" in said) == (temperature == 1), "nothing before where nothing was fitted"
    assert ("(0.150 before temperature 1.40)" in said) == (temperature != 1)


def test_the_terminal_says_that_a_certainty_was_asked_for_and_is_not_given() -> None:
    calibration = Calibration(certain_note="0.9 was asked for, and is not given, because there are too few pictures")
    metrics = {"accuracy": 0.9, "ece": 0.12, "ece_before": 0.12, "images": {"test": {"a": 6, "b": 4}}}
    result: Any = SimpleNamespace(
        metrics=metrics, calibration=calibration, predictions=SimpleNamespace(rows=range(10)), split="test"
    )
    said = summarize(result, SimpleNamespace(notes=[], seconds={}), 0, Path("runs/mine"), 60.0)  # type: ignore[arg-type]
    assert "\ncertain            0.9 was asked for, and is not given, because there are too few pictures\n" in said


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        (Settings(weights="none"), True),
        (Settings(weights="none", fine_tune=30), True),
        (Settings(weights="none", fine_tune=ALL), False),
        (Settings(backbone="cnn"), False),
        (Settings(), False),
    ],
)
def test_a_frozen_network_of_random_weights_is_said_to_learn_nothing(settings: Settings, warns: bool) -> None:
    assert bool(settings.learns_nothing) == warns
    if warns:
        assert "--weights imagenet" in settings.learns_nothing and "--fine-tune all" in settings.learns_nothing


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 16)
    flags = (*SMALL, "--flip", "both", "--rotation", "20", "--mixup", "0.2")
    one, two = (trained(tmp_path, tmp_path / "photos", *flags, name=name) for name in ("one", "two"))
    assert history(one) == history(two)
    for mine, other in zip(weights(one), weights(two), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.slow
def test_without_test_pictures_validation_measures_and_says_so(tmp_path: Path) -> None:
    data, places = paint(tmp_path / "photos", 40), ("--runs", tmp_path / "runs", "--no-publish")
    ran = train(data, *SMALL, "--test", "0", *places)
    assert re.search(r"\naccuracy +\d+\.\d% of \d+ validation pictures\n", ran.stdout), ran.stdout
    assert Card.read(tmp_path / "runs" / "photos" / "card.json").metrics["split"] == "validation"


@pytest.mark.slow
def test_a_network_learnt_in_bfloat16_is_kept_in_float32(tmp_path: Path) -> None:
    run = trained(tmp_path, paint(tmp_path / "photos", 16), *SMALL, "--precision", "bfloat16")
    model = keras.saving.load_model(run / "model.keras", compile=False)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


@pytest.mark.slow
def test_fine_tuning_from_cached_features_is_fine_tuning_from_pixels(tmp_path: Path) -> None:
    """The same seed and no dropout: what the cache's half precision leaves is all that may differ."""
    paint(tmp_path / "photos", 16)
    flags = ("--backbone", "mobilenetv2", "--weights", "none", "--size", "32", "--epochs", "3", "--dropout", "0")
    tuned = (*flags, "--lr", "1e-2", "--fine-tune", "12", "--fine-tune-epochs", "2", "--fine-tune-lr", "1e-3")
    cached = trained(tmp_path, tmp_path / "photos", *tuned, name="cached")
    pixels = trained(tmp_path, tmp_path / "photos", *tuned, "--brightness", "1", "1.0000001", name="pixels")
    one, two = history(cached), history(pixels)
    assert [row["stage"] for row in one] == ["head"] * 3 + ["fine-tune"] * 2
    for mine, other in zip(one, two, strict=True):
        assert float(mine["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=0.02)
    assert Card.read(cached / "card.json").backbone["name"] == "mobilenetv2"


@pytest.mark.slow
def test_tuning_finds_a_head_and_trains_it_at_another_size(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 30)
    flags = ("--backbone", "cnn", "--fine-tune", "0", "--size", "48", "--tune", "4", "--tune-size", "32")
    run = trained(tmp_path, tmp_path / "photos", *flags)
    metrics = json.loads((run / "metrics.json").read_text())
    assert [trial["number"] for trial in metrics["trials"]] == [0, 1, 2, 3, 4], "logistic regression and four more"
    assert (run / "trials.png").exists()
    assert Card.read(run / "card.json").height == 48


@pytest.mark.slow
def test_heads_learn_from_several_views(tmp_path: Path) -> None:
    flags = ("--backbone", "cnn", "--fine-tune", "0", "--size", "32", "--views", "2", "--flip", "horizontal")
    run = trained(tmp_path, paint(tmp_path / "photos", 30), *flags, "--epochs", "30", "--lr", "1e-2")
    assert accuracy(run) >= 0.8


@pytest.mark.slow
def test_fine_tuning_that_finds_nothing_better_is_not_claimed(tmp_path: Path) -> None:
    flags = ("--backbone", "cnn", "--fine-tune", "0", "--size", "32", "--epochs", "30", "--lr", "1e-2")
    tuned = (*flags[:2], "--fine-tune", "3", "--fine-tune-lr", "0.9", "--fine-tune-epochs", "1", *flags[4:])
    run = trained(tmp_path, paint(tmp_path / "photos", 30), *tuned)
    assert Card.read(run / "card.json").backbone["fine_tuned_layers"] == 0


def test_where_there_is_nothing_to_resume_it_says_so_and_begins_nothing(tmp_path: Path, undisturbed: Path) -> None:
    """It replaced a finished run, and published over it."""
    run = shutil.copytree(undisturbed, tmp_path / "runs" / "mine")
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    places = ("--runs", tmp_path / "runs", "--models", tmp_path / "models")
    named = refused(train("--resume", "--name", "mine", *places))
    assert "nothing to resume" in named and f"{run} is finished" in named and f"convert.py {run}" in named
    for arguments in (("--name", "other"), (), (paint(tmp_path / "photos", 9),), ("--lr", "0.1", "--name", "mine")):
        assert "nothing to resume" in refused(train("--resume", *arguments, *places))
    assert "nothing to resume" in refused(train("--resume", "--runs", tmp_path / "nowhere"))
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["mine"]
    assert not (tmp_path / "models").exists() and not (tmp_path / "nowhere").exists()


def test_what_learnt_nothing_is_not_published_and_an_asked_for_certainty_is_said_to_be_missing(tmp_path: Path) -> None:
    """Pictures of one kind under two labels, of which nothing can be learnt."""
    data, pictures = tmp_path / "photos", (paint(tmp_path, 148, labels=("blue",)) / "blue").iterdir()
    for split, count in (("train", 20), ("validation", 24), ("test", 30)):
        for label in ("heads", "tails"):
            (data / split / label).mkdir(parents=True)
            for _ in range(count):
                path = next(pictures)
                path.rename(data / split / label / path.name)
    places = ("--runs", tmp_path / "runs", "--models", tmp_path / "models")
    ran = train(data, "--name", "coin", *SMALL, "--certain", "0.9", *places)
    assert re.fullmatch(
        r"train.py: coin is not published: \d\d of 60 test pictures are right, .* gets 30: .*\n", ran.stderr
    )
    assert ran.returncode == 2
    assert "coin --publish-anyway` publishes it" in ran.stdout
    assert not list((tmp_path / "models").iterdir())
    # Card, report and terminal say why no answer is certain.
    run = tmp_path / "runs" / "coin"
    note = Card.read(run / "card.json").certain_note
    assert note and note.startswith("0.9 was asked for, and is not given, because there is no confidence from which on")
    assert f"certain            {note}" in ran.stdout
    assert f"No answer counts as certain: {note}" in (run / "report.html").read_text()
    # With --publish-anyway the same run is published.
    command = [
        sys.executable,
        str(ROOT / "convert.py"),
        str(run),
        "--models",
        str(tmp_path / "models"),
        "--publish-anyway",
    ]
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "models/coin/1" in again.stdout


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that learnt to tell one set of shapes apart."""
    folder = tmp_path_factory.mktemp("first")
    draw(folder / "shapes", SHAPES["first"], 80)
    flags = ("--backbone", "cnn", "--size", str(SIDE), "--epochs", "25", "--batch-size", "16")
    return trained(folder, folder / "shapes", *flags)


@pytest.mark.slow
def test_what_was_learnt_on_one_task_helps_on_another(tmp_path: Path, eyes: Path) -> None:
    """Frozen, with a head alone learnt on other shapes, against random weights: as they come (hardly anything gets
    through their batch normalisation), and with that normalisation fitted to pictures."""
    draw(tmp_path / "shapes", SHAPES["second"], 60)
    fitted = keras.saving.load_model(eyes / "model.keras", compile=False)
    keras.utils.set_random_seed(3)
    fresh = keras.models.clone_model(fitted)
    for _ in range(40):
        fresh(np.random.default_rng(0).integers(0, 256, (64, SIDE, SIDE, 3)).astype(np.float32), training=True)
    fresh.save(tmp_path / "random.keras")
    frozen = ("--backbone", "cnn", "--fine-tune", "0", "--size", str(SIDE), "--epochs", "60", "--batch-size", "32")
    reached = {
        name: accuracy(trained(tmp_path, tmp_path / "shapes", *frozen, "--weights", str(source), name=name))
        for name, source in (("learnt", eyes), ("random", "none"), ("fitted", tmp_path / "random.keras"))
    }
    assert reached["learnt"] >= reached["random"] + 0.2
    assert reached["learnt"] >= reached["fitted"] + 0.15


# ---------------------------------------------------------------------- interrupted, killed, resumed


def the_same(run: Path, other: Path) -> None:
    assert history(run) == history(other)
    for mine, theirs in zip(weights(run), weights(other), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_what_was_stopped_by_ctrl_c_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, photos: Path, undisturbed: Path
) -> None:
    runs = tmp_path / "runs"
    process = started(tmp_path, photos, *LONG)
    until(process, f" 3/{EPOCHS}")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in out
    again = f"python train.py --resume --name mine --runs {runs}"
    assert f"interrupted        `{again}` goes on" in out
    kept = runs / "mine-interrupted"
    assert 3 <= len(history(kept)) < EPOCHS
    assert Card.read(kept / "card.json").labels == ("blue", "red")
    assert not (runs / "mine").exists()
    changed = refused(train(photos, "--runs", runs, "--name", "mine", "--resume", *LONG, "--lr", "2e-3"))
    assert "had --lr 0.001, and now it is 0.002" in changed and f"`{again}` goes on" in changed
    elsewhere = refused(train(paint(tmp_path / "others", 9), "--runs", runs, "--name", "mine", "--resume"))
    assert "others" in elsewhere and f"`{again}` goes on" in elsewhere
    the_same(resumed(tmp_path), undisturbed)
    report = (runs / "mine" / "report.html").read_text()
    assert "--flip both" in report and "--resume" not in report, "the command that gives the same model"
    assert {entry.name for entry in runs.iterdir()} == {"mine", "mine-interrupted"}


@pytest.mark.slow
def test_what_was_killed_goes_on_as_if_nothing_had_happened(tmp_path: Path, photos: Path, undisturbed: Path) -> None:
    runs = tmp_path / "runs"
    process = started(tmp_path, photos, *LONG)
    until(process, f" {EPOCHS - 1}/{EPOCHS}")
    process.kill()
    process.wait()
    again = f"`python train.py --resume --name mine --runs {runs}` goes on"
    assert again in refused(train(photos, "--runs", runs, "--name", "mine", "--no-publish", *LONG))
    (photos / "red" / "000.png").rename(tmp_path / "away.png")
    fewer = train("--resume", "--runs", runs, "--name", "mine")
    (tmp_path / "away.png").rename(photos / "red" / "000.png")
    assert "pictures are not those" in refused(fewer)
    the_same(trained(tmp_path, photos, "--resume", *LONG), undisturbed)  # flags may be there if they are the same


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, photos: Path, undisturbed: Path) -> None:
    rng, kills = np.random.default_rng(), 0
    began = time.monotonic()
    trained(tmp_path, photos, *LONG, name="timed")
    whole = time.monotonic() - began
    begun = tmp_path / "runs" / ".part-mine" / "about.json"
    while kills < 10:
        process = started(tmp_path, *(["--resume"] if begun.exists() else [photos, *LONG]))
        time.sleep(rng.uniform(0.1, 1.0) * whole)
        if process.poll() is None:
            process.kill()
            kills += 1
            print(f"kill {kills}", sorted(path.name for path in (tmp_path / "runs").glob(".part-mine/state/*")))
        process.wait()
        if process.returncode == 0 and kills < 10:  # it came to its end before: once more from the start
            the_same(tmp_path / "runs" / "mine", undisturbed)
            shutil.rmtree(tmp_path / "runs" / "mine")
    the_same(resumed(tmp_path), undisturbed)


@pytest.mark.slow
def test_ctrl_c_in_fine_tuning_keeps_the_head(tmp_path: Path, photos: Path) -> None:
    flags = ("--backbone", "cnn", "--size", "32", "--fine-tune", "0", "--epochs", "3", "--flip", "horizontal")
    process = started(tmp_path, photos, *flags[:4], "--fine-tune", "4", "--fine-tune-epochs", "500", *flags[6:])
    until(process, "head        3/3")
    until(process, "fine-tune   1/500")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in out
    assert [row["stage"] for row in history(tmp_path / "runs" / "mine-interrupted")][:4] == ["head"] * 3 + ["fine-tune"]


@pytest.mark.slow
def test_a_killed_search_goes_on_with_what_it_chose(tmp_path: Path, photos: Path) -> None:
    flags = ("--backbone", "cnn", "--fine-tune", "0", "--size", "32", "--tune", "5")
    wanted = trained(tmp_path, photos, *flags, name="undisturbed")
    process = started(tmp_path, photos, *flags)
    until(process, "trial 3")
    process.kill()
    process.wait()
    the_same(resumed(tmp_path), wanted)


@pytest.mark.slow
def test_ctrl_c_in_the_search_trains_the_best_so_far_and_says_so(tmp_path: Path, photos: Path) -> None:
    flags = ("--backbone", "cnn", "--fine-tune", "0", "--size", "32", "--tune", "500")
    process = started(tmp_path, photos, *flags)
    until(process, "trial 3")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in out
    assert re.search(r"interrupted        the best of \d+ trials is trained now; Ctrl-C again ends that", out)
    assert len(json.loads((tmp_path / "runs" / "mine" / "metrics.json").read_text())["trials"]) < 500


def test_ctrl_c_while_pictures_are_read_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    process = started(tmp_path, paint(tmp_path / "photos", 400), *SMALL)
    until_there(tmp_path / "runs" / ".part-mine" / "about.json")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out.strip() == (
        "train.py: interrupted; nothing was learnt yet, and nothing is kept: the same command begins again"
    )
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_while_features_are_computed_keeps_them_and_goes_on(tmp_path: Path) -> None:
    flags = ("--backbone", "mobilenetv2", "--weights", "none", "--size", "96", "--epochs", "2")
    process = started(tmp_path, paint(tmp_path / "photos", 200), *flags)
    until_there(tmp_path / "runs" / ".features", "*/ids.txt")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in out
    assert "nothing was learnt yet: `python train.py --resume --name mine --runs" in out.splitlines()[-1]
    resumed(tmp_path)


def test_ctrl_c_after_training_goes_on_with_what_was_learnt(tmp_path: Path, photos: Path, undisturbed: Path) -> None:
    process = started(tmp_path, photos, *LONG)
    until_there(tmp_path / "runs" / ".part-mine" / "card.json")  # the report is to come
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in out
    assert "what was learnt so far is kept: `python train.py --resume --name mine --runs" in out.splitlines()[-1]
    the_same(resumed(tmp_path), undisturbed)


@pytest.mark.slow
def test_ctrl_c_while_it_is_published_leaves_a_whole_run_and_no_version(tmp_path: Path, photos: Path) -> None:
    command: list[str | Path] = [sys.executable, "-u", ROOT / "train.py", photos, *SMALL, "--name", "mine"]
    places: list[str | Path] = ["--runs", tmp_path / "runs", "--models", tmp_path / "models"]
    process = subprocess.Popen([*command, *places], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until_there(tmp_path / "models" / "mine", ".part-*")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    run = tmp_path / "runs" / "mine"
    assert process.returncode == 130 and "Traceback" not in out
    assert out.splitlines()[-1].endswith(f"the run is whole, and `python convert.py {run}` publishes it")
    assert not list((tmp_path / "models" / "mine").glob("[!.]*"))
    assert (run / "report.html").exists()
    # convert.py alone, interrupted as well.
    command = [sys.executable, "-u", ROOT / "convert.py", run, "--models", tmp_path / "again"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until_there(tmp_path / "again" / "mine", ".part-*")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out.splitlines()[-1] == (
        "convert.py: interrupted; nothing was published or written: the same command begins again"
    )
    assert not [entry for entry in (tmp_path / "again" / "mine").iterdir() if entry.name != ".numbers"]


@pytest.mark.slow
def test_two_trainings_of_one_name_do_not_meet(tmp_path: Path, photos: Path) -> None:
    process = started(tmp_path, photos, *LONG)
    until(process, f" 1/{EPOCHS}")
    said = refused(train(photos, "--runs", tmp_path / "runs", "--name", "mine", "--no-publish", *LONG))
    assert "under way" in said
    process.kill()
    process.wait()
    trained(tmp_path, photos, "--fresh", *SMALL)


@pytest.mark.slow
def test_several_devices_learn_together(tmp_path: Path, photos: Path) -> None:
    """Two virtual ones, made of the processor: the batch is shared out, and one model comes of it."""
    code = (
        "import runpy, sys, tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = ("--backbone", "cnn", "--size", "32", "--epochs", "4", "--batch-size", "16", "--no-publish")
    command: list[str | Path] = [
        sys.executable,
        "-c",
        code,
        ROOT / "train.py",
        photos,
        "--runs",
        tmp_path / "runs",
        "--name",
        "mine",
    ]
    ran = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    run = tmp_path / "runs" / "mine"
    assert len(re.findall("CPU:[01]", (run / "report.html").read_text())) >= 2
    alone = trained(tmp_path, photos, *flags[:-1], name="alone")
    one, two = history(run)[0], history(alone)[0]
    assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=0.2), "later epochs part, by rounding"
    assert accuracy(run) == accuracy(alone) == 1.0
