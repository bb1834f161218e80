"""Write a row a picture, to a file or to the terminal's output: CSV, JSON, or JSON lines.

    with TableFile("csv", "labels.csv") as table:
        table.write(row)

A file is written as FILE.part and renamed at the end. So FILE is whole or absent, and what was done before a kill is in
FILE.part: `done_before` reads it, and a CSV goes on from there. A pipe or a device is written straight.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from loupe.client.bulk import stdout
from loupe.client.bulk.csv_table import LARGEST_FIELD, csv_line
from loupe.client.bulk.row import FIELDS, Row
from loupe.client.bulk.target import STDOUT, is_stream, part_of, path_of
from loupe.errors import UserError


class TableFile:
    def __init__(self, kind: str, target: str, done: Iterable[Row] = ()) -> None:
        """Name the kind (csv, json or jsonl) and where to write. `done` are rows to begin with."""
        self.kind, self.target, self._done = kind, target, list(done)
        self._path = path_of(target)
        self._is_straight = target == STDOUT or is_stream(target)
        self.part = part_of(self._path)
        self._file: TextIO = sys.stdout
        self._count = 0

    def __enter__(self) -> TableFile:
        # On stdout, or in a file whose first rows are there at once: a kill must not lose those of an earlier run.
        if self.target == STDOUT:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # names as they are in the folder
            self._begin()
            return self
        beginning = self.part.with_name(self.part.name + ".new")
        try:
            if self._is_straight:
                self._file = Path(self.target).open("w", newline="", encoding="utf-8", errors="surrogateescape")
                self._begin()
                return self
            self._file = beginning.open("w", newline="", encoding="utf-8", errors="surrogateescape")
            self._begin()
            beginning.replace(self.part)
        except OSError as error:
            place = self.target if self._is_straight else self.part
            raise UserError(f"{place} cannot be written ({error.strerror}); name another file.") from error
        return self

    def _begin(self) -> None:
        if self.kind == "csv":
            self._write(csv_line(FIELDS))
        for row in self._done:
            self.write(row)
        self.flush()

    def write(self, row: Row) -> None:
        if self.kind == "csv":
            self._write(csv_line(row.cells()))
        else:
            text = json.dumps(row.to_json(), ensure_ascii=False)
            between = ("[\n" if not self._count else ",\n") if self.kind == "json" else ""
            self._write(between + text + ("" if self.kind == "json" else "\n"))
        self._count += 1

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """Hand what was written to the system: a kill loses nothing of it."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the file. It gets its name only if nothing went wrong."""
        if kind is None and self.kind == "json":
            self._write("\n]\n" if self._count else "[]\n")
        if kind is None:
            self.flush()
        if self.target == STDOUT:
            return
        try:
            self._file.close()
        except OSError as failure:  # as when the disk is full
            if kind is None:
                raise self._failed(failure) from failure
        if kind is None and not self._is_straight:
            self.part.replace(self._path)

    def _failed(self, error: OSError) -> UserError:
        if self.target == STDOUT:
            return stdout.failed(error)
        if isinstance(error, BrokenPipeError):
            return stdout.ReaderGone(f"Whoever read {self.target} has gone.")
        full = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        if self._is_straight:
            return UserError(f"{self.target} cannot be written: {full}.")
        go_on = "; what is done is kept there, and --resume goes on" if self.kind == "csv" else ""
        return UserError(f"{self.part} cannot be written: {full}{go_on}.")


def done_before(path: Path, names: list[str], batch: int) -> list[Row]:
    """Return the rows of a CSV that was broken off: those of whole batches, so that the rest is computed in the same
    batches as without the break. UserError if they are not of these pictures."""
    part = part_of(path_of(str(path)))
    csv.field_size_limit(LARGEST_FIELD)
    if not part.exists():
        raise UserError(f"There is nothing to resume: {part} is not there.")
    # Read the rows up to the first that is cut off.
    text = part.read_text(encoding="utf-8", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    if next(reader, None) != list(FIELDS):
        raise UserError(f"{part} is not of this program; delete it, and begin anew without --resume.")
    rows: list[Row] = []
    try:
        for cells in reader:
            rows.append(Row.from_cells(cells))
    except (ValueError, csv.Error):  # a file name with a line's end in it was cut off
        pass
    # They must be the first of these pictures.
    for number, (row, name) in enumerate(zip(rows, names, strict=False), 1):
        if row.file != name:
            raise UserError(
                f"The pictures are not those of {part}: its row {number} is {row.file}, and now there is {name}. Name "
                "the same ones, or delete it and begin anew."
            )
    if len(rows) > len(names):
        raise UserError(f"{part} has {len(rows)} rows, and there are {len(names)} pictures now; delete it.")
    return rows[: len(rows) // batch * batch]
