"""Read a CSV that somebody else made, with commas, semicolons or tabs; and write a line of one.

table = CsvTable.read(Path("test.csv"))
table.header, table.rows, table.delimiter
csv_line(table.header, table.delimiter)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loupe.errors import UserError

LARGEST_FIELD = 1 << 24  # characters


@dataclass(frozen=True)
class CsvTable:
    header: list[str]
    rows: list[list[str]]
    delimiter: str

    @classmethod
    def read(cls, path: Path) -> CsvTable:
        """UserError if it is no table."""
        csv.field_size_limit(LARGEST_FIELD)
        numbered: list[tuple[int, list[str]]] = []  # the line where a row ends, and the row
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                delimiter = _delimiter(file.readline())
                file.seek(0)
                reader = csv.reader(file, delimiter=delimiter)
                numbered += [(reader.line_num, row) for row in reader if row]
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}).") from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no CSV in UTF-8: {error}.") from error
        if not numbered:
            raise UserError(f"{path} is empty; it should have a header and a row a picture.")
        (_, header), *rest = numbered
        for line, row in rest:
            if len(row) != len(header):
                raise UserError(f"{path} has {len(header)} columns, and line {line} has {len(row)}; mend it.")
        return cls([name.strip() for name in header], [row for _, row in rest], delimiter)


def _delimiter(header: str) -> str:
    """Return the one that the header has most often; a comma if it has none."""
    return max(",;\t", key=header.count)


def csv_line(cells: Iterable[str], delimiter: str = ",") -> str:
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return line.getvalue()
