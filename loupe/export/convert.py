"""From a trained network to a version that is served, every step of it; train.py ends by the same.

    folder = convert(read_run(Path("runs/tires")), Options())      # → models/tires/<next version>
    folder = publish(Path("runs/tires"), Path("models"))           # the same, with the defaults

Frozen, saved beside, compared with what it was made from (the parity gate), and only then renamed into place.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loupe.card import Card
from loupe.errors import UserError
from loupe.export import replay_pictures
from loupe.export.graph import warmup
from loupe.export.graph.savedmodel import Frozen, freeze, loaded, save
from loupe.export.parity.gate import gate
from loupe.export.publish.publication import publication
from loupe.export.quiet import quiet
from loupe.export.source import Source, read_run
from loupe.export.variants.precision import choose, network_in

SKIPPED = {"skipped": True}  # what the card says of parity where nobody looked


@dataclass(frozen=True)
class Options:
    models: Path = Path("models")
    precision: str = "float32"  # or bfloat16, auto
    int8: bool = False
    parity: bool = True
    keep: int | None = None  # versions; None: all
    images: Path | None = None  # pictures to compare with, where the run's own are not there
    batches: tuple[int, ...] = warmup.BATCHES  # sizes to warm up


def publish(run: Path, models: Path) -> Path:
    return convert(read_run(run), Options(models))


def convert(source: Source, options: Options) -> Path:
    for note in source.notes:
        print(f"note               {note}")
    with publication(options.models, source.card.name) as part:  # first: what cannot be written is said at once
        replayed = replay_pictures.for_replay(source.run, options.images, source.card.labels)
        source, frozen = _frozen(source, options.precision, replayed)
        with quiet():
            save(frozen, source.card, part.folder)
            left_out = warmup.write(part.folder, source.card, options.batches)
        for batch in left_out:
            print(f"note               no warm-up for {batch} pictures of this size at once: they are too many bytes")
        if options.int8:
            _add_int8(source, part.folder, options.images)
        entry = gate(part.folder, source, replayed) if options.parity else SKIPPED
        with quiet():
            _describe_anew(frozen, replace(source.card, parity=entry), part.folder)
        if options.int8:
            from loupe.export.variants import int8

            int8.bind(part.folder)
        folder = part.publish(keep=options.keep)
    print("".join(f"note               {note}\n" for note in part.notes), end="")
    return folder


def _frozen(source: Source, precision: str, replayed: replay_pictures.Pictures) -> tuple[Source, Frozen]:
    """The source with the card of what is exported, and its graph."""
    with quiet():
        if precision == "auto":
            size = (source.card.height, source.card.width)
            precision, lines = choose(source, replay_pictures.read(replayed, *size))
        else:
            lines = []
        card = replace(source.card, precision=precision)
        frozen = freeze(network_in(source, precision), card, source.familiarity)
    print("\n".join(lines), end="\n" if lines else "")
    card = replace(card, heatmap="heatmap" in frozen.outputs)
    return replace(source, card=card), frozen


def _add_int8(source: Source, folder: Path, images: Path | None) -> None:
    from loupe.export.variants import int8  # nncf and openvino: only where they are asked for

    card = source.card
    size = (card.height, card.width)
    calibration = replay_pictures.read(replay_pictures.for_calibration(source.run, images, card.labels), *size)
    judged = replay_pictures.for_replay(source.run, images, card.labels, most=int8.JUDGED)
    pixels, truth = replay_pictures.read_labelled(judged, card.labels, *size)
    with tempfile.TemporaryDirectory() as scratch:
        float32 = folder if card.precision == "float32" else Path(scratch) / "float32"
        if float32 != folder:  # only that can be quantised
            with quiet():
                plain = replace(card, precision="float32")
                save(freeze(network_in(source, "float32"), plain, source.familiarity), plain, float32)
        print(f"int8               {int8.add(folder, card, calibration, pixels, truth, float32=float32)}")


def _describe_anew(frozen: Frozen, card: Card, folder: Path) -> None:
    """The same SavedModel with the final card: it lies inside the graph, and tells what the gate found."""
    first = folder.with_name(f"{folder.name}.first")
    folder.rename(first)
    save(frozen, card, folder)
    for entry in (first / "assets.extra").iterdir():
        if not (folder / "assets.extra" / entry.name).exists():
            entry.rename(folder / "assets.extra" / entry.name)
    grey = {"image": np.full((1, card.height, card.width, 3), 128, np.uint8)}
    with loaded(first) as before, loaded(folder) as after:
        one, other = before("serving_default", grey), after("serving_default", grey)
        told = list(after("describe", {"request": np.array([b""] * 2, object)})["card"])
    same = one.keys() == other.keys() and all(np.allclose(one[name], other[name], atol=1e-6) for name in one)
    if not same or told != [card.to_json().encode()] * 2:
        raise UserError("The export changed as its card was written; nothing is published. Convert it again.")
    shutil.rmtree(first)
