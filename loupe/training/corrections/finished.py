"""Read a finished run, as far as it is needed to train its head again.

run = read_run(Path("runs/tires"))       # UserError if it is none
run.card, run.settings, run.data         # of data no picture is opened before its pixels are asked for
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loupe.card import Card
from loupe.errors import UserError
from loupe.training.data import record
from loupe.training.data.dataset import Dataset
from loupe.training.settings import Settings, from_record


@dataclass(frozen=True)
class Finished:
    folder: Path
    card: Card
    settings: Settings
    inputs: dict[str, Any]  # settings and data, as about.json has them
    data: Dataset


def read_run(folder: Path) -> Finished:
    missing = [name for name in ("card.json", "model.keras", "about.json") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is no finished run: it has no {missing[0]}. Name one by --from, such as runs/tires.")
    try:
        inputs = dict(json.loads((folder / "about.json").read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / 'about.json'} cannot be read: the run is damaged. Train it again.") from error
    return Finished(
        folder,
        Card.read(folder / "card.json"),
        from_record(inputs),
        inputs,
        record.read(folder / "data.json"),
    )
