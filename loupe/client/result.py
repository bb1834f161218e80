"""What is said of one picture, wherever it was computed.

result.label, result.confidence, result.certain, result.reason
result.scores["cracked"]          # by label, the best first
result.heatmap                    # a PIL image of the model's input size, the hotter the more opaque; or None
result.version, result.card       # of the model that answered
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, SupportsIndex, TypeVar, overload

from PIL import Image

from loupe.card import Card
from loupe.client import notebook
from loupe.client.picture import Picture

T = TypeVar("T")
DOUBTS = {"below_threshold": "not certain", "unfamiliar": "like nothing the model knows"}


@dataclass(frozen=True)
class Result:
    name: str  # of the picture: its path, its address, or its number in a list
    label: str
    confidence: float
    certain: bool | None  # None: the model's card has nothing to judge it by
    reason: str | None  # why it is not certain: below_threshold, or unfamiliar
    scores: dict[str, float] = field(repr=False)
    version: int
    heatmap: Image.Image | None = field(default=None, repr=False, compare=False)
    card: Card = field(kw_only=True, repr=False)
    picture: Picture = field(kw_only=True, repr=False)

    def _repr_html_(self) -> str:
        return notebook.sheet([self.figure()])

    def figure(self) -> str:
        """Return the picture and what is said of it as HTML."""
        return notebook.figure(
            self.name, self.picture, self.heatmap, self.label, self.confidence, _doubt(self), self.scores
        )


class Results(list[T]):
    """A list of results, and of errors where these were asked for. A notebook shows it as a sheet of pictures."""

    def _repr_html_(self) -> str:
        figures = (each.figure() if isinstance(each, Result) else notebook.failure(str(each)) for each in self)
        return notebook.sheet(figures, len(self))

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Results[T]: ...

    def __getitem__(self, index: Any) -> Any:
        """Return an item, or for a slice another sheet."""
        return Results(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)


def _doubt(result: Result) -> str:
    if result.reason is not None:
        return DOUBTS.get(result.reason, result.reason)
    return "certain" if result.certain else "nothing is known of its certainty"
