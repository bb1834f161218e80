"""CSV files that say which picture is what, as people have them.

    table = read_table(Path("train.csv"))                 # table.columns, table.rows
    pictures = Finder([Home(Path("images"))])             # where the files of its ids may lie
    id_at, label_at = columns(table, pictures)            # which two columns, by their names and by what they hold
    pictures.find("12")                                   # images/0012.jpg

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
from loupe.training.data.names import PICTURES, below, split_of, words

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
UTF16 = (b"\xff\xfe", b"\xfe\xff")
LOOKED_AT = 100  # rows that decide which column holds the ids


@dataclass(frozen=True)
class Table:
    path: Path
    columns: list[str]
    rows: list[tuple[int, list[str]]]  # the line in the file, from 1, and as many cells as there are columns
    has_header: bool = True
    overlong: dict[int, int] = field(default_factory=dict)  # lines of more cells than columns, and how many those have


def read_table(path: Path) -> Table:
    try:
        data = path.read_bytes()
        if b"\0" in data and data[:2] not in UTF16:
            raise UserError(
                f"{path} is no text. Give the CSV file of labels with --csv, and its pictures with --images."
            )
        text = _text(data)
        first = next((line for line in text.splitlines() if line.strip(" \t,;|")), "")
        told = re.fullmatch(r"(?i)\W?sep=(\W)\W?", first.strip())  # as Excel has it
        best = told[1] if told else max(",;\t|", key=lambda separator: len(next(_reader(first, separator), [])))
        reader = _reader(text, best)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}). Give a CSV file with --csv.") from error
    except (csv.Error, UnicodeError) as error:
        raise UserError(f"{path} is no CSV file that can be read ({error}). Save it as CSV in UTF-8.") from error
    rows = [(line, row) for line, row in rows if any(row)][1 if told else 0 :]
    if not rows:
        raise UserError(f"{path} is empty. It needs a header such as Id,label and a row for each picture.")
    header = rows[0][1]
    known = {"".join(words(cell)) for cell in header} & {*ID_NAMES, *LABEL_NAMES}
    headless = not known and any(Path(cell).suffix.lower() in PICTURES for cell in header)
    width = len(header)
    body = rows[0 if headless else 1 :]
    overlong = {line: len(row) for line, row in body if any(row[width:])}
    fitting = [(line, (row + [""] * width)[:width]) for line, row in body if line not in overlong]
    names = [f"column {n + 1}" for n in range(width)] if headless else header
    return Table(path, names, fitting, not headless, overlong)


def _text(data: bytes) -> str:
    if data[:2] in UTF16:
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")  # what spreadsheets on Windows write


def _reader(text: str, separator: str) -> Any:  # csv's own type has no public name
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)


@dataclass(frozen=True)
class Home:
    """A folder of pictures, and the folders in it that hold another split's."""

    folder: Path
    without: tuple[Path, ...] = ()

    @cached_property
    def index(self) -> dict[str, list[Path]]:
        """Files by every way in which an id may call them, all in lower case."""
        found: dict[str, list[Path]] = defaultdict(list)
        for path in below(self.folder, self.without):
            inside = _plain(path.relative_to(self.folder).as_posix())
            keys = {inside, _plain(path.name)}
            if path.suffix.lower() in PICTURES:
                stem = _plain(path.stem)
                keys |= {inside.removesuffix(path.suffix.lower()), stem}
                if stem.isdecimal():
                    keys.add(f"number {int(stem)}")
            for key in keys:
                found[key].append(path)
        return found


@dataclass(frozen=True)
class Finder:
    homes: list[Home]  # looked through one after the other
    _found: dict[str, list[Path]] = field(default_factory=dict)

    def find(self, name: str) -> list[Path]:
        """The files that `name` may mean: none, the one, or several that cannot be told apart."""
        if name not in self._found:
            self._found[name] = self._look(name.replace("\\", "/").strip("/").removeprefix("./"))
        return self._found[name]

    def places(self) -> str:
        return ", ".join(dict.fromkeys(str(home.folder) for home in self.homes))

    def _look(self, name: str) -> list[Path]:
        if not name:
            return []
        parts = _plain(name).split("/")
        for home in self.homes:
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                for key in _ways(tail):
                    fits = home.index.get(key, [])
                    if len(parts) > 1:  # a.jpg in another folder than the id says is another picture
                        fits = [path for path in fits if _agree(path, home.folder, parts)]
                    exact = [path for path in fits if Path(name).name in (path.name, path.stem)]
                    if fits:
                        return exact if len(exact) == 1 else fits
        return []


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()  # macOS takes letters and their accents apart


