"""Read the labels of a model's outputs, in their order, from a flag or a file.

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
FORBIDDEN_CATEGORIES = {"Cc", "Zl", "Zp"}  # Unicode categories: control characters, line and paragraph separators
HEADERS = {"label", "labels", "class", "classes", "class_name", "name", "names", "index", "id"}


def labels_of(text: str) -> tuple[str, ...]:
    """Return the labels in `text`: comma-separated, or the name of a file of them. A leading `@` marks a file."""
    # Split the text, or read the file.
    path = Path(text.removeprefix("@"))
    if text.startswith("@") or path.suffix.lower() in FILES or _is_file(path):
        names = _parse(path, _read_text(path))
    else:
        names = text.split(",")
    # Refuse fewer than two, empty ones, control characters and repeated names.
    labels = tuple(label.strip(" \t") for label in names)
    if len(labels) < 2 or not all(labels):
        number = next((n for n, label in enumerate(labels, 1) if not label), None)
        problem = (
            f"--labels has nothing as its number {number}" if number and any(labels) else "--labels takes two or more"
        )
        raise UserError(f"{problem}: name the outputs in their order, --labels cup,fork,spoon.")
    for label in labels:
        if any(unicodedata.category(letter) in FORBIDDEN_CATEGORIES for letter in label):
            raise UserError(f"--labels has control characters in {label[:50]!r}: take them out.")
    if repeated := [label for n, label in enumerate(labels) if label in labels[:n]]:
        raise UserError(f"--labels names {repeated[0]!r} twice: each output needs a name of its own.")
    return labels


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a file name, or with a zero byte
        return False


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "that is no name of a file"
        raise UserError(f"The labels at {path} cannot be read: {why}.") from error
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The labels at {path} are not in UTF-8: save the file as UTF-8.") from error


def _parse(path: Path, text: str) -> list[str]:
    # JSON, a table, or one line with commas.
    suffix = path.suffix.lower()
    if suffix == ".json" or text.lstrip()[:1] in ("[", "{"):
        try:
            return _from_json(path, json.loads(text))
        except (ValueError, RecursionError) as error:
            if suffix == ".json":
                raise UserError(f"The labels at {path} are no JSON: {error}.") from error
    lines = re.split(r"\r\n|\r|\n", text.rstrip())
    if suffix == ".csv":
        return _from_table(path, lines)
    if len(lines) == 1:
        return lines[0].split(",")
    # Teachable Machine writes "0 cup".
    numbered = [re.fullmatch(r"\s*(\d+)\s+(.*\S)\s*", line) for line in lines]
    if [int(match[1]) if match else None for match in numbered] == [*range(len(lines))]:
        return [match[2] for match in numbered if match]
    return lines


def _from_json(path: Path, data: Any) -> list[str]:
    # A list is in order already; an object gives each label its index.
    if isinstance(data, list) and all(isinstance(label, str) for label in data):
        return data
    if isinstance(data, dict) and all(type(index) is int for index in data.values()):
        numbered = [(index, label) for label, index in data.items()]
    elif isinstance(data, dict) and all(
        re.fullmatch(r"[0-9]{1,6}", key) and isinstance(label, str) for key, label in data.items()
    ):
        numbered = [(int(key), label) for key, label in data.items()]
    else:
        raise UserError(
            f'The labels at {path} are neither ["cup", "fork"] nor {{"cup": 0, "fork": 1}} nor {{"0": "cup", "1": '
            '"fork"}: write one a line into a .txt file.'
        )
    # Refuse gaps and repeated indices.
    numbered.sort()
    for expected, (index, label) in enumerate(numbered):
        if index != expected:
            raise UserError(f"The labels at {path} must be numbered from 0 on, each once; {label!r} has {index}.")
    return [label for _, label in numbered]


def _from_table(path: Path, lines: list[str]) -> list[str]:
    rows = [row for row in csv.reader(lines, skipinitialspace=True) if row]
    if len(rows) == 1:
        return rows[0]
    if any(len(row) > 1 for row in rows) or (rows and rows[0][0].strip().lower() in HEADERS):
        raise UserError(f"The labels at {path} are a table: write one label a line, without a header or other columns.")
    return [row[0] for row in rows]
