"""The content of each section of the report; the page only lays it out.

trust(story, evaluation).panels, confusion(evaluation)["pairs"]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from loupe.training.evaluate.metrics import Evaluation, ece
from loupe.training.report import figures
from loupe.training.report.story import Facts, Story
from loupe.training.report.text import (
    clean,
    count_of,
    distinct_names,
    duration,
    percent,
    quoted,
    text_width,
    two_decimals,
)

TRIALS = 30  # trials listed
SEARCHED = ("lr", "head", "dropout", "decay")
PAIRS = 10  # of classes taken for each other that are listed
FEW = 5  # pictures of a class; the score of fewer says little
LEAN = 0.71  # width of a name that leans by 45°, as a share of its length


@dataclass(frozen=True)
class Panel:
    title: str
    alt: str
    draw: figures.Draw

    def svg(self, among: int) -> Markup:
        return Markup(figures.svg(self.draw, figures.NARROW if among == 3 else figures.WIDE))


@dataclass(frozen=True)
class Trust:
    panels: list[Panel]
    facts: list[tuple[str, str, str]]  # (name, value, meaning)
    notes: list[str]
    calibrated: bool


@dataclass(frozen=True)
class Tuning:
    panels: list[Panel]
    rows: list[Facts]  # the best first
    left_out: int
    summary: str


def headline(story: Story, evaluation: Evaluation) -> Facts:
    """Return accuracy, tiles and network of the page's head."""
    # A tile for each figure.
    low, high = evaluation.interval
    tiles = [
        ("macro F1", f"{evaluation.macro_f1:.3f}", "all classes weighing the same"),
        ("mistakes", f"{int((~evaluation.right).sum()):,}", f"of {len(evaluation.rows):,} pictures"),
        ("calibration error", percent(ece(evaluation.confidence, evaluation.right)), "confidence against accuracy"),
        ("always the commonest", percent(evaluation.baseline), "what no learning at all scores"),
    ]
    if len(evaluation.labels) > 10:
        tiles.insert(1, ("top 5", percent(evaluation.top5), "truth among the five best"))
    # The network, in words.
    height, width = story.dataset.pixels.shape[1:3]
    weights = "random" if story.model["weights"] in (None, "none") else clean(str(story.model["weights"]))
    network = f"{story.model['backbone']} from {weights} weights, {width}×{height} px"
    return {"low": low, "high": high, "tiles": tiles, "network": network, "seconds": story.total_seconds}


def brief(story: Story, evaluation: Evaluation) -> list[str]:
    """Return the sentences for a reader in a hurry."""
    # Nothing learnt, mistakes, weak classes, curves.
    sentences: list[str] = []
    if evaluation.accuracy <= evaluation.baseline:
        sentences.append(
            f"It is no better than always saying the commonest class ({percent(evaluation.accuracy)} right against "
            f"{percent(evaluation.baseline)}): it has not learnt to tell the classes apart."
        )
    sentences.append(_mistakes_sentence(story, evaluation))
    if len(evaluation.labels) > 2 and not evaluation.right.all():
        sentences += _weakest_class_sentences(story, evaluation)
    sentences += _curves_sentences(story)
    if story.label_errors:
        sentences.append(f"{count_of(len(story.label_errors), 'label')} may be wrong; Data shows which.")
    # What answers marked certain are worth.
    limit = story.calibration.certain_at if story.calibration else None
    if limit is not None:
        certain = evaluation.confidence >= limit
        reached = "no measured picture reached it"
        if certain.any():
            share, right = float(certain.mean()), float(evaluation.right[certain].mean())
            reached = f"{percent(share, 0)} of the pictures, and {percent(right)} of those right"
        sentences.append(f"From confidence {limit:.2f} on, answers count as certain: {reached}.")
    if story.calibration and story.calibration.certain_note:
        sentences.append(f"No answer counts as certain: {story.calibration.certain_note}")
    return sentences


def _mistakes_sentence(story: Story, evaluation: Evaluation) -> str:
    if evaluation.right.all():
        return "No mistake on the measured pictures: more, or harder, pictures would tell models apart."
    worst = evaluation.confused(1)[0]
    truth, guess = quoted(story.label_html(worst.truth)), quoted(story.label_html(worst.guess))
    if (~evaluation.right).sum() == 1:
        return Markup("A single mistake: {} taken for {}.").format(truth, guess)
    if worst.count == 1:
        return "Mistakes are scattered: no class was taken for the same other one twice."
    return Markup("Most often confused: {} taken for {}, {:,} times ({} of its pictures).").format(
        truth, guess, worst.count, percent(worst.share, 0)
    )


