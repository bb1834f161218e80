"""The parity gate: is what would be published what was trained? Nothing is published that differs.

    entry = gate(folder, source, for_replay(run, None, labels))     # the card's `parity`; UserError naming the stage

`folder` is <models>/<name>/<number>. Pictures are replayed through every stage on the way to a caller, and each is
compared with the model's own answers:

    training  does the model still say what training noted of these pictures? Else model, card and familiarity are not
              of one run. Of other labelled pictures: is it right as often as its card says, and more than by chance?
    keras     the model as it was made, by its own library: the reference
    session   the SavedModel in a TF1 session, which is how TensorFlow Serving loads it
    openvino  the SavedModel compiled by OpenVINO
    service   model server and gateway, over HTTP, from the pictures' original bytes

With the pictures go a few smooth random ones, so that every brightness and colour is seen.
"""

from __future__ import annotations

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
from loupe.errors import UserError
from loupe.export.parity import engines
from loupe.export.parity.engines import in_batches
from loupe.export.parity.service import Body, encoded, service
from loupe.export.parity.tolerance import (
    AT_ONCE,
    Answers,
    Array,
    Fault,
    NotTaken,
    Row,
    Skipped,
    Step,
    Steps,
    Wanted,
    judged,
)
from loupe.export.parity.training_notes import trained
from loupe.export.quiet import quiet
from loupe.export.replay_pictures import Pictures, readable
from loupe.export.source import Source
from loupe.gradcam import heatmaps, split

SMOOTH = 8  # random pictures
EXPLAINED = 32  # pictures whose heat maps and familiarity are compared; each costs another pass of the model
INT8 = Path("assets.extra", "openvino-int8", "model.xml")  # the model server takes it where it is there
IDLE_LINES = ("Graph execution error", "Detected at", "File ", "Exception from")  # of TensorFlow's and OpenVINO's
LONGEST = 300  # letters of another's message
HEAD = ("stage", "pictures", "other label", "near-ties", "largest", "mean", "ms each", "verdict")


@dataclass(frozen=True)
class Replay:
    """The random pictures first, then those chosen."""

    chosen: Pictures
    pixels: Array  # [N, H, W, 3]
    bodies: list[Body]


def gate(folder: Path, source: Source, chosen: Pictures) -> dict[str, Any]:
    card = source.card
    replay = _replay(chosen, card)
    with quiet():
        rows = list(_rows(folder, source, replay))
    for note in replay.chosen.notes:
        print(f"note               {note}")
    count, what = len(replay.chosen.pictures), replay.chosen.what
    print(f"parity             {count} {what} pictures and {SMOOTH} random ones")
    print(table(rows))
    failed = next((row for row in rows if row.fault), None)
    if failed:
        raise UserError(f"Nothing is published: the stage {failed.stage} {failed.fault}. {_hint(failed.stage, card)}")
    compared = {row.stage: row.steps for row in rows if row.steps}
    entry = {"images": count, "pictures": what, **_worst(compared), "stages": list(compared)}
    if served_in_int8(folder):  # of the SavedModel the entry speaks; its variant is another model, near enough
        entry |= _worst({stage: steps for stage, steps in compared.items() if stage != "service"})
        entry["int8"] = _worst({"service": compared["service"]}) if "service" in compared else None
    return entry


def _worst(compared: dict[str, Steps]) -> dict[str, Any]:
    steps = compared.values()
    return {
        "disagreements": max((one.turned for one in steps), default=0),
        "near_ties": max((one.near_ties for one in steps), default=0),
        "largest_difference": float(f"{max((one.largest for one in steps), default=0.0):.2g}"),
    }


def served_in_int8(folder: Path) -> bool:
    return (folder / INT8).is_file()


def table(rows: list[Row]) -> str:
    lines = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD) - 1)]
    shown = []
    for first, *numbers, verdict in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))]
        shown.append("  ".join(["", *cells, verdict]))
    return "\n".join(shown)


def _cells(row: Row) -> tuple[str, ...]:
    steps = row.steps
    counts = (
        (str(steps.turned), str(steps.near_ties), f"{steps.largest:.2g}", f"{steps.mean:.2g}") if steps else ("",) * 4
    )
    ms = "" if row.ms is None else f"{row.ms:.1f}"
    return (row.stage, str(row.pictures or ""), *counts, ms, f"FAILED: it {row.fault}" if row.fault else row.note)