def _ways(name: str) -> list[str]:
    stem, dot, suffix = name.rpartition(".")
    bare = stem if dot and (f".{suffix}" in PICTURES or suffix.strip("0") == "") else name  # 12.0: a spreadsheet's 12
    return [name, bare, *([f"number {int(bare)}"] if bare.isdecimal() else [])]


def _agree(path: Path, home: Path, parts: list[str]) -> bool:
    """Whether the folders that an id names are those that its file lies in, as far up as both say."""
    inside = [_plain(part) for part in path.relative_to(home).parts[:-1]]
    wanted = parts[:-1]
    return all(mine == theirs for mine, theirs in zip(reversed(inside), reversed(wanted), strict=False))


def columns(table: Table, pictures: Finder, id_column: str | None = None, label_column: str | None = None) -> list[int]:
    """Where a table has its ids and its labels; the second is missing where no column looks like labels."""
    plain = ["".join(words(column)) for column in table.columns]
    id_at = _named(table, id_column, "--id-column")
    label_at = _named(table, label_column, "--label-column")
    if id_at is None:
        open_to = [at for at in range(len(plain)) if at != label_at]
        some = [row for _, row in table.rows[:LOOKED_AT]]
        hits = {at: sum(bool(pictures.find(row[at])) for row in some) for at in open_to}
        sure = [at for at in open_to if plain[at] in ID_NAMES and 2 * hits[at] >= max(1, len(some))]
        # any small numbers, classes or widths, are the names of some numbered pictures
        other = [at for at in open_to if plain[at] and plain[at] not in LABEL_NAMES]
        if sure:
            id_at = min(sure, key=lambda at: ID_NAMES.index(plain[at]))
        else:
            id_at = max(other or open_to, key=lambda at: (hits[at], plain[at] in ID_NAMES, -at), default=0)
    if label_at is None:
        named = sorted((LABEL_NAMES.index(name), at) for at, name in enumerate(plain) if name in LABEL_NAMES)
        split_at = split_column(table)
        left = [at for at in range(len(plain)) if at not in (id_at, split_at) and (plain[at] or not table.has_header)]
        label_at = next((at for _, at in named if at != id_at), left[0] if len(left) == 1 else None)
    return [id_at] if label_at is None else [id_at, label_at]


def split_column(table: Table) -> int | None:
    """The column that says of every row which split it belongs to."""
    for at, name in enumerate(table.columns):
        cells = {row[at] for _, row in table.rows} - {""}
        if "".join(words(name)) in SPLIT_NAMES and cells and all(map(split_of, cells)):
            return at
    return None


def without_one_hot(table: Table, id_at: int) -> Table | None:
    """A table with a column of 0 and 1 for each class as one with a column of labels."""
    classes = [at for at, name in enumerate(table.columns) if at != id_at and name]
    rows = []
    for line, row in table.rows:
        if len(classes) < 2 or not all(row[at] in ("0", "1", "0.0", "1.0") for at in classes):
            return None
        told = [table.columns[at] for at in classes if row[at] in ("1", "1.0")]
        if len(told) != 1:
            raise UserError(
                f"Row {line} of {table.path} has {len(told)} classes, and a picture is to have one. Name the column "
                "of one label by --label-column, or take such rows out."
            )
        rows.append((line, [row[id_at], told[0]]))
    return Table(table.path, [table.columns[id_at], "label"], rows, table.has_header, table.overlong)


def _named(table: Table, wanted: str | None, flag: str) -> int | None:
    if wanted is None:
        return None
    folded = [column.casefold() for column in table.columns]
    if wanted.casefold() not in folded:
        raise UserError(f"{table.path} has no column {wanted!r}. Name one of {', '.join(table.columns)} with {flag}.")
    return folded.index(wanted.casefold())
