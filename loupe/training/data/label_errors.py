"""Find labels that are likely wrong: those that similar pictures contradict.

    probabilities = out_of_fold(features, classes, seed=42)      # of each picture by a model that never saw it
    for suspect in label_errors(probabilities, classes): …       # the most doubtful first

`features` must not come from training on these very labels. Those of a frozen pretrained network are fine; for a
network trained from scratch use `describe(pixels)`, which needs no network.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from PIL import Image
from skimage.color import rgb2hsv
from skimage.feature import hog
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from loupe.images.resize import Pixels
from loupe.training.data.splits import Indices

Features = np.ndarray[Any, np.dtype[np.float32]]
Probabilities = np.ndarray[Any, np.dtype[np.float64]]

FOLDS = 5
DIRECTIONS = 300  # principal ones, of all features
STRENGTH = 0.001  # scikit-learn's C, of features of unit variance
GREY, COLOUR, LAYOUT = 128, 64, 8  # px at which shapes, colours and their places are described


@dataclass(frozen=True)
class SuspectLabel:
    row: int  # of the probabilities
    given: int  # class
    suggested: int
    score: float  # probability of the given label, 0…1: lower is more doubtful
    likely: bool  # cleanlab's confident learning agrees that it is an error


def out_of_fold(features: Features, classes: Indices, seed: int) -> Probabilities:
    """Return probabilities [N, C], in the order of `np.unique(classes)`, of models that never saw the picture. Every
    class needs at least two pictures."""
    class_numbers, counts = np.unique(classes, return_counts=True)
    folds = StratifiedKFold(int(min(FOLDS, counts.min())), shuffle=True, random_state=seed)
    probabilities = np.zeros((len(classes), len(class_numbers)))
    directions = min(DIRECTIONS, *features.shape)
    # One thread: more gain little for matrices of this size, and lose much if other work holds the cores.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it has fully converged
        scaled = StandardScaler().fit_transform(np.asarray(features, dtype=np.float32))
        reduced = PCA(directions, svd_solver="randomized", random_state=seed).fit_transform(scaled)  # sees no label
        for train_rows, test_rows in folds.split(reduced, classes):
            model = LogisticRegression(C=STRENGTH, max_iter=300).fit(reduced[train_rows], classes[train_rows])
            probabilities[test_rows] = model.predict_proba(reduced[test_rows])
    return probabilities


def label_errors(probabilities: Probabilities, classes: Indices, share: float = 0.05) -> list[SuspectLabel]:
    """Return the most doubtful share of the labels, of those that another class fits better; the worst first."""
    numbers = np.searchsorted(np.unique(classes), classes)
    scores = get_label_quality_scores(numbers, probabilities, method="self_confidence")
    is_likely_wrong = find_label_issues(numbers, probabilities, n_jobs=1)
    best_class = probabilities.argmax(axis=1)
    order = [row for row in np.argsort(scores, kind="stable") if best_class[row] != numbers[row]]
    class_numbers = np.unique(classes)
    return [
        SuspectLabel(
            int(row),
            int(classes[row]),
            int(class_numbers[best_class[row]]),
            float(scores[row]),
            bool(is_likely_wrong[row]),
        )
        for row in order[: round(share * len(classes))]
    ]


def describe(pixels: Pixels) -> Features:
    """Describe pictures by shapes (gradients), colours (a histogram) and a tiny picture: 3 ms a picture."""
    with ThreadPoolExecutor() as pool:
        descriptions = list(pool.map(_describe, pixels))
    columns = [np.array(column) for column in zip(*descriptions, strict=True)]
    return np.hstack(columns).astype(np.float32)


def _describe(pixels: Pixels) -> tuple[Features, Features, Features]:
    image = Image.fromarray(pixels)

    def small(side: int, mode: str = "RGB") -> Any:
        return np.asarray(image.convert(mode).resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32) / 255

    shapes = hog(small(GREY, "L"), orientations=9, pixels_per_cell=(16, 16), cells_per_block=(2, 2))
    hues = np.histogramdd(rgb2hsv(small(COLOUR)).reshape(-1, 3), bins=(8, 4, 4), range=((0, 1),) * 3)[0].ravel()
    return shapes, np.sqrt(hues / hues.sum()), small(LAYOUT).ravel()
