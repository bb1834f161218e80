"""Stream pictures through a model and into the outputs, with a bar, until all are done or somebody says stop.

run(model, findings.pictures, Outputs(tables=[…], sorter=…), done=[], summary=summary)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from loupe.cli import plain
from loupe.client.bulk import stdout
from loupe.client.bulk.find import Found
from loupe.client.bulk.row import Row
from loupe.client.bulk.sort_into import FetchedOnce, NotSorted, Sorter
from loupe.client.bulk.summary import Summary
from loupe.client.bulk.table_file import TableFile
from loupe.client.model import Model
from loupe.client.picture import Picture
from loupe.client.result import DOUBTS
from loupe.prediction import percent
from loupe.progress import bar

FLUSH_SECONDS = 0.5  # between two times that rows are handed to the system


@dataclass
class Outputs:
    tables: list[TableFile] = field(default_factory=list)
    sorter: Sorter | None = None
    rows: dict[str, Row] | None = None  # filled where all are wanted together: for a submission
    show: bool = True  # a line a picture on stdout
    top: int | None = None


def run(model: Model, pictures: list[Found], outputs: Outputs, done: list[Row], summary: Summary) -> None:
    """Classify the pictures, beginning after those that are done already. Each row goes to the outputs and the summary
    as it comes, so that both are right whenever this is interrupted."""
    with ExitStack() as stack:
        for table in outputs.tables:
            stack.enter_context(table)
        advance = stack.enter_context(bar("pictures", len(pictures), rate=True, done=len(done)))
        # What an earlier run did already.
        for found, row in zip(pictures, done, strict=False):
            _take(found, found.picture, row, outputs, summary, is_new=False)
        # The rest.
        written = time.monotonic()
        for found, picture, row in _rows(model, pictures[len(done) :], outputs):
            _take(found, picture, row, outputs, summary, is_new=True)
            advance(1)
            if time.monotonic() - written > FLUSH_SECONDS:
                for table in outputs.tables:
                    table.flush()
                written = time.monotonic()
    stdout.flush()


def _rows(model: Model, pictures: list[Found], outputs: Outputs) -> Iterator[tuple[Found, Picture, Row]]:
    def given(picture: Picture) -> Picture:
        return FetchedOnce(picture.name, picture.source) if picture.address and outputs.sorter else picture

    stream = model.stream((given(found.picture) for found in pictures), top=outputs.top)
    for found, (picture, answer) in zip(pictures, stream, strict=True):
        yield found, picture, Row.of(picture.name, answer)


def _take(found: Found, picture: Picture, row: Row, outputs: Outputs, summary: Summary, *, is_new: bool) -> None:
    """Hand a row to every output."""
    summary.add(row, found.truth)
    if is_new:
        for table in outputs.tables:
            table.write(row)
    if outputs.sorter and not row.error:
        try:
            outputs.sorter.put(picture, row.label)
        except NotSorted as error:
            summary.add_unsorted(str(error))
    if outputs.rows is not None:
        outputs.rows[row.file] = row
    if outputs.show and is_new:
        stdout.write(line(row) + "\n", flush=sys.stdout.isatty())


def line(row: Row) -> str:
    """Return a row for people."""
    if row.error:
        return f"{'—':<20} {'':>8}  {plain(row.file)}: {plain(row.error, 300)}"
    doubt = f"  {DOUBTS.get(row.reason, row.reason)}" if row.reason else ""
    return f"{plain(row.label):<20} {percent(row.confidence or 0.0):>8}  {plain(row.file)}{doubt}"
