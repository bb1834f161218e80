"""The figures of the report. Each is drawn once, and becomes a PNG beside the report and an SVG inside of it.

    save(folder / "curves.png", [curves(history, "loss"), curves(history, "accuracy")])
    svg(curves(history, "loss"))          # text: the page's own colours, so that light and dark both fit

A figure is a function that draws on matplotlib's axes. pyplot is not used, so there is no window and no shared state.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter, MaxNLocator, NullFormatter

from loupe.training.evaluate.metrics import Evaluation, confidence_bins, merge_bins
from loupe.training.report.text import clean, distinct_names, number

Draw = Callable[[Axes], None]
Row = dict[str, Any]

INK, SOFT, LINE, WARM = "#1c1917", "#6b6560", "#e3deda", "#c2410c"
PAGE = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", WARM: "var(--warm)"}
WIDE, NARROW = (4.1, 2.5), (3.3, 2.9)  # inches: a figure among two a row, and among three
NUMBERED = 30  # classes up to which the confusion's cells have their numbers
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $5$
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "loupe",  # the same figure, the same file
}


def save(path: Path, draws: Sequence[Draw], columns: int = 2) -> None:
    """Draw several figures into one PNG, `columns` in a row."""
    columns = min(columns, len(draws))
    rows = math.ceil(len(draws) / columns)
    with _style():
        figure = Figure(figsize=(WIDE[0] * columns, (WIDE[1] + 0.3) * rows), facecolor="white")
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for number, axis in enumerate(axes):
            if number >= len(draws):
                axis.set_axis_off()
                continue
            draws[number](axis)
        figure.savefig(path, dpi=150)


def svg(draw: Draw, size: tuple[float, float] = WIDE) -> str:
    """Return the figure as an SVG for a page that defines --ink, --soft, --line and --warm."""
    file = io.StringIO()
    with _style():
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        draw(figure.subplots())
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1))
    referred = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in referred else "", text)
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for colour, variable in PAGE.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)


def curves(history: Sequence[Row], name: str) -> Draw:
    """Draw loss or accuracy (`name`) of training and validation over the epochs of all stages."""

    def draw(axes: Axes) -> None:
        # A line for training and one for validation, and the best epoch.
        first = first_epoch(history)
        epochs = np.arange(first, len(history) + first)
        for key, colour, label in ((name, SOFT, "training"), (f"val_{name}", WARM, "validation")):
            values = column(history, key)
            axes.plot(epochs, values, color=colour, label=label, marker="o" if len(epochs) < 4 else "", markersize=3.5)
        best = best_epoch(history)
        best_value = column(history, f"val_{name}")[best]
        axes.plot(
            [best + first],
            [best_value],
            "o",
            color=WARM,
            markersize=6,
            label=f"best, epoch {best + first}",
            linestyle="",
        )
        # A mark where a stage begins, and room for its name above the lines.
        stages = [clean(str(row.get("stage", ""))) for row in history]
        begins = [index for index in range(1, len(stages)) if stages[index] != stages[index - 1]]
        if begins:
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + (high - low) * 0.1)
        for index in begins:
            between = index + first - 0.5
            axes.axvline(between, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
            position = ("data", "axes fraction")
            axes.annotate(stages[index], (between, 1), (4, -1), position, "offset points", color=SOFT, size=8, va="top")
        # The axes.
        axes.set_xlabel("epoch")
        axes.set_xlim(first - 0.5, len(history) + first - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if name == "accuracy":
            axes.yaxis.set_major_formatter(Percents())
        _legend(axes)

    return draw


def reliability(evaluation: Evaluation, calibrated: bool) -> Draw:
    """Draw the share of right answers by confidence, before and after calibration."""

    def draw(axes: Axes) -> None:
        # The diagonal, and points for bins of confidence.
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        series = [(evaluation.raw, SOFT, "before" if calibrated else "as measured", "none")]
        if calibrated:
            series.append((evaluation.probabilities, WARM, "after", WARM))
        for probabilities, colour, label, face in series:
            steps = merge_bins(
                confidence_bins(probabilities.max(axis=1), evaluation.right), max(5, len(evaluation.rows) // 50)
            )
            x, y = [step.confidence for step in steps], [step.accuracy for step in steps]
            area = [18 + 160 * step.count / len(evaluation.rows) for step in steps]
            axes.plot(x, y, color=colour, linewidth=1.2)
            axes.scatter(x, y, s=area, edgecolors=colour, facecolors=face, label=label, zorder=3, clip_on=False)
        # The axes.
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that is right")
        _percent(axes)
        axes.set_ylim(-0.03, 1.03)
        _legend(axes)

    return draw


def coverage(evaluation: Evaluation, certain_at: float | None) -> Draw:
    """Draw the share of right answers if only the most confident are answered."""

    def draw(axes: Axes) -> None:
        # The line, and where answers become certain.
        share, right = evaluation.coverage()
        first = min(len(share) - 1, max(5, len(share) // 50))  # of fewer, the share that is right says nothing
        axes.plot(share[first:], right[first:], color=SOFT)
        if certain_at is not None and (answered := int((evaluation.confidence >= certain_at).sum())):
            x, y = share[answered - 1], right[answered - 1]
            axes.plot([x, x], [0, y], color=WARM, linewidth=1, linestyle=(0, (4, 3)))
            axes.plot([x], [y], "o", color=WARM, label=f"certain from {certain_at:.2f}", linestyle="")
            _legend(axes)
        # The axes, cut to where the line is.
        axes.set_xlabel("share answered, the most confident first")
        axes.set_ylabel("share that is right")
        _percent(axes)
        axes.set_xlim(0, 1.02)
        low = min(0.9, float(right[first:].min()))
        axes.set_ylim(max(0, low - (1 - low) * 0.25), 1 + (1 - low) * 0.04)

    return draw


def familiarity(scores: Any, right: Any, limit: float | None) -> Draw:
    def draw(axes: Axes) -> None:
        edges = [step / 20 for step in range(21)]
        axes.hist([scores[right], scores[~right]], edges, stacked=True, color=[SOFT, WARM], label=["right", "wrong"])
        if limit is not None:
            axes.axvline(limit, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"limit {limit:.3g}")
        axes.set_xlabel("familiarity")
        axes.set_ylabel("pictures")
        axes.set_xlim(0, 1)
        _legend(axes)

    return draw


def trials(rows: Sequence[Row], setting: str) -> Draw:
    """Draw one setting of all trials against their validation loss."""

    def draw(axes: Axes) -> None:
        # The setting's axis: few sizes, or a logarithm.
        values = column(rows, setting)
        if setting == "head":  # a few sizes, far apart
            steps = np.unique(values)
            axes.set_xticks(range(len(steps)), [f"{step:.0f}" for step in steps])
            values = np.searchsorted(steps, values)
        elif values.min() > 0 and values.max() / values.min() > 30:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        # A point for each trial, and the best.
        losses, is_pruned = column(rows, "val_loss"), np.array([is_pruned_trial(row) for row in rows])
        axes.scatter(values[~is_pruned], losses[~is_pruned], s=22, facecolors=SOFT, edgecolors=SOFT, label="complete")
        if is_pruned.any():
            axes.scatter(
                values[is_pruned], losses[is_pruned], s=22, facecolors="none", edgecolors=SOFT, label="cut short"
            )
        if np.isfinite(losses[~is_pruned]).any():
            best = np.nanargmin(np.where(is_pruned, math.nan, losses))
            axes.scatter(values[best], losses[best], s=60, color=WARM, label="best", zorder=3)
        # The loss's axis.
        if np.nanmax(losses) > 8 * np.nanmin(losses):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(setting)
        axes.set_ylabel("validation loss")
        _legend(axes)

    return draw


def save_confusion(path: Path, evaluation: Evaluation) -> None:
    """Draw the confusion as a PNG: right answers grey, mistakes warm; large enough for a line for each class."""
    # Sizes and colours.
    counts, names = evaluation.confusion, distinct_names(evaluation.labels)
    side = min(3.2 + 0.42 * len(names), 8 + 0.06 * len(names))
    size = min(9.0, 45 * side / len(names))  # points: a cell is about 60 of them by inch and class
    right, wrong = evaluation.shades()
    paint = np.ones((*counts.shape, 3))
    for shade, colour in ((right * 0.45, SOFT), (wrong, WARM)):
        paint -= shade[..., None] * (1 - np.array(mpl.colors.to_rgb(colour)))
    # Draw cells, lines and axes.
    with _style():
        figure = Figure(figsize=(side + 0.8, side), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.imshow(paint, interpolation="nearest")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
        between, edges = np.arange(0.5, len(names) - 1), (-0.5, len(names) - 0.5)
        axes.hlines(between, *edges, color=LINE, linewidth=0.6)
        axes.vlines(between, *edges, color=LINE, linewidth=0.6)
        axes.grid(False)
        axes.spines[:].set_visible(True)
        axes.set_xlabel("guess")
        axes.set_ylabel("truth")
        # Numbers, if there is room.
        if len(names) <= NUMBERED:
            for truth, guess in zip(*counts.nonzero(), strict=True):
                ink = "white" if wrong[truth, guess] > 0.6 else INK
                number = str(counts[truth, guess])
                axes.text(guess, truth, number, ha="center", va="center", color=ink, fontsize=size)
        figure.savefig(path, dpi=130)


def is_pruned_trial(trial: Row) -> bool:
    """Return True if the trial was cut short."""
    return str(trial.get("state") or "complete").lower() not in ("complete", "logistic")


def best_epoch(history: Sequence[Row]) -> int:
    """Return the index of the row whose state was kept: the smallest loss on the validation pictures."""
    losses = column(history, "val_loss")
    return int(np.nanargmin(losses)) if np.isfinite(losses).any() else len(history) - 1


def first_epoch(history: Sequence[Row]) -> int:
    """Return the number of the first row: 0 for the logistic regression that a head begins as, so that all others have
    the numbers that the terminal showed."""
    return 0 if history and history[0].get("stage") == "logistic" else 1


def column(rows: Sequence[Row], key: str) -> Any:
    return np.array([float(row[key]) if row.get(key) not in (None, "") else math.nan for row in rows])


class Percents(Formatter):
    """A formatter of ticks in per cent, with as many decimals as they need."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Any) -> list[str]:
        ticks = 100 * np.asarray(values)
        exact = (decimals for decimals in range(6) if np.allclose(ticks, ticks.round(decimals), rtol=0, atol=1e-6))
        decimals = next(exact, 6)
        return [f"{tick:z.{decimals}f}%" for tick in ticks]


def _percent(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(Percents())


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=4, handlelength=1.2, columnspacing=1.2, borderpad=0.2
    )


@contextmanager
def _style() -> Iterator[None]:
    """Apply the report's style, without warnings on glyphs that the font lacks: the tables show these names, too."""
    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        fonts.setLevel(logging.ERROR)
        try:
            yield
        finally:
            fonts.setLevel(level)
