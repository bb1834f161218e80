"""Refuse to publish a model that is no better than always saying the commonest class.

    refuse_what_learnt_nothing(card)         # raises NothingLearnt, by what its card says of the measured pictures

Chance is allowed for, both ways. Where the measured pictures are enough to tell a model that makes half as many
mistakes as always saying the commonest class, it must get more of them right than chance explains. Where they are too
few for that, it must get more right at all; and where even no mistake would prove nothing, it is left to people.
"""

from __future__ import annotations

from typing import Any

from loupe.card import Card
from loupe.errors import NothingLearnt

CHANCE = 0.05  # how often a model that learnt nothing may be published, where the pictures are enough to tell
POWER = 0.8  # how often one with half the mistakes must be told from it, for them to be enough


def refuse_what_learnt_nothing(card: Card) -> None:
    accuracy, pictures = card.metrics.get("accuracy"), card.metrics.get("images")
    commonest = _commonest(card.metrics)
    if not isinstance(accuracy, int | float) or not isinstance(pictures, int) or not commonest:
        return  # not measured here: a model made elsewhere, a card of an earlier release
    right = round(accuracy * pictures)
    least = least_right(pictures, commonest)
    if least is None or right >= least:
        return
    verdict = "chance explains the difference" if right > commonest else "it has learnt nothing that helps"
    raise NothingLearnt(
        f"{card.name} is not published: {right} of {pictures} {card.metrics.get('split', 'measured')} pictures are "
        f"right, and always saying the commonest class gets {commonest}: {verdict}. Its report tells more; "
        "--publish-anyway publishes it all the same."
    )


def least_right(pictures: int, commonest: int) -> int | None:
    """Return how many of the pictures must be right at least; None where nothing can be told from so few."""
    from scipy.stats import binom  # imported here since it takes half a second

    share = commonest / pictures
    beyond_chance = int(binom.isf(CHANCE, pictures, share)) + 1
    if beyond_chance > pictures:
        return None
    is_enough = binom.sf(beyond_chance - 1, pictures, (1 + share) / 2) >= POWER
    return beyond_chance if is_enough else commonest + 1


def _commonest(metrics: dict[str, Any]) -> int | None:
    """Return how many of the measured pictures are of the commonest class."""
    counted, confusion = metrics.get("commonest"), metrics.get("confusion")
    if isinstance(counted, int):
        return counted
    return max(map(sum, confusion)) if confusion else None  # a card of an earlier release
