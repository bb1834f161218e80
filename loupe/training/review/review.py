"""Let a person accept or reject corrections: train.py --review DIR.

    review(Path("feedback"), accept=None, reject=None)        # writes review.html; asks, if there is a terminal
    review(Path("feedback"), "1,3-7", "all")                  # decides by the numbers of the last sheet

Accepted pictures move to DIR/accepted, rejected ones to DIR/rejected, at once: Ctrl-C keeps what was decided.
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from loupe import feedback
from loupe.cli import plain
from loupe.errors import UserError
from loupe.training.review import sheet
from loupe.training.review.choice import NONE, choose

MOST = 500  # pictures on a sheet, the oldest: 3 MB, and as much as anybody looks at carefully


def review(root: Path, accept: str | None, reject: str | None) -> None:
    if not any((root / state).is_dir() for state in feedback.STATES):
        raise UserError(f"{root} holds no corrections: name the folder that LOUPE_FEEDBACK_DIR names.")
    try:
        if accept is None and reject is None:
            _show(root)
        else:
            numbered = sheet.numbered(root)
            accepted, rejected = choose(accept or NONE, reject or NONE, len(numbered))
            _decide(root, numbered, accepted, feedback.ACCEPTED)
            _decide(root, numbered, rejected, feedback.REJECTED)
        _tally(root)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("what was decided before is kept: the same command goes on") from error
    except OSError as error:
        raise UserError(
            f"{error.filename or root} cannot be written ({error.strerror}): what was decided before is kept."
        ) from error


def _show(root: Path) -> None:
    """Write a new sheet, and ask what to accept of it if there is a terminal."""
    # The oldest pictures, by label.
    waiting = sorted(feedback.pictures(root, feedback.WAITING), key=lambda path: path.stat().st_mtime)
    chosen = sorted(waiting[:MOST], key=lambda path: path.parent.name)
    if not chosen:
        print("nothing waits for a review")
        return
    shown, problems = sheet.write(root, chosen, len(waiting) - len(chosen))
    for problem in problems:
        print(f"skipped            {plain(problem)}")
    if not shown:
        return
    print(f"look at            {root / sheet.NAME}: {len(shown):,} pictures")
    for label, group in groupby(shown, key=lambda one: one.label):
        numbers = [one.number for one in group]
        print(f"  {f'{numbers[0]}-{numbers[-1]}' if len(numbers) > 1 else numbers[0]:<16} {plain(label, 60)}")
    # What to accept, then what to reject of the rest.
    if sys.stdin.isatty():
        _ask(root, [one.correction.picture for one in shown])
    else:
        print(f"then               train.py --review {root} --accept 1,3-7 --reject all")


def _ask(root: Path, numbered: list[Path]) -> None:
    try:
        accept = _answer("accept which?", len(numbered), NONE)
        accepted, _ = choose(accept, NONE, len(numbered))
        _decide(root, numbered, accepted, feedback.ACCEPTED)
        if len(accepted) == len(numbered):
            return
        named = ",".join(map(str, accepted)) or NONE
        reject = _answer("reject which of the others?", len(numbered), named)
        _, rejected = choose(named, reject, len(numbered))
        _decide(root, numbered, rejected, feedback.REJECTED)
    except EOFError:
        print()


def _answer(question: str, count: int, accepted: str) -> str:
    """Ask until the answer can be understood."""
    while True:
        answer = input(f"{question} all, none, or numbers such as 1,3-7 [none] ")
        try:
            choose(accepted, answer, count)
            return answer
        except UserError as error:
            print(error)


def _decide(root: Path, numbered: list[Path], numbers: list[int], state: str) -> None:
    """Move these pictures. One that is not what the sheet showed, or not there, stays as it is."""
    for number in numbers:
        picture = numbered[number - 1]
        try:
            moved = picture.exists() and feedback.move(root, feedback.read(picture), state)
        except UserError as error:
            print(f"skipped            {number}: {plain(str(error))}")
            continue
        if not moved:
            print(f"skipped            {number}: {_whereabouts(root, picture)}")


def _whereabouts(root: Path, picture: Path) -> str:
    found = feedback.find(root, picture.stem, picture.suffix[1:])
    if not found:
        return "it was taken away since the sheet was written"
    state, path = found
    return (
        f"it was {state} before"
        if state != feedback.WAITING
        else f"it is said to be {path.parent.name} by now, so it waits on"
    )


def _tally(root: Path) -> None:
    for state in feedback.STATES:
        print(f"{state:<18} {len(feedback.pictures(root, state)):,}")
    if feedback.pictures(root, feedback.ACCEPTED):
        print(f"next               train.py --add {root} --from runs/NAME trains on what is accepted")
