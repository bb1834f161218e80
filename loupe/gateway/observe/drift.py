"""Are the labels given lately those of training? A window of the last predictions, and one number for it.

    windows = Windows(set_window, set_training)           # each (label, version, count) → None, told what changed
    windows.add(version, card, ["cracked", "normal"])
    psi({"cracked": 90, "normal": 10}, {"cracked": 327, "normal": 376})

The population stability index is Σ (a − e) · ln(a / e) over the labels, a and e being the shares of a label among the
predictions and the training pictures, none taken as less than LEAST. Up to 0.1 is usual, above 0.2 something changed.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # gunicorn's master, which imports this with the worker, needs no images
    from loupe.card import Card

WINDOW = 1000  # predictions, a worker and version
ENOUGH = 100  # predictions of all workers, for the index to mean something
LEAST = 0.0001
MOST_LABELS = 100  # of a card; the rest is "other"
MOST_LETTERS = 100  # of a label
MOST_VERSIONS = 100  # that a worker names; the rest is "other"
KEPT = 3  # windows: versions come and go, and some serve side by side

Tell = Callable[[str, str, float], None]


def psi(lately: Mapping[str, float], trained: Mapping[str, float]) -> float | None:
    """None where there is too little to tell from."""
    count, total = sum(lately.values()), sum(trained.values())
    if count < ENOUGH or not total:
        return None
    result = 0.0
    for label in {*lately, *trained}:
        actual = max(LEAST, lately.get(label, 0) / count)
        expected = max(LEAST, trained.get(label, 0) / total)
        result += (actual - expected) * math.log(actual / expected)
    return result


class Windows:
    """Not for several threads at once."""

    def __init__(self, set_window: Tell, set_training: Tell) -> None:
        self._set_window, self._set_training = set_window, set_training
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._named: set[str] = set()

    def add(self, version: int, card: Card, labels: Sequence[str]) -> list[tuple[str, str]]:
        """Under which label and version each is counted."""
        name = self._name(version)
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = _Window()
            while len(self._windows) > KEPT:
                self._forget(*self._windows.popitem(last=False))
        self._windows.move_to_end(name)
        if window.card is not card:
            self._learn(window, name, card)
        known = [window.names.get(label, "other") for label in labels]
        for label in window.add(known):
            self._set_window(label, name, window.counts[label])
        return [(label, name) for label in known]

    def _name(self, version: int) -> str:
        name = str(version)
        if len(self._named) < MOST_VERSIONS:
            self._named.add(name)
        return name if name in self._named else "other"

    def _learn(self, window: _Window, name: str, card: Card) -> None:
        window.card = card
        window.names = {label: label[:MOST_LETTERS] for label in card.labels[:MOST_LABELS]}
        counts = _trained(card, window.names)
        if counts != window.trained:
            for label in {*counts, *window.trained}:
                self._set_training(label, name, counts.get(label, 0))
            window.trained = counts

    def _forget(self, name: str, window: _Window) -> None:
        for label in window.counts:
            self._set_window(label, name, 0)
        for label in window.trained:
            self._set_training(label, name, 0)


class _Window:
    def __init__(self) -> None:
        self.card: Card | None = None
        self.names: dict[str, str] = {}  # of the card's labels, as they are shown
        self.trained: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self._last: deque[str] = deque()

    def add(self, labels: Sequence[str]) -> set[str]:
        """Which counts changed, or may have."""
        touched = set(labels)
        for label in labels:
            self._last.append(label)
            self.counts[label] += 1
        while len(self._last) > WINDOW:
            old = self._last.popleft()
            self.counts[old] -= 1
            touched.add(old)
        return touched


def _trained(card: Card, names: Mapping[str, str]) -> dict[str, float]:
    """The card is a file that people edit: what is no count is none."""
    counts: dict[str, float] = {}
    for label in card.labels:
        count = card.training.get("images", {}).get(label, 0)
        if isinstance(count, int | float) and not isinstance(count, bool) and 0 < count < math.inf:
            shown = names.get(label, "other")
            counts[shown] = counts.get(shown, 0) + count
    return counts
