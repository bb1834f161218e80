"""The layout of a data set: which files belong to which class and split.

    layout = find(Source(Path("photos")))         # layout.labels, layout.files, layout.skipped
    layout = find(Source(Path("competition")))    # train.csv, images/, test.csv and sample_submission.csv are found
    layout = find(Source(Path("."), csv=Path("labels.csv"), images=Path("scans"), label_column="diagnosis"))

The layout is one of these: a folder a class; training, validation and test folders (under any of their usual names) of
a folder a class each; or pictures and a CSV (csv_layout.py). A test folder without classes holds pictures to predict.
A single folder around all of it is looked through. Whatever does not fit is refused by name or listed in `skipped`. No
picture is opened here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from loupe.errors import UserError
from loupe.training.data.csv_layout import (
    csv_files,
    from_csv,
    is_about_pictures,
    labelled_splits,
    main_csv,
    predictions,
)
from loupe.training.data.csv_table import read_table
from loupe.training.data.names import (
    MAX_WRAPPERS,
    PICTURES,
    File,
    Layout,
    Skipped,
    Submission,
    class_folders,
    files_below,
    label_of,
    printable_path,
    split_folders,
    split_of,
    splits_in_name,
    subfolders,
)

__all__ = ["File", "Layout", "Skipped", "Source", "Submission", "find"]

TABLES = (".csv", ".tsv", ".txt")  # endings of a file that is given as the data set


@dataclass(frozen=True)
class Source:
    root: Path  # a folder, or the CSV itself
    csv: Path | None = None
    images: Path | None = None
    id_column: str | None = None
    label_column: str | None = None


def find(source: Source) -> Layout:
    """Return the layout of a data set, or raise a UserError that says how to arrange it."""
    # Look at the folders and CSVs, and list whatever is not used.
    try:
        layout = _find(source)
        layout = replace(layout, skipped=layout.skipped + _list_unused(source, layout))
    except OSError as error:
        raise UserError(
            f"Cannot read {error.filename} ({error.strerror}). Make it readable, or move it away."
        ) from error
    # Refuse data sets without classes. Whether each has pictures enough is for others to say.
    count = len(layout.labels)
    if count < 2:
        raise UserError(
            f"{source.csv or source.root} holds pictures of {count} class{'es'[: 2 * (count != 1)]}, and at least 2 "
            "are needed: give each class a folder of its own, or name a CSV of labels with --csv."
        )
    unknown = sorted({file.label for file in layout.files} - set(layout.labels))
    if unknown:
        raise UserError(
            f"{source.root} has no training pictures of {unknown[0]!r}, which its validation or test pictures show. "
            "Add some, or take that class out."
        )
    return layout


def _find(source: Source) -> Layout:
    # Refuse paths that do not exist, and files that are no tables.
    csv_path = source.csv or (source.root if source.root.is_file() else None)
    if csv_path == source.root and csv_path.suffix.lower() not in TABLES:
        raise UserError(
            f"{csv_path} is neither a folder nor a CSV ({', '.join(TABLES)}). Name the folder that holds a folder of "
            "pictures for each class, or pictures and a CSV of their labels."
        )
    if not csv_path and not source.root.is_dir():
        raise UserError(
            f"There is no folder {source.root}. Name one that holds a folder of pictures for each class, or a CSV."
        )
    if source.images and not source.images.is_dir():
        raise UserError(f"There is no folder {source.images}. Name the pictures' folder with --images.")
    # Split folders, a CSV, or a folder a class: the first that fits.
    root = _unwrap(source.root) if source.root.is_dir() else source.root.parent
    if not csv_path and any(split == "train" and class_folders(folder) for split, folder in split_folders(root)):
        return _from_splits(root)
    table = read_table(csv_path) if csv_path else main_csv(root)
    if (
        table
        and not csv_path
        and not source.images
        and len(subfolders(root)) > 1
        and not is_about_pictures(table, root)
    ):
        table = None  # it is about other things than these pictures
    if table:
        return from_csv(root, table, source.images, source.id_column, source.label_column)
    return _from_classes(root)


def _unwrap(root: Path) -> Path:
    """Return the folder that holds the data set: the given one, or the only one inside that does."""
    for _ in range(MAX_WRAPPERS):
        if split_folders(root) or csv_files(root):
            return root
        inner = subfolders(root)
        candidates = [folder for folder in inner if any(split == "train" for split, _ in split_folders(folder))]
        if len(inner) == 1 and subfolders(inner[0]):
            candidates = inner
        if len(candidates) != 1:
            return root
        root = candidates[0]
    return root


def _from_classes(root: Path) -> Layout:
    # Refuse pictures without classes.
    class_dirs = subfolders(root)
    if not class_dirs and any(path.suffix.lower() in PICTURES for path in root.iterdir()):
        raise UserError(
            f"{root} holds pictures, but nothing says their classes. Sort them into a folder for each class, or "
            f"name a CSV of labels with --csv.{_labels_in_names(root)}"
        )
    # Refuse names that may mean a split as well as a class.
    ambiguous = [folder for folder in class_dirs if splits_in_name(folder.name)]
    if len(ambiguous) > 1 or any(
        split_of(folder.name) not in ("", "train") for folder in ambiguous
    ):  # "train" may be a class of vehicles
        names = ", ".join(label_of(folder) for folder in ambiguous)
        raise UserError(
            f"{root}: is {names} a split of the pictures, or a class? Put a folder for each class into a folder called "
            "train, or name a CSV of labels with --csv; or call the class's folder otherwise."
        )
    files, empty = _files_of_classes(class_dirs, "", [root, *class_dirs])
    return Layout(files, empty=empty)


def _labels_in_names(folder: Path) -> str:
    """Return a hint on pictures whose names are labels and numbers, as those of the Oxford pets are: beagle_12.jpg."""
    stems = [path.stem for path in sorted(folder.iterdir()) if path.suffix.lower() in PICTURES]
    found = [(stem, match[1]) for stem in stems if (match := re.fullmatch(r"(.*[^\W\d_])[\W_]*\d+", stem))]
    labels = {label for _, label in found}
    if not 2 <= len(labels) <= len(stems) / 4 or len(found) < 0.9 * len(stems):
        return ""
    examples = ", ".join(printable_path(Path(label)) for label in sorted(labels)[:3])
    more = ", …" if len(labels) > 3 else ""
    return (
        f" Their names may be labels and numbers ({examples}{more}); if so, write a CSV of them with a line for each, "
        f"such as {printable_path(Path(found[0][0]))},{printable_path(Path(found[0][1]))}, below a line id,label."
    )


def _from_splits(root: Path) -> Layout:
    files: list[File] = []
    empty: list[Path] = []
    # The class folders of each split.
    known = {
        folder_of_class.name
        for split, folder in split_folders(root)
        if split == "train"
        for folder_of_class in class_folders(folder)
    }
    classes_of = {folder: class_folders(folder, known) for _, folder in split_folders(root)}
    excluded = [
        root,
        *classes_of,
        *(folder_of_class for class_dirs in classes_of.values() for folder_of_class in class_dirs),
    ]
    # Their files, but for pictures to predict.
    for split, folder in split_folders(root):
        class_dirs = classes_of[folder]
        wrapped = (
            split == "test" and len(class_dirs) == 1 and class_dirs[0].name not in known
        )  # the one folder that data loaders want around pictures
        if split != "predict" and not wrapped:
            found, without = _files_of_classes(class_dirs, split, excluded)
            files, empty = files + found, empty + (without if split == "train" else [])
    # CSVs may label the validation and test pictures that no folder labels.
    labels = Layout(files, empty=empty).labels
    csv_labelled, skipped, used = labelled_splits(root, set(labels), "label")
    known_splits = {file.split for file in files}
    if {file.split for file in csv_labelled} & known_splits:  # class folders label these splits already
        csv_labelled, skipped = [file for file in csv_labelled if file.split not in known_splits], []
    # Pictures to predict.
    predict, unread, submission = predictions(root, labels, used=used)
    return Layout(files + csv_labelled, predict, skipped + unread, submission, empty=empty)


def _files_of_classes(class_dirs: list[Path], split: str, excluded: list[Path]) -> tuple[list[File], list[Path]]:
    """Return the files of class folders, and the folders without any. Folders in `excluded` belong to others."""
    files = []
    empty = []
    for class_dir in class_dirs:
        paths = list(files_below(class_dir, [folder for folder in excluded if folder != class_dir]))
        files += [File(path, label_of(class_dir), split, printable_path(Path(path.stem))) for path in paths]
        empty += [] if paths else [class_dir]
    return files, empty


def _list_unused(source: Source, layout: Layout) -> list[Skipped]:
    """List the pictures that the layout does not use: loose ones, those in other folders, those that the CSV does not
    name."""
    folder = source.images or (source.root if source.root.is_dir() else source.root.parent)
    real_parents: dict[Path, Path] = {}

    def real_path(path: Path) -> Path:
        if path.parent not in real_parents:
            real_parents[path.parent] = path.parent.resolve()
        return real_parents[path.parent] / path.name

    used = {real_path(entry.path) for group in (layout.files, layout.predict, layout.skipped) for entry in group}
    unused = (path for path in files_below(folder) if path.suffix.lower() in PICTURES and real_path(path) not in used)
    return [Skipped(path, "in no class's folder, no split and no row of a CSV", "unused") for path in unused]
