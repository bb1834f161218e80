"""From a correction to a served model: made on the page, reviewed, learnt from, published, answered with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from data.tires import draw
from tests.support.browsers import opened
from tests.support.gateways import Gateway, gateway
from tests.support.pace import seconds
from tests.support.servers import model_server, until
from tests.training.test_training import paint, train


@dataclass
class Round:
    """What a round brought: right answers among the corrected pictures, of version 1 and then of version 2."""

    count: int
    before: int
    after: int
    seconds: float  # from the first correction to the first answer of the new version
    said: str  # by train.py --add


def correct_on_the_page(here: Gateway, browser: Browser, paths: list[Path], label: str) -> None:
    """Choose the pictures on the page, and tell of each what it shows."""
    with opened(browser, f"http://127.0.0.1:{here.port}/") as page:
        page.set_input_files("#file", paths)
        expect(page.locator("#list > .answered")).to_have_count(len(paths), timeout=60_000)
        for number in range(len(paths)):
            card = page.locator("#list > li").nth(number)
            if card.locator(".label").text_content() == label:  # it is answered rightly all the same
                continue
            correction = card.locator(".correct")
            correction.locator("summary").click()
            correction.locator("select").select_option(label)
            correction.locator("button").click()
            expect(correction).to_contain_text(f"Kept as {label}. Thank you.")


def run(*arguments: str | Path, patience: float = 300) -> str:
    done = train(*arguments, patience=patience)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def go_round(folder: Path, name: str, wrong: list[Path], label: str, browser: Browser) -> Round:
    """Correct the pictures in `wrong` while version 1 is served. folder/runs and folder/models have it already."""
    corrections = folder / "corrections"
    pictures = [path.read_bytes() for path in wrong]
    with (
        model_server(folder / "models", name) as server,
        gateway(f"localhost:{server.port}", name, LOUPE_FEEDBACK_DIR=str(corrections)) as here,
    ):

        def right() -> int:
            return sum(here.post("/predict", data).json()["label"] == label for data in pictures)

        before, started = right(), time.monotonic()
        correct_on_the_page(here, browser, wrong, label)
        run("--review", corrections)
        run("--review", corrections, "--accept", "all")
        said = run("--add", corrections, "--from", folder / "runs" / name, "--models", folder / "models")
        until(lambda: here.post("/predict", pictures[0]).json()["model"] == {"name": name, "version": 2}, "version 2")
        seconds = time.monotonic() - started
        return Round(len(pictures), before, right(), seconds, said)


def paint_splits(data: Path) -> Path:
    """Three classes of coloured pictures: 30 of each to train on, 12 to validate by and 20 to measure with."""
    paint(data / "train", 62, labels=("blue", "green", "red"))
    for split, numbers in (("validation", range(30, 42)), ("test", range(42, 62))):
        for folder in (data / "train").iterdir():
            (data / split / folder.name).mkdir(parents=True)
            for number in numbers:
                (folder / f"{number:03}.png").rename(data / split / folder.name / f"{number:03}.png")
    return data


def mislabel(data: Path, truth: str, wrong: str, count: int) -> list[Path]:
    """Move so many training pictures of one class into another's folder, and return where they are."""
    return [path.rename(data / wrong / f"moved-{path.name}") for path in sorted((data / truth).iterdir())[:count]]


def test_what_callers_correct_is_answered_rightly_by_the_next_version(tmp_path: Path, chromium: Browser) -> None:
    data = paint_splits(tmp_path / "paint")
    wrong = mislabel(data / "train", "green", "red", 22)
    flags = ("--backbone", "cnn", "--size", "32", "--epochs", "12", "--models", tmp_path / "models")
    run(data, "--name", "paint", "--runs", tmp_path / "runs", *flags)
    result = go_round(tmp_path, "paint", wrong, "green", chromium)
    print(f"{result.seconds:.0f} s, {result.before} → {result.after} of {result.count} right")
    assert result.before <= result.count / 4
    assert result.after >= result.count * 3 / 4
    assert "relabelled         22 pictures: green 22" in result.said


@pytest.mark.slow
@pytest.mark.timing
def test_from_a_correction_to_a_served_model_in_less_than_three_minutes_with_the_sample(
    tmp_path: Path, chromium: Browser
) -> None:
    """Of 200 cracked tires that the sample learns from, 190 are said to be normal. The others' labels hold."""
    data = tmp_path / "tires"
    draw(data, splits={"training_data": 400, "validation_data": 60, "testing_data": 120})
    wrong = mislabel(data / "training_data", "cracked", "normal", 190)
    runs = ("--runs", tmp_path / "runs", "--models", tmp_path / "models")
    run(data, "--recipe", "sample", "--publish-anyway", *runs, patience=900)  # it learnt next to nothing of cracks
    result = go_round(tmp_path, "tires", wrong, "cracked", chromium)
    print(f"{result.seconds:.0f} s, {result.before} → {result.after} of {result.count} right\n{result.said}")
    assert result.after - result.before >= (result.count - result.before) / 3  # of those that were corrected
    assert result.seconds < seconds(180)
