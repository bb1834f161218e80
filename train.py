"""Train a classifier on your pictures and publish it.

    python train.py                      # the drawn sample, data/tires
    python train.py photos               # Xception, weights from ImageNet
    python train.py --check photos       # look at the data first, train nothing
    python train.py photos --backbone mobilenetv2 --fine-tune 30
    python train.py photos --tune 30 --tune-size 150 --certain 0.98
    python train.py --recipe kitchenware kaggle    # a known problem's settings
    python train.py photos --resume      # go on after a kill
    python train.py --review feedback    # look at what callers corrected
    python train.py --add feedback --from runs/photos    # and learn from it

DATA is a folder a class, photos/<class>/*.jpg; train, validation and test folders of these; or pictures with a CSV.
What is missing of the three is cut from training. What comes of it is a run, runs/<name>/, whose report.html tells how
good the model is and what is wrong with the data, and a version, models/<name>/<version>/. Ctrl-C ends training and
keeps the best state so far beside the run, unpublished; --resume goes on from there, as if nothing had happened. Flags
go over a recipe's settings, these over the defaults, which are in brackets.
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
from loupe.training.settings import Settings, add_flags, flag_of, names

if TYPE_CHECKING:
    from loupe.training.data.dataset import Dataset
    from loupe.training.run import Run

SAMPLE, SAMPLE_RECIPE = Path("data/tires"), "sample"
CHECK_SIZE = 128  # px, the size that --check reads at


def main() -> int:
    # Check the arguments, and whatever would fail only after hours.
    started = time.monotonic()
    args, settings = arguments()
    if args.review:
        from loupe.training.review.review import review

        review(args.review, args.accept, args.reject)
        return 0
    if args.add:
        return add(args, started)
    name = settings.name or model_name_of(args.data)
    if not args.check and not find_spec("keras"):
        raise ModuleNotFoundError(name="keras")  # before all pictures are read
    if not args.no_publish and not args.check:
        check_writable(args.models)
    if args.data == SAMPLE and not SAMPLE.exists():
        draw_sample()

    # Read the pictures; --check ends here.
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
            data = read(source, CHECK_SIZE, CHECK_SIZE, settings.seed, Path(spill), **splits, fewest=0)
            print(data.summary(name, settings.size))
            print(examine(data, settings.size).table())
        return 0

    # Train in the run's folder, or find the finished run.
    from loupe.training.run import Run

    inputs = {**asdict(settings), "data": str(args.data.resolve())}
    with Run(args.runs, name, inputs, args.resume, args.fresh) as run:
        data = read(source, settings.size, settings.size, settings.seed, run.staging, **splits)
        run.check_pictures(data.digest)
        if run.is_finished_already():
            print(f"{run.folder} is finished: the same settings and pictures")
            folder, finished = run.folder, True
        else:
            folder, finished = train(run, name, settings, data, cache_folder=args.runs / ".features", started=started)
    return conclude(args, folder, finished, name)


def add(args: argparse.Namespace, started: float) -> int:
    """Train the head of a finished run again, with what was accepted of a folder of corrections."""
    from loupe.training.corrections.correct import accepted, correct
    from loupe.training.corrections.finished import read_run
    from loupe.training.run import Run

    # The run and its corrections. Nothing of its pictures is read here.
    if not args.no_publish:
        check_writable(args.models)
    base = args.base if args.base.name not in ("", "..") else args.base.resolve()
    earlier = read_run(base)
    corrections, problems = accepted(args.add)
    inputs = {**earlier.inputs, "corrections": str(args.add.resolve())}
    inputs.pop("pictures", None)
    with Run(base.parent, base.name, inputs, args.resume, args.fresh) as run:
        data, changes = correct(earlier.data, corrections, problems, run.staging)
        print(changes.table())
        if not changes.count:
            print(f"nothing to add     {base} has learnt from these corrections already, or may not")
            return 0
        run.check_pictures(data.digest)
        # Its head, as a training of its own.
        name, cache = earlier.card.name, base.parent / ".features"
        folder, finished = train(run, name, earlier.settings, data, cache, started, base)
    return conclude(args, folder, finished, name)


def conclude(args: argparse.Namespace, folder: Path, finished: bool, name: str) -> int:
    """Publish the run, unless it was interrupted or --no-publish is given. Return the exit status."""
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


def train(
    run: Run,
    name: str,
    settings: Settings,
    data: Dataset,
    cache_folder: Path,
    started: float,
    base: Path | None = None,
) -> tuple[Path, bool]:
    """Train, evaluate and write the run. Return its folder, and True if training came to its end. With `base`, a
    finished run, only the head is trained, on that run's backbone."""
    from loupe.training.data.doctor import examine

    # What is odd about the data.
    findings = examine(data)
    print(data.summary(name))
    if not base:
        print(findings.table())
    run.write("dataset.json", findings.to_dict())
    read_seconds = time.monotonic() - started

    # TensorFlow takes seconds to load and prints warnings: load it only once arguments and pictures are right.
    silence_tensorflow()
    from loupe.training.artifacts import summarize, write
    from loupe.training.corrections.compare import compare
    from loupe.training.fit.feature_cache import Cache
    from loupe.training.network.devices import prepare
    from loupe.training.pipeline import Pipeline

    # Train and evaluate.
    cache = Cache(cache_folder, settings.cache_gb * 1e9)
    pipeline = Pipeline(settings, data, prepare(settings.precision), run.state, cache, base)
    pipeline.seconds["reading"] = read_seconds
    finished = pipeline.train()
    result = pipeline.evaluate()
    # Write the run and put it into place.
    command = f"python train.py {shlex.join(sys.argv[1:])}".strip()
    write(run.staging, name, pipeline, result, findings, command, time.monotonic() - started)
    comparison = compare(base, pipeline, result).lines() if base else ""  # before the run's folder is replaced
    folder = run.keep() if finished else run.keep_interrupted()
    print(summarize(result, pipeline, folder, time.monotonic() - started), *filter(None, [comparison]), sep="\n")
    return folder, finished


