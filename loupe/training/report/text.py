"""Text of the report, numbers and names: 91.1 %, 4 min 12 s, 21,075,498, a very lo…ong name.

percent(0.911), duration(252.0), number(21_075_498), distinct_names(labels)
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

LONGEST = 22  # columns of a class name in a figure; a Chinese character takes two
LINE = 40  # columns of a name in a table, a sentence or beside a picture
BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reverse the text
NARROW = "\u202f"  # a space that does not break, between a number and its unit


def percent(share: float | None, decimals: int = 1) -> str:
    """Return a share in per cent: never 100 % unless it is all, never 0 % unless it is nothing."""
    if share is None or math.isnan(share):
        return "–"
    if share in (0, 1):
        return f"{share * 100:.0f}{NARROW}%"
    least = 10**-decimals
    value = round(share * 100, decimals)
    if value >= 100:
        return f">{NARROW}{100 - least:.{decimals}f}{NARROW}%"
    if value <= 0:
        return f"<{NARROW}{least:.{decimals}f}{NARROW}%"
    return f"{value:.{decimals}f}{NARROW}%"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f}{NARROW}s"
    total = round(seconds)
    if total < 60:
        return f"{total}{NARROW}s"
    if total < 3600:
        return f"{total // 60}{NARROW}min {total % 60:02d}{NARROW}s"
    return f"{total // 3600}{NARROW}h {total % 3600 // 60:02d}{NARROW}min"


def number(value: Any) -> str:
    """Return any fact as people write it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value in ("", [], (), {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e") if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(number(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(item)}" for key, item in value.items())
    return str(value)


def count_of(count: int, thing: str, many: str = "") -> str:
    return f"{count:,} {thing if count == 1 else many or thing + 's'}"


def clean(text: str) -> str:
    """Return the text without characters that cannot be drawn or that reverse it: a file's name may hold any byte."""
    visible = (character for character in text if character not in BIDI_CONTROLS)
    return "".join("�" if unicodedata.category(character) in ("Cc", "Cs") else character for character in visible)


def shortened(text: str, longest: int = LONGEST) -> str:
    """Shorten the text in its middle: names that begin alike often differ at their ends."""
    text = clean(text)
    if _column_count(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{_fit_start(text, half)}…{_fit_start(text[::-1], half)[::-1]}"


def distinct_names(labels: Iterable[str], longest: int = LONGEST) -> list[str]:
    """Return a short name for each label, no two alike. If the ends are the same, the part that differs is shown."""
    # Short names; those that became alike show the part that differs.
    full_names = [clean(label) for label in labels]
    names = [shortened(name, longest) for name in full_names]
    for name, count in Counter(names).items():
        if count > 1:
            same_name = [index for index, other in enumerate(names) if other == name]
            for index, core in zip(
                same_name, _distinct_parts([full_names[index] for index in same_name], longest), strict=True
            ):
                names[index] = core
    # Number the names that are still alike.
    counts, seen = Counter(names), Counter[str]()
    for index, name in enumerate(names):
        seen[name] += 1
        if counts[name] > 1:
            suffix = f" ({seen[name]})"
            names[index] = f"{_fit_start(name, longest - len(suffix))}{suffix}"
    return names


def _distinct_parts(names: Sequence[str], longest: int) -> list[str]:
    """Return the part of each name that differs from the others, with as much around it as there is room for."""
    common_start = len(commonprefix(names))
    common_end = len(commonprefix([name[common_start:][::-1] for name in names]))
    spare = max(0, longest - 2 - max(_column_count(name[common_start : len(name) - common_end]) for name in names)) // 2
    start = common_start - len(_fit_start(names[0][:common_start][::-1], spare))
    end = common_end - len(_fit_start(names[0][len(names[0]) - common_end :], spare))
    cores = [name[start : len(name) - end] for name in names]
    return [shortened(f"{'…' if start else ''}{core}{'…' if end else ''}", longest) for core in cores]


def label_html(label: str, short: str) -> Markup:
    """Return the label isolated from the text around it, whichever way it is read. Hovering shows the full name if it
    was shortened."""
    full_name = clean(label)
    title = Markup(' title="{}"').format(full_name) if full_name != short else ""
    return Markup("<bdi{}>{}</bdi>").format(title, short)


def path_html(path: str) -> Markup:
    """Return a file's name for the line below its picture, which is cut at its beginning where there is no room."""
    name = clean(path)
    return Markup('<bdi dir="ltr" title="{0}">{0}</bdi>').format(name)


def text_width(text: str) -> float:
    """Return a width in em that is enough in all the usual fonts."""
    return sum(map(_character_width, text))


def _character_width(character: str) -> float:
    category = unicodedata.category(character)
    if category in ("Mn", "Me", "Cf"):
        return 0
    if category == "So":  # emoji, mostly
        return 1.4
    if _is_wide(character) or character in "mwMW@%—…�":
        return 1.0
    return 0.9 if character > "\u0370" else 0.8 if character.isupper() else 0.64


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _column_count(text: str) -> int:
    return len(text) + sum(map(_is_wide, text))


def _fit_start(text: str, columns: int) -> str:
    end = len(text)
    while _column_count(text[:end]) > columns:
        end -= 1
    return text[:end]


def relative_path(path: Path, root: Path) -> str:
    """Return the path below the data folder, never where this machine keeps it."""
    relative = path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[-3:])
    return clean(relative.as_posix())


def quoted(name: Markup) -> Markup:
    return Markup("“{}”").format(name)


def two_decimals(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"
