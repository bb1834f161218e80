"""The report's figures: each is drawn once, and comes as a PNG beside the report and as SVG inside of it.

    save(folder / "curves.png", [loss(history), accuracy(history)])
    svg(loss(history))          # text: colours are the page's own, so that light and dark both fit

A figure is a function that draws on matplotlib's axes; no pyplot, so no window and no state that others see.
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

from loupe.training.evaluate.metrics import Judged, bins, merged
from loupe.training.report.text import clean, number, told_apart

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


def save(path: Path, draws: Sequence[Draw], across: int = 2) -> None:
    across = min(across, len(draws))
    down = math.ceil(len(draws) / across)
    with _calm():
        figure = Figure(figsize=(WIDE[0] * across, (WIDE[1] + 0.3) * down), facecolor="white")
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
        axes = figure.subplots(down, across, squeeze=False).flat
        for number, place in enumerate(axes):
            if number >= len(draws):
                place.set_axis_off()
                continue
            draws[number](place)
        figure.savefig(path, dpi=150)


def svg(draw: Draw, size: tuple[float, float] = WIDE) -> str:
    """To stand inside a page that defines --ink, --soft, --line and --warm."""
    file = io.StringIO()
    with _calm():
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        draw(figure.subplots())
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1))
    referred = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in referred else "", text)
    text = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for colour, variable in PAGE.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)


def curves(history: Sequence[Row], name: str) -> Draw:
    """`name`: loss or accuracy, of training and validation over all stages' epochs."""

    def draw(axes: Axes) -> None:
        epochs = np.arange(1, len(history) + 1)
        for key, colour, label in ((name, SOFT, "training"), (f"val_{name}", WARM, "validation")):
            values = column(history, key)
            axes.plot(epochs, values, color=colour, label=label, marker="o" if len(epochs) < 4 else "", markersize=3.5)
        best = best_epoch(history)
        height = column(history, f"val_{name}")[best]
        axes.plot([best + 1], [height], "o", color=WARM, markersize=6, label=f"best, epoch {best + 1}", linestyle="")
        for done, row in enumerate(history):
            if done and row.get("stage") != history[done - 1].get("stage"):
                axes.axvline(done + 0.5, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
                name_of, place = clean(str(row.get("stage", ""))), ("data", "axes fraction")
                axes.annotate(name_of, (done + 0.5, 1), (4, -1), place, "offset points", color=SOFT, size=8, va="top")
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, len(history) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if name == "accuracy":
            axes.yaxis.set_major_formatter(Percents())
        _legend(axes)

    return draw


def reliability(judged: Judged, calibrated: bool) -> Draw:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        sides = [(judged.raw, SOFT, "before" if calibrated else "as measured", "none")]
        if calibrated:
            sides.append((judged.probabilities, WARM, "after", WARM))
        for probabilities, colour, label, face in sides:
            steps = merged(bins(probabilities.max(axis=1), judged.right), max(5, len(judged.rows) // 50))
            x, y = [step.confidence for step in steps], [step.accuracy for step in steps]
            area = [18 + 160 * step.count / len(judged.rows) for step in steps]
            axes.plot(x, y, color=colour, linewidth=1.2)
            axes.scatter(x, y, s=area, edgecolors=colour, facecolors=face, label=label, zorder=3, clip_on=False)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that is right")
        _percent(axes)
        axes.set_ylim(-0.03, 1.03)
        _legend(axes)

    return draw


def coverage(judged: Judged, certain_at: float | None) -> Draw:
    def draw(axes: Axes) -> None:
        share, right = judged.coverage()
        first = min(len(share) - 1, max(5, len(share) // 50))  # of fewer, the share that is right says nothing
        axes.plot(share[first:], right[first:], color=SOFT)
        if certain_at is not None and (answered := int((judged.confidence >= certain_at).sum())):
            x, y = share[answered - 1], right[answered - 1]
            axes.plot([x, x], [0, y], color=WARM, linewidth=1, linestyle=(0, (4, 3)))
            axes.plot([x], [y], "o", color=WARM, label=f"certain from {certain_at:.2f}", linestyle="")
            _legend(axes)
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
    """One setting of all trials against the validation loss that came of them."""

    def draw(axes: Axes) -> None:
        values = column(rows, setting)
        if setting == "head":  # a few sizes, far apart
            steps = np.unique(values)
            axes.set_xticks(range(len(steps)), [f"{step:.0f}" for step in steps])
            values = np.searchsorted(steps, values)
        elif values.min() > 0 and values.max() / values.min() > 30:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        losses, cut = column(rows, "val_loss"), np.array([pruned(row) for row in rows])
        axes.scatter(values[~cut], losses[~cut], s=22, facecolors=SOFT, edgecolors=SOFT, label="complete")
        if cut.any():
            axes.scatter(values[cut], losses[cut], s=22, facecolors="none", edgecolors=SOFT, label="cut short")
        if np.isfinite(losses[~cut]).any():
            best = np.nanargmin(np.where(cut, math.nan, losses))
            axes.scatter(values[best], losses[best], s=60, color=WARM, label="best", zorder=3)
        if np.nanmax(losses) > 8 * np.nanmin(losses):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(setting)
        axes.set_ylabel("validation loss")
        _legend(axes)

    return draw


def save_confusion(path: Path, judged: Judged) -> None:
    """Right answers grey, mistakes warm; large enough that each class has a line of its own."""
    counts, names = judged.confusion, told_apart(judged.labels)
    side = min(3.2 + 0.42 * len(names), 8 + 0.06 * len(names))
    size = min(9.0, 45 * side / len(names))  # points: a cell is about 60 of them by inch and class
    right, wrong = judged.shades()
    paint = np.ones((*counts.shape, 3))
    for shade, colour in ((right * 0.45, SOFT), (wrong, WARM)):
        paint -= shade[..., None] * (1 - np.array(mpl.colors.to_rgb(colour)))
    with _calm():
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
        if len(names) <= NUMBERED:
            for truth, guess in zip(*counts.nonzero(), strict=True):
                ink = "white" if wrong[truth, guess] > 0.6 else INK
                number = str(counts[truth, guess])
                axes.text(guess, truth, number, ha="center", va="center", color=ink, fontsize=size)
        figure.savefig(path, dpi=130)


def pruned(trial: Row) -> bool:
    """It was not carried to its end."""
    return str(trial.get("state") or "complete").lower() != "complete"


def best_epoch(history: Sequence[Row]) -> int:
    """The row whose state was kept: the smallest loss on the validation pictures."""
    losses = column(history, "val_loss")
    return int(np.nanargmin(losses)) if np.isfinite(losses).any() else len(history) - 1


def column(rows: Sequence[Row], key: str) -> Any:
    return np.array([float(row[key]) if row.get(key) not in (None, "") else math.nan for row in rows])


class Percents(Formatter):
    """With as many decimals as the ticks need."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        return self.format_ticks([value])[0]

    def format_ticks(self, values: Any) -> list[str]:
        ticks = 100 * np.asarray(values)
        enough = (decimals for decimals in range(6) if np.allclose(ticks, ticks.round(decimals), rtol=0, atol=1e-6))
        decimals = next(enough, 6)
        return [f"{tick:z.{decimals}f}%" for tick in ticks]


def _percent(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(Percents())


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=4, handlelength=1.2, columnspacing=1.2, borderpad=0.2
    )


@contextmanager
def _calm() -> Iterator[None]:
    """The house's style, and no word about a glyph that the font lacks: the class name stands in the tables, too."""
    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        fonts.setLevel(logging.ERROR)
        try:
            yield
        finally:
            fonts.setLevel(level)
