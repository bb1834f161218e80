"""Measure the search of the head on features that are already computed: prints seconds a trial and the share pruned.

    python benchmarks/tune.py      # 30 trials on 2,608 × 2,048 made-up features
    python benchmarks/tune.py --trials 100 --pictures 10000

There are 10 classes. The made-up features are like a backbone's: not negative, and mostly common to all classes.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from loupe.cli import Parser, run_script

CLASSES = 10
VALIDATION = 0.15  # as many pictures again, as a share
Array = np.ndarray[Any, np.dtype[Any]]


def main() -> None:
    # The arguments.
    parser = Parser(__doc__)
    parser.add_argument("--trials", type=int, default=30, help="how many (30)")
    parser.add_argument("--pictures", type=int, default=2608, help="to train on (2608)")
    parser.add_argument("--features", type=int, default=2048, help="of a picture (2048)")
    parser.add_argument("--seed", type=int, default=42, help="another seed, other features and trials (42)")
    args = parser.read()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from loupe.training.tune.search import search

    # Search, and take the time.
    x, y = features(int(args.pictures * (1 + VALIDATION)), args.features, args.seed)
    train, validation = (x[: args.pictures], y[: args.pictures]), (x[args.pictures :], y[args.pictures :])
    started, processor = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        best = search(train, validation, CLASSES, args.trials, args.seed, Path(folder) / "journal")
    seconds, processor = time.monotonic() - started, time.process_time() - processor
    # Print the result.
    pruned = sum(trial["state"] == "pruned" for trial in best.trials)
    print(f"{args.trials} trials        {seconds:.1f} s, {seconds / args.trials:.2f} s a trial")
    print(f"processor time   {processor:.1f} s, {processor / args.trials:.2f} s a trial, all cores together")
    print(f"pruned           {pruned / args.trials:.0%}")
    print(f"best             lr {best.lr:g}, head {best.head}, dropout {best.dropout:.1f}, decay {best.decay:g}: "
          f"val loss {best.val_loss:.4f}, val accuracy {best.val_accuracy:.1%}")  # fmt: skip
    for note in best.notes:
        print(note)


def features(count: int, width: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=count)
    centres = rng.normal(size=(CLASSES * 3, 32))  # three kinds a class
    latent = centres[y * 3 + rng.integers(3, size=count)] + rng.normal(size=(count, 32)) * 1.4
    x = np.maximum(0, latent @ rng.normal(size=(32, width)) / 8 + rng.normal(size=(count, width)) * 0.5)
    return x.astype(np.float16), y


if __name__ == "__main__":
    run_script(main)
