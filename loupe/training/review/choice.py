"""Read which pictures a person chose by their numbers.

    choose("1,3-7", "all", 9)        # ([1, 3, 4, 5, 6, 7], [2, 8, 9]): all means all that the other does not name
    choose("none", "2", 9)           # ([], [2])

Raises a UserError that says what is wrong.
"""

from __future__ import annotations

import re

from loupe.errors import UserError

ALL, NONE = "all", "none"
_RANGE = re.compile(r"(\d{1,9})(?:\s*[-–]\s*(\d{1,9}))?", re.ASCII)


def choose(accept: str, reject: str, count: int) -> tuple[list[int], list[int]]:
    accepted, rejected = _named(accept, count), _named(reject, count)
    if accepted is None and rejected is None:
        raise UserError("All cannot be both accepted and rejected: give all to one of them.")
    everything = set(range(1, count + 1))
    if accepted is None:
        accepted = everything - (rejected or set())
    if rejected is None:
        rejected = everything - accepted
    if both := accepted & rejected:
        raise UserError(f"{min(both)} is both accepted and rejected: name it once.")
    return sorted(accepted), sorted(rejected)


def _named(text: str, count: int) -> set[int] | None:
    """Return the numbers that the text names; None for all."""
    words = [word.strip() for word in text.strip().lower().split(",")]
    if words in ([""], [NONE]):
        return set()
    if words == [ALL]:
        return None
    numbers: set[int] = set()
    for word in words:
        match = _RANGE.fullmatch(word)
        if not match:
            raise UserError(f"{word!r} is no number: give all, none, or numbers such as 1,3-7.")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= count:
            raise UserError(f"{word} is not on the sheet: its numbers go from 1 to {count}, the lower one first.")
        numbers |= set(range(first, last + 1))
    return numbers
