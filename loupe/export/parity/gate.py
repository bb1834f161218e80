"""The parity gate: compare what would be published with what was trained, and refuse what differs.

    entry = gate(folder, source, for_replay(run, None, labels))     # the card's `parity`; UserError naming the stage
    entry = gate(folder, source, replayed, for_labels(images, labels, replayed))

`folder` is <models>/<name>/<number>. Pictures are replayed through every stage on the way to a caller, and each is
compared with the model's own answers:

    training  does the model still say what training noted of these pictures? Else model, card and familiarity are not
              of one run. Of other labelled pictures: is it right as often as its card says, and more than by chance?
              Would it be right on more if their pixels were scaled otherwise?
    keras     the model as it was made, by its own library: the reference
    session   the SavedModel in a TF1 session, which is how TensorFlow Serving loads it
    openvino  the SavedModel compiled by OpenVINO
    service   model server and gateway, over HTTP, from the pictures' original bytes

A few smooth random pictures are added, so that every brightness and colour is seen.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from loupe.card import Card
from loupe.cli import WIDEST
from loupe.errors import UserError
from loupe.export.parity import engines
from loupe.export.parity.engines import in_batches
from loupe.export.parity.service import Body, encoded, service
from loupe.export.parity.tolerance import (
    AT_ONCE,
    Advance,
    Answers,
    Array,
    Differences,
    Expected,
    Fault,
    Row,
    Skipped,
    Unsupported,
    compare,
)
from loupe.export.parity.training_notes import compare_with_notes
from loupe.export.replay_pictures import Picture, Pictures, readable
from loupe.export.source import Source
from loupe.gradcam import heatmaps, split
from loupe.quiet import quiet

SMOOTH = 8  # random pictures
COMPARED_IN_FULL = 32  # pictures whose heat maps and familiarity are compared as well; each costs another pass
RESCALED = 48  # pictures that tell whether another scaling fits; each costs four passes
INT8 = Path("assets.extra", "openvino-int8", "model.xml")  # the model server uses it where it exists
NOISE_LINES = ("Graph execution error", "Detected at", "File ", "Exception from")  # first words of lines to skip
MAX_REASON = 300  # characters of another library's message
NONE = Pictures("none", ())
FAILED = "FAILED:"
BELOW = " " * 12  # before a verdict that stands below its line
NARROWEST = 40
COLUMNS = ("stage", "pictures", "other label", "near-ties", "largest", "mean", "ms each", "verdict")


@dataclass(frozen=True)
class Replay:
    """The pictures to replay: the random ones first, then those chosen."""

    chosen: Pictures
    pixels: Array  # [N, H, W, 3]
    bodies: list[Body]


def gate(folder: Path, source: Source, chosen: Pictures, labelled: Pictures = NONE) -> dict[str, Any]:
    """Compare on `chosen`. Those of `labelled`, further ones, only help to tell whether the labels are in order."""
    # Run all stages, and show the table.
    card = source.card
    replay = _replay(chosen, card)
    with quiet():
        rows = list(_rows(folder, source, replay, labelled))
    for note in replay.chosen.notes:
        print(f"note               {note}")
    count, origin = len(replay.chosen.pictures), replay.chosen.origin
    print(f"parity             {count} {origin} pictures and {SMOOTH} random ones")
    print(table(rows))
    # Refuse to publish if one failed.
    failure = next((row for row in rows if row.fault), None)
    if failure:
        raise UserError(
            f"Nothing is published: the stage {failure.stage} {failure.fault}. {_hint(failure.stage, card)}"
        )
    # Sum up what the card says of it.
    compared = {row.stage: row.differences for row in rows if row.differences}
    entry = {"images": count, "pictures": origin, **_worst(compared), "stages": list(compared)}
    if served_in_int8(folder):  # the entry is about the SavedModel; the int8 variant has an entry of its own
        entry |= _worst({stage: differences for stage, differences in compared.items() if stage != "service"})
        entry["int8"] = _worst({"service": compared["service"]}) if "service" in compared else None
    return entry


def _worst(compared: dict[str, Differences]) -> dict[str, Any]:
    differences = compared.values()
    return {
        "disagreements": max((each.relabelled for each in differences), default=0),
        "near_ties": max((each.near_ties for each in differences), default=0),
        "largest_difference": float(f"{max((each.largest for each in differences), default=0.0):.2g}"),
    }


def served_in_int8(folder: Path) -> bool:
    return (folder / INT8).is_file()


def table(rows: list[Row]) -> str:
    """Return the rows in columns. A verdict that the terminal has no room for beside its row stands below it."""
    lines = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS) - 1)]
    terminal = shutil.get_terminal_size((WIDEST, 24)).columns
    shown = []
    for first, *numbers, verdict in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
        line = "  ".join(["", *cells, verdict])
        if len(line) <= terminal:
            shown.append(line)
            continue
        word = FAILED if verdict.startswith(FAILED) else ""
        shown.append("  ".join(["", *cells, word]).rstrip())
        text = verdict.removeprefix(word).strip()
        shown += textwrap.wrap(text, max(NARROWEST, terminal), initial_indent=BELOW, subsequent_indent=BELOW)
    return "\n".join(shown)


def _cells(row: Row) -> tuple[str, ...]:
    diff = row.differences
    counts = (
        (str(diff.relabelled), str(diff.near_ties), f"{diff.largest:.2g}", f"{diff.mean:.2g}") if diff else ("",) * 4
    )
    ms = "" if row.ms is None else f"{row.ms:.1f}"
    return (row.stage, str(row.pictures or ""), *counts, ms, f"{FAILED} it {row.fault}" if row.fault else row.note)


def _hint(stage: str, card: Card) -> str:
    if stage == "training":
        return "Put that right; if it is, the pictures' folders are not: name others by --images FOLDER."
    if stage != "keras" and card.precision != "float32":
        return f"Try --precision float32; {card.precision} may be too coarse for this model."
    if stage == "openvino":
        return "If TensorFlow Serving alone is to serve it, --no-parity publishes it unchecked."
    return "The table says which stages agree with the model."


# ------------------------------------------------------------------------------------------------------- the stages


def _rows(folder: Path, source: Source, replay: Replay, labelled: Pictures) -> Iterator[Row]:
    """Yield a row for each stage. If one fails the others still run: which of them agree tells where the fault is. Only
    without the reference there is nothing to compare."""
    card, pixels, familiarity = source.card, replay.pixels, source.familiarity
    # The reference comes first.
    with _progress_bars() as bar:
        try:
            reference, expected = _reference(source, pixels, bar("keras", len(pixels)))
            further, answered = _further(source, labelled, bar("labels", len(labelled.pictures)))
        except Exception as error:  # a model may raise errors of every type
            yield Row("keras", fault=_reason(error))
            return
        # Compare it with what training noted.
        familiarity_scores = None if expected.familiarity is None else expected.familiarity[SMOOTH:]
        probabilities = np.concatenate([expected.probabilities[SMOOTH:], answered])
        rescaled = _rescaled(source, replay)
        yield compare_with_notes(card, (*replay.chosen.pictures, *further), probabilities, familiarity_scores, rescaled)
        yield Row("keras", len(pixels), ms=reference.ms, note="the reference")
        # Compare each way of serving with it.
        served = "int8" if served_in_int8(folder) else card.precision
        for stage, precision, answer in (
            ("session", card.precision, partial(engines.session, folder, card, pixels, familiarity)),
            ("openvino", card.precision, partial(engines.openvino, folder, card, pixels)),
            ("service", served, partial(service, folder, card, replay.bodies)),
        ):
            try:
                yield compare(stage, answer(bar(stage, len(pixels))), expected, precision)
            except Skipped as reason:
                yield Row(stage, note=f"skipped: {reason}")
            except Unsupported as reason:
                if source.model is not None:  # Loupe's own form has only layers that OpenVINO knows
                    yield Row(stage, fault=_reason(reason))
                else:
                    yield Row(stage, note="skipped: openvino does not take it; TensorFlow serves it")
            except Exception as error:  # whatever it raises, the stage has failed
                yield Row(stage, fault=_reason(error))


def _reference(source: Source, pixels: Array, advance: Advance) -> tuple[Answers, Expected]:
    card = source.card
    answers = in_batches(lambda batch: {"probabilities": source.reference(batch)}, pixels, advance)
    probabilities = answers.probabilities
    if probabilities.shape != (len(pixels), len(card.labels)):
        raise Fault(f"gives {probabilities.shape[-1]} classes, and the card has {len(card.labels)} labels")
    if not np.isfinite(probabilities).all():
        raise Fault("gives no number (NaN or infinite): train it again with a lower rate")
    if probabilities.min() < 0 or np.abs(probabilities.sum(axis=1) - 1).max() > 0.01:
        raise Fault("gives what are no probabilities: a picture's do not add up to 1")
    heatmap = heatmaps(source.model, pixels[:COMPARED_IN_FULL]) if source.model and card.heatmap else None
    return answers, Expected(probabilities, heatmap, _familiarity(source, pixels[:COMPARED_IN_FULL]))


def _further(source: Source, labelled: Pictures, advance: Advance) -> tuple[tuple[Picture, ...], Array]:
    """Return the further pictures that can be read, and the model's answers to them."""
    usable, pixels = readable(labelled, source.card.height, source.card.width)
    answers = [np.zeros((0, len(source.card.labels)), np.float32)]
    for start in range(0, len(pixels), AT_ONCE):
        answers.append(source.reference(pixels[start : start + AT_ONCE]))
        advance(len(answers[-1]))
    return usable.pictures, np.concatenate(answers)


