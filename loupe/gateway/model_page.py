"""Show the model to people: what GET /model answers a browser. The same card is JSON for programs.

    if wants_page():
        return model_page(settings, Told(version, card, model.versions(), metrics.recent(version)))
    problem_page(settings, problem)

People edit cards, and models that Loupe did not make have none, so each figure is left out where it is missing or is no
figure. What is drawn is drawn in the template: tables, and SVG without a script.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from flask import render_template, request

from loupe.card import Card
from loupe.cardless import ForeignCard
from loupe.errors import Problem, Unauthorized
from loupe.gateway.observe.drift import MAX_LABELS, MAX_LETTERS, psi, training_counts
from loupe.gateway.observe.metrics import Recent
from loupe.gateway.settings import Settings

MOST_ROWS = 500  # labels that the table shows
MOST_VERSIONS = 50
SHADES = 6  # of a cell of the confusion, beside white
PLOT, MARGIN = 240, 44  # px of the reliability
STATES = {
    "START": "about to be loaded", "LOADING": "being loaded", "AVAILABLE": "served",
    "UNLOADING": "being taken out", "END": "out of service",
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """What is known of a model at this moment."""

    version: int
    card: Card
    versions: list[tuple[int, str]] | None  # None: the model server does not say
    recent: Recent


class Fact(NamedTuple):
    name: str
    value: str
    meaning: str = ""


class LabelRow(NamedTuple):
    label: str
    trained: float | None  # pictures
    recall: float | None
    precision: float | None
    lately: float  # predictions


class Cell(NamedTuple):
    pictures: int
    css: str
    title: str


class Point(NamedTuple):
    """A bin of the reliability: where it is drawn, and what it says."""

    x: float
    y: float
    radius: float
    confidence: float
    accuracy: float
    pictures: int


def wants_page() -> bool:
    """Return True if the caller would rather have a page than JSON, as browsers say."""
    accepted = request.accept_mimetypes
    return accepted.quality("text/html") > accepted.quality("application/json")


def model_page(settings: Settings, told: Told) -> str:
    card = told.card
    drift = psi(told.recent.window, told.recent.trained)
    return render_template(
        "model.html",
        model=settings.model,
        keys=bool(settings.api_keys),
        version=told.version,
        has_card=not isinstance(card, ForeignCard),
        facts=list(_facts(card)),
        rows=label_rows(card, told.recent)[:MOST_ROWS],
        labels=len(card.labels),
        other=told.recent.window.get("other", 0) if len(card.labels) > MAX_LABELS else 0,
        answered=round(sum(told.recent.window.values())),
        drift=None if drift is None else (f"{drift:.2f}", _drift_in_words(drift)),
        all_workers=told.recent.all_workers or settings.workers == 1,
        workers=settings.workers,
        names=[_cut(label) for label in card.labels],
        confusion=confusion_cells(card),
        points=reliability_points(card),
        plot=PLOT,
        margin=MARGIN,
        measured=_measured(card),
        parity=parity_in_words(card.parity),
        versions=None if told.versions is None else _versions(told.versions),
    )


def problem_page(settings: Settings, problem: Problem) -> str:
    return render_template(
        "model.html", model=settings.model, problem=str(problem), locked=isinstance(problem, Unauthorized)
    )


def _facts(card: Card) -> list[Fact]:
    accuracy, ece = _number(card.metrics.get("accuracy")), _number(card.metrics.get("ece"))
    foreign = isinstance(card, ForeignCard)
    facts = [
        accuracy is not None and Fact("accuracy", _percent(accuracy), _measured(card)),
        ece is not None and Fact("calibration error", f"{ece:.3f}", "how far confidence and accuracy are apart"),
        not foreign and Fact(
            "certain from", "–" if card.certain_at is None else _percent(card.certain_at),
            (_cut(card.certain_note, 300) if card.certain_note else "no limit was fitted") if card.certain_at is None
            else "below it an answer is marked as not certain",
        ),
        not foreign and Fact(
            "unfamiliar below", "–" if card.unfamiliar_below is None else f"{card.unfamiliar_below:.3g}",
            "it cannot tell what it does not know" if card.unfamiliar_below is None else "the familiarity of a picture",
        ),
        Fact("picture", f"{card.width} × {card.height}", "pixels, as the model takes it"),
        not foreign and _text(card.precision) and Fact("precision", _text(card.precision), "of its weights"),
        _text(card.backbone.get("name")) and Fact("network", _text(card.backbone.get("name")), "its backbone"),
        _text(card.training.get("finished")) and Fact("trained", _text(card.training.get("finished"))[:10]),
        Fact("heat map", "yes" if card.heatmap else "no", "whether it shows where it looked"),
    ]  # fmt: skip
    return [fact for fact in facts if fact]


def label_rows(card: Card, recent: Recent) -> list[LabelRow]:
    """Return a row for each label. Lately all labels beyond MAX_LABELS are counted together."""
    trained = training_counts(card, {label: label for label in card.labels})
    confusion = card.metrics.get("confusion")
    rows = []
    for number, label in enumerate(card.labels):
        recall = precision = None
        if confusion:
            right = confusion[number][number]
            recall = _share(right, sum(confusion[number]))
            precision = _share(right, sum(row[number] for row in confusion))
        lately = recent.window.get(label[:MAX_LETTERS], 0) if number < MAX_LABELS else 0
        rows.append(LabelRow(_cut(label), trained.get(label), recall, precision, lately))
    return rows


def confusion_cells(card: Card) -> list[list[Cell]]:
    """Return the cells of the confusion, a row for each truth, shaded by their share of the row."""
    confusion: list[list[int]] = card.metrics.get("confusion") or []
    cells = []
    for truth, row in enumerate(confusion):
        total = max(1, sum(row))
        cells.append(
            [
                Cell(
                    count,
                    f"{'right' if truth == guess else 'wrong'} s{math.ceil(SHADES * count / total)}",
                    f"{count} of {sum(row)} {_cut(card.labels[truth])} were called {_cut(card.labels[guess])}",
                )
                for guess, count in enumerate(row)
            ]
        )
    return cells


def reliability_points(card: Card) -> list[Point]:
    """Return the bins of the reliability, the least confident first. Larger points stand for more pictures."""
    bins = card.metrics.get("reliability") or []
    total = max(1, sum(count for *_, count in bins))
    return [
        Point(
            round(MARGIN + PLOT * confidence, 1), round(MARGIN / 4 + PLOT * (1 - accuracy), 1),
            round(4 + 10 * math.sqrt(count / total), 1), confidence, accuracy, count,
        )
        for confidence, accuracy, count in sorted(bins)
    ]  # fmt: skip


def parity_in_words(parity: dict[str, Any] | None) -> str:
    """Say what was compared before the model was published, or nothing."""
    images, differ = (_number((parity or {}).get(key)) for key in ("images", "disagreements"))
    if parity is None or images is None or differ is None:
        return ""
    stages = parity.get("stages")
    named = ", ".join(_text(stage) for stage in stages[:10]) if isinstance(stages, list) else ""
    largest = _number(parity.get("largest_difference"))
    return (
        f"{images:,.0f} {_text(parity.get('pictures'))} pictures were answered by each way of serving"
        + (f" ({named})" if named else "")
        + (": all gave the same labels" if not differ else f": {differ:,.0f} got another label")
        + ("." if largest is None else f", and scores differed by at most {largest:.1g}.")
    )


def _measured(card: Card) -> str:
    images, split = _number(card.metrics.get("images")), _text(card.metrics.get("split"))
    return "" if images is None else f"of {images:,.0f} {split} pictures".replace("  ", " ")


def _drift_in_words(value: float) -> str:
    if value <= 0.1:
        return "the labels given lately are spread as those of the training pictures"
    if value <= 0.2:
        return "the labels given lately are spread a little otherwise than those of the training pictures"
    return "the labels given lately are spread otherwise than those of the training pictures: other pictures come in"


def _versions(versions: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return [(version, STATES.get(state, "in an unknown state")) for version, state in versions[:MOST_VERSIONS]]


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e15 else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _text(value: Any) -> str:
    return _cut(value) if isinstance(value, str) else ""


def _cut(text: str, most: int = 80) -> str:
    """Return a text without what turns or hides letters, and not longer than a line."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"
