"""Write the contact sheet of a review: review.html, which needs no other file, with a number on each picture.

    shown, problems = write(root, pictures)        # Shown(number, correction, …) for each picture that can be shown
    numbered(root)                                 # "cracked/<sha256>.jpg", …: what 1, 2, … mean on the last sheet

The numbers are stored in the sheet itself, so that both change at once. They stand for label and content: a picture
that comes later, or is corrected to another label, never takes the place of one that was looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loupe import feedback, files
from loupe.errors import UserError
from loupe.feedback import Correction
from loupe.training.report import text
from loupe.training.report.thumbnails import Thumbnail, thumbnails

NAME = "review.html"
MAX_BYTES = 1 << 28
_NUMBERS = re.compile(rb'<script type="application/json" id="numbers">(.*?)</script>', re.DOTALL)
_PICTURE = re.compile(r"[^/\0]+/[0-9a-f]{64}\.[a-z]+")


@dataclass(frozen=True)
class Shown:
    """A picture of the sheet, and what is said of it."""

    number: int
    correction: Correction
    thumbnail: Thumbnail
    predicted: str
    confidence: float | None
    certain: bool | None
    details: str  # when, by which version, with whose key

    @property
    def label(self) -> str:
        return self.correction.label


def write(root: Path, pictures: Sequence[Path], left_out: int = 0) -> tuple[list[Shown], list[str]]:
    """Write the sheet. Return the pictures on it, and what is wrong with the others. `left_out` more wait, which the
    sheet has no room for."""
    # Read the notes, and make the thumbnails.
    corrections, problems = [], []
    for picture in pictures:
        try:
            corrections.append(feedback.read(picture))
        except UserError as error:
            problems.append(str(error))
    small = thumbnails(correction.picture for correction in corrections)
    shown: list[Shown] = []
    for correction in corrections:
        thumbnail = small[correction.picture]
        if thumbnail is None:
            problems.append(f"{correction.picture} is no picture that can be shown.")
        else:
            shown.append(_shown(len(shown) + 1, correction, thumbnail))
    # The page.
    groups: dict[str, list[Shown]] = {}
    for one in shown:
        groups.setdefault(one.label, []).append(one)
    html = _environment().get_template("review.html.j2").render(
        folder=root, groups=groups, count=len(shown), left_out=left_out, made=datetime.now(UTC), problems=problems,
        numbers=[f"{one.correction.picture.parent.name}/{one.correction.picture.name}" for one in shown],
    )  # fmt: skip
    part = root / f"{NAME}.part"
    part.write_text(html, encoding="utf-8", errors="replace")
    part.replace(root / NAME)
    return shown, problems


def numbered(root: Path) -> list[Path]:
    """Return the paths that the numbers of the last sheet mean."""
    try:
        found = _NUMBERS.search(files.read(root / NAME, MAX_BYTES))
        names = json.loads(found[1]) if found else None
    except FileNotFoundError as error:
        raise UserError(
            f"Nobody has looked at them yet: `train.py --review {root}` writes {root / NAME}, which numbers them."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{root / NAME} cannot be read: write it again with `train.py --review {root}`.") from error
    if not isinstance(names, list) or not all(_PICTURE.fullmatch(str(name)) for name in names):
        raise UserError(f"{root / NAME} is no sheet of a review: write it again with `train.py --review {root}`.")
    return [root / feedback.WAITING / name for name in names]


def _shown(number: int, correction: Correction, thumbnail: Thumbnail) -> Shown:
    """Take from the note what it has: people may have edited it."""
    note = correction.note
    predicted, model = _object(note.get("predicted")), _object(note.get("model"))
    confidence, version, key = predicted.get("confidence"), model.get("version"), note.get("key")
    details = [
        str(note.get("time", "")).replace("T", " ").replace("Z", " UTC"),
        f"version {version}" if version is not None else "",
        f"key {key}" if key else "",
    ]
    return Shown(
        number,
        correction,
        thumbnail,
        str(predicted.get("label", "")),
        float(confidence) if isinstance(confidence, int | float) else None,
        predicted.get("certain"),
        " · ".join(filter(None, details)),
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _environment() -> Environment:
    folders = [Path(__file__).parent, Path(text.__file__).parent]  # report.css is the report's
    page = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page.filters.update(percent=text.percent, clean=text.clean)
    page.filters["label"] = lambda label: text.label_html(label, text.shortened(label, text.LINE))
    return page
