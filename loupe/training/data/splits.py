"""Split pictures into training, validation, calibration and test, so that no picture is on two sides.

    splits = split(given_rows, classes, sha256s, twins, seed=42, validation_share=0.15, test_share=0.15)

Given splits are kept. If validation or test is missing, it is cut from training: the same share of every class, the
same pictures for the same seed, and pictures that are twins of each other on one side. Calibration is half of every
class's validation pictures, rounded up for some classes and down for others, so that it is half of all. Where half is
fewer than calibration needs, it gets that many, up to two thirds of all. Exact copies are trained on once, and not at
all if a given split measures with one of them, or if they bear two labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FEWEST = 20  # calibration pictures: with fewer, nothing is fitted (evaluate/calibrate.py)

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Splits:
    train: Indices
    validation: Indices  # the selection half, which chooses the epoch
    calibration: Indices
    test: Indices


def split(
    given_rows: dict[str, Indices],
    classes: Indices,
    sha256s: Sequence[str],
    twins: Sequence[tuple[int, int]],
    seed: int,
    validation_share: float,
    test_share: float,
) -> Splits:
    """Split the rows of a data set. `given_rows` has the rows of each split that the data set came with. The shares are
    of the training pictures before anything is cut from them."""
    # Given splits, without copies that would be on two sides.
    train = trainable(given_rows, classes, sha256s)
    test_sha256s = {sha256s[row] for row in given_rows["test"]}
    reserved = {
        "validation": np.array(
            [row for row in given_rows["validation"] if sha256s[row] not in test_sha256s], dtype=np.int64
        ),
        "test": given_rows["test"],
    }
    # Cut what is missing from the training pictures.
    groups = group(len(classes), twins)
    sizes = np.bincount(classes[train], minlength=int(classes.max(initial=0)) + 1)
    for name, share in (("test", test_share), ("validation", validation_share)):
        if not len(given_rows[name]) and share:
            wanted_counts = np.where(sizes > 3, np.maximum(1, np.round(share * sizes)), 0).astype(np.int64)
            reserved[name] = _take_from_each_class(
                train, wanted_counts, classes, groups, np.random.default_rng((seed, len(name)))
            )
            train = np.setdiff1d(train, reserved[name])
    # Half of the validation pictures calibrate, or somewhat more, evenly over the classes.
    validation = reserved["validation"]
    validation_counts = np.bincount(classes[validation], minlength=len(sizes))
    wanted = calibrating(len(validation))
    wanted_calibration, rests = np.divmod(validation_counts * wanted, max(1, len(validation)))
    rounded_up = np.random.default_rng((seed, len("odd ones"))).permutation(np.flatnonzero(rests))
    rounded_up = rounded_up[np.argsort(-rests[rounded_up], kind="stable")]
    wanted_calibration[rounded_up[: wanted - wanted_calibration.sum()]] += 1
    calibration = _take_from_each_class(
        validation, wanted_calibration, classes, groups, np.random.default_rng((seed, len("calibration")))
    )
    selection = np.setdiff1d(validation, calibration)
    return Splits(train, selection, calibration, reserved["test"])


def calibrating(validating: int) -> int:
    """Return how many of the validation pictures calibrate. The others choose the epoch, for which few will do."""
    return max(validating // 2, FEWEST if 2 * validating >= 3 * FEWEST else 0)


def group(count: int, pairs: Sequence[tuple[int, int]]) -> Indices:
    """Return a number for each picture. Pictures that pairs connect, also by way of others, have the same number."""
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    edges = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(edges, directed=False)[1], dtype=np.int64)


def trainable(given_rows: dict[str, Indices], classes: Indices, sha256s: Sequence[str]) -> Indices:
    """Return the training pictures, each once: without those that also measure and those with two labels."""
    measured_sha256s = {sha256s[row] for name in ("validation", "test") for row in given_rows[name]}
    copies: dict[str, list[int]] = defaultdict(list)
    for row in given_rows["train"].tolist():
        if sha256s[row] not in measured_sha256s:
            copies[sha256s[row]].append(row)
    return np.array([rows[0] for rows in copies.values() if len(set(classes[rows])) == 1], dtype=np.int64)


def _take_from_each_class(
    rows: Indices, wanted_counts: Indices, classes: Indices, groups: Indices, rng: np.random.Generator
) -> Indices:
    """Choose `wanted_counts` rows of each class, in whole groups. Groups of several classes are not fit to measure, and
    stay where they are."""
    # Groups that must stay in training.
    mixed = {
        number for number, found_classes in _classes_by_group(rows, classes, groups).items() if len(found_classes) > 1
    }
    taken: list[int] = []
    # For each class take shuffled groups as long as they fit.
    for number, count in enumerate(wanted_counts):
        of_class = rows[classes[rows] == number]
        members: dict[int, list[int]] = defaultdict(list)
        for row in rng.permutation(of_class).tolist():
            members[int(groups[row])].append(row)
        candidates = [group_rows for name, group_rows in members.items() if name not in mixed]
        chosen: list[int] = []
        for group_rows in candidates:
            if len(chosen) + len(group_rows) <= count:
                chosen += group_rows
        # At least the smallest group, if all are too large.
        if count and not chosen and len(members) > 1 and candidates:
            chosen = min(candidates, key=len)
        taken += chosen
    return np.sort(np.array(taken, dtype=np.int64))


def _classes_by_group(rows: Indices, classes: Indices, groups: Indices) -> dict[int, set[int]]:
    result: dict[int, set[int]] = defaultdict(set)
    for row in rows.tolist():
        result[int(groups[row])].add(int(classes[row]))
    return result
