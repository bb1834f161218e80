"""Which files and folders of a data set count, what their names say, and the words for them.

    for path in below(folder): …       # every file in it and under it, in the same order on every machine
    split_of("Training_Data")          # "train"
    shown(path)                        # text that can be printed and stored, whatever bytes the name is made of

Links to folders are followed, and no folder is entered twice, so a link back up the tree ends there.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PICTURES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif"}
PICTURES |= {".tif", ".tiff", ".heic", ".heif", ".svg", ".jp2", ".psd"}  # not read here, but known for what they are
IGNORED = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini"}
SPLITS = {
    "train": {"train", "training", "trn"},
    "validation": {"validation", "valid", "val", "dev", "eval", "validate"},
    "test": {"test", "testing", "tst", "holdout"},
    "predict": {"pred", "predict", "prediction", "predictions"},
}
FILLERS = {"data", "set", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "labels", "files", "split"}
WRAPPERS = 4  # folders around pictures, one in the other, that are looked through
TURNING = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # what follows would be reordered


@dataclass(frozen=True)
class File:
    path: Path
    label: str  # "" for a picture to be predicted only
    split: str = ""  # train, validation, test or predict; "" where the layout gives none
    id: str = ""  # as the CSV writes it; the file's stem otherwise


@dataclass(frozen=True)
class Skipped:
    path: Path
    why: str
    kind: str  # one of doctor.SKIPPED

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.why}"


@dataclass(frozen=True)
class Submission:
    ids: list[str]  # every row it must have, in its order; also those whose picture is missing
    id_column: str
    label_column: str
    columns: tuple[str, ...] = ()  # where it has a column of probabilities for each class: these, in its order


@dataclass(frozen=True)
class Layout:
    files: list[File]
    predict: list[File] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    submission: Submission | None = None
    source: str = ""  # for people: which CSV and which of its columns the labels are from

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({file.label for file in self.files if file.split in ("", "train")}))


def shown(path: Path) -> str:
    return printable(os.fsencode(path.as_posix()).decode("utf-8", "replace"))


def printable(text: str) -> str:
    """Without line breaks and what else would change how a terminal shows the rest of the line."""
    text = unicodedata.normalize("NFC", text)
    return "".join("\ufffd" if unicodedata.category(sign) in ("Cc", "Cs") or sign in TURNING else sign for sign in text)


def label_of(home: Path) -> str:
    return shown(Path(home.name))


def words(name: str) -> list[str]:
    """`trainLabels`, `train-labels` and `Train_Labels` alike: train, labels."""
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def split_of(name: str) -> str:
    """The split that a folder or a CSV of this name holds, or ""."""
    return _split_of(_telling(name))


def split_words(name: str) -> list[str]:
    return [split for word in _telling(name) if (split := _split_of([word]))]


def _telling(name: str) -> list[str]:
    return [word for word in words(re.sub(r"\d+", "_", name)) if word not in FILLERS]


def _split_of(told: list[str]) -> str:
    if len(told) != 1:
        return ""
    word = told[0].removesuffix("set").removesuffix("data")
    return next((split for split, names in SPLITS.items() if word in names), "")


def folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def below(folder: Path, around: Iterable[Path] = ()) -> Iterator[Path]:
    """`around`: folders that belong to others and are not entered, whatever links point to them."""
    seen = {home.resolve() for home in around}
    others = {home for home in seen if home not in (start := folder.resolve()).parents and home != start}

    def walk(inner: Path) -> Iterator[Path]:
        real = inner.resolve()
        if real in seen or (inner.is_symlink() and others & set(real.parents)):
            return
        seen.add(real)
        for entry in _entries(inner):
            if entry.is_dir():
                yield from walk(entry)
            elif entry.is_file() or not entry.exists():  # a link to nothing is listed, a pipe or a socket is not
                yield entry

    yield from walk(folder)


def _entries(folder: Path) -> list[Path]:
    kept = (entry for entry in folder.iterdir() if entry.name[0] != "." and entry.name.lower() not in IGNORED)
    return sorted(kept, key=lambda entry: entry.name)


def parts(root: Path) -> list[tuple[str, Path]]:
    """The folders in it that hold a split, by their names: `train`, or `seg_train` where a `seg_test` is beside it."""
    told = {folder: _telling(folder.name) for folder in folders(root)}
    named = [names for folder, names in told.items() if split_words(folder.name)]
    head = _common(named)
    tail = _common([names[: head - 1 if head else None : -1] for names in named])
    found = []
    for folder, names in told.items():
        if named and names[:head] == named[0][:head] and names[len(names) - tail :] == named[0][len(named[0]) - tail :]:
            names = names[head : len(names) - tail]
        if split := _split_of(names):
            found.append((split, folder))
    return found


def _common(named: list[list[str]]) -> int:
    """Words with which all of them begin; one word at least is left of each."""
    if len(named) < 2:
        return 0
    return min(len(os.path.commonprefix(named)), min(map(len, named)) - 1)


def class_folders(part: Path, known: Iterable[str] = ()) -> list[Path]:
    """The folders of a split that are classes, also where all lie in one more folder; `known`: names of classes."""
    for _ in range(WRAPPERS):
        homes = folders(part)
        if len(homes) != 1 or homes[0].name in known:
            return homes
        if not folders(homes[0]):
            return [] if homes[0].name == part.name or split_of(homes[0].name) else homes
        part = homes[0]
    return homes
