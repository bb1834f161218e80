"""Reading, splitting and refusing, and a run of two epochs from end to end. Run: pytest tests/test_training.py"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loupe.card import Card
from loupe.errors import UserError
from loupe.images import decode
from loupe.training.dataset import CUT, Dataset, read
from loupe.training.run import Run

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"blue": (20, 40, 200), "green": (30, 180, 40), "red": (200, 40, 30)}


def paint(folder: Path, count: int, labels: tuple[str, ...] = ("blue", "red")) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = np.random.default_rng(number).integers(-20, 20, (40, 50, 3))
            pixels = np.clip(noise + COLOURS[label], 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:03}.png")
    return folder


def take(folder: Path, seed: int = 42, size: int = 32) -> Dataset:
    return read(folder, size, size, seed, spill=folder)


def train(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "train.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def refused(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr.strip()


def test_missing_splits_are_cut_from_training_class_by_class(tmp_path: Path) -> None:
    data = take(paint(tmp_path, 40))
    share = round(CUT * 40)
    assert data.counts(data.test) == {"blue": share, "red": share}
    kept = round(CUT * (40 - share))
    assert data.counts(data.validation) == {"blue": kept, "red": kept}
    everything = np.concatenate([data.train, data.validation, data.test])
    assert sorted(everything) == list(range(80))


def test_one_seed_cuts_the_same_pictures_and_another_seed_others(tmp_path: Path) -> None:
    paint(tmp_path, 40)
    first, again, other = take(tmp_path), take(tmp_path), take(tmp_path, seed=7)
    assert np.array_equal(first.test, again.test) and np.array_equal(first.validation, again.validation)
    assert not np.array_equal(first.test, other.test)


@pytest.mark.parametrize("names", [("training_data", "valid", "testing_data"), ("train", "val", "test")])
def test_splits_under_their_usual_names_are_taken_as_they_are(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name, count in zip(names, (12, 3, 5), strict=True):
        paint(tmp_path / name, count)
    data = take(tmp_path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [24, 6, 10]


def test_the_test_pictures_of_a_folder_are_never_trained_on(tmp_path: Path) -> None:
    paint(tmp_path / "train", 12)
    paint(tmp_path / "validation", 4)
    data = take(tmp_path)
    assert len(data.validation) == 8
    assert len(data.test) == 2 * round(CUT * 12)
    assert not set(data.test) & set(data.train)


def test_training_sees_the_pixels_that_serving_sees(tmp_path: Path) -> None:
    data = take(paint(tmp_path, 10))
    served = decode((tmp_path / "red" / "000.png").read_bytes(), 32, 32)
    first_red = int(np.flatnonzero(data.classes == data.labels.index("red"))[0])
    assert np.array_equal(data.pixels[first_red], served)


def test_more_pixels_than_fit_the_memory_go_to_a_file_and_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = take(paint(tmp_path, 10))
    monkeypatch.setattr("loupe.training.dataset.IN_MEMORY", 1000)
    outside = take(tmp_path)
    assert isinstance(outside.pixels, np.memmap)
    assert np.array_equal(inside.pixels, outside.pixels)


def test_files_that_are_no_pictures_are_skipped_and_listed(tmp_path: Path) -> None:
    paint(tmp_path, 12)
    (tmp_path / "red" / "empty.jpg").touch()
    for number in range(6):
        (tmp_path / "blue" / f"note-{number}.txt").write_text("no picture")
    whole = (tmp_path / "red" / "000.png").read_bytes()
    (tmp_path / "red" / "cut.png").write_bytes(whole[: len(whole) // 2])
    data = take(tmp_path)
    assert len(data.pixels) == 24
    assert len(data.skipped) == 8
    summary = data.summary("mine")
    assert "skipped 8 files" in summary and "and 3 more" in summary
    assert "note-0.txt" in summary and len(summary.splitlines()) == 1 + 1 + 5 + 1


def test_a_class_with_too_few_pictures_is_refused_by_name(tmp_path: Path) -> None:
    paint(tmp_path, 10)
    paint(tmp_path, 2, labels=("green",))
    with pytest.raises(UserError, match="'green' has 2 readable"):
        take(tmp_path)


def test_a_class_that_only_the_test_folder_has_is_refused_by_name(tmp_path: Path) -> None:
    paint(tmp_path / "train", 10)
    paint(tmp_path / "test", 10, labels=("blue", "green", "red"))
    with pytest.raises(UserError, match="no training pictures of 'green'"):
        take(tmp_path)


def test_a_missing_folder_is_one_line_and_status_2(tmp_path: Path) -> None:
    said = refused(train(tmp_path / "nowhere", "--runs", tmp_path / "runs"))
    assert len(said.splitlines()) == 1
    assert "nowhere" in said


def test_a_folder_of_one_class_is_one_line_and_status_2(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 10, labels=("red",))
    said = refused(train(tmp_path / "photos", "--runs", tmp_path / "runs"))
    assert len(said.splitlines()) == 1
    assert "1 class," in said
    assert not any((tmp_path / "runs").iterdir())


def test_a_place_that_cannot_be_written_is_one_line_and_status_2(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 10)
    (tmp_path / "file").touch()
    said = refused(train(tmp_path / "photos", "--runs", tmp_path / "file" / "runs"))
    assert len(said.splitlines()) == 1
    assert "--runs" in said


@pytest.mark.parametrize("flags", [["--colour", "red"], ["--epochs", "0"], ["--size", "9"], ["--lr", "much"]])
def test_an_unknown_flag_or_value_is_one_line_that_names_it(tmp_path: Path, flags: list[str]) -> None:
    said = refused(train(tmp_path, *flags))
    assert len(said.splitlines()) == 1
    assert flags[0] in said


def test_a_mistyped_flag_is_told_its_nearest(tmp_path: Path) -> None:
    assert "--epochs" in refused(train(tmp_path, "--epcohs", "3"))


def test_a_name_that_would_leave_the_runs_folder_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 10)
    assert "--name" in refused(train(tmp_path / "photos", "--name", "../elsewhere"))


def test_a_run_that_fails_leaves_the_earlier_one_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "card.json").write_text("the earlier run's")
    with pytest.raises(RuntimeError), Run(tmp_path, "mine") as run:
        (run.part / "card.json").write_text("half")
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "card.json").read_text() == "the earlier run's"


def test_an_interrupted_run_is_kept_beside_the_finished_one(tmp_path: Path) -> None:
    for text, finished in (("finished", True), ("interrupted", False)):
        with Run(tmp_path, "mine") as run:
            (run.part / "card.json").write_text(text)
            run.keep(finished)
    assert (tmp_path / "mine" / "card.json").read_text() == "finished"
    assert (tmp_path / "mine-interrupted" / "card.json").read_text() == "interrupted"


def test_a_folder_becomes_a_run_with_model_card_metrics_and_history(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 16)
    small = ("--epochs", "2", "--size", "32", "--no-publish", "--runs", tmp_path / "runs")
    ran = train(tmp_path / "photos", *small)
    assert ran.returncode == 0, ran.stderr
    run = tmp_path / "runs" / "photos"
    assert {entry.name for entry in run.iterdir()} == {"model.keras", "card.json", "metrics.json", "history.csv"}
    assert [entry.name for entry in run.parent.iterdir()] == ["photos"]
    card = Card.read(run / "card.json")
    metrics = json.loads((run / "metrics.json").read_text())
    assert (card.name, card.labels, card.height, card.width) == ("photos", ("blue", "red"), 32, 32)
    assert card.training["seed"] == 42
    assert card.metrics["accuracy"] == metrics["accuracy"]
    assert sum(map(sum, metrics["confusion"])) == sum(metrics["images"]["test"].values()) == 4
    assert len((run / "history.csv").read_text().splitlines()) == 3


def test_the_same_seed_gives_the_same_history(tmp_path: Path) -> None:
    paint(tmp_path / "photos", 16)
    for name in ("one", "two"):
        small = ("--epochs", "2", "--size", "32", "--no-publish", "--runs", tmp_path / "runs")
        assert train(tmp_path / "photos", *small, "--name", name).returncode == 0
    one, two = ((tmp_path / "runs" / name / "history.csv").read_text() for name in ("one", "two"))
    assert one == two
