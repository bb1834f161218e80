"""The card: what a model says of itself. Written when it is exported, obeyed by whoever serves it.

    card = Card.from_json(text)
    card.labels, card.height, card.width

It travels inside the SavedModel (the signature `describe`), so labels can never belong to another version.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loupe.errors import UserError
from loupe.images.decode import FIT, RESIZE

FORMAT = 1  # of the card itself
LARGEST = 4096  # px, of an input's side


def check_name(name: str) -> None:
    """It is a folder's, a flag's value and part of an address."""
    if not re.fullmatch(r"[^\s/\\.-][^\s/\\]*", name) or not name.isprintable():
        raise UserError(f"A model's name has no space, no slash, and no dot or dash in front: not {name!r}.")


@dataclass(frozen=True)
class Card:
    name: str
    labels: tuple[str, ...]
    height: int
    width: int
    resize: str = RESIZE
    fit: str = FIT
    backbone: dict[str, Any] = field(default_factory=dict)
    precision: str = "float32"
    heatmap: bool = True  # whether the model gives one: for some heads it cannot be computed
    temperature: float = 1.0
    certain_at: float | None = None  # below it an answer is marked uncertain; None: no such limit was fitted
    unfamiliar_below: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        check_name(self.name)
        if len(self.labels) < 2 or not all(isinstance(label, str) and label for label in self.labels):
            raise UserError(f"A card needs at least two labels, each a text; this one has {list(self.labels)}.")
        if len(set(self.labels)) != len(self.labels):
            raise UserError(f"A card's labels must differ; these do not: {list(self.labels)}.")
        if not 1 <= min(self.height, self.width) <= max(self.height, self.width) <= LARGEST:
            raise UserError(f"A card's input size must be from 1 to {LARGEST}, not {self.height}×{self.width}.")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"A card's temperature must be positive, not {self.temperature}.")
        for limit in (self.certain_at, self.unfamiliar_below, self.metrics.get("accuracy")):
            if limit is not None and not 0 <= limit <= 1:
                raise UserError(f"A card's limits and its accuracy must be from 0 to 1, not {limit}.")

    def _check_kinds(self) -> None:
        """A card is a file that people edit."""
        counts, accuracy = _entry(self.training, "images", {}), _entry(self.metrics, "accuracy", None)
        number: tuple[Any, ...] = (int, float)
        for entry, value, kinds in (
            ("name", self.name, (str,)),
            ("backbone", self.backbone, (dict,)),
            ("metrics", self.metrics, (dict,)),
            ("metrics' accuracy", accuracy, (*number, type(None))),
            ("training", self.training, (dict,)),
            ("training's images", counts, (dict,)),
            ("parity", self.parity, (dict, type(None))),
            ("heatmap", self.heatmap, (bool,)),
            ("temperature", self.temperature, number),
            ("certain_at", self.certain_at, (*number, type(None))),
            ("unfamiliar_below", self.unfamiliar_below, (*number, type(None))),
        ):
            if not isinstance(value, kinds) or (isinstance(value, bool) and kinds != (bool,)):
                wanted = " or ".join(_KINDS[kind] for kind in kinds if kind is not int)
                raise UserError(f"A card's {entry} must be {wanted}, not {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        return {
            "loupe": FORMAT,
            "name": self.name,
            "labels": list(self.labels),
            "input": {"height": self.height, "width": self.width, "resize": self.resize, "fit": self.fit},
            "backbone": self.backbone,
            "precision": self.precision,
            "heatmap": self.heatmap,
            "temperature": self.temperature,
            "certain_at": self.certain_at,
            "unfamiliar_below": self.unfamiliar_below,
            "metrics": self.metrics,
            "training": self.training,
            "parity": self.parity,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Card:
        try:
            data = json.loads(text)
            version = data["loupe"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError("This is not a Loupe card: it is no JSON object with a `loupe` entry.") from error
        if version != FORMAT:
            raise UserError(
                f"The card is of format {version!r}; this Loupe reads format {FORMAT}. Export the model again."
            )
        try:
            entry = data["input"]
            how = (entry.get("resize", RESIZE), entry.get("fit", FIT))
            if how != (RESIZE, FIT):
                raise UserError(
                    f"The card asks for pixels prepared by {how}; this Loupe prepares them by {(RESIZE, FIT)}."
                )
            optional = {key: data[key] for key in _OPTIONAL if key in data}
            labels = data["labels"]
            if not isinstance(labels, list):
                raise TypeError("labels")
            return cls(data["name"], tuple(labels), int(entry["height"]), int(entry["width"]), **optional)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"The card is incomplete or malformed at {error}. Export the model again.") from error

    @classmethod
    def read(cls, path: Path) -> Card:
        try:
            return cls.from_json(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"There is no card at {path}. A finished run or an exported model has one.") from error


_KINDS = {str: "a text", dict: "an object", float: "a number", bool: "true or false", type(None): "null"}


def _entry(of: Any, key: str, otherwise: Any) -> Any:
    return of.get(key, otherwise) if isinstance(of, dict) else otherwise


_OPTIONAL = (
    "backbone", "precision", "heatmap", "temperature", "certain_at", "unfamiliar_below", "metrics", "training", "parity"
)  # fmt: skip
