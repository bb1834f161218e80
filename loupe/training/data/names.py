"""Names of files and folders: which of them count, what they say about splits, and how to print them.

    for path in files_below(folder): … # every file in it and under it, in the same order on every machine
    split_of("Training_Data")          # "train"
    printable_path(path)               # text that can be printed and stored, whatever bytes the name is made of

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
PICTURES |= {".tif", ".tiff", ".heic", ".heif", ".svg", ".jp2", ".psd"}  # not read here, but recognised as pictures
IGNORED = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "thumbs.db", "ehthumbs.db", "desktop.ini"}
SPLITS = {
    "train": {"train", "training", "trn"},
    "validation": {"validation", "valid", "val", "dev", "eval", "validate"},
    "test": {"test", "testing", "tst", "holdout"},
    "predict": {"pred", "predict", "prediction", "predictions"},
}
FILLERS = {"data", "set", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "labels", "files", "split"}
MAX_WRAPPERS = 4  # nested folders, each the only one in the last, that are looked through
BIDI_CONTROLS = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # they reorder the text


@dataclass(frozen=True)
class File:
    path: Path
    label: str  # "" for a picture to predict
    split: str = ""  # train, validation, test or predict; "" where the layout gives none
    id: str = ""  # as the CSV writes it; the file's stem otherwise


@dataclass(frozen=True)
class Skipped:
    path: Path
    why: str
    category: str  # one of doctor.SKIPPED

    def __str__(self) -> str:
        return f"{printable_path(self.path)}: {self.why}"


@dataclass(frozen=True)
class Submission:
    ids: list[str]  # of every row it must have, in order; also of missing pictures
    id_column: str
    label_column: str
    columns: tuple[str, ...] = ()  # of class probabilities, in order; empty if it wants labels


@dataclass(frozen=True)
class Layout:
    files: list[File]
    predict: list[File] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    submission: Submission | None = None
    source: str = ""  # for people: the CSV and its columns that gave the labels
    empty: list[Path] = field(default_factory=list)  # class folders without a file

    @property
    def labels(self) -> tuple[str, ...]:
        found = {file.label for file in self.files if file.split in ("", "train")}
        return tuple(sorted(found | set(map(label_of, self.empty))))


def printable_path(path: Path) -> str:
    return printable(os.fsencode(path.as_posix()).decode("utf-8", "replace"))


def printable(text: str) -> str:
    """Return the text without line breaks and other characters that change how a terminal shows a line."""
    text = unicodedata.normalize("NFC", text)
    return "".join(
        "\ufffd" if unicodedata.category(character) in ("Cc", "Cs") or character in BIDI_CONTROLS else character
        for character in text
    )


def label_of(class_folder: Path) -> str:
    return printable_path(Path(class_folder.name))


def words(name: str) -> list[str]:
    """Return the words of a name: train, labels for `trainLabels`, `train-labels` and `Train_Labels` alike."""
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def split_of(name: str) -> str:
    """Return the split that a folder or a CSV of this name holds, or ""."""
    return _split_of_words(_significant_words(name))


def splits_in_name(name: str) -> list[str]:
    """Return the splits that single words of this name stand for."""
    return [split for word in _significant_words(name) if (split := _split_of_words([word]))]


def _significant_words(name: str) -> list[str]:
    return [word for word in words(re.sub(r"\d+", "_", name)) if word not in FILLERS]


def _split_of_words(significant: list[str]) -> str:
    if len(significant) != 1:
        return ""
    stem = significant[0].removesuffix("set").removesuffix("data")
    return next((split for split, names in SPLITS.items() if stem in names), "")


def subfolders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]


def files_below(folder: Path, excluded: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield every file in `folder` and under it. Folders in `excluded` are not entered, whatever links lead to them."""
    # Folders not to enter, and those of them that a link must not lead into.
    seen = {outer.resolve() for outer in excluded}
    linked_away = {outer for outer in seen if outer not in (start := folder.resolve()).parents and outer != start}

    # Walk the tree and enter each real folder once.
    def walk(inner: Path) -> Iterator[Path]:
        real = inner.resolve()
        if real in seen or (inner.is_symlink() and linked_away & set(real.parents)):
            return
        seen.add(real)
        for entry in _entries(inner):
            if entry.is_dir():
                yield from walk(entry)
            elif entry.is_file() or not entry.exists():  # a link to nothing is listed, a pipe or a socket is not
                yield entry

    yield from walk(folder)


def _entries(folder: Path) -> list[Path]:
    visible = (entry for entry in folder.iterdir() if entry.name[0] != "." and entry.name.lower() not in IGNORED)
    return sorted(visible, key=lambda entry: entry.name)


def split_folders(root: Path) -> list[tuple[str, Path]]:
    """Return (split, folder) of each folder whose name means a split: `train`, or `seg_train` where a `seg_test` is
    beside it."""
    words_of = {folder: _significant_words(folder.name) for folder in subfolders(root)}
    named = [folder_words for folder, folder_words in words_of.items() if splits_in_name(folder.name)]
    prefix = _common_words(named)
    suffix = _common_words([folder_words[: prefix - 1 if prefix else None : -1] for folder_words in named])
    result = []
    for folder, folder_words in words_of.items():
        if (
            named
            and folder_words[:prefix] == named[0][:prefix]
            and folder_words[len(folder_words) - suffix :] == named[0][len(named[0]) - suffix :]
        ):
            folder_words = folder_words[prefix : len(folder_words) - suffix]
        if split := _split_of_words(folder_words):
            result.append((split, folder))
    return result


def _common_words(named: list[list[str]]) -> int:
    """Return how many words all names begin with. At least one word of each is left over."""
    if len(named) < 2:
        return 0
    return min(len(os.path.commonprefix(named)), min(map(len, named)) - 1)


def class_folders(split_folder: Path, known: Iterable[str] = ()) -> list[Path]:
    """Return the class folders of a split, also if all lie in one more folder. `known` holds names of classes."""
    for _ in range(MAX_WRAPPERS):
        candidates = subfolders(split_folder)
        if len(candidates) != 1 or candidates[0].name in known:
            return candidates
        if not subfolders(candidates[0]):
            return [] if candidates[0].name == split_folder.name or split_of(candidates[0].name) else candidates
        split_folder = candidates[0]
    return candidates