def _hint(stage: str, card: Card) -> str:
    if stage == "training":
        return "Put them right; if they are, the pictures' folders are not: name others by --images FOLDER."
    if stage != "keras" and card.precision != "float32":
        return f"Try --precision float32; {card.precision} may be too coarse for this model."
    if stage == "openvino":
        return "If TensorFlow Serving alone is to serve it, --no-parity publishes it unchecked."
    return "The table says which stages agree with the model."


# ------------------------------------------------------------------------------------------------------- the stages


def _rows(folder: Path, source: Source, replay: Replay) -> Iterator[Row]:
    """All stages, though one failed: which of them agree tells where the fault is. Without a reference there is
    nothing to compare."""
    card, pixels, familiarity = source.card, replay.pixels, source.familiarity
    with _bars() as bar:
        try:
            reference, wanted = _reference(source, pixels, bar("keras", len(pixels)))
        except Exception as error:  # whatever a model of any kind may raise
            yield Row("keras", fault=_reason(error))
            return
        near = None if wanted.familiarity is None else wanted.familiarity[SMOOTH:]
        yield trained(card, replay.chosen.pictures, wanted.probabilities[SMOOTH:], near)
        yield Row("keras", len(pixels), ms=reference.ms, note="the reference")
        served = "int8" if served_in_int8(folder) else card.precision
        for stage, precision, answer in (
            ("session", card.precision, partial(engines.session, folder, card, pixels, familiarity)),
            ("openvino", card.precision, partial(engines.openvino, folder, card, pixels)),
            ("service", served, partial(service, folder, card, replay.bodies)),
        ):
            try:
                yield judged(stage, answer(bar(stage, len(pixels))), wanted, precision)
            except Skipped as why:
                yield Row(stage, note=f"skipped: {why}")
            except NotTaken as why:
                if source.model is not None:  # of kinds of layers that OpenVINO knows, all of them
                    yield Row(stage, fault=_reason(why))
                else:
                    yield Row(stage, note="skipped: openvino does not take it; TensorFlow serves it")
            except Exception as error:  # a stage that breaks has failed, however it broke
                yield Row(stage, fault=_reason(error))


def _reference(source: Source, pixels: Array, step: Step) -> tuple[Answers, Wanted]:
    card = source.card
    found = in_batches(lambda some: {"probabilities": source.reference(some)}, pixels, step)
    probabilities = found.probabilities
    if probabilities.shape != (len(pixels), len(card.labels)):
        raise Fault(f"gives {probabilities.shape[-1]} classes, and the card has {len(card.labels)} labels")
    if not np.isfinite(probabilities).all():
        raise Fault("gives no number (NaN or infinite): train it again with a lower rate")
    if probabilities.min() < 0 or np.abs(probabilities.sum(axis=1) - 1).max() > 0.01:
        raise Fault("gives what are no probabilities: a picture's do not add up to 1")
    heat = heatmaps(source.model, pixels[:EXPLAINED]) if source.model and card.heatmap else None
    return found, Wanted(probabilities, heat, _familiarity(source, pixels[:EXPLAINED]))


def _familiarity(source: Source, pixels: Array) -> Array | None:
    if source.familiarity is None or source.model is None:
        return None
    pool, _ = split(source.model)
    pooled = keras.Model(source.model.input, pool.output)
    return source.familiarity.score(pooled.predict(pixels.astype(np.float32), batch_size=AT_ONCE, verbose=0))


# ------------------------------------------------------------------------------------------------------ the pictures


def _replay(chosen: Pictures, card: Card) -> Replay:
    left, pixels = readable(chosen, card.height, card.width)
    smooth = _smooth(card)
    bodies: list[Body] = [partial(encoded, one) for one in smooth]
    return Replay(
        left, np.concatenate([smooth, pixels]), bodies + [picture.path.read_bytes for picture in left.pictures]
    )


def _smooth(card: Card) -> Array:
    """The same ones each time, of every brightness and colour."""
    coarse = np.random.default_rng(0).integers(0, 256, (SMOOTH, 7, 7, 3)).astype(np.uint8)
    size = (card.width, card.height)
    return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in coarse])


# ---------------------------------------------------------------------------------------------------------- for people


@contextmanager
def _bars() -> Iterator[Callable[[str, int], Step]]:
    """On stdout, since TensorFlow's own notes are kept off stderr; nothing where there is no terminal."""
    console = Console()
    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def bar(stage: str, total: int) -> Step:
            return partial(progress.advance, progress.add_task(f"parity: {stage}", total=total))

        yield bar


def _reason(error: Exception) -> str:
    """In words that follow the stage's name."""
    if isinstance(error, Fault):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(IDLE_LINES) and "src/" not in line]
    return f"breaks: {(telling or [type(error).__name__])[0][:LONGEST]}"
