"""Put accepted corrections into the training part of a data set.

    corrections, problems = accepted(Path("feedback"))
    data, changes = correct(run.data, corrections, problems, spill)
    print(changes.table())

Corrections are trained on and never measure. One of a picture that is among the training pictures replaces its label;
one of a picture that measures is left out, and so is a copy of such a one that was saved anew. What a run has learnt
from is in its data.json, so adding the same folder again adds nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from loupe import feedback
from loupe.cli import plain
from loupe.errors import UserError
from loupe.feedback import Correction
from loupe.training.data import record
from loupe.training.data.dataset import Dataset, File, Picture, decode_all
from loupe.training.data.duplicates import HASH_SIDE

FINGERPRINT_BYTES = HASH_SIDE**2 // 8
COPY_BITS = 10  # of a fingerprint: a copy that was resized or saved anew differs in at most so many


@dataclass
class Changes:
    """What corrections change in a data set, in pictures by label."""

    added: Counter[str] = field(default_factory=Counter)
    relabelled: Counter[str] = field(default_factory=Counter)
    known: int = 0  # in the run already, under this label
    measuring: int = 0  # they are, or show the same as, pictures that measure
    problems: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.added.total() + self.relabelled.total()

    def table(self) -> str:
        lines = [f"skipped            {plain(problem)}" for problem in self.problems]
        for title, counts in (("added", self.added), ("relabelled", self.relabelled)):
            if counts:
                by_label = ", ".join(f"{plain(label, 40)} {count:,}" for label, count in sorted(counts.items()))
                lines.append(f"{title:<18} {counts.total():,} pictures: {by_label}")
        if self.known:
            lines.append(f"known              {self.known:,} are in the run already, under the same label")
        if self.measuring:
            lines.append(f"left out           {self.measuring:,} show pictures that measure, and are never trained on")
        return "\n".join(lines)


def accepted(root: Path) -> tuple[list[Correction], list[str]]:
    """Return the accepted corrections, and what is wrong with those that cannot be read."""
    corrections, problems = [], []
    for picture in feedback.pictures(root, feedback.ACCEPTED):
        try:
            corrections.append(feedback.read(picture))
        except UserError as error:
            problems.append(str(error))
    if not corrections:
        waiting = len(feedback.pictures(root, feedback.WAITING))
        if waiting:
            raise UserError(
                f"{waiting:,} corrections in {root} wait, and none is accepted: look first, train.py --review {root}."
            )
        said = f": {problems[0]}" if problems else "; a gateway with LOUPE_FEEDBACK_DIR keeps some."
        raise UserError(f"{root} holds no accepted corrections{said}")
    return corrections, problems


def correct(data: Dataset, corrections: list[Correction], problems: list[str], spill: Path) -> tuple[Dataset, Changes]:
    """Return the data set with the corrections in its training part."""
    for label, count in sorted(Counter(one.label for one in corrections if one.label not in data.labels).items()):
        raise UserError(
            f"{count:,} corrections say {label[:60]!r}, which the run does not know, and --add keeps its labels. "
            "Train anew with a folder of that name, or take them out of the accepted ones."
        )
    # Pictures of the run first: whatever is left is new.
    changes = Changes(problems=list(problems))
    relabelled, new = _relabel(data, corrections, changes)
    corrected = _extend(relabelled, new, changes, spill)
    for label, count in corrected.counts(corrected.train).items():
        if not count:
            raise UserError(f"The corrections leave {label[:60]!r} without a training picture: add some of it.")
    return corrected, changes


def _relabel(data: Dataset, corrections: list[Correction], changes: Changes) -> tuple[Dataset, list[Correction]]:
    """Set the labels of training pictures that were corrected. Return the corrections of pictures that are new, too."""
    # Where each picture of the run is.
    rows_of: dict[str, list[int]] = {}
    for row, picture in enumerate(data.pictures):
        rows_of.setdefault(picture.sha256, []).append(row)
    pictures, classes, train = list(data.pictures), data.classes.copy(), set(data.train.tolist())
    measuring = set(_measuring(data))
    new: dict[str, Correction] = {}
    for correction in corrections:
        rows, number = rows_of.get(correction.sha256, []), data.labels.index(correction.label)
        if not rows:
            if new.setdefault(correction.sha256, correction) is not correction:
                changes.problems.append(f"{correction.picture} is accepted under another label, too.")
        elif measuring & set(rows):
            changes.measuring += 1
        elif train & set(rows) and (classes[rows] == number).all():
            changes.known += 1
        else:
            changes.relabelled[correction.label] += 1
            classes[rows] = number
            for row in rows:
                pictures[row] = replace(pictures[row], file=replace(pictures[row].file, label=correction.label))
            if not train & set(rows):  # copies under two labels were left out; now it is known which is right
                train.add(rows[0])
    relabelled = replace(data, pictures=pictures, classes=classes, train=np.array(sorted(train), np.int64))
    return relabelled, list(new.values())


def _extend(data: Dataset, new: list[Correction], changes: Changes, spill: Path) -> Dataset:
    """Add new pictures to the training part, without copies of pictures that measure."""
    # Read them.
    _, height, width, _ = data.pixels.shape
    files = [File(one.picture, one.label, "train", one.sha256) for one in new]
    _, read, skipped = decode_all(files, height, width, spill)
    changes.problems += map(str, skipped)
    # Leave out the copies.
    fingerprints = _bits([data.pictures[row] for row in _measuring(data)])
    fresh = [
        picture
        for picture, bits in zip(read, _bits(read), strict=True)
        if not (np.bitwise_count(fingerprints ^ bits).sum(axis=1) <= COPY_BITS).any()
    ]
    changes.measuring += len(read) - len(fresh)
    changes.added.update(picture.file.label for picture in fresh)
    # Add the others behind the run's own.
    pictures, count = [*data.pictures, *fresh], len(data.pictures)
    return replace(
        data,
        pictures=pictures,
        pixels=record.unread(pictures, height, width),
        classes=np.array([*data.classes, *(data.labels.index(picture.file.label) for picture in fresh)], np.int64),
        train=np.array([*data.train, *range(count, len(pictures))], np.int64),
    )


def _measuring(data: Dataset) -> list[int]:
    return [*data.validation.tolist(), *data.calibration.tolist(), *data.test.tolist()]


def _bits(pictures: Sequence[Picture]) -> Any:
    """Return the pictures' fingerprints as bytes, a row each."""
    rows = [np.frombuffer(picture.fingerprint.to_bytes(FINGERPRINT_BYTES), np.uint8) for picture in pictures]
    return np.stack(rows) if rows else np.zeros((0, FINGERPRINT_BYTES), np.uint8)
