"""Find what is wrong with a data set, or odd about it, before any training.

    findings = examine(data)          # of dataset.read, which has looked at every file once; opens none again
    print(findings.table())
    findings.to_dict()                # dataset.json: every file that is named, with its path below the data folder
    for finding in findings.groups: … # for the report: finding.text, finding.rows, finding.sets, finding.paths

Nothing is deleted and nothing ends a run. Dark, bright and blurred pictures are those far from the rest of their set:
a set of X-rays is not all dark. Wrong labels can be found only once something is trained: see label_errors.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loupe.training.data.dataset import EXPLANATIONS, FEWEST, Dataset, Skipped
from loupe.training.data.names import printable_path
from loupe.training.data.splits import group

Severity = Literal["error", "warning", "note"]

LABELS_NAMED = 5  # classes that a finding names
FILES_NAMED = 2  # files that the table names of each finding
FEW = 20  # training pictures of a class below which its accuracy is mostly luck
UNEVEN = 5  # times the pictures of the smallest class
ODD_SHAPE = 2.5  # times as wide, or as high, as the middle one
ODD_SHARE = 0.1  # of the pictures: a colour mode is odd if fewer have it
GIVEAWAY_SHARES = (0.9, 0.1)  # shares of a class and of the rest at which a property of the files gives the class away
FAR_DEVIATIONS = 3.5  # robust deviations from the median at which a picture is odd
BLUR_DEVIATIONS = 3.0  # of the logarithm: beyond all of 3,409 photographs; a blur of 2 % of the side is at 2.5…4.4

SPLITS = ("train", "validation", "calibration", "test")
SKIPPED: dict[str, tuple[Severity, str]] = {
    "damaged": ("error", "damaged or cut short"),
    "empty": ("error", "empty (0 bytes)"),
    "no picture": ("error", "not a picture"),
    "unsupported": ("error", "of a kind that is not read here"),
    "heic": ("error", EXPLANATIONS["heic"]),
    "too large": ("error", "too large"),
    "unreadable": ("error", "not to be read"),
    "missing": ("error", "named in the CSV, but not there"),
    "ambiguous": ("error", "of a name in the CSV that several files have"),
    "no id": ("error", "of rows of the CSV without an id"),
    "cells": ("error", "of rows of the CSV with more cells than its header"),
    "table": ("error", "CSV files without the labels of the training pictures"),
    "unlabelled": ("error", "without a label in the CSV"),
    "contradiction": ("error", "of two labels in the CSV"),
    "unused": ("note", "in no class's folder, no split and no row of a CSV"),
}
MODES = {"L": "grey", "LA": "grey with transparency", "1": "black and white", "P": "of a palette"}
MODES |= {"RGBA": "with transparency", "CMYK": "in print colours", "I;16": "grey of 16 bits", "I": "grey of 32 bits"}


@dataclass(frozen=True)
class Finding:
    category: str
    severity: Severity
    text: str  # one line for people
    rows: list[int] = field(default_factory=list)  # of the data set
    sets: list[list[int]] = field(default_factory=list)  # rows that show the same picture
    paths: list[Path] = field(default_factory=list)  # files that are in no row
    whys: list[str] = field(default_factory=list)  # one for each of the paths


@dataclass(frozen=True)
class Findings:
    groups: list[Finding]  # the gravest first
    names: list[str]  # path below the data folder of each row
    labels: list[str]  # of each row
    splits: dict[str, dict[str, int]]  # pictures of each class in each split
    root: Path
    sides: list[str] = field(default_factory=list)  # the split of each row, or "left out"
    skipped: list[Skipped] = field(default_factory=list)  # files and rows of a CSV that are in no row

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.groups)

    def table(self) -> str:
        """Return the findings as a table as wide as the terminal."""
        # A row for each finding, with some of its files.
        console = Console(highlight=False)
        table = Table("", "pictures", "finding", box=SIMPLE_HEAD, pad_edge=False)
        table.columns[1].justify = "right"
        for finding in self.groups:
            examples = self._examples(finding)
            more = f"[dim]… and {len(examples) - FILES_NAMED} more[/]" if len(examples) > FILES_NAMED else ""
            lines = [escape(finding.text), *(f"[dim]{escape(line)}[/]" for line in examples[:FILES_NAMED]), more]
            count = len(finding.rows or finding.paths)
            style = {"error": "red", "warning": "yellow"}.get(finding.severity, "")
            text = "\n".join(filter(None, lines))
            table.add_row(f"[{style}]{finding.severity}[/]" if style else "note", f"{count:,}" if count else "", text)
        # Render it to text.
        with console.capture() as captured:
            console.print(table if self.groups else "These pictures: nothing found that is wrong or odd.")
        return captured.get().rstrip("\n")

    def to_dict(self) -> dict[str, Any]:
        rows = zip(self.names, self.labels, self.sides, strict=True)
        return {
            "splits": self.splits,
            "findings": [self._to_dict(finding) for finding in self.groups],
            "files": [{"file": name, "label": label, "split": side} for name, label, side in rows],
            "skipped": [{"file": _path_shown(skipped.path, self.root), "why": skipped.why} for skipped in self.skipped],
        }

    def _to_dict(self, finding: Finding) -> dict[str, Any]:
        entry: dict[str, Any] = {"kind": finding.category, "severity": finding.severity, "text": finding.text}
        if finding.paths:
            pairs = zip(finding.paths, finding.whys, strict=True)
            entry["files"] = [{"file": _path_shown(path, self.root), "why": why} for path, why in pairs]
        elif finding.sets:
            entry["sets"] = [[self._file(row) for row in rows] for rows in finding.sets]
        elif finding.rows:
            entry["files"] = [self._file(row) for row in finding.rows]
        return entry

    def _file(self, row: int) -> dict[str, str]:
        return {"file": self.names[row], "label": self.labels[row]}

    def _examples(self, finding: Finding) -> list[str]:
        if finding.sets:
            return [" = ".join(self.names[row] for row in rows) for rows in finding.sets]
        pairs = zip(finding.paths, finding.whys, strict=True)
        files = [_path_shown(path, self.root) + f": {why}" * (why not in finding.text) for path, why in pairs]
        return files or [self.names[row] for row in finding.rows]


def examine(data: Dataset, size: int | None = None) -> Findings:
    """Examine a data set and return what was found. `size` is the side in px that training reads at, if these pixels
    are of another size."""
    # Run every check, the gravest findings first.
    checks: tuple[Callable[[Dataset], Iterable[Finding]], ...] = (
        _skipped,
        _duplicates,
        _counts,
        _shapes,
        _lighting,
        _giveaways,
    )
    groups = [finding for check in checks for finding in check(data)] + list(_small_pictures(data, size))
    order = ("error", "warning", "note")
    # The split of each row.
    split_of_row = ["left out"] * len(data.pictures)
    for name in SPLITS:
        for row in getattr(data, name).tolist():
            split_of_row[row] = name
    return Findings(
        groups=sorted(groups, key=lambda finding: order.index(finding.severity)),
        names=[_path_shown(picture.file.path, data.root) for picture in data.pictures],
        labels=[picture.file.label for picture in data.pictures],
        splits={name: data.counts(getattr(data, name)) for name in SPLITS},
        root=data.root,
        sides=split_of_row,
        skipped=data.skipped,
    )


def _skipped(data: Dataset) -> Iterable[Finding]:
    by_category = defaultdict(list)
    for skipped in data.skipped:
        by_category[skipped.category].append(skipped)
    for category, entries in by_category.items():
        severity, description = SKIPPED[category]
        text = f"{_count(len(entries), 'file')} left out: {description}"
        yield Finding(
            category, severity, text, paths=[entry.path for entry in entries], whys=[entry.why for entry in entries]
        )


def _duplicates(data: Dataset) -> Iterable[Finding]:
    """Report sets of one picture, each under its worst fault: two labels, two splits, or mere copies."""
    # Sort the sets by what is wrong with them.
    sets_by_fault: dict[str, list[list[int]]] = defaultdict(list)
    for rows in _twin_sets(data):
        pictures = [data.pictures[row] for row in rows]
        splits = {picture.file.split for picture in pictures} - {""}
        exact = len({picture.sha256 for picture in pictures}) == 1
        if len({picture.file.label for picture in pictures}) > 1:
            sets_by_fault["labels"].append(rows)
        elif len(splits) > 1:
            fault = "exact leak" if "train" in splits else "measured twice"
            sets_by_fault[fault if exact else "near leak"].append(rows)
        else:
            sets_by_fault["copies" if exact else "near copies"].append(rows)
    # What is said of each fault.
    texts: dict[str, tuple[str, Severity, str]] = {
        "labels": ("two labels", "error", "{} under two labels, one of them wrong: exact copies left out of training"),
        "exact leak": ("leakage", "error", "{} in two splits, byte for byte: left out of training"),
        "measured twice": (
            "measured twice",
            "error",
            "{} in validation and test, byte for byte: left out of validation",
        ),
        "near leak": ("near leakage", "warning", "{} in two splits, resized or saved anew: its accuracy flatters"),
        "copies": ("copies", "note", "{} more than once in a class, byte for byte: trained on once"),
        "near copies": (
            "near copies",
            "note",
            "{} more than once in a class, resized or saved anew: kept in one split",
        ),
    }
    # One finding for each fault.
    for name, (category, severity, text) in texts.items():
        if sets := sets_by_fault[name]:
            rows = [row for rows_of_set in sets for row in rows_of_set]
            yield Finding(category, severity, text.format(_count(len(sets), "picture")), rows, sets)


def _twin_sets(data: Dataset) -> list[list[int]]:
    numbers = group(len(data.pictures), data.twins)
    members: dict[int, list[int]] = defaultdict(list)
    for row in sorted({row for pair in data.twins for row in pair}):
        members[int(numbers[row])].append(row)
    return list(members.values())


def _counts(data: Dataset) -> Iterable[Finding]:
    # Classes of no pictures, and of too few.
    before_cut = data.before_cut()
    empty = [label for label, count in before_cut.items() if not count]
    if empty:
        text = f"no training picture that can be read of {_join_names(list(map(repr, empty)))}: add some, or remove it"
        yield Finding("none", "error", text)
    counts = {label: count for label, count in data.counts(data.train).items() if label not in empty}
    if not counts:
        return
    small_classes = sorted((count, label) for label, count in before_cut.items() if 0 < count < FEW)
    if small_classes:
        severity: Severity = "error" if small_classes[0][0] < FEWEST else "warning"
        listed = _join_names([f"{label!r} {count}" for count, label in small_classes])
        text = f"fewer than {FEW} different training pictures, before any are cut for validation and test: {listed}"
        yield Finding("few", severity, text)
    # Classes of very different size.
    largest, smallest = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[largest] >= UNEVEN * max(1, counts[smallest]):
        ratio = counts[largest] / max(1, counts[smallest])
        text = (
            f"{largest!r} has {ratio:.0f} times the training pictures of {smallest!r}; --class-weights evens that out"
        )
        yield Finding("imbalance", "note", text)
    # Classes without pictures to measure on.
    for name, rows in (("validation", np.append(data.validation, data.calibration)), ("test", data.test)):
        unmeasured = [label for label, count in data.counts(rows).items() if label not in empty and not count]
        if unmeasured and len(rows):
            text = (
                f"no {name} pictures of {_join_names(list(map(repr, unmeasured)))}: how well it does there is not known"
            )
            yield Finding("unmeasured", "warning", text)


def _join_names(names: list[str]) -> str:
    rest = [f"… and {len(names) - LABELS_NAMED} more"] if len(names) > LABELS_NAMED else []
    return ", ".join(names[:LABELS_NAMED] + rest)


def _small_pictures(data: Dataset, size: int | None) -> Iterable[Finding]:
    height, width = (size, size) if size else data.pixels.shape[1:3]
    small = [
        row for row, picture in enumerate(data.pictures) if picture.width < width / 2 or picture.height < height / 2
    ]
    if small:
        text = f"{_count(len(small), 'picture')} of less than half the size that is trained at ({width}×{height})"
        yield Finding("small", "note", text, small)


def _shapes(data: Dataset) -> Iterable[Finding]:
    shapes = np.log([picture.width / picture.height for picture in data.pictures] or [1.0])
    odd_rows = np.flatnonzero(np.abs(shapes - np.median(shapes)) > np.log(ODD_SHAPE)).tolist()
    if odd_rows:
        text = f"{_count(len(odd_rows), 'picture')} of an odd shape, {ODD_SHAPE:g} times wider or higher than most"
        yield Finding("shape", "note", text, odd_rows)
    modes = Counter(picture.mode for picture in data.pictures)
    for mode, count in sorted(modes.items()):
        if mode != "RGB" and count < ODD_SHARE * len(data.pictures):
            rows = [row for row, picture in enumerate(data.pictures) if picture.mode == mode]
            yield Finding("mode", "note", f"{_count(count, 'picture')} {MODES.get(mode, mode)}, unlike most", rows)


def _lighting(data: Dataset) -> Iterable[Finding]:
    brightness = np.array([picture.brightness for picture in data.pictures] or [0.0])
    blur = -np.log(np.array([picture.sharpness for picture in data.pictures] or [0.0]) + 1e-3)
    deviations = _deviations(brightness, 10)
    odd_pictures = {
        "dark": ((deviations < -FAR_DEVIATIONS) & (brightness < 35))
        | ((brightness < 10) & (np.median(brightness) > 40)),
        "bright": ((deviations > FAR_DEVIATIONS) & (brightness > 220))
        | ((brightness > 245) & (np.median(brightness) < 215)),
        "blurred": _deviations(blur, 0.3) > BLUR_DEVIATIONS,
    }
    odd_pictures["blurred"] &= ~(odd_pictures["dark"] | odd_pictures["bright"])  # a black one is blank, too
    for category, is_odd in odd_pictures.items():
        if rows := np.flatnonzero(is_odd).tolist():
            word = {"blurred": "blurred or blank"}.get(category, f"very {category}")
            yield Finding(category, "warning", f"{_count(len(rows), 'picture')} {word}, next to the rest", rows)


def _giveaways(data: Dataset) -> Iterable[Finding]:
    """Report classes whose files differ from all others: a network may learn that instead of what they show."""
    properties = {
        "format": [picture.format for picture in data.pictures],
        "colour mode": [picture.mode for picture in data.pictures],
        "size": [f"{picture.width}×{picture.height}" for picture in data.pictures],
    }
    for property_name, values in properties.items():
        all_values = np.array(values)
        for number, label in enumerate(data.labels):
            of_class, rest = all_values[data.classes == number], all_values[data.classes != number]
            if len(of_class) < FEWEST or len(rest) < FEWEST:
                continue
            value, count = Counter(of_class.tolist()).most_common(1)[0]
            if count >= GIVEAWAY_SHARES[0] * len(of_class) and (rest == value).mean() <= GIVEAWAY_SHARES[1]:
                text = (
                    f"{label!r} can be told by its files' {property_name} alone ({value}): the network may learn that"
                )
                yield Finding("giveaway", "warning", text)


def _deviations(values: Any, least: float) -> Any:
    """Return the distance from the median in robust deviations. `least` is the smallest deviation that is believed."""
    median = np.median(values)
    return (values - median) / max(least, 1.4826 * float(np.median(np.abs(values - median))))


def _path_shown(path: Path, root: Path) -> str:
    return printable_path(path.relative_to(root) if path.is_relative_to(root) else path)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s'[: count != 1]}"
