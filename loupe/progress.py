"""A progress bar with the time left. Without a terminal it shows nothing, so that logs stay readable.

with bar("features", len(rows)) as advance:
    advance(32)
with bar("pictures", len(paths), rate=True) as advance: ...     # and how many a second
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} a second" if task.speed else "", style="progress.data.speed")


@contextmanager
def bar(title: str, total: int, *, rate: bool = False, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar that begins at `done`; the time left and the rate are of what comes after it."""
    console = Console(stderr=True)
    columns: list[ProgressColumn] = [TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn()]
    columns += [RateColumn()] if rate else []
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # else what a pipe should get would be written beside the bar
    ) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda count: progress.advance(task, count)


def clock(seconds: float) -> str:
    """Return a time for people: 12 s, 3:05 or 1:02:03."""
    total = round(seconds)
    if total < 100:
        return f"{total} s"
    hours, remainder = divmod(total, 3600)
    return f"{hours}:{remainder // 60:02}:{remainder % 60:02}" if hours else f"{remainder // 60}:{remainder % 60:02}"
