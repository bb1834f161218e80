"""Measure how far a finished run can be trusted: prints calibration, certain answers, and the answers to strangers.

    python benchmarks/trust.py runs/clothing clothing/test
    python benchmarks/trust.py runs/clothing clothing/test --strangers food

Without --strangers they are made on the spot. HELD_OUT holds a folder of pictures for each of the run's classes, of
which none was in training: neither fitted the weights nor chose the state nor calibrated. The limit of familiarity is
the card's; since it was set on few calibration pictures, its false alarms on HELD_OUT stand beside it, and the
strangers found at exactly 5 % of these as well.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.strangers import strangers
from loupe.card import Card
from loupe.cli import Parser, run_script
from loupe.errors import ImageError, UserError
from loupe.familiarity import Familiarity
from loupe.images.api import decode
from loupe.images.resize import Pixels

FALSE_ALARMS = 0.05
Array = np.ndarray[Any, np.dtype[Any]]


def main() -> None:
    # The arguments and the pictures.
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run, such as runs/clothing")
    parser.add_argument("held_out", type=Path, metavar="HELD_OUT", help="a folder a class, of pictures it never saw")
    parser.add_argument("--strangers", type=Path, nargs="*", default=[], metavar="DIR", help="pictures of other things")
    args = parser.read()
    card = Card.read(args.run / "card.json")
    pixels, truth = labelled(args.held_out, card)
    strangers_by_name = {folder.name: folder_of(folder, card) for folder in args.strangers} or made(card)

    # The run's answers to held-out pictures.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from loupe.training.evaluate.evaluate import outputs_of
    from loupe.training.evaluate.metrics import ece, softmax

    model = keras.saving.load_model(args.run / "model.keras", compile=False)
    outputs = outputs_of(model, pixels, np.arange(len(pixels)))
    right = outputs.logits.argmax(axis=1) == truth
    confidence = softmax(outputs.logits / card.temperature).max(axis=1)
    ece_before = ece(softmax(outputs.logits).max(axis=1), right)
    print(f"{len(pixels)} held-out pictures, {right.mean():.1%} answered right")
    print(f"calibration error   {ece_before:.3f} → {ece(confidence, right):.3f} at temperature {card.temperature:.2f}")
    if card.certain_at is not None:
        certain = confidence >= card.certain_at
        print(f"certain             {certain.mean():.1%} of the answers, from {card.certain_at:.3f} on;", end=" ")
        print(f"{right[certain].mean():.1%} of them right" if certain.any() else "none to judge")
    # Strangers.
    familiarity = Familiarity.load(args.run / "familiarity.npz")
    scores = familiarity.score(outputs.features)
    scores_of = {
        name: familiarity.score(outputs_of(model, stranger_pixels, np.arange(len(stranger_pixels))).features)
        for name, stranger_pixels in strangers_by_name.items()
    }
    show_strangers(scores, scores_of, card.unfamiliar_below or FALSE_ALARMS)


def show_strangers(scores: Array, scores_of: dict[str, Array], limit: float) -> None:
    exact = float(np.quantile(scores, FALSE_ALARMS))
    all_scores = {**scores_of, f"all {len(scores_of)} kinds": np.concatenate(list(scores_of.values()))}
    print(f"\ncalled unfamiliar   {f'below {limit:g}':>12}  {f'at {FALSE_ALARMS:.0%} false alarms':>21}")
    print(f"{'held-out pictures':<18}  {(scores < limit).mean():>12.1%}  {(scores <= exact).mean():>21.1%}")
    for name, values in all_scores.items():
        print(f"{name:<18}  {(values < limit).mean():>12.1%}  {(values <= exact).mean():>21.1%}  of {len(values)}")


def labelled(folder: Path, card: Card) -> tuple[Pixels, Array]:
    pixels, truth = [], []
    for number, label in enumerate(card.labels):
        class_pixels = folder_of(folder / label, card)
        pixels.append(class_pixels)
        truth += [number] * len(class_pixels)
    return np.concatenate(pixels), np.array(truth)


def folder_of(folder: Path, card: Card) -> Pixels:
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Name one that holds pictures.")
    pixels = []
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        try:
            pixels.append(decode(path.read_bytes(), card.height, card.width))
        except ImageError:
            continue  # training's doctor lists these
    if not pixels:
        raise UserError(f"{folder} holds no picture that can be read. Name another.")
    return np.stack(pixels)


def made(card: Card) -> dict[str, Pixels]:
    """Return the strangers, saved to a file and read as all pictures are: resized with antialiasing."""
    pixels_of = {}
    for name, images in strangers().items():
        pixels = []
        for image in images:
            file = io.BytesIO()
            image.save(file, "PNG")
            pixels.append(decode(file.getvalue(), card.height, card.width))
        pixels_of[name] = np.stack(pixels)
    return pixels_of


if __name__ == "__main__":
    run_script(main)
