"""Training, validation, calibration and test pictures, so that no picture stands on two sides.

    parts = split(given, classes, sha256s, twins, seed=42, validation_share=0.15, test_share=0.15)

Given splits are kept. What is missing of validation and test is cut from training: the same share of every class, the
same pictures for the same seed, and pictures that are twins of each other on one side. Calibration is half of every
class's validation pictures, rounded up for some classes and down for others, so that it is half of all. Exact copies
are trained on once, and not at all if a given split measures with one of them, or if they bear two labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Parts:
    train: Indices
    validation: Indices
    calibration: Indices
    test: Indices


def split(
    given: dict[str, Indices],
    classes: Indices,
    sha256s: Sequence[str],
    twins: Sequence[tuple[int, int]],
    seed: int,
    validation_share: float,
    test_share: float,
) -> Parts:
    """`given`: rows by split; the shares are of the training pictures before anything is cut from them."""
    train = trainable(given, classes, sha256s)
    tested = {sha256s[row] for row in given["test"]}
    parts = {
        "validation": np.array([row for row in given["validation"] if sha256s[row] not in tested], dtype=np.int64),
        "test": given["test"],
    }
    groups = group(len(classes), twins)
    sizes = np.bincount(classes[train], minlength=int(classes.max(initial=0)) + 1)
    for name, share in (("test", test_share), ("validation", validation_share)):
        if not len(given[name]) and share:
            wanted = np.where(sizes > 3, np.maximum(1, np.round(share * sizes)), 0).astype(np.int64)
            parts[name] = _take(train, wanted, classes, groups, np.random.default_rng((seed, len(name))))
            train = np.setdiff1d(train, parts[name])
    validation = parts["validation"]
    counts = np.bincount(classes[validation], minlength=len(sizes))
    half = counts // 2
    odd = np.random.default_rng((seed, len("odd ones"))).permutation(np.flatnonzero(counts % 2))
    half[odd[: len(validation) // 2 - half.sum()]] += 1
    calibration = _take(validation, half, classes, groups, np.random.default_rng((seed, len("calibration"))))
    return Parts(train, np.setdiff1d(validation, calibration), calibration, parts["test"])


def group(count: int, pairs: Sequence[tuple[int, int]]) -> Indices:
    """A number for each picture; those that pairs connect, also by way of others, have the same."""
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    edges = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(edges, directed=False)[1], dtype=np.int64)


def trainable(given: dict[str, Indices], classes: Indices, sha256s: Sequence[str]) -> Indices:
    """The training pictures, each once: without those that measure as well, and those of two labels."""
    measuring = {sha256s[row] for name in ("validation", "test") for row in given[name]}
    copies: dict[str, list[int]] = defaultdict(list)
    for row in given["train"].tolist():
        if sha256s[row] not in measuring:
            copies[sha256s[row]].append(row)
    return np.array([same[0] for same in copies.values() if len(set(classes[same])) == 1], dtype=np.int64)


def _take(rows: Indices, wanted: Indices, classes: Indices, groups: Indices, rng: np.random.Generator) -> Indices:
    """That many of each class, whole groups only; a group of several classes is not fit to measure and stays."""
    mixed = {number for number, found in _classes_of(rows, classes, groups).items() if len(found) > 1}
    taken: list[int] = []
    for number, count in enumerate(wanted):
        of_class = rows[classes[rows] == number]
        members: dict[int, list[int]] = defaultdict(list)
        for row in rng.permutation(of_class).tolist():
            members[int(groups[row])].append(row)
        free = [some for name, some in members.items() if name not in mixed]
        chosen: list[int] = []
        for some in free:
            if len(chosen) + len(some) <= count:
                chosen += some
        if count and not chosen and len(members) > 1 and free:
            chosen = min(free, key=len)
        taken += chosen
    return np.sort(np.array(taken, dtype=np.int64))


def _classes_of(rows: Indices, classes: Indices, groups: Indices) -> dict[int, set[int]]:
    found: dict[int, set[int]] = defaultdict(set)
    for row in rows.tolist():
        found[int(groups[row])].add(int(classes[row]))
    return found
