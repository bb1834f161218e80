"""What a model's outputs mean, in their order, as people write it down.

labels_of("cup,fork,spoon")               # raises UserError where they are no labels
labels_of("labels.txt")                   # one a line, or on one line between commas; also "0 cup"
labels_of("class_indices.json")           # {"cup": 0, "fork": 1}, {"0": "cup", "1": "fork"} or ["cup", "fork"]
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from loupe.errors import UserError

FILES = (".txt", ".json", ".csv")
SEPARATORS = {"Cc", "Zl", "Zp"}  # of Unicode's categories: control characters, and those that break lines
HEADERS = {"label", "labels", "class", "classes", "class_name", "name", "names", "index", "id"}


def labels_of(text: str) -> tuple[str, ...]:
    """Comma-separated, or a file of them; `@` before its name says that it is one."""
    path = Path(text.removeprefix("@"))
    if text.startswith("@") or path.suffix.lower() in FILES or _is_file(path):
        found = _within(path, _text(path))
    else:
        found = text.split(",")
    named = tuple(label.strip(" \t") for label in found)
    if len(named) < 2 or not all(named):
        number = next((n for n, label in enumerate(named, 1) if not label), None)
        why = f"--labels has nothing as its number {number}" if number and any(named) else "--labels takes two or more"
        raise UserError(f"{why}: name the outputs in their order, --labels cup,fork,spoon.")
    for label in named:
        if any(unicodedata.category(letter) in SEPARATORS for letter in label):
            raise UserError(f"--labels has control characters in {label[:50]!r}: take them out.")
    if twice := [label for n, label in enumerate(named) if label in named[:n]]:
        raise UserError(f"--labels names {twice[0]!r} twice: each output needs a name of its own.")
    return named


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte: labels, then
        return False


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "that is no name of a file"
        raise UserError(f"The labels at {path} cannot be read: {why}.") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The labels at {path} are not in UTF-8: save the file as UTF-8.") from error


def _within(path: Path, text: str) -> list[str]:
    kind = path.suffix.lower()
    if kind == ".json" or text.lstrip()[:1] in ("[", "{"):
        try:
            return _of_json(path, json.loads(text))
        except (ValueError, RecursionError) as error:
            if kind == ".json":
                raise UserError(f"The labels at {path} are no JSON: {error}.") from error
    lines = re.split(r"\r\n|\r|\n", text.rstrip())
    if kind == ".csv":
        return _of_table(path, lines)
    if len(lines) == 1:
        return lines[0].split(",")
    # As Teachable Machine writes them, "0 cup".
    numbered = [re.fullmatch(r"\s*(\d+)\s+(.*\S)\s*", line) for line in lines]
    if [int(found[1]) if found else None for found in numbered] == [*range(len(lines))]:
        return [found[2] for found in numbered if found]
    return lines


def _of_json(path: Path, data: Any) -> list[str]:
    if isinstance(data, list) and all(isinstance(label, str) for label in data):
        return data
    if isinstance(data, dict) and all(type(index) is int for index in data.values()):
        placed = [(index, label) for label, index in data.items()]
    elif isinstance(data, dict) and all(
        re.fullmatch(r"[0-9]{1,6}", key) and isinstance(label, str) for key, label in data.items()
    ):
        placed = [(int(key), label) for key, label in data.items()]
    else:
        raise UserError(
            f'The labels at {path} are neither ["cup", "fork"] nor {{"cup": 0, "fork": 1}} nor {{"0": "cup", "1": '
            '"fork"}: write one a line into a .txt file.'
        )
    placed.sort()
    for place, (index, label) in enumerate(placed):
        if index != place:
            raise UserError(f"The labels at {path} must be numbered from 0 on, each once; {label!r} has {index}.")
    return [label for _, label in placed]


def _of_table(path: Path, lines: list[str]) -> list[str]:
    rows = [row for row in csv.reader(lines, skipinitialspace=True) if row]
    if len(rows) == 1:
        return rows[0]
    if any(len(row) > 1 for row in rows) or (rows and rows[0][0].strip().lower() in HEADERS):
        raise UserError(f"The labels at {path} are a table: write one label a line, without a header or other columns.")
    return [row[0] for row in rows]
