"""Say what the version before was right on, so that a worse one does not go into service unnoticed.

newest_before(Path("models/photos"), 4)     # (3, its card), or None
beside(3, earlier_card, card, "")           # "version 3 was right on 91.7% of 36 test pictures, this one on …"
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.publish.model_folder import versions


def newest_before(model_folder: Path, version: int) -> tuple[int, Card] | None:
    """Return the newest version before this one whose card says how often it is right."""
    for earlier in sorted(versions(model_folder), reverse=True):
        with suppress(UserError):  # a version without a card, or with a damaged one
            card = Card.read(model_folder / str(earlier) / "assets.extra" / "card.json")
            if earlier < version and {"accuracy", "images"} <= card.metrics.keys():
                return earlier, card
    return None


def beside(version: int, earlier: Card, card: Card, flags: str) -> str:
    """Return how often both are right, and the way back if the new one is less often. `flags` are those of the command
    that goes back."""
    said = f"version {version} was right on {_accuracy(earlier)}, this one on {_accuracy(card)}"
    if card.metrics["accuracy"] >= earlier.metrics["accuracy"]:
        return said
    return f"{said}; `python convert.py --rollback {card.name}{flags}` goes back to it"


def _accuracy(card: Card) -> str:
    return f"{card.metrics['accuracy']:.1%} of {card.metrics['images']} {card.metrics.get('split', 'test')} pictures"
