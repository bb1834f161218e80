"""How the report writes numbers and names: 91.1 %, 4 min 12 s, 21,075,498, a very lo…ong name.

percent(0.911), duration(252.0), number(21_075_498), told_apart(labels)
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

LONGEST = 22  # columns of a class name in a figure, of which a Chinese character takes two
LINE = 40  # of one in a table, a sentence or beside a picture
PATH = 64
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # make what follows read backwards
NARROW = "\u202f"  # a space that does not break, between a number and its unit


def percent(share: float | None, decimals: int = 1) -> str:
    """Never 100 % of what is not all, nor 0 % of what is not nothing."""
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
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NARROW}s"
    if whole < 3600:
        return f"{whole // 60}{NARROW}min {whole % 60:02d}{NARROW}s"
    return f"{whole // 3600}{NARROW}h {whole % 3600 // 60:02d}{NARROW}min"


def number(value: Any) -> str:
    """Any fact, as people write it."""
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
        return ", ".join(number(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {number(one)}" for key, one in value.items())
    return str(value)


def counted(count: int, thing: str, many: str = "") -> str:
    return f"{count:,} {thing if count == 1 else many or thing + 's'}"


def clean(text: str) -> str:
    """Nothing that cannot be written or drawn, or that turns the text around: a file's name may hold any byte."""
    kept = (c for c in text if c not in TURNING)
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs") else c for c in kept)


def shortened(text: str, longest: int = LONGEST) -> str:
    """The middle goes: names that begin alike often differ at their ends."""
    text = clean(text)
    if _columns(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{_begin(text, half)}…{_begin(text[::-1], half)[::-1]}"


def told_apart(labels: Iterable[str], longest: int = LONGEST) -> list[str]:
    """Each name short enough, and no two alike: where their ends are the same, what lies between is shown."""
    whole = [clean(label) for label in labels]
    names = [shortened(name, longest) for name in whole]
    for name, count in Counter(names).items():
        if count > 1:
            alike = [place for place, other in enumerate(names) if other == name]
            for place, core in zip(alike, _cores([whole[place] for place in alike], longest), strict=True):
                names[place] = core
    counts, met = Counter(names), Counter[str]()
    for place, name in enumerate(names):
        met[name] += 1
        if counts[name] > 1:
            mark = f" ({met[name]})"
            names[place] = f"{_begin(name, longest - len(mark))}{mark}"
    return names


def _cores(names: Sequence[str], longest: int) -> list[str]:
    """What of each differs from the others, with as much of what does not as there is room for."""
    before = len(commonprefix(names))
    after = len(commonprefix([name[before:][::-1] for name in names]))
    spare = max(0, longest - 2 - max(_columns(name[before : len(name) - after]) for name in names)) // 2
    first = before - len(_begin(names[0][:before][::-1], spare))
    cut = after - len(_begin(names[0][len(names[0]) - after :], spare))
    cores = [name[first : len(name) - cut] for name in names]
    return [shortened(f"{'…' if first else ''}{core}{'…' if cut else ''}", longest) for core in cores]


def named(label: str, short: str) -> Markup:
    """As text among other text, whichever way either is read; the whole name on hovering, where it was shortened."""
    whole = clean(label)
    title = Markup(' title="{}"').format(whole) if whole != short else ""
    return Markup("<bdi{}>{}</bdi>").format(title, short)


def breadth(text: str) -> float:
    """In em, for none of the usual fonts too little."""
    return sum(map(_breadth, text))


def _breadth(character: str) -> float:
    kind = unicodedata.category(character)
    if kind in ("Mn", "Me", "Cf"):
        return 0
    if kind == "So":  # emoji, mostly
        return 1.4
    if _wide(character) or character in "mwMW@%—…�":
        return 1.0
    return 0.9 if character > "\u0370" else 0.8 if character.isupper() else 0.64


def _wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _columns(text: str) -> int:
    return len(text) + sum(map(_wide, text))


def _begin(text: str, columns: int) -> str:
    end = len(text)
    while _columns(text[:end]) > columns:
        end -= 1
    return text[:end]


def relative(path: Path, root: Path) -> str:
    """As people know it; never where this machine keeps it."""
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(*path.parts[-3:])
    return clean(inside.as_posix())


def quoted(name: Markup) -> Markup:
    return Markup("“{}”").format(name)


def two(share: float | None) -> str:
    return "–" if share is None else f"{share:.2f}"
