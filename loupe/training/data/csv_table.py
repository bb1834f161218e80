"""CSV files that give the labels of pictures, in the forms that people have.

    table = read_table(Path("train.csv"))                       # table.columns, table.rows
    pictures = Finder([PictureFolder(Path("images"))])          # where the files of its ids may lie
    id_index, label_index = find_columns(table, pictures)       # two columns, by their names and their content
    pictures.find("12")                                         # [images/0012.jpg]

Separated by commas, semicolons, tabs or bars; with or without BOM, quotes, empty rows and a header.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from loupe.errors import UserError
from loupe.training.data.names import PICTURES, files_below, split_of, words

ID_NAMES = ["id", "ids", "image", "images", "imageid", "imagename", "img", "imgid", "imgname", "file", "filename"]
ID_NAMES += ["fname", "filepath", "imagepath", "imagefile", "path", "name", "picture", "photo", "uuid", "uid", "key"]
LABEL_NAMES = [
    "label",
    "labels",
    "class",
    "classname",
    "classes",
    "category",
    "target",
    "species",
    "breed",
    "labelname",
    "classid",
    "labelid",
]
LABEL_NAMES += ["y", "type", "diagnosis"]
SPLIT_NAMES = {"split", "splits", "set", "subset", "partition", "fold", "usage", "phase"}
# A column of yes or no, yes meaning validation, as fastai's tables have it. Where most say yes, it means another thing.
VALIDATION_NAMES = {"isvalid", "isval", "isvalidation", "validation"}
UTF16 = (b"\xff\xfe", b"\xfe\xff")
ROWS_LOOKED_AT = 100  # rows that decide which column holds the ids
YES, NO = {"1", "1.0", "true"}, {"0", "0.0", "false"}  # cells of a table with a column for each class, in lower case


@dataclass(frozen=True)
class Table:
    path: Path
    columns: list[str]
    rows: list[tuple[int, list[str]]]  # (line in the file, from 1; one cell for each column)
    has_header: bool = True
    overlong: dict[int, int] = field(
        default_factory=dict
    )  # line → number of cells, where these are more than the columns


def read_table(path: Path) -> Table:
    """Read a CSV, or raise a UserError that says what to change in it."""
    # Find the separator and split the text into rows.
    try:
        data = path.read_bytes()
        if b"\0" in data and data[:2] not in UTF16:
            raise UserError(
                f"{path} is no text. Give the CSV file of labels with --csv, and its pictures with --images."
            )
        text = _text(data)
        first_line = next((line for line in text.splitlines() if line.strip(" \t,;|")), "")
        separator_line = re.fullmatch(r"(?i)\W?sep=(\W)\W?", first_line.strip())  # as Excel has it
        separator = (
            separator_line[1]
            if separator_line
            else max(",;\t|", key=lambda candidate: len(next(_reader(first_line, candidate), [])))
        )
        reader = _reader(text, separator)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}). Give a CSV file with --csv.") from error
    except (csv.Error, UnicodeError) as error:
        raise UserError(f"{path} is no CSV file that can be read ({error}). Save it as CSV in UTF-8.") from error
    # Drop empty rows.
    rows = [(line, row) for line, row in rows if any(row)][1 if separator_line else 0 :]
    if not rows:
        raise UserError(f"{path} is empty. It needs a header such as Id,label and a row for each picture.")
    # The first row is a header unless it holds a picture's name.
    header = rows[0][1]
    known_names = {"".join(words(cell)) for cell in header} & {*ID_NAMES, *LABEL_NAMES}
    no_header = not known_names and any(Path(cell).suffix.lower() in PICTURES for cell in header)
    width = len(header)
    body = rows[0 if no_header else 1 :]
    # Fill rows that are too short; rows that are too long are listed.
    overlong = {line: len(row) for line, row in body if any(row[width:])}
    complete = [(line, (row + [""] * width)[:width]) for line, row in body if line not in overlong]
    names = [f"column {n + 1}" for n in range(width)] if no_header else header
    return Table(path, names, complete, not no_header, overlong)


def _text(data: bytes) -> str:
    if data[:2] in UTF16:
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")  # as spreadsheets on Windows write it


def _reader(text: str, separator: str) -> Any:  # the type of csv.reader has no public name
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures. `excluded` are the folders in it that hold another split's."""

    folder: Path
    excluded: tuple[Path, ...] = ()

    @cached_property
    def files_by_key(self) -> dict[str, list[Path]]:
        """Files by each key under which an id may name them, all in lower case."""
        files: dict[str, list[Path]] = defaultdict(list)
        for path in files_below(self.folder, self.excluded):
            inside = _normalised(path.relative_to(self.folder).as_posix())
            keys = {inside, _normalised(path.name)}
            if path.suffix.lower() in PICTURES:
                stem = _normalised(path.stem)
                keys |= {inside.removesuffix(path.suffix.lower()), stem}
                if stem.isdecimal():
                    keys.add(f"number {int(stem)}")
            for key in keys:
                files[key].append(path)
        return files


@dataclass(frozen=True)
class Finder:
    """Finds the file that an id of a CSV names, in several folders."""

    folders: list[PictureFolder]  # searched one after the other
    _cache: dict[str, list[Path]] = field(default_factory=dict)

    def find(self, name: str) -> list[Path]:
        """Return the files that `name` may mean: none, one, or several that cannot be told apart."""
        if name not in self._cache:
            self._cache[name] = self._search(name.replace("\\", "/").strip("/").removeprefix("./"))
        return self._cache[name]

    def places(self) -> str:
        return ", ".join(dict.fromkeys(str(folder.folder) for folder in self.folders))

    def _search(self, name: str) -> list[Path]:
        if not name:
            return []
        parts = _normalised(name).split("/")
        for folder in self.folders:
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                for key in _keys_of(tail):
                    matches = folder.files_by_key.get(key, [])
                    if len(parts) > 1:  # a.jpg in another folder than the id says is another picture
                        matches = [path for path in matches if _has_parents(path, folder.folder, parts)]
                    exact = [path for path in matches if Path(name).name in (path.name, path.stem)]
                    if matches:
                        return exact if len(exact) == 1 else matches
        return []


