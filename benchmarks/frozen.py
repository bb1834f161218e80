"""A frozen backbone's features computed once, against the usual way: every picture decoded and sent through it in
every epoch. The same pictures, splits, head, seed and number of epochs.

    python benchmarks/frozen.py DATA --size 150 --epochs 20

prints both wall times and processor times, and both accuracies on the validation pictures. The first is `train.py` as
people run it, with all that it does besides (a check of the data, calibration, the report); the second a bare loop.
With `--tune 30` it times the search on those features as well, against the one pass that cached them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loupe.cli import Parser, run_script
from loupe.training.settings import HEAD  # which begins at random both ways, other than the default

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Random weights whose batch normalisation has seen pictures: without that hardly anything gets through so many layers,
# and with it the features tell something, so that there are accuracies to compare.
MAKE = """
import sys, keras, numpy as np
from loupe.training.network.backbones import build_trunk
keras.utils.set_random_seed(1)
trunk = build_trunk(sys.argv[1], 150, 150)
for layer in trunk.layers:
    if hasattr(layer, "momentum"):
        layer.momentum = 0.5
coarse = np.random.default_rng(1).integers(0, 256, (8, 32, 10, 10, 3)).astype("float32")
for batch in coarse:
    trunk(keras.ops.image.resize(batch, (150, 150)), training=True)
trunk.save(sys.argv[2])
"""


def main() -> None:
    # The arguments.
    parser = Parser(__doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="a folder with train/ and validation/, of a folder a class each")
    add("--backbone", metavar="NAME", default="xception", help="(xception)")
    add("--size", type=int, metavar="PX", default=150, help="of its input (150)")
    add("--epochs", type=int, metavar="N", default=20, help="of both ways (20)")
    add("--lr", type=float, metavar="X", default=3e-3, help="learning rate of both (3e-3)")
    add("--tune", type=int, metavar="N", default=0, help="trials of a search that is timed as well (0)")
    arguments = parser.read()
    if os.environ.get("LOUPE_USUAL_WAY"):
        usual_way(arguments)
        return
    # Loupe's way: features once.
    with tempfile.TemporaryDirectory() as folder:
        arguments.weights = os.environ["LOUPE_WEIGHTS"] = str(Path(folder) / "backbone.keras")
        subprocess.run([sys.executable, "-c", MAKE, arguments.backbone, arguments.weights], cwd=ROOT, check=True)
        cached_time = timed([sys.executable, "train.py", *flags(arguments, Path(folder))])
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text())
        # Seconds of the features, and below those of the search alone.
        feature = metrics["seconds"]["features"]
        print(f"once      {cached_time}, of these {feature:.0f} s for the features; {best(folder)}", flush=True)
        if arguments.tune:
            tuned = timed([sys.executable, "train.py", *flags(arguments, Path(folder)), "--tune", str(arguments.tune)])
            search = json.loads((Path(folder) / "run" / "metrics.json").read_text())["seconds"]["tuning"]
            print(
                f"--tune {arguments.tune} {tuned}; the search alone {search:.0f} s, {search / feature:.2f} of the pass",
                flush=True,
            )
        # The usual way, in a process of its own.
        os.environ["LOUPE_USUAL_WAY"] = "1"
        print(f"usual     {timed([sys.executable, *sys.argv], show=True)}")


def flags(arguments: argparse.Namespace, folder: Path) -> list[str]:
    options = {"backbone": arguments.backbone, "weights": arguments.weights, "size": arguments.size, "lr": arguments.lr}
    options |= {"epochs": arguments.epochs, "patience": arguments.epochs, "name": "run", "runs": folder, "head": HEAD}
    return [str(arguments.data), "--no-publish", *(f"--{key}={value}" for key, value in options.items())]


def timed(command: list[str], show: bool = False) -> str:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.run(command, cwd=ROOT, text=True, stdout=None if show else subprocess.PIPE)
    if process.returncode:
        sys.exit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{time.monotonic() - started:.0f} s, {processor:.0f} s of processor time"


def best(folder: str) -> str:
    rows = [line.split(",") for line in (Path(folder) / "run" / "history.csv").read_text().splitlines()]
    column = rows[0].index("val_accuracy"), rows[0].index("val_loss")
    row = min(rows[1:], key=lambda row: float(row[column[1]]))
    return f"validation accuracy {float(row[column[0]]):.1%}"


def usual_way(arguments: argparse.Namespace) -> None:
    """Train as tutorials do: the whole network in `fit`, pictures decoded as they are needed."""
    import keras
    import numpy as np

    from loupe.images.api import decode
    from loupe.training.data.dataset import Source, read
    from loupe.training.network.backbones import build_trunk, freeze, with_head
    from loupe.training.settings import Settings

    # The same settings and splits as train.py.
    options = {"backbone": arguments.backbone, "epochs": arguments.epochs, "lr": arguments.lr, "head": HEAD}
    settings = Settings().having(options).resolved
    with tempfile.TemporaryDirectory() as spill:  # for the same splits
        data = read(Source(arguments.data), 32, 32, settings.seed, Path(spill))
    side = arguments.size

    # Batches that decode their pictures.
    class Files(keras.utils.PyDataset):  # type: ignore[misc]
        def __init__(self, rows: Any) -> None:
            super().__init__(workers=2)
            self.rows = rows

        def __len__(self) -> int:
            return -(-len(self.rows) // 32)

        def __getitem__(self, number: int) -> tuple[Any, Any]:
            batch_rows = self.rows[number * 32 : number * 32 + 32]
            pixels = [decode(data.pictures[row].file.path.read_bytes(), side, side) for row in batch_rows]
            return np.stack(pixels).astype(np.float32), np.eye(len(data.labels), dtype=np.float32)[
                data.classes[batch_rows]
            ]

    # The same network and optimiser.
    keras.utils.set_random_seed(settings.seed)
    trunk = build_trunk(arguments.backbone, side, side, os.environ["LOUPE_WEIGHTS"])
    keras.utils.set_random_seed(settings.seed)
    model = with_head(trunk, len(data.labels), settings.head or 0, settings.dropout or 0.0)
    freeze(model, 0)
    steps = settings.epochs * len(Files(data.train)) if settings.epochs else 0
    rate = keras.optimizers.schedules.CosineDecay(
        (settings.lr or 0) / 100, steps - steps // 10, alpha=0.01, warmup_target=settings.lr, warmup_steps=steps // 10
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=settings.decay),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    # Train, and print the accuracy of the best epoch.
    order = np.random.default_rng(settings.seed).permutation(data.train)
    history = model.fit(Files(order), validation_data=Files(data.validation), epochs=settings.epochs, verbose=0).history
    chosen_epoch = int(np.argmin(history["val_loss"]))
    print(f"usual     validation accuracy {history['val_accuracy'][chosen_epoch]:.1%}")


if __name__ == "__main__":
    run_script(main)