def _weakest_class_sentences(story: Story, evaluation: Evaluation) -> list[str]:
    """Return a sentence on the weakest class, or none if a class with too few pictures might be weaker."""
    rows = [row for row in evaluation.per_class() if row.f1 is not None]
    large_enough = [row for row in rows if row.support >= FEW]
    if not large_enough or any(row.f1 == 0 and row.support < FEW for row in rows):
        return []
    among = "" if len(large_enough) == len(evaluation.labels) else f" of those with at least {FEW} pictures"
    row = large_enough[0]
    scores = f"with recall {two_decimals(row.recall)} and precision {two_decimals(row.precision)}"
    scores = "never guessed" if row.precision is None else scores
    return [Markup("Weakest class{}: {}, {}.").format(among, quoted(story.label_html(row.label)), scores)]


def _curves_sentences(story: Story) -> list[str]:
    if not story.history:
        return []
    best = figures.best_epoch(story.history)
    row = story.history[best]
    train, val = (figures.column([row], key)[0] for key in ("accuracy", "val_accuracy"))
    sentences = []
    if train - val > 0.1:
        sentences.append(
            f"It knows its training pictures better than others ({percent(train)} against {percent(val)} at the best "
            "epoch): more pictures, augmentation or dropout may help."
        )
    if best == len(story.history) - 1 and len(story.history) > 1:
        sentences.append("The last epoch was the best one: training longer may help.")
    return sentences


def curves(story: Story) -> Facts | None:
    if not story.history:
        return None
    best = figures.best_epoch(story.history)
    loss, accuracy = (figures.column(story.history, f"val_{name}") for name in ("loss", "accuracy"))
    first = figures.first_epoch(story.history)
    kept = f"epoch {best + first} of {len(loss) + first - 1}" if best + first else "the logistic regression"
    summary = f"{kept}, validation loss {loss[best]:.3f}, accuracy {percent(float(accuracy[best]))}"
    panels = [
        Panel(name.capitalize(), f"{name.capitalize()} of training and validation by epoch; best: {summary}.", draw)
        for name, draw in ((name, figures.curves(story.history, name)) for name in ("loss", "accuracy"))
    ]
    return {"panels": panels, "summary": summary}


def confusion(evaluation: Evaluation) -> Facts:
    """Return the confusion matrix as the page draws it: sizes in px, and the cells that are not empty."""
    # The cells, as large as the number of classes allows.
    names = distinct_names(evaluation.labels)
    count = len(names)
    cell = 76 if count <= 3 else 44 if count <= 12 else 30 if count <= figures.NUMBERED else 15
    right, wrong = evaluation.shades()
    support = evaluation.confusion.sum(axis=1)
    cells = [
        {
            "x": int(guess), "y": int(truth), "count": int(evaluation.confusion[truth, guess]), "right": truth == guess,
            "shade": round(float(right[truth, guess] * 0.45 + wrong[truth, guess]), 3),
            "title": f"{evaluation.confusion[truth, guess]} of {support[truth]} {_isolated(evaluation.labels[truth])} "
            + ("recognised" if truth == guess else f"taken for {_isolated(evaluation.labels[guess])}"),
        }
        for truth, guess in zip(*evaluation.confusion.nonzero(), strict=True)
    ]  # fmt: skip
    # Room for the names, and the pairs most often confused.
    numbers, letter = cell > 15, 13 if cell > 15 else 11  # px for a letter of the page's font
    margin = 18 + round(max(map(text_width, names)) * letter)
    ends = [(index + 0.5) * cell + text_width(name) * letter * LEAN for index, name in enumerate(names)]
    right_margin = 12 + max(0, round(max(ends)) - count * cell if numbers else 0)  # where leaning names reach beyond
    pairs = evaluation.confused(PAIRS)
    return {
        "names": [*zip(names, evaluation.labels, strict=True)], "cell": cell, "cells": cells, "margin": margin,
        "right_margin": right_margin, "numbers": numbers, "rows": evaluation.per_class(),
        "pairs": pairs if pairs and pairs[0].count > 1 else [],
    }  # fmt: skip


def _isolated(label: str) -> str:
    """Return the label isolated from the text around it, whichever way it is read, where no markup can be."""
    return f"\u2068{clean(label)}\u2069"


