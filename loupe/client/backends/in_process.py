"""Compute a model in this process, without any server.

served = InProcess.open(Path("models/tires"), version=None, engine="openvino", streams=0, labels=(), preprocess="")
version, card = served.describe()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loupe.card import Card
from loupe.cardless import foreign_card
from loupe.engines import savedmodel
from loupe.engines.choose import chooser
from loupe.engines.engine import Engine, Options
from loupe.engines.refused import Refused
from loupe.errors import ModelUnfit, UserError
from loupe.proto import PREDICT_SIGNATURE


class InProcess:
    def __init__(self, engine: Engine, version: int, card: Card) -> None:
        self.about = f"{engine.name} in {engine.precision}, in this process"
        self._engine, self._version, self._card = engine, version, card

    @classmethod
    def open(
        cls, path: Path, version: int | None, engine: str, streams: int, labels: tuple[str, ...], preprocess: str
    ) -> InProcess:
        # Find the version's folder, and read what it says of itself.
        folder = version_folder(path, version)
        try:
            model = savedmodel.read(folder)
            if model.card:
                card = Card.from_json(model.card)
            else:
                name = path.resolve().name
                card = foreign_card(name, model.signatures, labels, preprocess, names=("labels", "preprocess"))
            # Compile it.
            opened = chooser(engine, Options(streams=streams))(model)
        except Refused as error:
            raise UserError(f"{folder} cannot be loaded: {error}.") from error
        return cls(opened, _number(folder), card)

    def describe(self) -> tuple[int, Card]:
        return self._version, self._card

    def compute(
        self, version: int, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        try:
            return self._engine.run(PREDICT_SIGNATURE, inputs, outputs)
        except Refused as error:
            raise ModelUnfit(f"The model cannot compute these pictures: {error}.") from error

    def close(self) -> None:
        self._engine.close()


def _number(folder: Path) -> int:
    """Return a version's number; 0 for a SavedModel in a folder of another name."""
    return int(folder.name) if folder.name.isdecimal() else 0


def version_folder(path: Path, version: int | None) -> Path:
    """Return the folder of a version: of that number, or the newest, or `path` itself if it is one."""
    if (path / "saved_model.pb").is_file() and version in (None, _number(path)):
        return path
    folders = {int(entry.name): entry for entry in path.glob("*") if entry.name.isdecimal() and entry.is_dir()}
    if not folders:
        hint = "give a model's folder, such as models/tires" if path.is_dir() else "there is no such folder"
        raise UserError(f"{path} holds no version of a model: {hint}.")
    if version is not None and version not in folders:
        known = ", ".join(map(str, sorted(folders)))
        raise UserError(f"{path} has no version {version}; there are: {known}.")
    return folders[max(folders) if version is None else version]
