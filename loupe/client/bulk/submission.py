"""Write the table that a Kaggle competition asks for, in the form of its sample_submission.csv.

    form = Form.read(Path("sample_submission.csv"), card.labels)
    form.ids                                         # whose pictures are asked for
    form.write(Path("submission.csv"), rows, card)   # rows: id → Row

Beside the ids the sample has one column for a label, or a column for each label, which gets its probability. No row may
be missing: a picture that could not be used gets the labels' shares of the training pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loupe.card import Card
from loupe.client.bulk.csv_table import CsvTable, csv_line
from loupe.client.bulk.row import Row
from loupe.client.bulk.target import is_stream, part_of, path_of
from loupe.errors import UserError


@dataclass(frozen=True)
class Form:
    header: list[str]
    delimiter: str
    ids: list[str]
    columns: list[str]  # labels with a column of their own; empty: one column for the label

    @classmethod
    def read(cls, sample: Path, labels: tuple[str, ...]) -> Form:
        table = CsvTable.read(sample)
        header, rows = table.header, table.rows
        if len(header) < 2 or not rows:
            raise UserError(f"{sample} is no sample submission: it needs an id and a column for the answer.")
        columns = header[1:]
        known = [name for name in columns if name in labels]
        if len(columns) == 1 and not known:
            columns = []
        elif len(known) < len(columns):
            unknown = ", ".join(name for name in columns if name not in labels)
            raise UserError(f"{sample} has columns that are no labels of this model: {unknown}. Is it the right model?")
        return cls(header, table.delimiter, [row[0] for row in rows], columns)

    def write(self, path: Path, rows: Mapping[str, Row], card: Card) -> int:
        """Write the table, beside and then renamed. Return how many rows had no usable picture."""
        shares = _shares(card)
        guess = max(shares, key=lambda label: shares[label])
        missing = 0
        target = path_of(str(path))
        part = path if is_stream(str(path)) else part_of(target)
        try:
            with part.open("w", newline="", encoding="utf-8") as file:
                file.write(csv_line(self.header, self.delimiter))
                for each in self.ids:
                    row = rows.get(each)
                    is_known = row is not None and not row.error
                    missing += not is_known
                    scores = row.scores if row and is_known else shares
                    label = row.label if row and is_known else guess
                    cells = [f"{scores.get(name, 0.0):.6f}" for name in self.columns] if self.columns else [label]
                    file.write(csv_line([each, *cells], self.delimiter))
            if part != path:
                part.replace(target)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); name another by --output.") from error
        return missing


def _shares(card: Card) -> dict[str, float]:
    """Return each label's share of the training pictures; equal ones where the card does not tell."""
    counts = card.training.get("images", {})
    known = {label: count for label in card.labels if isinstance(count := counts.get(label), int) and count > 0}
    total = sum(known.values())
    if not total:
        return dict.fromkeys(card.labels, 1 / len(card.labels))
    return {label: known.get(label, 0) / total for label in card.labels}


def beginnings(sample: Path) -> tuple[bytes, ...]:
    """Return how a file that `Form.write` wrote for this sample begins."""
    table = CsvTable.read(sample)
    return (csv_line(table.header, table.delimiter).encode(),)
