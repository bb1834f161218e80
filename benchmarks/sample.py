"""Check that the sample is an honest task: prints two accuracies on its testing pictures.

    python benchmarks/sample.py      # draws data/tires, if it is missing

A logistic regression on 16×16 grey thumbnails sees light and dark but no crack: it must stay at or below 75 %, at the
best of its settings. The sample model, read from its SavedModel, must reach 95 %.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from data.tires import CLASSES, draw
from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.images.api import decode

THUMBNAIL = 16  # px, of a side
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100)  # scikit-learn's C
Array = np.ndarray[Any, np.dtype[Any]]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/tires"), help="the drawn pictures (data/tires)")
    parser.add_argument("--model", type=Path, default=Path("models/tires"), help="its newest version is asked")
    args = parser.read()
    if not args.data.exists():
        draw(args.data)
    version = newest(args.model)
    thumbnails = max(baseline(args.data).values())
    print(f"logistic regression on {THUMBNAIL}×{THUMBNAIL} grey thumbnails  {thumbnails:6.1%}  (at most 75 %)")
    print(f"{f'the sample model, {version}':<46}  {model_accuracy(version, args.data):6.1%}  (at least 95 %)")


def baseline(data: Path) -> dict[str, float]:
    """Return the accuracy on the testing pictures for each strength of regularisation, with and without scaling."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _thumbnails(data / "training_data")
    x_test, y_test = _thumbnails(data / "testing_data")
    accuracies = {}
    for strength in STRENGTHS:
        for steps in ((), (StandardScaler(),)):
            model = make_pipeline(*steps, LogisticRegression(C=strength, max_iter=2000))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # at C=100 it may stop short of converging
                accuracies[f"C={strength:g}{', scaled' * len(steps)}"] = float(model.fit(x, y).score(x_test, y_test))
    return accuracies


def model_accuracy(version: Path, data: Path) -> float:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from loupe.card import Card

    card = Card.read(version / "assets.extra" / "card.json")
    infer = tf.saved_model.load(str(version)).signatures["serving_default"]
    right = total = 0
    for label in CLASSES:
        files = sorted((data / "testing_data" / label).glob("*.jpg"))
        for start in range(0, len(files), 20):
            batch = files[start : start + 20]
            pixels = np.stack([decode(file.read_bytes(), card.height, card.width) for file in batch])
            guesses = infer(image=tf.constant(pixels))["probabilities"].numpy().argmax(axis=1)
            right += sum(card.labels[number] == label for number in guesses)
            total += len(guesses)
    return right / total


def newest(model: Path) -> Path:
    versions = [entry for entry in model.glob("*") if entry.name.isdecimal()]
    if not versions:
        raise UserError(f"{model} holds no version. `python train.py` publishes one.")
    return max(versions, key=lambda entry: int(entry.name))


def _thumbnails(folder: Path) -> tuple[Array, Array]:
    files = sorted(folder.glob("*/*.jpg"))
    size = (THUMBNAIL, THUMBNAIL)
    grey = [Image.open(file).convert("L").resize(size, Image.Resampling.BILINEAR) for file in files]
    pixels = np.stack([np.asarray(image, dtype=np.float64).ravel() / 255 for image in grey])
    return pixels, np.array([file.parent.name for file in files])


if __name__ == "__main__":
    run_script(main)