def silence_tensorflow() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def publish(folder: Path, models: Path, name: str) -> None:
    """Publish the run as a new version, unless a version of this very run exists."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from loupe.card import Card
    from loupe.export.convert import publish
    from loupe.export.publish.publication import versions

    model_folder = models / name
    for version in reversed(versions(model_folder) if model_folder.is_dir() else []):
        with suppress(UserError):  # a damaged card of an old version
            earlier_card = Card.read(model_folder / str(version) / "assets.extra" / "card.json")
            if earlier_card.training == Card.read(folder / "card.json").training:
                print(f"published before   {model_folder / str(version)}")
                break
    else:
        print(f"published          {publish(folder, models)}")
    print(f"next               {serve_command(models, name)} serves it")


def arguments() -> tuple[argparse.Namespace, Settings]:
    # What to do; add_flags adds the settings.
    parser = Parser(__doc__, usage="%(prog)s [DATA] [flags]")
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
    add = add_flags(parser)["where things go"].add_argument
    add("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (runs)")
    add("--models", type=Path, default=Path("models"), metavar="DIR", help="where versions are published (models)")
    add("--no-publish", action="store_true", help="stop once the run is written")
    add = parser.add_argument_group("corrections", "What callers said was wrong: looked at, and learnt.").add_argument
    add("--review", type=Path, metavar="DIR", help="look at what callers corrected (LOUPE_FEEDBACK_DIR)")
    add("--accept", metavar="1,3-7|all", help="of the last sheet; without these two flags it asks")
    add("--reject", metavar="1,3-7|all", help="what neither names waits on")
    add("--add", type=Path, metavar="DIR", help="train a run's head again, with what was accepted")
    add("--from", type=Path, metavar="RUN", dest="base", help="the finished run, such as runs/photos")
    args = parser.read()
    if args.resume and args.fresh:
        raise UserError("--resume goes on with an unfinished run, --fresh discards it: give one of the two.")
    if any((args.review, args.add, args.base, args.accept, args.reject)):
        check_corrections(args)
        return args, Settings()
    # Without DATA, train on the drawn sample.
    if args.data is None:
        if args.recipe not in (None, SAMPLE_RECIPE):
            raise UserError(
                f"--recipe {args.recipe} needs the pictures' folder: python train.py --recipe {args.recipe} DATA"
            )
        args.data, args.recipe = SAMPLE, SAMPLE_RECIPE
    return args, settings_of(args)


def check_corrections(args: argparse.Namespace) -> None:
    """Refuse combinations of the flags for corrections that contradict each other or other flags."""
    given = [flag_of(name) for name in names() if hasattr(args, name)]
    given += [f"--{name}" for name in ("recipe", "check") if getattr(args, name)]
    given += [f"{str(args.data)!r}"] * bool(args.data)
    if args.review and args.add:
        raise UserError("--review comes first and --add afterwards: give one of the two.")
    if (args.accept or args.reject) and not args.review:
        raise UserError("--accept and --reject need the folder of corrections: --review DIR.")
    if args.add and not args.base:
        raise UserError("--add needs the run whose head is trained again: --from runs/NAME.")
    if args.base and not args.add:
        raise UserError("--from needs the folder of accepted corrections: --add DIR.")
    if args.review:
        given += [f"--{name.replace('_', '-')}" for name in ("resume", "fresh", "no_publish") if getattr(args, name)]
    if given:
        reason = "--review trains nothing" if args.review else "--add takes data and settings from the run"
        raise UserError(f"{reason}: leave {given[0]} out.")


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the defaults, overridden by the recipe, overridden by the flags."""
    from loupe.training.recipes import load
    from loupe.training.settings import check

    flags = {key: getattr(args, key) for key in names() if hasattr(args, key)}
    settings = Settings().having(load(args.recipe) if args.recipe else {}).having(flags)
    check(settings)
    return settings


def model_name_of(data: Path) -> str:
    """Return the folder's name as a model's name: letters, digits, '-', '_' and '.'."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", data.resolve().name).strip("-._").lower()
    if not name:
        raise UserError(f"{data.resolve().name!r} cannot be a model's name: give one by --name.")
    return name


def serve_command(models: Path, name: str) -> str:
    if models.resolve() != Path(__file__).resolve().parent / "models":
        return f"`.venv/bin/python serve.py --models {models} --model-name {name}`"
    return "`make up`" if name == SAMPLE.name else f"`make MODEL_NAME={name} up`"


def check_writable(models: Path) -> None:
    """Refuse a models folder that cannot be written, before an hour of training."""
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
