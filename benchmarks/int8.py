"""Measure what int8 costs in answers and saves in time: a version beside the same in int8, on pictures it never saw.

    python benchmarks/int8.py models/clothing runs/clothing clothing/test

The version is the model's newest, in float32. It is quantised here as `convert.py --int8` does it, on training pictures
of the run, and measured whether convert.py would keep it or not. HELD_OUT holds a folder of pictures for each class.
McNemar's test asks whether as many answers were turned wrong as right, but for chance: a small p says no, a large one
only that these pictures show no difference. For the time both take turns, so that other load affects both alike.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy.stats import binomtest

from loupe.card import Card
from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.export import replay_pictures
from loupe.export.publish import model_folder
from loupe.export.variants import int8
from loupe.export.variants.int8 import Array
from loupe.quiet import quiet

MOST = 5_000  # held-out pictures, evenly of each class where there are more


def main() -> None:
    # The arguments, the version and the pictures.
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a published model, such as models/clothing")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run it came of, such as runs/clothing")
    parser.add_argument("held_out", type=Path, metavar="HELD_OUT", help="a folder a class, of pictures it never saw")
    args = parser.read()
    version, card = newest(args.model)
    if not (args.run / replay_pictures.PICTURES_FILE).is_file():
        raise UserError(f"{args.run} is no finished run: it has no {replay_pictures.PICTURES_FILE}.")
    if missing := [label for label in card.labels if not (args.held_out / label).is_dir()]:
        raise UserError(f"{args.held_out} needs a folder for each class, and has none for {', '.join(missing)}.")
    learnt = replay_pictures.for_quantisation(args.run, None, card.labels)
    if learnt.origin == replay_pictures.SAMPLE:
        raise UserError(f"The training pictures of {args.run} are gone, and int8 is calibrated on them.")
    chosen = replay_pictures.for_replay(None, args.held_out, card.labels, most=MOST)
    held_out, pixels = replay_pictures.readable(chosen, card.height, card.width)
    truth = held_out.truth(card.labels)
    if truth is None:
        raise UserError(f"No picture in {args.held_out} can be read.")
    for note in held_out.notes:
        print(f"note                {note}")

    with tempfile.TemporaryDirectory() as scratch:
        # Quantise, and let both answer.
        variant = Path(scratch) / "int8"
        with quiet(stdout=True):
            problem = int8.quantise(version, variant, replay_pictures.read(learnt, card.height, card.width))
        if problem:
            raise UserError(f"{problem}.")
        before, after = int8.load_ask(version, "float32"), int8.load_ask(variant / "model.xml", "float32")
        float32_tops, int8_tops = (int8.answers_of(ask, pixels)["probabilities"].argmax(1) for ask in (before, after))
        # Print the comparison, then the time.
        show(float32_tops, int8_tops, np.asarray(truth))
        for batch, (float32_ms, int8_ms) in int8.time_in_turns(before, after, pixels).items():
            times = f"{float32_ms:.1f} in float32, {int8_ms:.1f} in int8"
            print(f"ms a picture        {times} at batch {batch}: {float32_ms / int8_ms:.2f} × as fast")


def newest(model: Path) -> tuple[Path, Card]:
    versions = model_folder.versions(model) if model.is_dir() else []
    if not versions:
        raise UserError(f"{model} is no published model: name a folder that holds versions, such as models/clothing.")
    version = model / str(max(versions))
    card = Card.read(version / "assets.extra" / "card.json")
    if card.precision != "float32":
        raise UserError(f"{version} is in {card.precision}. Publish it in float32: int8 is made of that.")
    return version, card


def show(before: Array, after: Array, truth: Array) -> None:
    was, now = before == truth, after == truth
    broken, mended = int((was & ~now).sum()), int((~was & now).sum())
    p = binomtest(broken, broken + mended).pvalue if broken + mended else 1.0
    print(f"held-out pictures   {len(truth)}")
    print(f"right               {was.mean():.1%} in float32, {now.mean():.1%} in int8")
    print(f"same label          {(before == after).mean():.1%}, {(before == after).sum()} of {len(truth)}")
    print(f"McNemar's test      {broken} turned wrong, {mended} turned right, p = {p:.2f}")


if __name__ == "__main__":
    run_script(main)
