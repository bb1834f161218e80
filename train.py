"""Train a classifier on a folder of pictures and publish it.

    python train.py                          # the drawn sample: data/tires → runs/tires/ → models/tires/<version>/
    python train.py photos                   # photos/<class>/*.jpg, or photos/train/<class>/… and photos/test/<class>/…
    python train.py photos --name shoes --epochs 30
    python train.py photos --no-publish      # stop at runs/photos/; convert.py publishes it later

Ctrl-C ends training early and keeps the best state so far beside the run, unpublished.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path

from loupe.errors import UserError
from loupe.scripts import Parser, run_script

SAMPLE = Path("data/tires")


def main() -> int:
    args = arguments()
    name = args.name or args.data.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{name!r} cannot be a model's name: give one of letters, digits, '-', '_' and '.' by --name.")
    if not find_spec("keras"):
        raise ModuleNotFoundError(name="keras")  # now, and not after all pictures are read
    if not args.no_publish:
        check_writable(args.models)
    if args.data == SAMPLE and not SAMPLE.exists():
        draw_sample()

    from loupe.training.dataset import read
    from loupe.training.run import Run

    with Run(args.runs, name) as run:
        data = read(args.data, args.size, args.size, args.seed, spill=run.part)
        print(data.summary(name))

        # TensorFlow takes seconds to load and chats: only once the arguments and the pictures are right.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        import keras

        from loupe.training.fit import BEST, Plan, fit, measure
        from loupe.training.network import build

        keras.utils.set_random_seed(args.seed)
        model = build(args.size, args.size, len(data.labels))
        plan = Plan(args.epochs, args.batch_size, args.lr, args.seed)
        finished = fit(model, data, plan, run.part)
        if not (run.part / BEST).exists():
            if finished:
                raise UserError("The loss became no number at all: try again with a lower --lr.")
            raise KeyboardInterrupt  # before the first epoch's end: there is nothing to keep
        metrics = measure(run.part, data)
        run.write(data, metrics, backbone={"name": "cnn", "weights": "none", "fine_tuned_layers": 0}, seed=args.seed)
        folder = run.keep(finished)

    print(f"\ntest accuracy      {metrics['accuracy']:.1%} of {len(data.test)} pictures")
    print(f"calibration error  {metrics['ece']:.3f}")
    print(f"run                {folder}")
    if not finished:
        print(f"Interrupted: the best state so far is kept there. `python convert.py {folder}` would publish it.")
        return 130
    if args.no_publish:
        print(f"not published      `python convert.py {folder}` does it")
        return 0

    from loupe.export.publish import publish

    print(f"published          {publish(folder, args.models)}")
    print(f"next               {serving(args.models, name)} serves it")
    return 0


def arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "data",
        type=Path,
        nargs="?",
        default=SAMPLE,
        metavar="DATA",
        help="a folder a class, or train and test folders of these (data/tires, drawn if it is missing)",
    )
    add("--name", help="what the run and the model are called (DATA's name)")
    add("--epochs", type=_count, default=18, metavar="N", help="times through the training pictures (18)")
    add("--size", type=_size, default=224, metavar="PX", help="side of the model's input (224)")
    add("--batch-size", type=_count, default=8, metavar="N", help="pictures a step (8)")
    add("--lr", type=_rate, default=3e-3, metavar="RATE", help="highest learning rate (0.003)")
    add("--seed", type=_count, default=42, metavar="N", help="another seed, another start, split and order (42)")
    add("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (runs)")
    add("--models", type=Path, default=Path("models"), metavar="DIR", help="where versions are published (models)")
    add("--no-publish", action="store_true", help="stop once the run is written")
    return parser.read()


def serving(models: Path, name: str) -> str:
    if models.resolve() != Path(__file__).resolve().parent / "models":
        return f"`.venv/bin/python serve.py --models {models} --model-name {name}`"
    return "`make up`" if name == SAMPLE.name else f"`make MODEL_NAME={name} up`"


def check_writable(models: Path) -> None:
    """Now, and not after an hour of training."""
    try:
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=models):
            pass
    except OSError as error:
        raise UserError(
            f"Nothing can be published to {models} ({error.strerror}): name another by --models, or --no-publish."
        ) from error


def draw_sample() -> None:
    from data.tires import draw

    try:
        draw(SAMPLE)
    except OSError as error:
        raise UserError(f"The sample pictures cannot be drawn: {error}") from error


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def _size(text: str) -> int:
    if not text.isdecimal() or not 32 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is no size from 32 to 1024 pixels")
    return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate above 0 and up to 1")
    return rate


if __name__ == "__main__":
    run_script(main)