def trust(story: Story, evaluation: Evaluation) -> Trust:
    # Reliability: is the confidence right?
    calibration = story.calibration
    calibrated = calibration is not None and abs(calibration.temperature - 1) > 1e-6
    ece_before, ece_after = (
        ece(evaluation.raw.max(axis=1), evaluation.right),
        ece(evaluation.confidence, evaluation.right),
    )
    panels = [
        Panel(
            "Reliability",
            f"Share of right answers by confidence. "
            f"Calibration error {percent(ece_before)} before and {percent(ece_after)} after.",
            figures.reliability(evaluation, calibrated),
        )
    ]
    facts = [("Calibration error", percent(ece_after), "on the measured pictures; 0 is perfect")]
    if calibration is not None and calibrated:
        verdict = "too sure of itself (above 1)" if calibration.temperature > 1 else "not sure enough (below 1)"
        facts = [
            ("Temperature", f"{calibration.temperature:.3f}", f"the network alone was {verdict}"),
            ("Calibration error before", percent(ece_before), "of the network alone, on the measured pictures"),
            ("Calibration error after", percent(ece_after), "of what the model answers, on the same pictures"),
        ]
    # Coverage: what answering only the confident buys.
    limit = calibration.certain_at if calibration else None
    panels.append(
        Panel(
            "Coverage",
            "Share of right answers among the most confident, by share answered.",
            figures.coverage(evaluation, limit),
        )
    )
    if limit is not None:
        certain = evaluation.confidence >= limit
        facts += [
            ("Certain from", f"{limit:.3f}", "confidence below which an answer is marked uncertain"),
            (
                "Certain answers",
                percent(float(certain.mean())),
                f"{int(certain.sum()):,} of {len(certain):,} measured pictures",
            ),
            ("Right among them", percent(float(evaluation.right[certain].mean()) if certain.any() else None), ""),
        ]
    if calibration and calibration.certain_note:
        facts.append(("Certain from", "–", calibration.certain_note))
    # Familiarity, if it was measured.
    scores, below = story.predictions.familiarity, calibration.unfamiliar_below if calibration else None
    if scores is not None:
        panels.append(
            Panel(
                "Familiarity",
                "How many pictures have which familiarity.",
                figures.familiarity(scores, evaluation.right, below),
            )
        )
    if scores is not None and below is not None:
        share = percent(float((np.asarray(scores) < below).mean()))
        facts.append(
            ("Unfamiliar below", f"{below:.3g}", f"{share} of the measured pictures, all of known classes, lie there")
        )
    return Trust(panels, facts, list(calibration.notes) if calibration else ["No calibration was fitted."], calibrated)


def tuning(story: Story) -> Tuning | None:
    trials = [row for row in story.trials if row["state"] != "logistic"]  # which has neither a rate nor the others
    measured = [row for row in trials if row["val_loss"] is not None]
    if not measured:
        return None
    varied = [name for name in SEARCHED if len({row[name] for row in measured}) > 1]
    panels = [
        Panel(name, f"Validation loss of each trial by {name}.", figures.trials(measured, name))
        for name in varied or SEARCHED[:1]
    ]
    listed = [row for row in story.trials if row["val_loss"] is not None]
    rows = sorted(listed, key=lambda row: (figures.is_pruned_trial(row), row["val_loss"]))
    cut_short = sum(map(figures.is_pruned_trial, trials))
    summary = f"{count_of(len(trials), 'trial')}, {cut_short} of them cut short"
    return Tuning(panels, rows[:TRIALS], len(story.trials) - len(rows[:TRIALS]), summary)


def tables(story: Story) -> list[tuple[str, Facts]]:
    durations = {stage: duration(seconds) for stage, seconds in story.seconds.items()}
    other_seconds = story.total_seconds - sum(story.seconds.values())
    if other_seconds > 0.05:
        durations["the rest: loading, writing"] = duration(other_seconds)
    all_tables = {
        "Model": story.model,
        "Data": _data_facts(story),
        "Time": {**durations, "in all": duration(story.total_seconds)} if len(durations) > 1 else durations,
        "Hardware": story.hardware,
        "Versions": story.versions,
        "Settings": story.settings,
    }
    return [(title, facts) for title, facts in all_tables.items() if facts]


def _data_facts(story: Story) -> Facts:
    data = story.dataset
    splits = {name: len(getattr(data, name)) for name in ("train", "validation", "calibration", "test")}
    sizes = {f"{name} pictures": count for name, count in splits.items() if count}
    return {**story.data, "classes": len(data.labels), **sizes, "skipped files": len(data.skipped)}
