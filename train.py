"""Train a classifier on your pictures and publish it.

    python train.py                              # the drawn sample: data/tires → runs/tires/ → models/tires/<version>/
    python train.py photos                       # Xception, its weights from ImageNet: photos/<class>/*.jpg
    python train.py --check photos               # look at the data first, train nothing
    python train.py photos --backbone mobilenetv2 --fine-tune 30
    python train.py photos --tune 30 --tune-size 150 --certain 0.98
    python train.py --recipe kitchenware kaggle  # a known problem's settings; any flag on top
    python train.py photos --resume              # go on after a kill, as if nothing had happened

DATA is a folder a class; train, validation and test folders of these; or pictures with a CSV. What is missing of the
three is cut from training. runs/<name>/report.html tells how good the model is, and what is wrong with the data.
Ctrl-C ends training and keeps the best state so far beside the run, unpublished; --resume goes on from there.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.training.settings import Settings, add_flags

if TYPE_CHECKING:
    from loupe.training.data.dataset import Dataset
    from loupe.training.run import Run

SAMPLE, SAMPLE_RECIPE = Path("data/tires"), "sample"
LOOK = 128  # px, the size that --check reads at


def main() -> int:
    started = time.monotonic()
    args, settings = arguments()
    name = settings.name or slug(args.data)
    if not args.check and not find_spec("keras"):
        raise ModuleNotFoundError(name="keras")  # now, and not after all pictures are read
    if not args.no_publish and not args.check:
        check_writable(args.models)
    if args.data == SAMPLE and not SAMPLE.exists():
        draw_sample()

    from loupe.training.data.dataset import Source, read

    source = Source(
        args.data,
        Path(settings.csv) if settings.csv else None,
        Path(settings.images) if settings.images else None,
        settings.id_column,
        settings.label_column,
    )
    splits: dict[str, Any] = {"validation_share": settings.validation, "test_share": settings.test}
    if args.check:
        from loupe.training.data.doctor import examine

        with tempfile.TemporaryDirectory() as spill:
            data = read(source, LOOK, LOOK, settings.seed, Path(spill), **splits, fewest=0)
            print(data.summary(name, settings.size))
            print(examine(data, settings.size).table())
        return 0

    from loupe.training.run import Run

    about = {**asdict(settings), "data": str(args.data.resolve())}
    with Run(args.runs, name, about, args.resume, args.fresh) as run:
        data = read(source, settings.size, settings.size, settings.seed, run.part, **splits)
        run.same_pictures(data.digest)
        if run.finished_before():
            print(f"{run.home} is finished: the same settings and pictures")
            folder, finished = run.home, True
        else:
            folder, finished = train(run, name, settings, data, cache_at=args.runs / ".features", started=started)
    if not finished:
        print(f"interrupted        --resume goes on; `python convert.py {folder}` publishes the best so far")
        return 130
    if args.no_publish:
        print(f"not published      `python convert.py {folder}` does it")
        return 0
    try:
        publish(folder, args.models, name)
    except (UserError, KeyboardInterrupt):
        print(f"not published      the run is whole: `python convert.py {folder}` publishes it")
        raise
    return 0


def train(run: Run, name: str, settings: Settings, data: Dataset, cache_at: Path, started: float) -> tuple[Path, bool]:
    """The run's folder, and whether training came to its end."""
    from loupe.training.data.doctor import examine

    findings = examine(data)
    print(data.summary(name))
    print(findings.table())
    run.write("dataset.json", findings.to_dict())
    read_in = time.monotonic() - started

    # TensorFlow takes seconds to load and chats: only once the arguments and the pictures are right.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from loupe.training.artifacts import closing, write
    from loupe.training.fit.feature_cache import Cache
    from loupe.training.network.devices import prepare
    from loupe.training.pipeline import Pipeline

    cache = Cache(cache_at, settings.cache_gb * 1e9)
    pipeline = Pipeline(settings, data, prepare(settings.precision), run.state, cache)
    pipeline.seconds["reading"] = read_in
    finished = pipeline.train()
    result = pipeline.evaluate()
    command = f"python train.py {shlex.join(sys.argv[1:])}".strip()
    write(run.part, name, pipeline, result, findings, command, time.monotonic() - started)
    folder = run.keep() if finished else run.keep_interrupted()
    print(closing(result, pipeline, folder, time.monotonic() - started))
    return folder, finished


def publish(folder: Path, models: Path, name: str) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from loupe.card import Card
    from loupe.export.convert import publish
    from loupe.export.publish.publication import versions

    home = models / name
    for version in reversed(versions(home) if home.is_dir() else []):
        with suppress(UserError):  # a damaged card of an old version
            before = Card.read(home / str(version) / "assets.extra" / "card.json")
            if before.training == Card.read(folder / "card.json").training:
                print(f"published before   {home / str(version)}")
                break
    else:
        print(f"published          {publish(folder, models)}")
    print(f"next               {serving(models, name)} serves it")


def arguments() -> tuple[argparse.Namespace, Settings]:
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "data",
        type=Path,
        nargs="?",
        metavar="DATA",
        help="a folder a class, or train and test folders of these, or pictures with a CSV (the drawn sample)",
    )
    add("--recipe", metavar="FILE", help="settings of a known problem: a TOML file, or a name in recipes/")
    add("--check", action="store_true", help="look at the data and say what is wrong with it; train nothing")
    add("--resume", action="store_true", help="go on with a run that was killed or interrupted")
    add("--fresh", action="store_true", help="discard an unfinished run of this name")
    add("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (runs)")
    add("--models", type=Path, default=Path("models"), metavar="DIR", help="where versions are published (models)")
    add("--no-publish", action="store_true", help="stop once the run is written")
    add_flags(parser)
    args = parser.read()
    if args.resume and args.fresh:
        raise UserError("--resume goes on with an unfinished run, --fresh discards it: give one of the two.")
    if args.data is None:
        if args.recipe not in (None, SAMPLE_RECIPE):
            raise UserError(
                f"--recipe {args.recipe} needs the pictures' folder: python train.py --recipe {args.recipe} DATA"
            )
        args.data, args.recipe = SAMPLE, SAMPLE_RECIPE
    return args, settings_of(args)


def settings_of(args: argparse.Namespace) -> Settings:
    """The defaults, what the recipe has in their place, and the flags above both."""
    from loupe.training.recipes import load
    from loupe.training.settings import check, names

    given = {key: getattr(args, key) for key in names() if hasattr(args, key)}
    settings = Settings().having(load(args.recipe) if args.recipe else {}).having(given)
    check(settings)
    return settings


def slug(data: Path) -> str:
    """A folder's name as a model's: letters, digits, '-', '_' and '.'."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", data.resolve().name).strip("-._").lower()
    if not name:
        raise UserError(f"{data.resolve().name!r} cannot be a model's name: give one by --name.")
    return name


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


if __name__ == "__main__":
    run_script(main)