def _normalised(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()  # macOS stores an accent apart from its letter


def _keys_of(name: str) -> list[str]:
    """Return the keys under which to look for `name`: itself, without its ending, and as a number."""
    stem, dot, suffix = name.rpartition(".")
    bare = (
        stem if dot and (f".{suffix}" in PICTURES or suffix.strip("0") == "") else name
    )  # spreadsheets write 12 as 12.0
    return [name, bare, *([f"number {int(bare)}"] if bare.isdecimal() else [])]


def _has_parents(path: Path, folder: Path, parts: list[str]) -> bool:
    """Return True if the file lies in the folders that its id names, as far up as both say."""
    parents = [_normalised(name) for name in path.relative_to(folder).parts[:-1]]
    wanted = parts[:-1]
    return all(actual == expected for actual, expected in zip(reversed(parents), reversed(wanted), strict=False))


def find_columns(
    table: Table, pictures: Finder, id_column: str | None = None, label_column: str | None = None
) -> list[int]:
    """Return the indices of the columns of ids and of labels. The second is missing if no column looks like labels."""
    # Columns that the user named.
    names = ["".join(words(column)) for column in table.columns]
    id_index = _column_named(table, id_column, "--id-column")
    label_index = _column_named(table, label_column, "--label-column")
    # The ids: the column whose cells are names of pictures.
    if id_index is None:
        candidates = [index for index in range(len(names)) if index != label_index]
        rows = [row for _, row in table.rows[:ROWS_LOOKED_AT]]
        hits = {index: sum(bool(pictures.find(row[index])) for row in rows) for index in candidates}
        certain = [index for index in candidates if names[index] in ID_NAMES and 2 * hits[index] >= max(1, len(rows))]
        # small numbers of any column, say classes or widths, match the names of numbered pictures
        unlike_labels = [index for index in candidates if names[index] and names[index] not in LABEL_NAMES]
        if certain:
            id_index = min(certain, key=lambda index: ID_NAMES.index(names[index]))
        else:
            id_index = max(
                unlike_labels or candidates,
                key=lambda index: (hits[index], names[index] in ID_NAMES, -index),
                default=0,
            )
    # The labels: a column of a usual name, or the only one that is left.
    if label_index is None:
        by_name = sorted((LABEL_NAMES.index(name), index) for index, name in enumerate(names) if name in LABEL_NAMES)
        split_index = split_column(table)
        unnamed = [
            index
            for index in range(len(names))
            if index not in (id_index, split_index) and (names[index] or not table.has_header)
        ]
        label_index = next(
            (index for _, index in by_name if index != id_index), unnamed[0] if len(unnamed) == 1 else None
        )
    return [id_index] if label_index is None else [id_index, label_index]


def split_column(table: Table) -> int | None:
    """Return the index of the column that gives each row's split, or None."""
    for index, name in enumerate(table.columns):
        plain_name, cells = "".join(words(name)), [row[index] for _, row in table.rows if row[index]]
        if plain_name in SPLIT_NAMES and cells and all(map(split_of, set(cells))):
            return index
        yes = sum(cell.lower() in YES for cell in cells)
        no = sum(cell.lower() in NO for cell in cells)
        if plain_name in VALIDATION_NAMES and 0 < yes <= no and yes + no == len(cells):
            return index
    return None


def split_in(cell: str) -> str:
    """Return the split that a cell of the column of splits says: by its name, or by yes for validation."""
    return "validation" if cell.lower() in YES else split_of(cell) or "train"


def from_one_hot(table: Table, id_index: int, strict: bool = True) -> Table | None:
    """Turn a table with a column of 0 and 1 for each class into one with a column of labels, the second. None if it is
    another table. A row of no class, or of several, is refused; if not `strict`, such a table is another one."""
    # Each column but those of ids and splits is a class.
    split_index = split_column(table)
    kept = [id_index, *([] if split_index is None else [split_index])]
    class_columns = [index for index, name in enumerate(table.columns) if index not in kept and name]
    rows = []
    for line, row in table.rows:
        if len(class_columns) < 2 or not all(row[index].lower() in YES | NO for index in class_columns):
            return None
        labels = [table.columns[index] for index in class_columns if row[index].lower() in YES]
        if len(labels) != 1 and not strict:
            return None
        if len(labels) != 1:
            raise UserError(
                f"Row {line} of {table.path} has {len(labels)} classes, and a picture is to have one. Name the column "
                "of one label by --label-column, or take such rows out."
            )
        rows.append((line, [row[id_index], labels[0], *(row[index] for index in kept[1:])]))
    columns = [table.columns[id_index], "label", *(table.columns[index] for index in kept[1:])]
    return Table(table.path, columns, rows, table.has_header, table.overlong)


def _column_named(table: Table, wanted: str | None, flag: str) -> int | None:
    """Return the index of a column that a flag names, or None if the flag is not given."""
    if wanted is None:
        return None
    folded = [column.casefold() for column in table.columns]
    if wanted.casefold() not in folded:
        raise UserError(f"{table.path} has no column {wanted!r}. Name one of {', '.join(table.columns)} with {flag}.")
    return folded.index(wanted.casefold())
