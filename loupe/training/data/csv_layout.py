"""Data sets whose labels stand in a CSV, and the pictures that a competition wants predicted.

    layout = from_csv(root, main_csv(root))                    # train.csv beside images/, train/ or the pictures
    files, skipped, submission = predictions(root, layout.labels)   # in the order of the sample submission

Rows without a file are listed; only if no row has one is the CSV refused. A picture with two labels is left out and
listed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from loupe.errors import UserError
from loupe.training.data.csv_table import (
    ROWS_LOOKED_AT,
    Finder,
    PictureFolder,
    Table,
    find_columns,
    from_one_hot,
    read_table,
    split_column,
    split_in,
)
from loupe.training.data.names import (
    FILLERS,
    PICTURES,
    File,
    Layout,
    Skipped,
    Submission,
    class_folders,
    files_below,
    label_of,
    printable,
    split_folders,
    split_of,
    subfolders,
    words,
)

MAIN_NAMES = ("labels", "annotations", "metadata", "images", "data", "index", "list")
# Folders that may hold the CSV.
CSV_FOLDERS = {*FILLERS, "annotations", "annotation", "metadata", "meta", "csv", "csvs", "tables"}
MIN_ROWS = 8  # that a CSV beside class folders must have to be used instead of them
Predictions = tuple[list[File], list[Skipped], Submission | None]


def csv_files(root: Path, role: str | None = None) -> list[Path]:
    """Return the CSVs of a folder, or those of one role: train, validation, test, sample (of a submission) or "" for
    the rest."""
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv") and path.name[0] != ".")
    return [path for path in paths if role is None or _role(path) == role]


def _role(path: Path) -> str:
    return "sample" if {"submission", "submit"} & set(words(path.stem)) else split_of(path.stem)


def main_csv(root: Path) -> Table | None:
    """Return the CSV that gives the labels: one for training, or of a usual name, or the only one. None if there is
    none."""
    for path in csv_files(root, "train"):
        return read_table(path)
    candidates = csv_files(root, "")
    if not candidates and not csv_files(root):
        csv_dirs = [folder for folder in subfolders(root) if set(words(folder.name)) <= CSV_FOLDERS]
        candidates = [path for folder in csv_dirs for path in csv_files(folder) if _role(path) in ("train", "")]
    usual = [path for name in MAIN_NAMES for path in candidates if name in words(path.stem)]
    if len(candidates) > 1 and not usual and not subfolders(root):
        raise UserError(f"{root} holds {len(candidates)} CSV files: name the one with the labels by --csv.")
    chosen = usual[:1] or (candidates if len(candidates) == 1 else [])
    return read_table(chosen[0]) if chosen else None


def is_about_pictures(table: Table, root: Path) -> bool:
    """Return True if a CSV that lies beside folders is about the pictures in them."""
    finder = _finder(root, "train", None)
    indices = find_columns(table, finder)
    has_labels = len(indices) == 2 or from_one_hot(table, indices[0], strict=False) is not None
    sample = table.rows[:ROWS_LOOKED_AT]
    hits = sum(len(finder.find(row[indices[0]])) == 1 for _, row in sample)
    has_enough_rows = len(sample) >= MIN_ROWS or _role(table.path) == "train"
    return has_labels and has_enough_rows and hits >= len(sample) / 2


def from_csv(
    root: Path,
    table: Table,
    images: Path | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
) -> Layout:
    """Return the layout of a data set whose labels are in `table`."""
    # Find the columns of ids, labels and splits.
    if not table.rows and not table.overlong:
        raise UserError(f"{table.path} has no rows below its header. It needs one for each picture.")
    finder = _finder(root, "train", images, table.path.parent)
    indices = find_columns(table, finder, id_column, label_column)
    one_hot = from_one_hot(table, indices[0]) if len(indices) < 2 else None
    if one_hot:
        table, indices = one_hot, [0, 1]
    if len(indices) < 2:
        raise UserError(
            f"Which column of {table.path} holds the labels? Name one of {', '.join(table.columns)} by --label-column."
        )
    split_index = None if label_column and split_column(table) == indices[1] else split_column(table)
    # Find the picture of each row, among the pictures of its split.
    finders = {"": finder}
    if split_index is not None:
        splits = {split_in(row[split_index]) for _, row in table.rows}
        finders = {split: _finder(root, split, images, table.path.parent) for split in splits}
    files, skipped = _match_rows(table, indices, finders, split_index)
    if not files and not any(entry.category == "contradiction" for entry in skipped):
        raise _no_match_error(table, indices, finder)
    # Other CSVs may label validation and test pictures.
    id_name, label_name = (table.columns[index] for index in indices) if table.has_header else ("id", "label")
    label = table.columns[indices[1]]
    measured, unread, used = labelled_splits(root, {file.label for file in files}, label, images, (table.path,))
    if any(file.split for file in files + measured):
        files = [File(file.path, file.label, file.split or "train", file.id) for file in files + measured]
    skipped += unread
    # Pictures to predict.
    labels = Layout(files).labels
    predict, unread, submission = predictions(root, labels, images, (id_name, label_name), used)
    source = f"{table.path.name}, columns {table.columns[indices[0]]} → {'one for each class' if one_hot else label}"
    source += "" if split_index is None else f", splits by {table.columns[split_index]}"
    return Layout(files, predict, skipped + unread, submission, source)


def labelled_splits(
    root: Path, labels: set[str], label: str, images: Path | None = None, read_before: tuple[Path, ...] = ()
) -> tuple[list[File], list[Skipped], set[Path]]:
    """Read the CSVs that label validation and test pictures. Return the files, what was skipped, and the paths of these
    CSVs."""
    files: list[File] = []
    skipped: list[Skipped] = []
    used = set()
    # Each CSV of these splits, if its columns give the same labels.
    for split in ("validation", "test"):
        for path in csv_files(root, split):
            if path in read_before:
                continue
            finder = _finder(root, split, images)
            table, indices = _with_labels(read_table(path), finder, labels, label)
            if indices:
                matched, unread = _match_rows(table, indices, {split: finder}, None)
                files, skipped = files + matched, skipped + unread
                used.add(path)
            elif split == "validation":
                skipped.append(Skipped(path, "none of its columns gives the labels of the training pictures", "table"))
    return files, skipped, used


def _with_labels(table: Table, finder: Finder, labels: set[str], label: str) -> tuple[Table, list[int]]:
    """Return the table and its columns of ids and labels, or no columns if the cells are not labels of the training
    pictures."""
    lower_names = [name.casefold() for name in table.columns]
    name = label if label.casefold() in lower_names else None
    indices = find_columns(table, finder, None, name)
    one_hot = from_one_hot(table, indices[0], strict=False) if len(indices) < 2 else None
    if one_hot:
        table, indices = one_hot, [0, 1]
    cells = [row[indices[1]] for _, row in table.rows if row[indices[1]]] if len(indices) == 2 else []
    has_labels = cells and (name or 2 * sum(printable(cell) in labels for cell in cells) >= len(cells))
    return table, indices if has_labels else []


def predictions(
    root: Path,
    labels: tuple[str, ...],
    images: Path | None = None,
    header: tuple[str, str] = ("id", "label"),
    used: Iterable[Path] = (),
) -> Predictions:
    """Return the pictures without a label: those of the sample submission, of a test CSV, or all in a test folder
    without classes. `used` are test CSVs with labels, which ask for no prediction."""
    # Without a CSV, pictures in a test folder are predicted.
    samples, tests = csv_files(root, "sample"), [path for path in csv_files(root, "test") if path not in used]
    table = read_table((samples or tests)[0]) if samples or tests else None
    if table is None:
        files = [] if csv_files(root, "test") else _unlabelled_pictures(root, labels)
        return files, [], Submission([file.id for file in files], *header) if files else None
    # Find the picture of each row.
    finder = _finder(root, "test", images)
    id_index = find_columns(table, finder)[0]
    files, skipped = [], []
    for line, row in table.rows:
        paths = finder.find(row[id_index])
        if len(paths) == 1:
            files.append(File(paths[0], "", "predict", row[id_index]))
        else:
            skipped.append(_skip_row(table, line, row[id_index], paths, finder))
    # The header that the submission must have, and whether it wants probabilities.
    shares: tuple[str, ...] = ()
    if samples and table.has_header:
        other_columns = tuple(name for index, name in enumerate(table.columns) if index != id_index)
        header = (table.columns[id_index], other_columns[0] if other_columns else header[1])
        if len(other_columns) > 1 and {printable(name) for name in other_columns} >= set(labels):
            shares = other_columns
    return files, skipped, Submission([row[id_index] for _, row in table.rows], *header, shares)


def _unlabelled_pictures(root: Path, labels: tuple[str, ...]) -> list[File]:
    """Return the pictures in test folders without classes. If two have the same name, their folders tell them apart."""
    # Pictures of the test folders, named by their stems.
    test_folders = [
        folder
        for split, folder in split_folders(root)
        if split in ("test", "predict") and not _has_classes(folder, labels)
    ]
    others = [root, *(folder for _, folder in split_folders(root) if folder not in test_folders)]
    paths = [
        (path, folder)
        for folder in test_folders
        for path in files_below(folder, others)
        if path.suffix.lower() in PICTURES
    ]
    ids = [path.stem for path, _ in paths]
    # Lengthen names that several pictures have, until all differ.
    longer_names: tuple[Callable[[Path, Path], Path], ...] = (
        lambda path, folder: path.relative_to(folder).with_suffix(""),
        lambda path, folder: path.relative_to(folder),
        lambda path, folder: path.relative_to(root),
    )
    for longer_name in longer_names:
        counts = Counter(ids)
        ids = [
            longer_name(path, folder).as_posix() if counts[name] > 1 else name
            for name, (path, folder) in zip(ids, paths, strict=True)
        ]
    return [File(path, "", "predict", name) for name, (path, _) in zip(ids, paths, strict=True)]


def _has_classes(folder: Path, labels: tuple[str, ...]) -> bool:
    class_dirs = class_folders(folder, labels)
    return any(label_of(class_dir) in labels for class_dir in class_dirs) or len(class_dirs) > 1


def _match_rows(
    table: Table, indices: list[int], finders: dict[str, Finder], split_index: int | None
) -> tuple[list[File], list[Skipped]]:
    """Return the file of each row, and the rows that have none. `finders` is by split, or has a single entry if no
    column gives the split."""
    # Rows with too many cells cannot be read.
    rows_of: dict[Path, list[tuple[str, str, str]]] = defaultdict(list)
    skipped = [
        Skipped(table.path, f"row {line} has {count} cells, and the header {len(table.columns)}: quote commas", "cells")
        for line, count in table.overlong.items()
    ]
    # The picture of each row.
    for line, row in table.rows:
        name, label = row[indices[0]], printable(row[indices[1]])
        split = next(iter(finders)) if split_index is None else split_in(row[split_index])
        paths = finders[split].find(name)
        if not name:
            skipped.append(Skipped(table.path, f"row {line} gives no id", "no id"))
        elif not label:
            path_shown = paths[0] if paths else table.path.parent / name
            skipped.append(Skipped(path_shown, f"row {line} of {table.path.name} gives no label", "unlabelled"))
        elif len(paths) != 1:
            skipped.append(_skip_row(table, line, name, paths, finders[split]))
        else:
            rows_of[paths[0]].append((label, name, split))
    # A picture with several labels is left out.
    files = []
    for path, rows in rows_of.items():
        labels = sorted({label for label, _, _ in rows})
        if len(labels) > 1:
            reason = f"{table.path.name} gives it {len(labels)} labels: {', '.join(map(repr, labels))}"
            skipped.append(Skipped(path, reason, "contradiction"))
        else:
            files.append(File(path, labels[0], rows[0][2], rows[0][1]))
    return files, skipped


def _no_match_error(table: Table, indices: list[int], finder: Finder) -> UserError:
    if not table.rows:
        return UserError(
            f"Every row of {table.path} has more cells than its header. Quote the cells with commas in them."
        )
    name = next((row[indices[0]] for _, row in table.rows if row[indices[0]]), "")
    if finder.find(name):
        return UserError(
            f"No row of {table.path} gives one picture and its label. Name the columns with --label-column."
        )
    return UserError(
        f"No row of {table.path} has a picture: there is no {name!r}, with or without an ending, in "
        f"{finder.places()}. Name the folder with --images, or the column with --id-column."
    )


def _skip_row(table: Table, line: int, name: str, paths: list[Path], finder: Finder) -> Skipped:
    if paths:
        reason = f"row {line} of {table.path.name}: {len(paths)} files may be meant by {name!r}"
        return Skipped(table.path.parent / name, reason, "ambiguous")
    if not name:
        return Skipped(table.path, f"row {line} gives no id", "no id")
    reason = f"row {line} of {table.path.name}: no such file in {finder.places()}"
    return Skipped(table.path.parent / name, reason, "missing")


def _finder(root: Path, split: str, images: Path | None, csv_folder: Path | None = None) -> Finder:
    """Return a finder for the pictures of a split: in the folder of its name first, then in those of all pictures, then
    anywhere."""
    bases = [images] if images else [folder for folder in subfolders(root) if set(words(folder.name)) <= FILLERS]
    if not images or split != "train":
        bases += [root]
    if not images and csv_folder and csv_folder != root:
        bases += [csv_folder]
    picture_folders = []
    for base in bases:
        own = [folder for name, folder in split_folders(base) if name == split]
        others = tuple(folder for name, folder in split_folders(base) if name != split) if own else ()
        picture_folders += [*map(PictureFolder, own), PictureFolder(base, others)]
    return Finder(picture_folders)
