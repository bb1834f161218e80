"""What is wrong with a data set, or odd about it, found before any training.

    findings = examine(data)          # of dataset.read, which has looked at every file once; opens none again
    print(findings.table())
    findings.to_dict()                # dataset.json: every file that is named, with its path below the data folder
    for finding in findings.groups: … # a page's material: finding.text, finding.rows, finding.sets, finding.paths

Nothing is deleted and nothing ends a run. Dark, bright and blurred pictures are those far from the rest of their set:
a set of X-rays is not all dark. Whether a label is wrong can be asked once something is trained: see label_errors.py.
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

from loupe.training.data.dataset import FEWEST, Dataset, Skipped
from loupe.training.data.names import shown
from loupe.training.data.splits import group

Severity = Literal["error", "warning", "note"]

LISTED = 5  # classes that a finding names
EXAMPLES = 2  # files that the table names of each finding
FEW = 20  # training pictures of a class below which its accuracy is mostly luck
UNEVEN = 5  # times the pictures of the smallest class
ODD_SHAPE = 2.5  # times as wide, or as high, as the middle one
ODD_SHARE = 0.1  # of the pictures: a colour mode that fewer have is odd, one that more have is theirs
TELLING = (0.9, 0.1)  # shares of a class and of the rest at which a file's kind gives the class away
FAR = 3.5  # robust deviations
BLUR_FAR = 3.0  # of the logarithm: beyond every one of 3,409 photographs; a blur of 2 % of the side lies at 2.5…4.4

SIDES = ("train", "validation", "calibration", "test")
SKIPPED: dict[str, tuple[Severity, str]] = {
    "damaged": ("error", "damaged or cut short"),
    "empty": ("error", "empty"),
    "no picture": ("error", "no pictures"),
    "unsupported": ("error", "of a kind that is not read here"),
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
    kind: str
    severity: Severity
    text: str  # one line for people
    rows: list[int] = field(default_factory=list)  # of the data set
    sets: list[list[int]] = field(default_factory=list)  # rows that belong together: the same picture
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

    def table(self) -> str:
        """For a terminal, as wide as it is."""
        console = Console(highlight=False)
        table = Table("", "pictures", "finding", box=SIMPLE_HEAD, pad_edge=False)
        table.columns[1].justify = "right"
        for finding in self.groups:
            examples = self._examples(finding)
            more = f"[dim]… and {len(examples) - EXAMPLES} more[/]" if len(examples) > EXAMPLES else ""
            lines = [escape(finding.text), *(f"[dim]{escape(line)}[/]" for line in examples[:EXAMPLES]), more]
            count = len(finding.rows or finding.paths)
            style = {"error": "red", "warning": "yellow"}.get(finding.severity, "")
            told = "\n".join(filter(None, lines))
            table.add_row(f"[{style}]{finding.severity}[/]" if style else "note", f"{count:,}" if count else "", told)
        with console.capture() as captured:
            console.print(table if self.groups else "These pictures: nothing found that is wrong or odd.")
        return captured.get().rstrip("\n")

    def to_dict(self) -> dict[str, Any]:
        rows = zip(self.names, self.labels, self.sides, strict=True)
        return {
            "splits": self.splits,
            "findings": [self._to_dict(finding) for finding in self.groups],
            "files": [{"file": name, "label": label, "split": side} for name, label, side in rows],
            "skipped": [{"file": _inside(one.path, self.root), "why": one.why} for one in self.skipped],
        }

    def _to_dict(self, finding: Finding) -> dict[str, Any]:
        found: dict[str, Any] = {"kind": finding.kind, "severity": finding.severity, "text": finding.text}
        if finding.paths:
            pairs = zip(finding.paths, finding.whys, strict=True)
            found["files"] = [{"file": _inside(path, self.root), "why": why} for path, why in pairs]
        elif finding.sets:
            found["sets"] = [[self._file(row) for row in rows] for rows in finding.sets]
        elif finding.rows:
            found["files"] = [self._file(row) for row in finding.rows]
        return found

    def _file(self, row: int) -> dict[str, str]:
        return {"file": self.names[row], "label": self.labels[row]}

    def _examples(self, finding: Finding) -> list[str]:
        if finding.sets:
            return [" = ".join(self.names[row] for row in rows) for rows in finding.sets]
        return [_inside(path, self.root) for path in finding.paths] or [self.names[row] for row in finding.rows]


def examine(data: Dataset, size: int | None = None) -> Findings:
    """`size`: px that training reads at, where that is not the size of these pixels."""
    looks: tuple[Callable[[Dataset], Iterable[Finding]], ...] = (_skipped, _same, _counts, _shapes, _light, _telling)
    groups = [finding for look in looks for finding in look(data)] + list(_small(data, size))
    order = ("error", "warning", "note")
    sides = ["left out"] * len(data.pictures)
    for name in SIDES:
        for row in getattr(data, name).tolist():
            sides[row] = name
    return Findings(
        groups=sorted(groups, key=lambda finding: order.index(finding.severity)),
        names=[_inside(picture.file.path, data.root) for picture in data.pictures],
        labels=[picture.file.label for picture in data.pictures],
        splits={name: data.counts(getattr(data, name)) for name in SIDES},
        root=data.root,
        sides=sides,
        skipped=data.skipped,
    )


def _skipped(data: Dataset) -> Iterable[Finding]:
    kinds = defaultdict(list)
    for skipped in data.skipped:
        kinds[skipped.kind].append(skipped)
    for kind, found in kinds.items():
        severity, what = SKIPPED[kind]
        text = f"{_count(len(found), 'file')} left out: {what}"
        yield Finding(kind, severity, text, paths=[one.path for one in found], whys=[one.why for one in found])


def _same(data: Dataset) -> Iterable[Finding]:
    """Sets of one picture, each told once for what is worst about it: two labels, two splits, or mere copies."""
    told: dict[str, list[list[int]]] = defaultdict(list)
    for rows in _sets(data):
        pictures = [data.pictures[row] for row in rows]
        splits = {picture.file.split for picture in pictures} - {""}
        exact = len({picture.sha256 for picture in pictures}) == 1
        if len({picture.file.label for picture in pictures}) > 1:
            told["labels"].append(rows)
        if len(splits) > 1:
            kind = "exact leak" if "train" in splits else "measured twice"
            told[kind if exact else "near leak"].append(rows)
        elif len({picture.file.label for picture in pictures}) == 1:
            told["copies" if exact else "near copies"].append(rows)
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
    for name, (kind, severity, text) in texts.items():
        if sets := told[name]:
            rows = [row for some in sets for row in some]
            yield Finding(kind, severity, text.format(_count(len(sets), "picture")), rows, sets)


def _sets(data: Dataset) -> list[list[int]]:
    numbers = group(len(data.pictures), data.twins)
    members: dict[int, list[int]] = defaultdict(list)
    for row in sorted({row for pair in data.twins for row in pair}):
        members[int(numbers[row])].append(row)
    return list(members.values())


def _counts(data: Dataset) -> Iterable[Finding]:
    counts = data.counts(data.train)
    before = data.before_cut()
    few = sorted((count, label) for label, count in before.items() if count < FEW)
    if few:
        severity: Severity = "error" if few[0][0] < FEWEST else "warning"
        listed = _listed([f"{label!r} {count}" for count, label in few])
        text = f"fewer than {FEW} different training pictures, before any are cut for validation and test: {listed}"
        yield Finding("few", severity, text)
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] >= UNEVEN * max(1, counts[least]):
        times = counts[most] / max(1, counts[least])
        text = f"{most!r} has {times:.0f} times the training pictures of {least!r}; --class-weights evens that out"
        yield Finding("imbalance", "note", text)
    for name, rows in (("validation", np.append(data.validation, data.calibration)), ("test", data.test)):
        none = [label for label, count in data.counts(rows).items() if not count]
        if none and len(rows):
            text = f"no {name} pictures of {_listed(list(map(repr, none)))}: how well it does there is not known"
            yield Finding("unmeasured", "warning", text)


def _listed(names: list[str]) -> str:
    more = [f"… and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join(names[:LISTED] + more)


def _small(data: Dataset, size: int | None) -> Iterable[Finding]:
    height, width = (size, size) if size else data.pixels.shape[1:3]
    small = [n for n, one in enumerate(data.pictures) if one.width < width / 2 or one.height < height / 2]
    if small:
        text = f"{_count(len(small), 'picture')} of less than half the size that is trained at ({width}×{height})"
        yield Finding("small", "note", text, small)


def _shapes(data: Dataset) -> Iterable[Finding]:
    shapes = np.log([one.width / one.height for one in data.pictures] or [1.0])
    odd = np.flatnonzero(np.abs(shapes - np.median(shapes)) > np.log(ODD_SHAPE)).tolist()
    if odd:
        text = f"{_count(len(odd), 'picture')} of an odd shape, {ODD_SHAPE:g} times wider or higher than most"
        yield Finding("shape", "note", text, odd)
    modes = Counter(one.mode for one in data.pictures)
    for mode, count in sorted(modes.items()):
        if mode != "RGB" and count < ODD_SHARE * len(data.pictures):
            rows = [n for n, one in enumerate(data.pictures) if one.mode == mode]
            yield Finding("mode", "note", f"{_count(count, 'picture')} {MODES.get(mode, mode)}, unlike most", rows)


def _light(data: Dataset) -> Iterable[Finding]:
    light = np.array([one.brightness for one in data.pictures] or [0.0])
    blur = -np.log(np.array([one.sharpness for one in data.pictures] or [0.0]) + 1e-3)
    far = _far(light, 10)
    odd = {
        "dark": ((far < -FAR) & (light < 35)) | ((light < 10) & (np.median(light) > 40)),
        "bright": ((far > FAR) & (light > 220)) | ((light > 245) & (np.median(light) < 215)),
        "blurred": _far(blur, 0.3) > BLUR_FAR,
    }
    for kind, rows in odd.items():
        if found := np.flatnonzero(rows).tolist():
            word = {"blurred": "blurred or blank"}.get(kind, f"very {kind}")
            yield Finding(kind, "warning", f"{_count(len(found), 'picture')} {word}, next to the rest", found)


def _telling(data: Dataset) -> Iterable[Finding]:
    """Classes whose files differ in kind from all others': a network may learn that, and not what they show."""
    kinds = {
        "format": [one.format for one in data.pictures],
        "colour mode": [one.mode for one in data.pictures],
        "size": [f"{one.width}×{one.height}" for one in data.pictures],
    }
    for what, values in kinds.items():
        found = np.array(values)
        for number, label in enumerate(data.labels):
            mine, rest = found[data.classes == number], found[data.classes != number]
            if len(mine) < FEWEST or len(rest) < FEWEST:
                continue
            value, count = Counter(mine.tolist()).most_common(1)[0]
            if count >= TELLING[0] * len(mine) and (rest == value).mean() <= TELLING[1]:
                text = f"{label!r} can be told by its files' {what} alone ({value}): the network may learn that"
                yield Finding("giveaway", "warning", text)


def _far(values: Any, least: float) -> Any:
    """Distance from the median in robust deviations; `least` is the smallest deviation that is believed."""
    middle = np.median(values)
    return (values - middle) / max(least, 1.4826 * float(np.median(np.abs(values - middle))))


def _inside(path: Path, root: Path) -> str:
    return shown(path.relative_to(root) if path.is_relative_to(root) else path)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s'[: count != 1]}"
