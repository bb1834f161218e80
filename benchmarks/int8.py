"""Measure what int8 costs in answers and saves in time: a version beside the same in int8, on pictures it never saw.

    python benchmarks/int8.py models/clothing runs/clothing clothing/test

The version is the model's newest, in float32. It is quantised here as `convert.py --int8` does it, on training pictures
of the run, and measured whether convert.py would keep it or not. HELD_OUT holds a folder of pictures for each class.
McNemar's test asks whether the answers that were turned wrong and those that were turned right could be as many by
chance; p near 1 says yes. For the time both are asked in turns, so that whatever else the machine does falls on both
alike.
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
from loupe.quiet import quiet

MOST = 5_000  # held-out pictures


def main() -> None:
    # The arguments, the version and the pictures.
    parser = Parser(__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a published model, such as models/clothing")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run it came of, such as runs/clothing")
    parser.add_argument("held_out", type=Path, metavar="HELD_OUT", help="a folder a class, of pictures it never saw")
    args = parser.read()
    for folder in (args.run, args.held_out):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
    version, card = newest(args.model)
    size = (card.height, card.width)
    learnt = replay_pictures.for_quantisation(args.run, None, card.labels)
    if learnt.origin == replay_pictures.SAMPLE:
        raise UserError(f"The training pictures of {args.run} are gone, and int8 is calibrated on them.")
    held_out = replay_pictures.for_replay(None, args.held_out, card.labels, most=MOST)
    pixels, truth = replay_pictures.read_labelled(held_out, card.labels, *size)
    if truth is None:
        raise UserError(f"{args.held_out} needs a folder for each class: {', '.join(card.labels)}.")

    with tempfile.TemporaryDirectory() as scratch:
        # Quantise, and let both answer.
        variant = Path(scratch) / "int8"
        with quiet(stdout=True):
            problem = int8.quantise(version, variant, replay_pictures.read(learnt, *size))
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
    versions = model_folder.versions(model)
    if not versions:
        raise UserError(f"There is no version in {model}. Publish one: python convert.py {Path('runs') / model.name}")
    version = model / str(max(versions))
    card = Card.read(version / "assets.extra" / "card.json")
    if card.precision != "float32":
        raise UserError(f"{version} is in {card.precision}. Publish it in float32: int8 is made of that.")
    return version, card


def show(before: int8.Array, after: int8.Array, truth: int8.Array) -> None:
    was, now = before == truth, after == truth
    broken, mended = int((was & ~now).sum()), int((~was & now).sum())
    p = binomtest(broken, broken + mended).pvalue if broken + mended else 1.0
    print(f"held-out pictures   {len(truth)}")
    print(f"right               {was.mean():.1%} in float32, {now.mean():.1%} in int8")
    print(f"same label          {(before == after).mean():.1%}, {(before == after).sum()} of {len(truth)}")
    print(f"McNemar's test      {broken} turned wrong, {mended} turned right, p = {p:.2f}")


if __name__ == "__main__":
    run_script(main)
