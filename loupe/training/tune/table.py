"""Show the trials of a search while it runs.

    with Screen(total, epochs, done, on_trial=None) as screen:     # the caller appends to `done`
        screen.epoch(row)                                          # a running trial
        screen.finished()                                          # the last of `done` is new

The best trial is always shown, however many there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from loupe.training.tune.trial import Trial, best_of

COLUMNS = ("trial", "lr", "head", "dropout", "decay", "val loss", "val accuracy", "state", "seconds")
SHORT = {"val loss": "loss", "val accuracy": "accuracy", "seconds": "s"}  # short enough for 80 columns


class Screen:
    """A table that grows on a terminal, otherwise a line for each trial."""

    def __init__(
        self,
        total: int,
        epochs: int,
        done: list[Trial],
        on_trial: Callable[[Trial], None] | None,
        logistic: Trial | None = None,
    ) -> None:
        self.total, self.epochs, self.done, self.on_trial = total, epochs, done, on_trial
        self.solved = [logistic] if logistic else []  # no trial, but the one to beat
        self.done_before, self.started = len(done), time.monotonic()
        self.console = Console()
        self.live = (
            Live(console=self.console, auto_refresh=False) if self.console.is_terminal and not on_trial else None
        )

    def __enter__(self) -> Screen:
        if self.done_before and not self.on_trial:
            self.console.print(f"{self.done_before} of {self.total} trials were done before")
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
        if self.on_trial:
            self.on_trial(row)
        elif self.live:
            self.live.update(self.table(), refresh=True)
        else:
            cells = dict(zip(COLUMNS, self.cells(row), strict=True))
            print(" · ".join(f"{name} {cell}" for name, cell in cells.items()) + f" · {self.time_left()}", flush=True)

    def table(self, running: Trial | None = None) -> Table:
        caption = f"{len(self.done)} of {self.total} trials · {self.time_left()}"
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption=caption, caption_justify="left")
        for name in COLUMNS:
            table.add_column(SHORT.get(name, name), justify="left" if name == "state" else "right", no_wrap=True)
        best, max_rows = best_of([*self.solved, *self.done]), max(3, self.console.height - 8)
        rows = [*self.solved, *self.done][-max_rows:]
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
        state = f"{row['state']} ★" if row is best_of([*self.solved, *self.done]) else row["state"]
        settings = [f"{row['lr']:g}", str(row["head"]), f"{row['dropout']:.2f}", f"{row['decay']:g}"]
        if row in self.solved:
            settings = ["–", "0", "–", "–"]
        return [str(row["number"]), *settings, loss, accuracy, state, f"{row['seconds']:.1f}"]

    def time_left(self) -> str:
        tried_now = len(self.done) - self.done_before
        seconds = (time.monotonic() - self.started) / tried_now * (self.total - len(self.done)) if tried_now else 0
        if len(self.done) >= self.total:
            return f"{time.monotonic() - self.started:.0f} s"
        return f"{seconds:.0f} s left" if tried_now else "the first tells how long"
