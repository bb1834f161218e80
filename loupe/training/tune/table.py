"""Show the trials of a search while it runs.

    with Screen(total, epochs, done, tell=None) as screen:     # `done` grows while it looks on
        screen.epoch(row)                                      # a trial under way
        screen.finished()                                      # the last of `done` is new

The best stays in sight however many trials there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from loupe.training.tune.trial import Trial, best_of

COLUMNS = ("trial", "lr", "head", "dropout", "decay", "val loss", "val accuracy", "state", "seconds")


class Screen:
    """A table that grows on a terminal, a line a trial elsewhere."""

    def __init__(self, total: int, epochs: int, done: list[Trial], tell: Callable[[Trial], None] | None) -> None:
        self.total, self.epochs, self.done, self.tell = total, epochs, done, tell
        self.resumed, self.started = len(done), time.monotonic()
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal and not tell else None

    def __enter__(self) -> Screen:
        if self.resumed and not self.tell:
            self.console.print(f"{self.resumed} of {self.total} trials were done before")
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def epoch(self, row: Trial) -> None:
        if self.live:
            self.live.update(self.table(row), refresh=True)

    def finished(self) -> None:
        row = self.done[-1]
        if self.tell:
            self.tell(row)
        elif self.live:
            self.live.update(self.table(), refresh=True)
        else:
            cells = dict(zip(COLUMNS, self.cells(row), strict=True))
            print(" · ".join(f"{name} {cell}" for name, cell in cells.items()) + f" · {self.left()}", flush=True)

    def table(self, running: Trial | None = None) -> Table:
        table = Table(caption=f"{len(self.done)} of {self.total} trials · {self.left()}", caption_justify="left")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        best, room = best_of(self.done), max(3, self.console.height - 8)
        rows = self.done[-room:]
        if best and best not in rows:
            rows = [best, *rows[1:]]
        for row in rows:
            table.add_row(*self.cells(row), style="bold green" if row is best else "")
        if running:
            state = f"epoch {len(running['curve'])}/{self.epochs}"
            table.add_row(*self.cells({**running, "state": state}), style="dim")
        return table

    def cells(self, row: Trial) -> list[str]:
        loss = "–" if row["val_loss"] is None else f"{row['val_loss']:.4f}"
        accuracy = "–" if row["val_accuracy"] is None else f"{row['val_accuracy']:.1%}"
        state = f"{row['state']} ★" if row is best_of(self.done) else row["state"]
        choice = [f"{row['lr']:g}", str(row["head"]), f"{row['dropout']:.2f}", f"{row['decay']:g}"]
        return [str(row["number"]), *choice, loss, accuracy, state, f"{row['seconds']:.1f}"]

    def left(self) -> str:
        tried = len(self.done) - self.resumed
        seconds = (time.monotonic() - self.started) / tried * (self.total - len(self.done)) if tried else 0
        if len(self.done) >= self.total:
            return f"{time.monotonic() - self.started:.0f} s"
        return f"{seconds:.0f} s left" if tried else "the first tells how long"
