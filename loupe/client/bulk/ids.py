"""Find the pictures whose ids a CSV lists, in a folder.

    found = find_ids(Path("test.csv"), Path("images"), id_column=None, label_column=None)

An id is a path in the folder, with or without its ending; without a slash also the name of a file anywhere in it, with
or without its ending, if there is only one such. An id may be an address, or a path from the root, too.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from loupe.client.bulk.csv_table import CsvTable
from loupe.client.bulk.find import Findings, Found, find
from loupe.client.picture import Picture, is_address, picture_of
from loupe.errors import PictureUnreadable, UserError

ID_COLUMNS = ("id", "image_id", "imageid", "image", "filename", "file_name", "file", "path")
MOST_CANDIDATES = 3  # named in an error


@dataclass(frozen=True)
class Ambiguous(Picture):
    """Stands for an id that more than one file could be."""

    candidates: tuple[str, ...] = ()

    def read(self) -> bytes:
        named = ", ".join(self.candidates[:MOST_CANDIDATES]) + ", …" * (len(self.candidates) > MOST_CANDIDATES)
        raise PictureUnreadable(f"{self.name} could be {len(self.candidates)} files: {named}; write more of its path.")


class Index:
    def __init__(self, images: Path) -> None:
        if not images.is_dir():
            raise UserError(f"{images} is no folder; name the one with the pictures by --images.")
        self._images = images
        self._paths: set[str] = set()  # in the folder, as all that follow
        self._bare: dict[str, list[str]] = defaultdict(list)  # the path without its ending → paths
        self._names: dict[str, list[str]] = defaultdict(list)
        self._stems: dict[str, list[str]] = defaultdict(list)
        for found in find([str(images)]).pictures:
            relative = Path(found.picture.name).relative_to(images)
            path = str(relative)
            self._paths.add(path)
            self._bare[str(relative.with_suffix(""))].append(path)
            self._names[relative.name].append(path)
            self._stems[relative.stem].append(path)

    def picture(self, name: str) -> Picture:
        """Return the picture of this id. One that is missing or ambiguous fails when it is read."""
        if is_address(name):
            return picture_of(name)
        path = os.path.normpath(name) if name else name
        candidates = [path] if path in self._paths else self._bare.get(path, [])
        if not candidates and "/" not in path and not (self._images / path).is_file():
            candidates = self._names.get(path) or self._stems.get(path) or []
        if len(candidates) > 1:
            return Ambiguous(name, self._images / path, tuple(candidates))
        return Picture(name, self._images / (candidates[0] if candidates else path))


def find_ids(path: Path, images: Path, id_column: str | None, label_column: str | None) -> Findings:
    table = CsvTable.read(path)
    column = _column(path, table.header, id_column or _guess(table.header), "--id-column")
    truth = _column(path, table.header, label_column, "--label-column") if label_column else None
    index = Index(images)
    return Findings([Found(index.picture(row[column]), None if truth is None else row[truth]) for row in table.rows])


def _guess(header: list[str]) -> str:
    return next((name for name in header if name.lower() in ID_COLUMNS), header[0])


def _column(path: Path, header: list[str], name: str, flag: str) -> int:
    if name not in header:
        raise UserError(f"{path} has no column {name!r}; it has {', '.join(header)}. Name one by {flag}.")
    return header.index(name)
