"""Find the pictures that are meant: files, folders, globs, addresses, a CSV of ids, or a list on stdin.

    found = find(["photos", "more/*.jpg", "https://example.org/a.jpg"])
    found = find_ids(Path("test.csv"), Path("images"), id_column=None, label_column=None)
    [(each.picture.name, each.truth) for each in found.pictures]

Folders are searched through, in the order of their names. Of their files those with a picture's ending are taken; how
many others there were is kept, so that nobody wonders.
"""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from loupe.client.picture import Picture, is_address, picture_of
from loupe.errors import UserError

ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif"}
ID_COLUMNS = ("id", "image_id", "imageid", "image", "filename", "file_name", "file", "path")
csv.field_size_limit(1 << 24)


@dataclass(frozen=True)
class Found:
    picture: Picture
    truth: str | None = None  # the folder's name, or the label that a CSV gives


@dataclass
class Findings:
    pictures: list[Found] = field(default_factory=list)
    others: int = 0  # files in folders that are no pictures by their names
    unreadable: list[str] = field(default_factory=list)  # folders


def find(words: Iterable[str], without: Path | None = None) -> Findings:
    """Find what the words name. `without` is a folder that is left out: copies are written there."""
    findings = Findings()
    for word in words:
        if is_address(word):
            findings.pictures.append(Found(picture_of(word)))
        elif Path(word).is_dir():
            _search(word, without, findings)
        elif Path(word).exists() or not glob.has_magic(word):  # what is not there becomes an error of its own
            findings.pictures.append(_found(word))
        else:
            _expand(word, without, findings)
    return findings


def _expand(pattern: str, without: Path | None, findings: Findings) -> None:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    if not matches:
        raise UserError(f"Nothing matches {pattern!r}; in quotes, ** stands for any folders: 'photos/**/*.jpg'.")
    for match in matches:
        if Path(match).is_dir():
            if not pattern.endswith("**"):
                _search(match, without, findings)
        else:
            findings.pictures.append(_found(match))


def _search(folder: str, without: Path | None, findings: Findings) -> None:
    skipped = without.resolve() if without else None

    def keep_error(error: OSError) -> None:
        findings.unreadable.append(f"{error.filename} ({error.strerror})")

    for parent, folders, files in os.walk(folder, onerror=keep_error):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != skipped
        )
        for name in sorted(files):
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in ENDINGS:
                findings.pictures.append(_found(os.path.join(parent, name)))  # noqa: PTH118 (keeps "./" as it was given)
            else:
                findings.others += 1


def _found(path: str) -> Found:
    return Found(Picture(path, Path(path)), Path(path).absolute().parent.name)


def lines(data: bytes) -> list[str]:
    """Return the paths and addresses of a list, a line each, or each ended by a NUL as `find -print0` does."""
    separator = b"\0" if b"\0" in data else b"\n"
    words = [os.fsdecode(word.removesuffix(b"\r")) for word in data.split(separator)]
    return [word for word in words if word.strip()]


def find_ids(table: Path, images: Path, id_column: str | None, label_column: str | None) -> Findings:
    """Find the pictures whose ids a CSV lists: files of that name in the folder, with or without their ending."""
    header, rows = read_csv(table)
    column = _column(table, header, id_column or _guess(header), "--id-column")
    truth = _column(table, header, label_column, "--label-column") if label_column else None
    index = _index(images)
    pictures = []
    for row in rows:
        name = row[column]
        path = index.get(name) or index.get(Path(name).name) or images / name
        pictures.append(Found(Picture(name, path), row[truth] if truth is not None else None))
    return Findings(pictures)


def _guess(header: list[str]) -> str:
    return next((name for name in header if name.strip().lower() in ID_COLUMNS), header[0])


def _column(table: Path, header: list[str], name: str, flag: str) -> int:
    if name not in header:
        raise UserError(f"{table} has no column {name!r}; it has {', '.join(header)}. Name one by {flag}.")
    return header.index(name)


def _index(images: Path) -> dict[str, Path]:
    """Return each picture's path by its path in the folder, its name, and its name without the ending."""
    if not images.is_dir():
        raise UserError(f"{images} is no folder; name the one with the pictures by --images.")
    index: dict[str, Path] = {}
    for found in find([str(images)]).pictures:
        path = Path(found.picture.name)
        for key in (str(path.relative_to(images)), path.name, path.stem):
            index.setdefault(key, path)
    return index


def read_csv(table: Path) -> tuple[list[str], list[list[str]]]:
    """Return header and rows. UserError if it is no table."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise UserError(f"{table} cannot be read ({error.strerror}).") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{table} is no CSV in UTF-8: {error}.") from error
    except ValueError as error:
        raise UserError(f"{table} is empty; it should have a header and a row a picture.") from error
    uneven = next((number for number, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if uneven:
        raise UserError(f"{table} has {len(header)} columns, and row {uneven} has {len(rows[uneven - 2])}; mend it.")
    return header, rows
