"""Data sets whose classes stand in a CSV, and the pictures that a competition wants predicted.

    layout = from_csv(root, main_csv(root))                    # train.csv beside images/, train/ or the pictures
    files, skipped, submission = predictions(root, layout.labels)   # in the order of the sample submission

A row without a file is listed, not fatal, unless no row has one. A picture with two labels is left out and listed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from loupe.errors import UserError
from loupe.training.data.csv_table import (
    LOOKED_AT,
    Finder,
    Home,
    Table,
    columns,
    read_table,
    split_column,
    without_one_hot,
)
from loupe.training.data.names import (
    FILLERS,
    PICTURES,
    File,
    Layout,
    Skipped,
    Submission,
    below,
    class_folders,
    folders,
    label_of,
    parts,
    printable,
    split_of,
    words,
)

MAIN_NAMES = ("labels", "annotations", "metadata", "images", "data", "index", "list")
FOLDERS = {*FILLERS, "annotations", "annotation", "metadata", "meta", "csv", "csvs", "tables"}  # that may hold a CSV
FEWEST_ROWS = 8  # that a CSV beside class folders needs before it is believed over them
Predictions = tuple[list[File], list[Skipped], Submission | None]


def csvs(root: Path, role: str | None = None) -> list[Path]:
    """The CSVs of a folder; those of one role: train, validation, test, sample (of a submission) or "" for the rest."""
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv") and path.name[0] != ".")
    return [path for path in found if role is None or _role(path) == role]


def _role(path: Path) -> str:
    return "sample" if {"submission", "submit"} & set(words(path.stem)) else split_of(path.stem)


def main_csv(root: Path) -> Table | None:
    for path in csvs(root, "train"):
        return read_table(path)
    rest = csvs(root, "")
    if not rest and not csvs(root):
        apart = [folder for folder in folders(root) if set(words(folder.name)) <= FOLDERS]
        rest = [path for folder in apart for path in csvs(folder) if _role(path) in ("train", "")]
    named = [path for name in MAIN_NAMES for path in rest if name in words(path.stem)]
    if len(rest) > 1 and not named and not folders(root):
        raise UserError(f"{root} holds {len(rest)} CSV files: name the one with the labels by --csv.")
    chosen = named[:1] or (rest if len(rest) == 1 else [])
    return read_table(chosen[0]) if chosen else None


def fits(table: Table, root: Path) -> bool:
    """Whether a CSV that lies beside folders is about the pictures in them."""
    finder = _finder(root, "train", None)
    at = columns(table, finder)
    some = table.rows[:LOOKED_AT]
    hits = sum(len(finder.find(row[at[0]])) == 1 for _, row in some)
    enough = len(some) >= FEWEST_ROWS or _role(table.path) == "train"
    return len(at) == 2 and enough and hits >= len(some) / 2


def from_csv(
    root: Path,
    table: Table,
    images: Path | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
) -> Layout:
    if not table.rows and not table.overlong:
        raise UserError(f"{table.path} has no rows below its header. It needs one for each picture.")
    finder = _finder(root, "train", images, table.path.parent)
    at = columns(table, finder, id_column, label_column)
    hot = without_one_hot(table, at[0]) if len(at) < 2 else None
    if hot:
        table, at = hot, [0, 1]
    if len(at) < 2:
        raise UserError(
            f"Which column of {table.path} holds the labels? Name one of {', '.join(table.columns)} by --label-column."
        )
    split_at = None if label_column and split_column(table) == at[1] else split_column(table)
    finders = {"": finder}
    if split_at is not None:
        splits = {split_of(row[split_at]) or "train" for _, row in table.rows}
        finders = {split: _finder(root, split, images, table.path.parent) for split in splits}
    files, skipped = _files(table, at, finders, split_at)
    if not files and not any(one.kind == "contradiction" for one in skipped):
        raise _no_row_fits(table, at, finder)
    id_name, label_name = (table.columns[n] for n in at) if table.has_header else ("id", "label")
    label = table.columns[at[1]]
    more, left, used = measured(root, {file.label for file in files}, label, images, (table.path,))
    if any(file.split for file in files + more):
        files = [File(file.path, file.label, file.split or "train", file.id) for file in files + more]
    skipped += left
    labels = Layout(files).labels
    predict, left, submission = predictions(root, labels, images, (id_name, label_name), used)
    told = f"{table.path.name}, columns {table.columns[at[0]]} → {'one for each class' if hot else label}"
    return Layout(files, predict, skipped + left, submission, told)


def measured(
    root: Path, labels: set[str], label: str, images: Path | None = None, done: tuple[Path, ...] = ()
) -> tuple[list[File], list[Skipped], set[Path]]:
    """Pictures of the CSVs that give validation and test pictures labels, and which CSVs these are."""
    files: list[File] = []
    skipped: list[Skipped] = []
    used = set()
    for split in ("validation", "test"):
        for path in csvs(root, split):
            if path in done:
                continue
            table, finder = read_table(path), _finder(root, split, images)
            at = _labelled(table, finder, labels, label)
            if at:
                found, left = _files(table, at, {split: finder}, None)
                files, skipped = files + found, skipped + left
                used.add(path)
            elif split == "validation":
                skipped.append(Skipped(path, "none of its columns gives the labels of the training pictures", "table"))
    return files, skipped, used


def _labelled(table: Table, finder: Finder, labels: set[str], label: str) -> list[int]:
    folded = [name.casefold() for name in table.columns]
    name = label if label.casefold() in folded else None
    at = columns(table, finder, None, name)
    told = [row[at[1]] for _, row in table.rows if row[at[1]]] if len(at) == 2 else []
    sure = told and (name or 2 * sum(printable(cell) in labels for cell in told) >= len(told))
    return at if sure else []


def predictions(
    root: Path,
    labels: tuple[str, ...],
    images: Path | None = None,
    header: tuple[str, str] = ("id", "label"),
    used: Iterable[Path] = (),
) -> Predictions:
    """The pictures without a label: the sample submission's, a test CSV's, or all in a test folder without classes.
    `used`: test CSVs with labels, which measure and ask for nothing."""
    samples, tests = csvs(root, "sample"), [path for path in csvs(root, "test") if path not in used]
    asked = read_table((samples or tests)[0]) if samples or tests else None
    if asked is None:
        files = [] if csvs(root, "test") else _loose(root, labels)
        return files, [], Submission([file.id for file in files], *header) if files else None
    finder = _finder(root, "test", images)
    at = columns(asked, finder)[0]
    found, skipped = [], []
    for line, row in asked.rows:
        paths = finder.find(row[at])
        if len(paths) == 1:
            found.append(File(paths[0], "", "predict", row[at]))
        else:
            skipped.append(_missing(asked, line, row[at], paths, finder))
    shares: tuple[str, ...] = ()
    if samples and asked.has_header:
        rest = tuple(name for n, name in enumerate(asked.columns) if n != at)
        header = (asked.columns[at], rest[0] if rest else header[1])
        if len(rest) > 1 and {printable(name) for name in rest} >= set(labels):
            shares = rest
    return found, skipped, Submission([row[at] for _, row in asked.rows], *header, shares)


def _loose(root: Path, labels: tuple[str, ...]) -> list[File]:
    """Pictures in test folders without classes; where two have one name, the folders they lie in tell them apart."""
    flat = [
        folder for split, folder in parts(root) if split in ("test", "predict") and not _has_classes(folder, labels)
    ]
    others = [root, *(folder for _, folder in parts(root) if folder not in flat)]
    paths = [(path, folder) for folder in flat for path in below(folder, others) if path.suffix.lower() in PICTURES]
    ids = [path.stem for path, _ in paths]
    ways: tuple[Callable[[Path, Path], Path], ...] = (
        lambda path, folder: path.relative_to(folder).with_suffix(""),
        lambda path, folder: path.relative_to(folder),
        lambda path, folder: path.relative_to(root),
    )
    for way in ways:
        often = Counter(ids)
        ids = [
            way(path, folder).as_posix() if often[name] > 1 else name
            for name, (path, folder) in zip(ids, paths, strict=True)
        ]
    return [File(path, "", "predict", name) for name, (path, _) in zip(ids, paths, strict=True)]


def _has_classes(part: Path, labels: tuple[str, ...]) -> bool:
    homes = class_folders(part, labels)
    return any(label_of(home) in labels for home in homes) or len(homes) > 1


def _files(
    table: Table, at: list[int], finders: dict[str, Finder], split_at: int | None
) -> tuple[list[File], list[Skipped]]:
    """`finders` by split; the only one where no column says the split."""
    rows_of: dict[Path, list[tuple[str, str, str]]] = defaultdict(list)
    skipped = [
        Skipped(table.path, f"row {line} has {count} cells, and the header {len(table.columns)}: quote commas", "cells")
        for line, count in table.overlong.items()
    ]
    for line, row in table.rows:
        name, label = row[at[0]], printable(row[at[1]])
        split = next(iter(finders)) if split_at is None else split_of(row[split_at]) or "train"
        paths = finders[split].find(name)
        if not name:
            skipped.append(Skipped(table.path, f"row {line} gives no id", "no id"))
        elif not label:
            where = paths[0] if paths else table.path.parent / name
            skipped.append(Skipped(where, f"row {line} of {table.path.name} gives no label", "unlabelled"))
        elif len(paths) != 1:
            skipped.append(_missing(table, line, name, paths, finders[split]))
        else:
            rows_of[paths[0]].append((label, name, split))
    files = []
    for path, rows in rows_of.items():
        labels = sorted({label for label, _, _ in rows})
        if len(labels) > 1:
            why = f"{table.path.name} gives it {len(labels)} labels: {', '.join(map(repr, labels))}"
            skipped.append(Skipped(path, why, "contradiction"))
        else:
            files.append(File(path, labels[0], rows[0][2], rows[0][1]))
    return files, skipped


def _no_row_fits(table: Table, at: list[int], finder: Finder) -> UserError:
    if not table.rows:
        return UserError(
            f"Every row of {table.path} has more cells than its header. Quote the cells with commas in them."
        )
    name = next((row[at[0]] for _, row in table.rows if row[at[0]]), "")
    if finder.find(name):
        return UserError(
            f"No row of {table.path} gives one picture and its label. Name the columns with --label-column."
        )
    return UserError(
        f"No row of {table.path} has a picture: there is no {name!r}, with or without an ending, in "
        f"{finder.places()}. Name the folder with --images, or the column with --id-column."
    )


def _missing(table: Table, line: int, name: str, paths: list[Path], finder: Finder) -> Skipped:
    if paths:
        why = f"row {line} of {table.path.name}: {len(paths)} files may be meant by {name!r}"
        return Skipped(table.path.parent / name, why, "ambiguous")
    if not name:
        return Skipped(table.path, f"row {line} gives no id", "no id")
    why = f"row {line} of {table.path.name}: no such file in {finder.places()}"
    return Skipped(table.path.parent / name, why, "missing")


def _finder(root: Path, split: str, images: Path | None, beside: Path | None = None) -> Finder:
    """Where pictures of a split may lie: the folder of its name first, then those of all pictures, then anywhere."""
    bases = [images] if images else [folder for folder in folders(root) if set(words(folder.name)) <= FILLERS]
    if not images or split != "train":
        bases += [root]
    if not images and beside and beside != root:
        bases += [beside]
    homes = []
    for base in bases:
        own = [folder for name, folder in parts(base) if name == split]
        others = tuple(folder for name, folder in parts(base) if name != split) if own else ()
        homes += [*map(Home, own), Home(base, others)]
    return Finder(homes)
