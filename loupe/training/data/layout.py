"""Which files belong to which class and split, for data sets as people have them.

    layout = find(Source(Path("photos")))         # layout.labels, layout.files, layout.skipped
    layout = find(Source(Path("competition")))    # train.csv, images/, test.csv and sample_submission.csv are found
    layout = find(Source(Path("."), csv=Path("labels.csv"), images=Path("scans"), label_column="diagnosis"))

Either a folder a class; or training, validation and test folders (under any of their usual names) of a folder a class
each; or pictures and a CSV (csv_layout.py). A test folder without classes holds pictures to predict. One folder around
all that is looked through. What does not fit is refused by name or listed in `skipped`; no picture is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from loupe.errors import UserError
from loupe.training.data.csv_layout import csvs, fits, from_csv, main_csv, measured, predictions
from loupe.training.data.csv_table import read_table
from loupe.training.data.names import (
    PICTURES,
    WRAPPERS,
    File,
    Layout,
    Skipped,
    Submission,
    below,
    class_folders,
    folders,
    label_of,
    parts,
    shown,
    split_of,
    split_words,
)

__all__ = ["File", "Layout", "Skipped", "Source", "Submission", "find"]


@dataclass(frozen=True)
class Source:
    root: Path  # a folder, or the CSV itself
    csv: Path | None = None
    images: Path | None = None
    id_column: str | None = None
    label_column: str | None = None


def find(source: Source) -> Layout:
    try:
        layout = _find(source)
        layout = replace(layout, skipped=layout.skipped + _unused(source, layout))
    except OSError as error:
        raise UserError(
            f"Cannot read {error.filename} ({error.strerror}). Make it readable, or move it away."
        ) from error
    count = len(layout.labels)
    if count < 2:
        raise UserError(
            f"{source.csv or source.root} holds pictures of {count} class{'es'[: 2 * (count != 1)]}, and at least 2 "
            "are needed: give each class a folder of its own, or name a CSV of labels with --csv."
        )
    strange = sorted({file.label for file in layout.files} - set(layout.labels))
    if strange:
        raise UserError(
            f"{source.root} has no training pictures of {strange[0]!r}, which its validation or test pictures show. "
            "Add some, or take that class out."
        )
    return layout


def _find(source: Source) -> Layout:
    named = source.csv or (source.root if source.root.is_file() else None)
    if not named and not source.root.is_dir():
        raise UserError(
            f"There is no folder {source.root}. Name one that holds a folder of pictures for each class, or a CSV."
        )
    if source.images and not source.images.is_dir():
        raise UserError(f"There is no folder {source.images}. Name the pictures' folder with --images.")
    root = _unwrapped(source.root) if source.root.is_dir() else source.root.parent
    if not named and any(split == "train" and class_folders(folder) for split, folder in parts(root)):
        return _from_splits(root)
    table = read_table(named) if named else main_csv(root)
    if table and not named and not source.images and len(folders(root)) > 1 and not fits(table, root):
        table = None  # it is about something else than these pictures
    if table:
        return from_csv(root, table, source.images, source.id_column, source.label_column)
    return _from_classes(root)


def _unwrapped(root: Path) -> Path:
    """The folder that holds the data set: the given one, or the only one inside that does."""
    for _ in range(WRAPPERS):
        if parts(root) or csvs(root):
            return root
        inside = folders(root)
        telling = [folder for folder in inside if any(split == "train" for split, _ in parts(folder))]
        if len(inside) == 1 and folders(inside[0]):
            telling = inside
        if len(telling) != 1:
            return root
        root = telling[0]
    return root


def _from_classes(root: Path) -> Layout:
    homes = folders(root)
    if not homes and any(path.suffix.lower() in PICTURES for path in root.iterdir()):
        raise UserError(
            f"{root} holds pictures, but nothing says their classes. Sort them into a folder for each class, or "
            "name a CSV of labels with --csv."
        )
    odd = [home for home in homes if split_words(home.name)]
    if len(odd) > 1 or any(
        split_of(home.name) not in ("", "train") for home in odd
    ):  # a train may be a class of vehicles
        names = ", ".join(label_of(home) for home in odd)
        raise UserError(
            f"{root}: is {names} a split of the pictures, or a class? Put a folder for each class into a folder called "
            "train, or name a CSV of labels with --csv; or call the class's folder otherwise."
        )
    return Layout(_classes(homes, "", [root, *homes]))


def _from_splits(root: Path) -> Layout:
    files: list[File] = []
    known = {home.name for split, folder in parts(root) if split == "train" for home in class_folders(folder)}
    homes_of = {folder: class_folders(folder, known) for _, folder in parts(root)}
    around = [root, *homes_of, *(home for homes in homes_of.values() for home in homes)]
    for split, folder in parts(root):
        homes = homes_of[folder]
        unknown = split == "test" and len(homes) == 1 and homes[0].name not in known  # a folder that loaders need
        if split != "predict" and not unknown:
            files += _classes(homes, split, around)
    labels = Layout(files).labels
    more, skipped, used = measured(root, set(labels), "label")
    given = {file.split for file in files}
    if {file.split for file in more} & given:  # class folders say it already
        more, skipped = [file for file in more if file.split not in given], []
    predict, left, submission = predictions(root, labels, used=used)
    return Layout(files + more, predict, skipped + left, submission)


def _classes(homes: list[Path], split: str, around: list[Path]) -> list[File]:
    files = []
    for home in homes:
        found = list(below(home, [folder for folder in around if folder != home]))
        if not found and split in ("", "train"):
            raise UserError(f"Class {label_of(home)!r} has no pictures: add some to {home}, or remove it.")
        files += [File(path, label_of(home), split, shown(Path(path.stem))) for path in found]
    return files


def _unused(source: Source, layout: Layout) -> list[Skipped]:
    """Pictures that nothing above takes: loose ones, those of other folders, those that the CSV does not name."""
    folder = source.images or (source.root if source.root.is_dir() else source.root.parent)
    homes: dict[Path, Path] = {}

    def real(path: Path) -> Path:
        if path.parent not in homes:
            homes[path.parent] = path.parent.resolve()
        return homes[path.parent] / path.name

    taken = {real(one.path) for some in (layout.files, layout.predict, layout.skipped) for one in some}
    loose = (path for path in below(folder) if path.suffix.lower() in PICTURES and real(path) not in taken)
    return [Skipped(path, "in no class's folder, no split and no row of a CSV", "unused") for path in loose]
