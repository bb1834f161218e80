"""Measure a method without learnt features on a data set: HOG and colour histograms into a support vector machine. A
network that does not beat it is not worth its time.

    python benchmarks/classical.py photos/train photos/test   # a folder a class

Prints the accuracy on the second folder's pictures and the seconds it took. Nothing is tuned on them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from skimage.color import rgb2gray, rgb2hsv
from skimage.feature import hog
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loupe.cli import Parser, run_script
from loupe.errors import ImageError
from loupe.images.api import decode
from loupe.images.resize import Pixels

SIDE = 128  # px the pictures are stretched to
CELL = 16  # px of a HOG cell
BINS = 16  # of each colour channel's histogram
THIRDS = 3  # the histograms are taken in 3×3 fields of the picture


def describe(path: Path) -> Any:
    """Return edges by place, then colours by place; None if the file is no readable picture."""
    try:
        pixels = decode(path.read_bytes(), SIDE, SIDE)
    except (ImageError, OSError):
        return None
    return np.concatenate([edges(pixels), colours(pixels)])


def edges(pixels: Pixels) -> Any:
    return hog(rgb2gray(pixels), orientations=9, pixels_per_cell=(CELL, CELL), cells_per_block=(2, 2))


def colours(pixels: Pixels) -> Any:
    tiles = [tile for row in np.array_split(rgb2hsv(pixels), THIRDS) for tile in np.array_split(row, THIRDS, axis=1)]
    counts = [
        np.histogram(tile[..., channel], BINS, range=(0, 1))[0] / tile[..., channel].size
        for tile in tiles
        for channel in range(3)
    ]
    return np.sqrt(np.concatenate(counts))  # Hellinger: rare colours count, too


def read(folder: Path) -> tuple[Any, Any]:
    files = [
        path
        for class_folder in sorted(folder.iterdir())
        if class_folder.is_dir()
        for path in sorted(class_folder.iterdir())
    ]
    readable = [(path.parent.name, description) for path in files if (description := describe(path)) is not None]
    labels, features = zip(*readable, strict=True)
    return np.stack(features), np.array(labels)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("train", type=Path, help="a folder a class, to learn from")
    parser.add_argument("test", type=Path, help="the same, to measure on")
    args = parser.read()
    started = time.monotonic()
    features, labels = read(args.train)
    machine = make_pipeline(StandardScaler(), SVC(C=10)).fit(features, labels)
    accuracy = machine.score(*read(args.test))
    print(f"HOG + colour histograms + SVM: {accuracy:.1%} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    run_script(main)