def _rescaled(source: Source, replay: Replay) -> dict[str, Array]:
    """Return the answers to some of the chosen pictures had their pixels been scaled otherwise."""
    if replay.chosen.truth(source.card.labels) is None:
        return {}
    pixels = replay.pixels[SMOOTH : SMOOTH + RESCALED]
    return {name: reference(pixels) for name, reference in source.rescaled.items()}


def _familiarity(source: Source, pixels: Array) -> Array | None:
    if source.familiarity is None or source.model is None:
        return None
    pool, _ = split(source.model)
    pooled = keras.Model(source.model.input, pool.output)
    return source.familiarity.score(pooled.predict(pixels.astype(np.float32), batch_size=AT_ONCE, verbose=0))


# ------------------------------------------------------------------------------------------------------ the pictures


def _replay(chosen: Pictures, card: Card) -> Replay:
    usable, pixels = readable(chosen, card.height, card.width)
    smooth = _smooth(card)
    bodies: list[Body] = [partial(encoded, picture) for picture in smooth]
    return Replay(
        usable, np.concatenate([smooth, pixels]), bodies + [picture.path.read_bytes for picture in usable.pictures]
    )


def _smooth(card: Card) -> Array:
    """Return smooth random pictures of every brightness and colour, the same ones each time."""
    coarse = np.random.default_rng(0).integers(0, 256, (SMOOTH, 7, 7, 3)).astype(np.uint8)
    size = (card.width, card.height)
    return np.stack([np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BILINEAR)) for grid in coarse])


# ---------------------------------------------------------------------------------------------------------- for people


@contextmanager
def _progress_bars() -> Iterator[Callable[[str, int], Advance]]:
    """Show progress on stdout, where it is a terminal: stderr is kept quiet for TensorFlow."""
    console = Console()
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def bar(stage: str, total: int) -> Advance:
            return partial(progress.advance, progress.add_task(f"parity: {stage}", total=total, visible=total > 0))

        yield bar


def _reason(error: Exception) -> str:
    """Return what is wrong, in words that follow the stage's name."""
    if isinstance(error, Fault):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(NOISE_LINES) and "src/" not in line]
    return f"breaks: {(useful or [type(error).__name__])[0][:MAX_REASON]}"
