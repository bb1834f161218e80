"""The card: what a model says of itself. It is written at the export, and whoever serves the model follows it.

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

FORMAT = 1  # of the card's JSON
LARGEST = 4096  # px, for a side of the input
MAX_CONFUSION = 40  # labels up to which a card holds its confusion matrix: a gateway asks for the card each second
MAX_BINS = 100  # of confidence, in its reliability
MAX_COUNT = 10**12  # pictures


def check_name(name: str) -> None:
    """Refuse a name that cannot be a folder's, a flag's value and part of a URL."""
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
    heatmap: bool = True  # True if the model gives one: for some heads it cannot be computed
    temperature: float = 1.0
    certain_at: float | None = None  # answers below it are marked uncertain; None: no limit was fitted
    certain_note: str | None = None  # why there is no limit though one was asked for; no answer is certain then
    unfamiliar_below: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_types()
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
        self._check_measured()

    def _check_types(self) -> None:
        """Refuse values of a wrong type: people edit card files."""
        counts, accuracy = _entry(self.training, "images", {}), _entry(self.metrics, "accuracy", None)
        number: tuple[Any, ...] = (int, float)
        for entry, value, types in (
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
            ("certain_note", self.certain_note, (str, type(None))),
            ("unfamiliar_below", self.unfamiliar_below, (*number, type(None))),
        ):
            if not isinstance(value, types) or (isinstance(value, bool) and types != (bool,)):
                wanted = " or ".join(_TYPE_NAMES[each] for each in types if each is not int)
                raise UserError(f"A card's {entry} must be {wanted}, not {value!r}.")

    def _check_measured(self) -> None:
        """Refuse tables of another size or with other numbers than they are drawn from."""
        labels, confusion, bins = len(self.labels), self.metrics.get("confusion"), self.metrics.get("reliability")
        if confusion is not None and not (
            labels <= MAX_CONFUSION
            and _is_list(confusion, labels)
            and all(_is_list(row, labels) and all(map(_is_count, row)) for row in confusion)
        ):
            raise UserError(
                f"A card's confusion must be {labels} rows of {labels} counts, one a label, and left out above "
                f"{MAX_CONFUSION} labels."
            )
        if bins is not None and not (
            isinstance(bins, list)
            and len(bins) <= MAX_BINS
            and all(_is_list(bin_, 3) and all(map(_is_share, bin_[:2])) and _is_count(bin_[2]) for bin_ in bins)
        ):
            raise UserError(
                f"A card's reliability must be a list of at most {MAX_BINS} bins, each [confidence, accuracy, count]."
            )

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
            "certain_note": self.certain_note,
            "unfamiliar_below": self.unfamiliar_below,
            "metrics": self.metrics,
            "training": self.training,
            "parity": self.parity,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Card:
        # Check that it is a card, of this format.
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
            # Check how pixels are prepared, and read the rest.
            entry = data["input"]
            scaling = (entry.get("resize", RESIZE), entry.get("fit", FIT))
            if scaling != (RESIZE, FIT):
                raise UserError(
                    f"The card asks for pixels prepared by {scaling}; this Loupe prepares them by {(RESIZE, FIT)}."
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


_TYPE_NAMES = {str: "a text", dict: "an object", float: "a number", bool: "true or false", type(None): "null"}


def _entry(mapping: Any, key: str, default: Any) -> Any:
    return mapping.get(key, default) if isinstance(mapping, dict) else default


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


_OPTIONAL = (
    "backbone", "precision", "heatmap", "temperature", "certain_at", "certain_note", "unfamiliar_below", "metrics",
    "training", "parity",
)  # fmt: skip
