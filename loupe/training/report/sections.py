"""What each section of the report says and shows; the page only lays it out.

trust(story, judged).panels, confusion(judged)["pairs"]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from loupe.training.evaluate.metrics import Judged, ece
from loupe.training.report import figures
from loupe.training.report.story import Facts, Story
from loupe.training.report.text import breadth, clean, counted, duration, percent, quoted, told_apart, two

TRIALS = 30  # listed
SEARCHED = ("lr", "head", "dropout", "decay")
PAIRS = 10  # of classes taken for each other
FEW = 5  # pictures of a class; the score of fewer says little


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
    facts: list[tuple[str, str, str]]  # what, how much, what it means
    notes: list[str]
    calibrated: bool


@dataclass(frozen=True)
class Tuning:
    panels: list[Panel]
    rows: list[Facts]  # the best first
    left_out: int
    said: str


def headline(story: Story, judged: Judged) -> Facts:
    low, high = judged.interval
    tiles = [
        ("macro F1", f"{judged.macro_f1:.3f}", "all classes weighing the same"),
        ("mistakes", f"{int((~judged.right).sum()):,}", f"of {len(judged.rows):,} pictures"),
        ("calibration error", percent(ece(judged.confidence, judged.right)), "confidence against accuracy"),
        ("always the commonest", percent(judged.baseline), "what no learning at all scores"),
    ]
    if len(judged.labels) > 10:
        tiles.insert(1, ("top 5", percent(judged.top5), "truth among the five best"))
    height, width = story.dataset.pixels.shape[1:3]
    weights = "random" if story.model["weights"] in (None, "none") else clean(str(story.model["weights"]))
    network = f"{story.model['backbone']} from {weights} weights, {width}×{height} px"
    return {"low": low, "high": high, "tiles": tiles, "network": network, "seconds": story.took}


def brief(story: Story, judged: Judged) -> list[str]:
    """What a reader in a hurry should know."""
    said: list[str] = []
    if judged.accuracy <= judged.baseline:
        said.append(
            f"It is no better than always saying the commonest class ({percent(judged.accuracy)} right against "
            f"{percent(judged.baseline)}): it has not learnt to tell the classes apart."
        )
    said.append(_of_the_mistakes(story, judged))
    if len(judged.labels) > 2 and not judged.right.all():
        said += _of_the_weakest(story, judged)
    said += _of_the_curves(story)
    limit = story.calibration.certain_at if story.calibration else None
    if limit is not None:
        certain = judged.confidence >= limit
        reached = "no measured picture reached it"
        if certain.any():
            share, right = float(certain.mean()), float(judged.right[certain].mean())
            reached = f"{percent(share, 0)} of the pictures, and {percent(right)} of those right"
        said.append(f"From confidence {limit:.2f} on, answers count as certain: {reached}.")
    return said


def _of_the_mistakes(story: Story, judged: Judged) -> str:
    if judged.right.all():
        return "No mistake on the measured pictures: more, or harder, pictures would tell models apart."
    worst = judged.confused(1)[0]
    truth, guess = quoted(story.named(worst.truth)), quoted(story.named(worst.guess))
    if (~judged.right).sum() == 1:
        return Markup("A single mistake: {} taken for {}.").format(truth, guess)
    if worst.count == 1:
        return "Mistakes are scattered: no class was taken for the same other one twice."
    return Markup("Most often confused: {} taken for {}, {:,} times ({} of its pictures).").format(
        truth, guess, worst.count, percent(worst.share, 0)
    )


def _of_the_weakest(story: Story, judged: Judged) -> list[str]:
    """Nothing where a class of too few pictures to be judged is as weak as can be."""
    rows = [row for row in judged.per_class() if row.f1 is not None]
    scored = [row for row in rows if row.support >= FEW]
    if not scored or any(row.f1 == 0 and row.support < FEW for row in rows):
        return []
    among = "" if len(scored) == len(judged.labels) else f" of those with at least {FEW} pictures"
    row = scored[0]
    how = f"with recall {two(row.recall)} and precision {two(row.precision)}"
    how = "never guessed" if row.precision is None else how
    return [Markup("Weakest class{}: {}, {}.").format(among, quoted(story.named(row.label)), how)]


def _of_the_curves(story: Story) -> list[str]:
    if not story.history:
        return []
    best = figures.best_epoch(story.history)
    row = story.history[best]
    learnt, kept = (figures.column([row], key)[0] for key in ("accuracy", "val_accuracy"))
    said = []
    if learnt - kept > 0.1:
        said.append(
            f"It knows its training pictures better than others ({percent(learnt)} against {percent(kept)} at the best "
            "epoch): more pictures, augmentation or dropout may help."
        )
    if best == len(story.history) - 1 and len(story.history) > 1:
        said.append("The last epoch was the best one: training longer may help.")
    return said


def curves(story: Story) -> Facts | None:
    if not story.history:
        return None
    best = figures.best_epoch(story.history)
    losses, right = (figures.column(story.history, f"val_{name}") for name in ("loss", "accuracy"))
    said = (
        f"epoch {best + 1} of {len(losses)}, validation loss {losses[best]:.3f}, accuracy {percent(float(right[best]))}"
    )
    panels = [
        Panel(name.capitalize(), f"{name.capitalize()} of training and validation by epoch; best: {said}.", draw)
        for name, draw in ((name, figures.curves(story.history, name)) for name in ("loss", "accuracy"))
    ]
    return {"panels": panels, "said": said}


def confusion(judged: Judged) -> Facts:
    """The matrix as the page draws it: sizes in px, and the cells that are not empty."""
    names = told_apart(judged.labels)
    count = len(names)
    cell = 76 if count <= 3 else 44 if count <= 12 else 30 if count <= figures.NUMBERED else 15
    right, wrong = judged.shades()
    support = judged.confusion.sum(axis=1)
    cells = [
        {
            "x": int(guess), "y": int(truth), "count": int(judged.confusion[truth, guess]), "right": truth == guess,
            "shade": round(float(right[truth, guess] * 0.45 + wrong[truth, guess]), 3),
            "title": f"{judged.confusion[truth, guess]} of {support[truth]} {_apart(judged.labels[truth])} "
            + ("recognised" if truth == guess else f"taken for {_apart(judged.labels[guess])}"),
        }
        for truth, guess in zip(*judged.confusion.nonzero(), strict=True)
    ]  # fmt: skip
    margin = 18 + round(max(map(breadth, names)) * (13 if cell > 15 else 11))  # the page's px of these letters
    pairs = judged.confused(PAIRS)
    return {
        "names": [*zip(names, judged.labels, strict=True)], "cell": cell, "cells": cells, "margin": margin,
        "numbers": cell > 15, "pairs": pairs if pairs and pairs[0].count > 1 else [], "rows": judged.per_class(),
    }  # fmt: skip


def _apart(label: str) -> str:
    """Where no markup can be: text of its own, whichever way it is read."""
    return f"\u2068{clean(label)}\u2069"


def trust(story: Story, judged: Judged) -> Trust:
    fitted = story.calibration
    calibrated = fitted is not None and abs(fitted.temperature - 1) > 1e-6
    before, after = ece(judged.raw.max(axis=1), judged.right), ece(judged.confidence, judged.right)
    panels = [
        Panel(
            "Reliability",
            f"Share of right answers by confidence. "
            f"Calibration error {percent(before)} before and {percent(after)} after.",
            figures.reliability(judged, calibrated),
        )
    ]
    facts = [("Calibration error", percent(after), "on the measured pictures; 0 is perfect")]
    if fitted is not None and calibrated:
        sure = "too sure of itself (above 1)" if fitted.temperature > 1 else "not sure enough (below 1)"
        facts = [
            ("Temperature", f"{fitted.temperature:.3f}", f"the network alone was {sure}"),
            ("Calibration error before", percent(before), "of the network alone, on the measured pictures"),
            ("Calibration error after", percent(after), "of what the model answers, on the same pictures"),
        ]
    limit = fitted.certain_at if fitted else None
    panels.append(
        Panel(
            "Coverage",
            "Share of right answers among the most confident, by share answered.",
            figures.coverage(judged, limit),
        )
    )
    if limit is not None:
        certain = judged.confidence >= limit
        facts += [
            ("Certain from", f"{limit:.3f}", "confidence below which an answer is marked uncertain"),
            (
                "Certain answers",
                percent(float(certain.mean())),
                f"{int(certain.sum()):,} of {len(certain):,} measured pictures",
            ),
            ("Right among them", percent(float(judged.right[certain].mean()) if certain.any() else None), ""),
        ]
    scores, below = story.predictions.familiarity, fitted.unfamiliar_below if fitted else None
    if scores is not None:
        panels.append(
            Panel(
                "Familiarity",
                "How many pictures have which familiarity.",
                figures.familiarity(scores, judged.right, below),
            )
        )
    if scores is not None and below is not None:
        share = percent(float((np.asarray(scores) < below).mean()))
        facts.append(
            ("Unfamiliar below", f"{below:.3g}", f"{share} of the measured pictures, all of known classes, lie there")
        )
    return Trust(panels, facts, list(fitted.notes) if fitted else ["No calibration was fitted."], calibrated)


def tuning(story: Story) -> Tuning | None:
    measured = [row for row in story.trials if row["val_loss"] is not None]
    if not measured:
        return None
    varied = [name for name in SEARCHED if len({row[name] for row in measured}) > 1]
    panels = [
        Panel(name, f"Validation loss of each trial by {name}.", figures.trials(measured, name))
        for name in varied or SEARCHED[:1]
    ]
    rows = sorted(measured, key=lambda row: (figures.pruned(row), row["val_loss"]))
    cut = sum(map(figures.pruned, story.trials))
    said = f"{counted(len(story.trials), 'trial')}, {cut} of them cut short"
    return Tuning(panels, rows[:TRIALS], len(story.trials) - len(rows[:TRIALS]), said)


def tables(story: Story) -> list[tuple[str, Facts]]:
    times = {stage: duration(seconds) for stage, seconds in story.seconds.items()}
    rest = story.took - sum(story.seconds.values())
    if rest > 0.05:
        times["the rest: loading, writing"] = duration(rest)
    found = {
        "Model": story.model,
        "Data": _data(story),
        "Time": {**times, "in all": duration(story.took)} if len(times) > 1 else times,
        "Hardware": story.hardware,
        "Versions": story.versions,
        "Settings": story.settings,
    }
    return [(title, facts) for title, facts in found.items() if facts]


def _data(story: Story) -> Facts:
    data = story.dataset
    splits = {name: len(getattr(data, name)) for name in ("train", "validation", "calibration", "test")}
    sizes = {f"{name} pictures": count for name, count in splits.items() if count}
    return {**story.data, "classes": len(data.labels), **sizes, "skipped files": len(data.skipped)}
