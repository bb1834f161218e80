"""Compare the labels given lately with those of training: a window of the last predictions, and one number for it.

    windows = Windows(set_window, set_training)           # two callbacks (label, version, count), for changed counts
    windows.add(version, card, ["cracked", "normal"])
    psi({"cracked": 90, "normal": 10}, {"cracked": 327, "normal": 376})

The population stability index is Σ (a − e) · ln(a / e) over the labels, a and e being the shares of a label among the
predictions and the training pictures, each at least MIN_SHARE. Up to 0.1 is usual, above 0.2 something changed.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it would load loupe.images in gunicorn's master
    from loupe.card import Card

WINDOW = 1000  # predictions of one version, in each worker
MIN_PREDICTIONS = 100  # predictions of all workers; with fewer the index says nothing
MIN_SHARE = 0.0001
MAX_LABELS = 100  # of a card; all others are counted as "other"
MAX_LETTERS = 100  # of a label
MAX_VERSIONS = 100  # in one worker; all others are counted as "other"
MAX_WINDOWS = 3  # versions whose windows are kept; several may serve at the same time

SetCount = Callable[[str, str, float], None]


def psi(recent: Mapping[str, float], trained: Mapping[str, float]) -> float | None:
    """Return the index, or None if there are too few counts."""
    count, total = sum(recent.values()), sum(trained.values())
    if count < MIN_PREDICTIONS or not total:
        return None
    result = 0.0
    for label in {*recent, *trained}:
        actual = max(MIN_SHARE, recent.get(label, 0) / count)
        expected = max(MIN_SHARE, trained.get(label, 0) / total)
        result += (actual - expected) * math.log(actual / expected)
    return result


class Windows:
    """Windows of the last predictions, one for each version. Not safe for several threads at once."""

    def __init__(self, set_window: SetCount, set_training: SetCount) -> None:
        self._set_window, self._set_training = set_window, set_training
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._known_versions: set[str] = set()

    def add(self, version: int, card: Card, labels: Sequence[str]) -> list[tuple[str, str]]:
        """Count the labels, and return the label and version that each is counted under."""
        # The window of this version; the one not used for longest is dropped.
        version_label = self._version_label(version)
        window = self._windows.get(version_label)
        if window is None:
            window = self._windows[version_label] = _Window()
            while len(self._windows) > MAX_WINDOWS:
                self._clear_counts(*self._windows.popitem(last=False))
        self._windows.move_to_end(version_label)
        if window.card is not card:
            self._use_card(window, version_label, card)
        # Count the labels.
        shown = [window.names.get(label, "other") for label in labels]
        for label in window.add(shown):
            self._set_window(label, version_label, window.counts[label])
        return [(label, version_label) for label in shown]

    def of(self, version: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return the counts of this version's last predictions and of its training pictures, by label."""
        window = self._windows.get(self._version_label(version))
        return ({}, {}) if window is None else (dict(+window.counts), dict(window.trained))

    def _version_label(self, version: int) -> str:
        label = str(version)
        if len(self._known_versions) < MAX_VERSIONS:
            self._known_versions.add(label)
        return label if label in self._known_versions else "other"

    def _use_card(self, window: _Window, version_label: str, card: Card) -> None:
        window.card = card
        window.names = {label: label[:MAX_LETTERS] for label in card.labels[:MAX_LABELS]}
        counts = training_counts(card, window.names)
        if counts != window.trained:
            for label in {*counts, *window.trained}:
                self._set_training(label, version_label, counts.get(label, 0))
            window.trained = counts

    def _clear_counts(self, version_label: str, window: _Window) -> None:
        for label in window.counts:
            self._set_window(label, version_label, 0)
        for label in window.trained:
            self._set_training(label, version_label, 0)


class _Window:
    def __init__(self) -> None:
        self.card: Card | None = None
        self.names: dict[str, str] = {}  # label on the card → label in the metrics
        self.trained: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self._recent: deque[str] = deque()

    def add(self, labels: Sequence[str]) -> set[str]:
        """Add labels to the window, and return those whose counts may have changed."""
        changed = set(labels)
        for label in labels:
            self._recent.append(label)
            self.counts[label] += 1
        while len(self._recent) > WINDOW:
            oldest = self._recent.popleft()
            self.counts[oldest] -= 1
            changed.add(oldest)
        return changed


def training_counts(card: Card, names: Mapping[str, str]) -> dict[str, float]:
    """Return the training counts by shown label. People edit cards, so whatever is not a count is left out."""
    counts: dict[str, float] = {}
    for label in card.labels:
        count = card.training.get("images", {}).get(label, 0)
        if isinstance(count, int | float) and not isinstance(count, bool) and 0 < count < math.inf:
            shown = names.get(label, "other")
            counts[shown] = counts.get(shown, 0) + count
    return counts
