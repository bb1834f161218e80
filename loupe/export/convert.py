"""Export a trained network as a version that is served: all steps from source to publication.

    folder = convert(read_run(Path("runs/tires")), Options())      # → models/tires/<next version>
    folder = publish(Path("runs/tires"), Path("models"))           # the same, with the defaults; train.py ends by this

The network is frozen, saved to a staging folder and compared with its source (the parity gate). Only then is the folder
renamed into place.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loupe.card import Card
from loupe.errors import UserError
from loupe.export import replay_pictures
from loupe.export.graph import warmup
from loupe.export.graph.savedmodel import Frozen, freeze, loaded, save, write_checksum
from loupe.export.parity.gate import gate
from loupe.export.publish.learnt import refuse_what_learnt_nothing
from loupe.export.publish.publication import publication
from loupe.export.source import Array, Source, read_run
from loupe.export.variants.precision import choose, network_in
from loupe.quiet import quiet

FEWEST_FOR_INT8 = 100  # pictures of `images`: of fewer, 1 % of wrong answers is less than one
PARITY_SKIPPED: dict[str, Any] = {"skipped": True}  # the card's `parity` where the gate was left out


@dataclass(frozen=True)
class Options:
    models: Path = Path("models")
    precision: str = "float32"  # or bfloat16, auto
    int8: bool = False
    parity: bool = True
    keep: int | None = None  # how many versions; None: all
    images: Path | None = None  # a folder of pictures to compare on, instead of the run's own
    batches: tuple[int, ...] = warmup.BATCHES  # sizes to warm up
    few_images: bool = False  # int8 also where `images` has fewer than FEWEST_FOR_INT8
    anyway: bool = False  # also a model that is no better than always saying the commonest class


def publish(run: Path, models: Path, anyway: bool = False) -> Path:
    return convert(read_run(run), Options(models, anyway=anyway))


def convert(source: Source, options: Options) -> Path:
    for note in source.notes:
        print(f"note               {note}")
    if not options.anyway:
        refuse_what_learnt_nothing(source.card)
    pictures = _int8_pictures(source, options) if options.int8 else None
    # Make the staging folder first, so that a folder that cannot be written fails at once.
    with publication(options.models, source.card.name) as staging:
        # Read the pictures, freeze and save the network.
        replayed = replay_pictures.for_replay(source.run, options.images, source.card.labels)
        source, frozen = _freeze_source(source, options.precision, replayed)
        with quiet():
            save(frozen, source.card, staging.folder)
            left_out = warmup.write(staging.folder, source.card, options.batches)
        for batch in left_out:
            print(f"note               no warm-up for {batch} pictures of this size at once: they are too many bytes")
        # Add the int8 variant, then compare everything with the source.
        int8_entry = _add_int8(source, staging.folder, pictures) if pictures else {}
        parity = dict(PARITY_SKIPPED)
        if options.parity:
            labelled = replay_pictures.for_labels(options.images, source.card.labels, replayed)
            parity = gate(staging.folder, source, replayed, labelled)
        if int8_entry:
            parity = {**parity, "int8": {**(parity.get("int8") or {}), **int8_entry}}
        with quiet():
            _rewrite_card(frozen, replace(source.card, parity=parity), staging.folder)
        if options.int8:
            from loupe.export.variants import int8

            int8.bind(staging.folder)
        # Publish.
        folder = staging.publish(keep=options.keep)
    print("".join(f"note               {note}\n" for note in staging.notes), end="")
    return folder


def _freeze_source(source: Source, precision: str, replayed: replay_pictures.Pictures) -> tuple[Source, Frozen]:
    """Return the frozen graph, and the source with the card of what is exported."""
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


@dataclass(frozen=True)
class Int8Pictures:
    """Pixels to calibrate int8 on, and others to judge it on, with their classes where all have one."""

    calibration: Array
    heldout: Array
    truth: list[int] | None
    few: bool


def _int8_pictures(source: Source, options: Options) -> Int8Pictures:
    """Read the pictures for int8. Only those of the model's own tell what it loses: the run's, or a folder's."""
    from loupe.export.variants.int8 import MAX_HELDOUT

    card, size = source.card, (source.card.height, source.card.width)
    learnt = replay_pictures.for_quantisation(source.run, options.images, card.labels)
    heldout = replay_pictures.for_replay(source.run, options.images, card.labels, most=MAX_HELDOUT)
    if replay_pictures.SAMPLE in (learnt.origin, heldout.origin):
        missing = f"{source.run} has none left" if source.run else f"{card.name} brings none"
        raise UserError(
            f"--int8 is calibrated and judged on pictures of the model's own, and {missing}: name a folder of at least "
            f"{FEWEST_FOR_INT8} by --images, best in a folder a label."
        )
    pixels, truth = replay_pictures.read_labelled(heldout, card.labels, *size)
    few = options.images is not None and len(pixels) < FEWEST_FOR_INT8
    if few and not options.few_images:
        raise UserError(
            f"--int8 is calibrated and judged on at least {FEWEST_FOR_INT8} pictures, and --images {options.images} "
            f"has {len(pixels)} that can be read: name more. With --few-images these do, and the card says so."
        )
    return Int8Pictures(replay_pictures.read(learnt, *size), pixels, truth, few)


def _add_int8(source: Source, folder: Path, pictures: Int8Pictures) -> dict[str, Any]:
    """Add the variant, and return what the card says of it; nothing, where it is not kept."""
    from loupe.export.variants import int8  # imported here since it needs nncf and openvino

    card = source.card
    with tempfile.TemporaryDirectory() as scratch:
        float32 = folder if card.precision == "float32" else Path(scratch) / "float32"
        if float32 != folder:  # only a float32 SavedModel can be quantised
            with quiet():
                float32_card = replace(card, precision="float32")
                save(freeze(network_in(source, "float32"), float32_card, source.familiarity), float32_card, float32)
        verdict = int8.add(folder, card, pictures.calibration, pictures.heldout, pictures.truth, float32=float32)
    print(f"int8               {verdict}")
    if not verdict.kept:
        return {}
    counts = {"calibrated_on": len(pictures.calibration), "judged_on": len(pictures.heldout)}
    return {**counts, "few_images": True} if pictures.few else counts


def _rewrite_card(frozen: Frozen, card: Card, folder: Path) -> None:
    """Save the SavedModel again with the final card, which holds what the gate found: the card lies inside the graph.
    Then add what is known only of the final graph: its answers to the warm-up requests, and its checksum."""
    draft = folder.with_name(f"{folder.name}.first")
    folder.rename(draft)
    save(frozen, card, folder)
    for entry in (draft / "assets.extra").iterdir():
        if not (folder / "assets.extra" / entry.name).exists():
            entry.rename(folder / "assets.extra" / entry.name)
    grey = {"image": np.full((1, card.height, card.width, 3), 128, np.uint8)}
    with loaded(draft) as ask_before, loaded(folder) as ask_after:
        old, new = ask_before("serving_default", grey), ask_after("serving_default", grey)
        cards = list(ask_after("describe", {"request": np.array([b""] * 2, object)})["card"])
        warmup.record(folder, ask_after)
    same = old.keys() == new.keys() and all(np.allclose(old[name], new[name], atol=1e-6) for name in old)
    if not same or cards != [card.to_json().encode()] * 2:
        raise UserError("The export changed as its card was written; nothing is published. Convert it again.")
    write_checksum(folder)
    shutil.rmtree(draft)
