"""The committed sample model is what training makes: made again from nothing, it is as good."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loupe import checksums
from loupe.card import Card
from tests.support.servers import ROOT

SAMPLE = ROOT / "models" / "tires" / "1"


def test_the_sample_model_is_small_and_says_it_is_accurate() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) <= 3_000_000
    card = Card.read(SAMPLE / "assets.extra" / "card.json")
    assert card.labels == ("cracked", "normal")
    assert card.metrics["accuracy"] >= 0.95
    (cracked, missed), (false_alarms, normal) = card.metrics["confusion"]
    assert cracked + missed == false_alarms + normal == 60
    assert (cracked + normal) / 120 == card.metrics["accuracy"]
    assert sum(count for *_, count in card.metrics["reliability"]) == 120


def test_the_readme_gives_the_samples_accuracy_and_the_range_of_other_seeds() -> None:
    told = re.search(
        r"([\d.]+) % of the 120 testing pictures right\. Five seeds gave\s([\d.]+) to ([\d.]+) %.* ([\d.]+) % was seen",
        (ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert told
    here, low, high, lowest = map(float, told.groups())
    assert here == round(100 * Card.read(SAMPLE / "assets.extra" / "card.json").metrics["accuracy"], 1)
    assert lowest <= here <= high and lowest <= low < high


def test_the_card_beside_the_sample_model_is_the_one_inside_it_and_the_checksum_is_right() -> None:
    card = (SAMPLE / "assets.extra" / "card.json").read_bytes()
    graph = (SAMPLE / "saved_model.pb").read_bytes()
    assert graph.count(card) == 1
    assert checksums.read(SAMPLE / "assets.extra")["../saved_model.pb"] == hashlib.sha256(graph).hexdigest()


@pytest.mark.slow  # two minutes; the recipe tires goes the same way in the daily run
def test_training_from_nothing_gives_a_model_as_accurate_as_the_committed_one(tmp_path: Path) -> None:
    """In an empty folder: draws, trains, exports, publishes version 1, and the benchmark measures both claims on it."""
    for name in ("train.py", "loupe", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    for name in ("tires.py", "tire_picture.py"):
        (tmp_path / "data" / name).symlink_to(ROOT / "data" / name)
    trained = run(tmp_path, "train.py")
    assert "published          models/tires/1" in trained
    made = Card.read(tmp_path / "models" / "tires" / "1" / "assets.extra" / "card.json")
    committed = Card.read(SAMPLE / "assets.extra" / "card.json")
    assert made.metrics["accuracy"] >= 0.95
    assert abs(made.metrics["accuracy"] - committed.metrics["accuracy"]) <= 0.025, "3 of 120 pictures"
    assert made.training["images"] == committed.training["images"] == {"cracked": 170, "normal": 170}
    history = (tmp_path / "runs" / "tires" / "history.csv").read_text().splitlines()
    assert len(history) == 1 + 18
    metrics = json.loads((tmp_path / "runs" / "tires" / "metrics.json").read_text())
    assert metrics["accuracy"] == made.metrics["accuracy"]
    assert metrics["label_errors"] == [], "all labels of drawn pictures are right; 26 of them were listed"

    thumbnails, model = map(float, re.findall(r"(\d+\.\d)%", run(tmp_path, "benchmarks/sample.py")))
    assert thumbnails <= 75
    assert model == round(made.metrics["accuracy"] * 100, 1)


def run(folder: Path, script: str) -> str:
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout
