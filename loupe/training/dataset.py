"""A folder of pictures as arrays: found, decoded once, and split.

    data = read(Path("photos"), height=224, width=224, seed=42, spill=Path("runs"))
    data.pixels[data.train], data.classes[data.train], data.labels

Either one folder a class, or train and test folders (under any of their usual names) of one folder a class each. What
is missing of training, validation and test is cut from the training pictures, class by class, the same way each time.
Files that are no readable picture are left out and listed. No TensorFlow in here.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loupe.errors import ImageError, UserError
from loupe.images import Pixels, decode

Indices = np.ndarray[Any, np.dtype[np.int64]]

USUAL_NAMES = {
    "train": ("train", "training", "training_data"),
    "validation": ("validation", "valid", "val", "validation_data"),
    "test": ("test", "testing", "testing_data"),
}
CUT = 0.15  # share of a class's training pictures that a missing split takes
SHOWN = 5  # skipped files that the summary lists
FEWEST = 8  # pictures of a class: enough for each split to hold one
IN_MEMORY = 2_000_000_000  # bytes of pixels; more than that goes to a file on the disk


@dataclass(frozen=True)
class File:
    path: Path
    split: str
    label: str


@dataclass(frozen=True)
class Dataset:
    labels: tuple[str, ...]
    pixels: Pixels  # [N, H, W, 3]
    classes: Indices  # [N]
    train: Indices
    validation: Indices
    test: Indices
    skipped: list[str] = field(default_factory=list)  # one line for each file that is no readable picture

    def summary(self, name: str) -> str:
        _, height, width, _ = self.pixels.shape
        lines = [
            f"{name}: {len(self.labels)} classes, {len(self.train)} training, {len(self.validation)} validation and "
            f"{len(self.test)} test pictures at {width}×{height}, {self.pixels.nbytes / 1e6:.0f} MB of pixels"
        ]
        if self.skipped:
            lines += [f"skipped {len(self.skipped)} files:", *(f"  {line}" for line in self.skipped[:SHOWN])]
        if len(self.skipped) > SHOWN:
            lines.append(f"  … and {len(self.skipped) - SHOWN} more")
        return "\n".join(lines)

    def counts(self, split: Indices) -> dict[str, int]:
        return {label: int((self.classes[split] == number).sum()) for number, label in enumerate(self.labels)}


def read(folder: Path, height: int, width: int, seed: int, spill: Path) -> Dataset:
    """`spill`: the folder that takes a nameless file of pixels if there are too many for the memory."""
    try:
        files = find(folder)
    except OSError as error:
        raise UserError(
            f"Cannot read {error.filename} ({error.strerror}). Make it readable, or move it away."
        ) from error
    labels = tuple(sorted({file.label for file in files if file.split == "train"}))
    if len(labels) < 2:
        raise UserError(
            f"{folder} holds pictures of {len(labels)} class{'es'[: 2 * (len(labels) != 1)]}, and at least 2 "
            "are needed: give each class a folder of its own."
        )
    strange = sorted({file.label for file in files} - set(labels))
    if strange:
        raise UserError(
            f"{folder} has no training pictures of {strange[0]!r}, which its other folders hold. Add some, "
            "or take that class out."
        )
    pixels, kept, skipped = _decode_all(files, height, width, spill)
    classes = np.array([labels.index(file.label) for file in kept], dtype=np.int64)
    given = {split: np.flatnonzero([file.split == split for file in kept]) for split in USUAL_NAMES}
    for number, label in enumerate(labels):
        count = int((classes[given["train"]] == number).sum())
        if count < FEWEST:
            raise UserError(
                f"{label!r} has {count} readable training pictures; at least {FEWEST} are needed. Add some, "
                "or take that class out."
            )
    return Dataset(labels, pixels, classes, *splits(given, classes, seed), skipped)


def find(folder: Path) -> list[File]:
    """All files that belong to a class, in an order that does not depend on the file system."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Name one that holds a folder of pictures for each class.")
    inside = _folders(folder)
    split_of = {name: split for split, names in USUAL_NAMES.items() for name in names}
    if any(split_of.get(entry.name.lower()) == "train" for entry in inside):
        homes = [(split_of[entry.name.lower()], entry) for entry in inside if entry.name.lower() in split_of]
    else:
        homes = [("train", folder)]
    return [
        File(path, split, home.name)
        for split, parent in homes
        for home in _folders(parent)
        for path in sorted(home.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]


def splits(given: dict[str, Indices], classes: Indices, seed: int) -> tuple[Indices, Indices, Indices]:
    """Training, validation and test. A missing one is cut from training: the same share of every class."""
    train, cut = given["train"], {}
    for split in ("test", "validation"):
        cut[split] = given[split]
        if not len(cut[split]):
            cut[split] = _sample(train, classes, np.random.default_rng((seed, len(split))))
            train = np.setdiff1d(train, cut[split])
    return train, cut["validation"], cut["test"]


def _sample(indices: Indices, classes: Indices, rng: np.random.Generator) -> Indices:
    taken = []
    for number in np.unique(classes[indices]):
        of_class = indices[classes[indices] == number]
        taken.append(rng.permutation(of_class)[: max(1, round(CUT * len(of_class)))])
    return np.sort(np.concatenate(taken))


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] not in "._")


def _decode_all(files: list[File], height: int, width: int, spill: Path) -> tuple[Pixels, list[File], list[str]]:
    pixels = _room((len(files), height, width, 3), spill)
    kept: list[File] = []
    skipped: list[str] = []
    with ThreadPoolExecutor() as pool:
        for done, (file, answer) in enumerate(zip(files, _ahead(pool, files, height, width), strict=True), 1):
            if isinstance(answer, str):
                skipped.append(f"{file.path}: {answer}")
            else:
                pixels[len(kept)] = answer
                kept.append(file)
            if sys.stderr.isatty() and (done % 20 == 0 or done == len(files)):
                print(f"\rreading pictures: {done} of {len(files)}", end="\n" * (done == len(files)), file=sys.stderr)
    return pixels[: len(kept)], kept, skipped


def _ahead(pool: ThreadPoolExecutor, files: list[File], height: int, width: int) -> Iterator[Pixels | str]:
    """Pictures in order, decoded in threads; a few hundred at a time, so that no more than these wait in memory."""

    def one(file: File) -> Pixels | str:
        try:
            return decode(file.path.read_bytes(), height, width)
        except (ImageError, OSError) as error:
            return str(error)

    for start in range(0, len(files), 256):
        yield from pool.map(one, files[start : start + 256])


def _room(shape: tuple[int, int, int, int], spill: Path) -> Pixels:
    if np.prod(shape, dtype=np.int64) <= IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    with tempfile.TemporaryFile(dir=spill) as file:
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
