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
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from loupe.card import Card
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


def started(folder: Path, data: Path, *flags: str, name: str = "mine") -> subprocess.Popen[str]:
    command: list[str | Path] = [
        sys.executable,
        "-u",
        ROOT / "train.py",
        data,
        "--runs",
        folder / "runs",
        "--name",
        name,
    ]
    return subprocess.Popen(
        [*command, "--no-publish", *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until(process: subprocess.Popen[str], said: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if said in line:
            return
    raise AssertionError(f"it ended without {said!r}")


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
        (["--name", "../elsewhere"], "--name"),
        (["--resume", "--fresh"], "one of the two"),
        (["--recipe", "tyres"], "tires"),
        (["--backbone", "cnn", "--tune", "3"], "--fine-tune 0"),
        (["--backbone", "cnn", "--fine-tune", "0", "--views", "3"], "--flip"),
        (["--validation", "0.5", "--test", "0.5"], "0.8"),
        (["--models", "/proc/nowhere"], "--models"),
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
    assert ran.returncode == 0, ran.stderr
    assert "empty.jpg" in ran.stdout
    assert not (tmp_path / "runs").exists() and not (tmp_path / "models").exists()


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
    run = trained(tmp_path, paint(tmp_path / "photos", 40), *SMALL, "--test", "0")
    assert Card.read(run / "card.json").metrics["split"] == "validation"


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
    assert len(metrics["trials"]) == 4
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


@pytest.mark.slow
def test_resuming_a_finished_run_only_publishes_it_once(tmp_path: Path) -> None:
    flags = (paint(tmp_path / "photos", 16), "--name", "mine", "--runs", tmp_path / "runs", *SMALL)
    published = ("--models", tmp_path / "models", "--resume")
    trained(tmp_path, tmp_path / "photos", *SMALL)
    again = train(*flags, *published)
    assert "is finished" in again.stdout and "mine/1" in again.stdout, again.stderr
    assert "published before" in train(*flags, *published).stdout
    assert [entry.name for entry in (tmp_path / "models" / "mine").glob("[!.]*")] == ["1"]


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
    assert "--resume goes on" in out
    kept = runs / "mine-interrupted"
    assert 3 <= len(history(kept)) < EPOCHS
    assert Card.read(kept / "card.json").labels == ("blue", "red")
    assert not (runs / "mine").exists()
    changed = train(photos, "--runs", runs, "--name", "mine", "--no-publish", "--resume", *LONG, "--lr", "2e-3")
    assert "lr 0.001" in refused(changed) and "now it is 0.002" in refused(changed)
    the_same(trained(tmp_path, photos, "--resume", *LONG), undisturbed)
    assert {entry.name for entry in runs.iterdir()} == {"mine", "mine-interrupted"}


@pytest.mark.slow
def test_what_was_killed_goes_on_as_if_nothing_had_happened(tmp_path: Path, photos: Path, undisturbed: Path) -> None:
    runs = tmp_path / "runs"
    process = started(tmp_path, photos, *LONG)
    until(process, f" {EPOCHS - 1}/{EPOCHS}")
    process.kill()
    process.wait()
    assert "--resume goes on" in refused(train(photos, "--runs", runs, "--name", "mine", "--no-publish", *LONG))
    (photos / "red" / "000.png").rename(tmp_path / "away.png")
    fewer = train(photos, "--runs", runs, "--name", "mine", "--no-publish", "--resume", *LONG)
    (tmp_path / "away.png").rename(photos / "red" / "000.png")
    assert "pictures are not those" in refused(fewer)
    the_same(trained(tmp_path, photos, "--resume", *LONG), undisturbed)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, photos: Path, undisturbed: Path) -> None:
    rng, kills = np.random.default_rng(), 0
    began = time.monotonic()
    trained(tmp_path, photos, *LONG, name="timed")
    whole = time.monotonic() - began
    while kills < 10:
        process = started(tmp_path, photos, "--resume", *LONG)
        time.sleep(rng.uniform(0.1, 1.0) * whole)
        if process.poll() is None:
            process.kill()
            kills += 1
            print(f"kill {kills}", sorted(path.name for path in (tmp_path / "runs").glob(".part-mine/state/*")))
        process.wait()
        if process.returncode == 0 and kills < 10:  # it came to its end before: once more from the start
            the_same(tmp_path / "runs" / "mine", undisturbed)
            shutil.rmtree(tmp_path / "runs" / "mine")  # a finished run is not trained again
    the_same(trained(tmp_path, photos, "--resume", *LONG), undisturbed)


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
    the_same(trained(tmp_path, photos, "--resume", *flags), wanted)


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
