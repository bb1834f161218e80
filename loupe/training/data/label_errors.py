"""Find labels that are likely wrong: those that similar pictures contradict.

    probabilities = out_of_fold(features, classes, seed=42)      # of each picture by a judge that never saw it
    for suspect in label_errors(probabilities, classes): …       # the most doubtful first
    suspects = second_opinion(suspects, opinions)                # of the network that was trained, where it can tell
    listed = rather_wrong(suspects)
    sum(1 - suspect.wrong for suspect in listed)                 # how many of them are right after all, as expected
    first_to_look_at(suspects, opinions)                         # where none is listed, and a person has a minute

`features` must not come from training on these very labels. Those of a frozen pretrained network are fine; for a
network trained from scratch use `describe(pixels)`, which needs no network.

A judge makes mistakes of its own, and most contradictions are these. So two things are fitted together: how sure the
judge may be (a temperature), and the share of labels that are wrong, whatever it is sure of. If the first alone
explains what is seen, no label is called wrong. A judge that does not see what tells two classes apart takes one for
the other and is sure of it. Hence the second opinion: where the network has not learnt from a picture, it may speak for
the label, and as often as it does, the judge is believed less of all others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cleanlab.rank import get_label_quality_scores
from PIL import Image
from scipy.optimize import minimize
from scipy.special import expit, softmax
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
SHARPNESS = (-2.0, 4.0)  # logarithm of what the judge's logits are multiplied by
FIRST = 12  # labels to look at where none can be called wrong
BEYOND_CHANCE = 3.84  # twice the log-likelihood that wrong labels must gain: by chance once in forty
GREY, COLOUR, LAYOUT = 128, 64, 8  # px at which shapes, colours and their places are described


@dataclass(frozen=True)
class SuspectLabel:
    row: int  # of the probabilities
    given: int  # class
    suggested: int
    score: float  # probability of the given label, 0…1: lower is more doubtful
    wrong: float  # probability that it is; 0 where the judge's own mistakes explain all that is seen


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
    wrong = chances_of_error(probabilities, numbers)
    best_class = probabilities.argmax(axis=1)
    order = [row for row in np.argsort(scores, kind="stable") if best_class[row] != numbers[row]]
    class_numbers = np.unique(classes)
    return [
        SuspectLabel(
            int(row),
            int(classes[row]),
            int(class_numbers[best_class[row]]),
            float(scores[row]),
            float(wrong[row]),
        )
        for row in order[: round(share * len(classes))]
    ]


def second_opinion(suspects: list[SuspectLabel], opinions: Mapping[int, Probabilities]) -> list[SuspectLabel]:
    """Return the suspects with what the network says of them: `opinions` has its probabilities of pictures that it did
    not learn from. It can make a label less suspect, never more: it may have made the same mistake."""
    heard = {
        suspect.row: _spoken_for(suspect, opinions[suspect.row]) for suspect in suspects if suspect.row in opinions
    }
    believed = sum(suspect.wrong for suspect in suspects if suspect.row in heard)
    trust = (sum(heard.values()) + 1) / (believed + 1)  # 1, until it has spoken
    return [replace(suspect, wrong=heard.get(suspect.row, trust * suspect.wrong)) for suspect in suspects]


def rather_wrong(suspects: list[SuspectLabel]) -> list[SuspectLabel]:
    """Return those that are rather wrong than right. If they are no more than the right ones expected among them, give
    or take two standard deviations, return none."""
    listed = [suspect for suspect in suspects if suspect.wrong > 0.5]
    right = sum(1 - suspect.wrong for suspect in listed)
    return listed if len(listed) > right + 2 * np.sqrt(right) else []


def first_to_look_at(suspects: list[SuspectLabel], opinions: Mapping[int, Probabilities]) -> list[SuspectLabel]:
    """Return the most doubtful, but for those whose labels the network speaks for."""

    def spoken_for(suspect: SuspectLabel) -> bool:
        opinion = opinions.get(suspect.row)
        return opinion is not None and bool(opinion[suspect.given] >= opinion[suspect.suggested])

    return [suspect for suspect in suspects if not spoken_for(suspect)][:FIRST]


def _spoken_for(suspect: SuspectLabel, opinion: Probabilities) -> float:
    against, for_it = suspect.wrong * opinion[suspect.suggested], (1 - suspect.wrong) * opinion[suspect.given]
    return float(min(suspect.wrong, against / (against + for_it + 1e-300)))


def chances_of_error(probabilities: Probabilities, numbers: Indices) -> Probabilities:
    """Return the probability that each label is wrong. A wrong one is taken to be any other class as likely as not."""
    logarithms = np.log(np.clip(probabilities, 1e-12, 1.0))
    rows, others = np.arange(len(numbers)), max(1, probabilities.shape[1] - 1)

    def seen(sharpness: float, share: float) -> tuple[Probabilities, Probabilities]:
        """Return how likely each given label is: as a right one, and as a wrong one."""
        given = softmax(logarithms * np.exp(sharpness), axis=1)[rows, numbers]
        return (1 - share) * given, share * (1 - given) / others

    def loss(sharpness: float, share: float) -> float:
        right, wrong = seen(sharpness, share)
        return float(-np.log(right + wrong + 1e-300).sum())

    alone = minimize(lambda x: loss(x[0], 0.0), [0.0], method="Nelder-Mead", bounds=[SHARPNESS])
    fits = [
        minimize(
            lambda x: loss(x[0], 0.5 * expit(x[1])),
            [alone.x[0], start],
            method="Nelder-Mead",
            bounds=[SHARPNESS, (-12, 12)],
        )
        for start in (-3.0, 0.0)
    ]
    best = min(fits, key=lambda fit: fit.fun)
    if 2 * (alone.fun - best.fun) < BEYOND_CHANCE:
        return np.zeros(len(numbers))
    right, wrong = seen(best.x[0], 0.5 * expit(best.x[1]))
    return np.asarray(wrong / (right + wrong + 1e-300))


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
