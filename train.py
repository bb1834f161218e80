"""Train a classifier on your pictures and publish it.

    python train.py                      # the drawn sample, data/tires
    python train.py photos               # Xception, weights from ImageNet
    python train.py --check photos       # look at the data first, train nothing
    python train.py photos --backbone mobilenetv2 --fine-tune 30
    python train.py photos --tune 30 --tune-size 150 --certain 0.98
    python train.py --recipe kitchenware kaggle    # a known problem's settings
    python train.py --resume --name photos    # go on after a kill
    python train.py --review feedback    # look at what callers corrected
    python train.py --add feedback --from runs/photos    # and learn from it

DATA is a folder a class, photos/<class>/*.jpg; train, validation and test folders of these; or pictures with a CSV.
What is missing of the three is cut from training. What comes of it is a run, runs/<name>/, whose report.html tells how
good the model is and what is wrong with the data, and a version, models/<name>/<version>/. Ctrl-C ends training and
keeps the best state so far beside the run, unpublished; --resume goes on from there, as if nothing had happened. Flags
go over a recipe's settings, these over the defaults, which are in brackets. --check ends with status 1 where it finds
errors.
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
from loupe.errors import NothingLearnt, UserError
from loupe.training.settings import Settings, add_flags, flag_of, from_record, names

if TYPE_CHECKING:
    from loupe.training.corrections.finished import Finished
    from loupe.training.data.dataset import Dataset, Source
    from loupe.training.run import Run

SAMPLE, SAMPLE_RECIPE = Path("data/tires"), "sample"
MODELS = Path("models")
CHECK_SIZE = 128  # px, the size that --check reads at


def main() -> int:
    # Check the arguments, and whatever would fail only after hours.
    started = time.monotonic()
    args, given = arguments()
    if args.review:
        from loupe.training.review.review import review

        review(args.review, args.accept, args.reject)
        return 0
    if args.check:
        return check_data(args, settings_of(given))
    if not find_spec("keras"):
        raise ModuleNotFoundError(name="keras")  # before all pictures are read
    if args.resume:
        return resume(args, given, started)
    if args.add:
        return add(args, started)

    # Train in the run's folder.
    from loupe.training.run import Run

    settings, models = settings_of(given), models_of(args)
    if (settings.backbone, settings.weights) == ("efficientnetlite0", "imagenet"):
        from loupe.training.network import lite_weights

        lite_weights.check()  # before all pictures are read, too
    name = settings.name or model_name_of(args.data)
    if args.data == SAMPLE and not SAMPLE.exists():
        draw_sample()
    inputs = {**asdict(settings), "data": str(args.data.resolve()), **how_begun(args, models)}
    with Run(args.runs, name, inputs, args.fresh) as run:
        folder, finished = learn(run, name, settings, args.data, started)
    return conclude(run, folder, finished, models, name, args.publish_anyway)


def check_data(args: argparse.Namespace, settings: Settings) -> int:
    """Look at the data, and train nothing. Return 1 if there are errors."""
    from loupe.training.data.dataset import read
    from loupe.training.data.doctor import examine
    from loupe.training.data.names import printable

    if args.data == SAMPLE and not SAMPLE.exists():
        draw_sample()
    with tempfile.TemporaryDirectory() as spill:
        shares = (settings.validation, settings.test)
        source, sides = source_of(args.data, settings), (CHECK_SIZE, CHECK_SIZE)
        data = read(source, *sides, settings.seed, Path(spill), *shares, fewest=0)
        findings = examine(data, settings.size)
        print(data.summary(settings.name or printable(args.data.resolve().name), settings.size))
        print(findings.table())
    return 1 if findings.has_errors else 0


def resume(args: argparse.Namespace, given: dict[str, Any], started: float) -> int:
    """Go on with an unfinished run. Its settings, its data and where it is published are those it began with."""
    from loupe.training.corrections.finished import read_run
    from loupe.training.resume import CHANGEABLE, name_of, refuse_changes
    from loupe.training.run import Run

    runs = args.base.parent if args.base else args.runs
    of_data = args.base.name if args.base else model_name_of(args.data) if args.data else ""
    name = given.get("name") or of_data or name_of(runs)
    with Run(runs, name) as run:
        refuse_changes(run, given, {"data": args.data, "corrections": args.add})
        models = models_of(args, run.inputs)
        if "corrections" in run.inputs:
            earlier = read_run(run.folder)
            name = earlier.card.name
            learnt = learn_corrections(run, earlier, started)
        else:
            settings = from_record({**run.inputs, **{key: given[key] for key in CHANGEABLE & given.keys()}})
            learnt = learn(run, name, settings, Path(run.inputs["data"]), started)
        anyway = args.publish_anyway or bool(run.inputs.get("publish_anyway"))
    return conclude(run, *learnt, models, name, anyway)


def add(args: argparse.Namespace, started: float) -> int:
    """Train the head of a finished run again, with what was accepted of a folder of corrections."""
    from loupe.training.corrections.finished import read_run
    from loupe.training.run import Run

    models, earlier = models_of(args), read_run(args.base)
    inputs = {**earlier.inputs, "corrections": str(args.add.resolve()), **how_begun(args, models)}
    inputs.pop("pictures", None)
    with Run(args.base.parent, args.base.name, inputs, args.fresh) as run:
        learnt = learn_corrections(run, earlier, started)
    return conclude(run, *learnt, models, earlier.card.name, args.publish_anyway)


def learn(run: Run, name: str, settings: Settings, data_folder: Path, started: float) -> tuple[Path, bool]:
    """Read the pictures and train in the run's folder. Return as `train` does."""
    from loupe.training.data.dataset import read

    source, shares = source_of(data_folder, settings), (settings.validation, settings.test)
    data = read(source, settings.size, settings.size, settings.seed, run.staging, *shares)
    run.check_pictures(data.digest)
    return train(run, name, settings, data, started)


def learn_corrections(run: Run, earlier: Finished, started: float) -> tuple[Path | None, bool]:
    """Train the head of a finished run again. Return as `train` does, and no folder if there is nothing to learn."""
    from loupe.training.corrections.correct import accepted, correct

    # The run and its corrections. Nothing of its pictures is read here.
    corrections, problems = accepted(Path(run.inputs["corrections"]))
    data, changes = correct(earlier.data, corrections, problems, run.staging)
    print(changes.table())
    if not changes.count:
        print(f"nothing to add     {run.folder} has learnt from these corrections already, or may not")
        return None, True
    run.check_pictures(data.digest)
    # Its head, as a training of its own.
    return train(run, earlier.card.name, earlier.settings, data, started, earlier.folder)


def source_of(data: Path, settings: Settings) -> Source:
    from loupe.training.data.dataset import Source

    csv, images = (Path(path) if path else None for path in (settings.csv, settings.images))
    return Source(data, csv, images, settings.id_column, settings.label_column)


def models_of(args: argparse.Namespace, begun: dict[str, Any] | None = None) -> Path | None:
    """Return the folder to publish to, or None: as the flags say, else as a resumed run began. Refuse one that cannot
    be written, before an hour of training."""
    begun_models = (begun or {}).get("models", str(MODELS))
    if args.no_publish or (begun_models is None and not args.models):
        return None
    models = Path(args.models or begun_models)
    check_writable(models)
    return models


def how_begun(args: argparse.Namespace, models: Path | None) -> dict[str, Any]:
    """Return what a run keeps beside its settings, so that --resume needs no more than its name."""
    command = f"python train.py {shlex.join(sys.argv[1:])}".strip()
    where = {"models": str(models) if models else None, "publish_anyway": args.publish_anyway}
    return {"command": command, **where}


def conclude(run: Run, folder: Path | None, finished: bool, models: Path | None, name: str, anyway: bool) -> int:
    """Publish the run, unless it was interrupted or --no-publish is given. Return the exit status."""
    if not folder:
        return 0
    if not finished:
        print(f"interrupted        `{run.resume_command}` goes on")
        print(f"                   `python convert.py {folder}` publishes the best so far")
        return 130
    if not models:
        print(f"not published      `python convert.py {folder}` does it")
        return 0
    try:
        publish(folder, models, name, anyway)
    except NothingLearnt:
        print(f"not published      the run is whole: `python convert.py {folder} --publish-anyway` publishes it")
        raise
    except UserError:
        print(f"not published      the run is whole: `python convert.py {folder}` publishes it")
        raise
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"the run is whole, and `python convert.py {folder}` publishes it") from error
    return 0


def train(
    run: Run,
    name: str,
    settings: Settings,
    data: Dataset,
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
        if settings.learns_nothing:
            print(f"warning            {settings.learns_nothing}")
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
    cache = Cache(run.folder.parent / ".features", settings.cache_gb * 1e9)
    pipeline = Pipeline(settings, data, prepare(settings.precision), run.state, cache, base)
    pipeline.seconds["reading"] = read_seconds
    finished = pipeline.train()
    if not finished:
        print("interrupted        the best so far is measured and kept; Ctrl-C again leaves that out")
    result = pipeline.evaluate()
    # Write the run and put it into place.
    command = str(run.inputs.get("command", "python train.py"))
    suspects = write(run.staging, name, pipeline, result, findings, command, time.monotonic() - started)
    comparison = compare(base, pipeline, result).lines() if base else ""  # before the run's folder is replaced
    folder = run.keep() if finished else run.keep_interrupted()
    summary = summarize(result, pipeline, suspects, folder, time.monotonic() - started)
    print(summary, *filter(None, [comparison]), sep="\n")
    return folder, finished


def silence_tensorflow() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def publish(folder: Path, models: Path, name: str, anyway: bool) -> None:
    """Publish the run as a new version, unless a version of this very run exists."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from loupe.card import Card
    from loupe.export.convert import publish
    from loupe.export.publish.earlier import beside, newest_before
    from loupe.export.publish.publication import versions

    model_folder = models / name
    for version in reversed(versions(model_folder) if model_folder.is_dir() else []):
        with suppress(UserError):  # a damaged card of an old version
            earlier_card = Card.read(model_folder / str(version) / "assets.extra" / "card.json")
            if earlier_card.training == Card.read(folder / "card.json").training:
                print(f"published before   {model_folder / str(version)}")
                break
    else:
        published = publish(folder, models, anyway)
        print(f"published          {published}")
        card, before = Card.read(folder / "card.json"), newest_before(model_folder, int(published.name))
        if before and "accuracy" in card.metrics:
            back = "" if models == MODELS else f" --models {models}"
            print(f"before             {beside(*before, card, back)}")
    print(f"next               {serve_command(models, name)} serves it")


def arguments() -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the arguments, and the settings that flags or a recipe give."""
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
    add("--resume", action="store_true", help="go on with a run that was killed or interrupted: --name is enough")
    add("--fresh", action="store_true", help="discard an unfinished run of this name")
    add = add_flags(parser)["where things go"].add_argument
    add("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are kept (runs)")
    add("--models", type=Path, metavar="DIR", help="where versions are published (models)")
    add("--no-publish", action="store_true", help="stop once the run is written")
    add("--publish-anyway", action="store_true", help="also if it is no better than saying the commonest class")
    add = parser.add_argument_group("corrections", "What callers said was wrong: looked at, and learnt.").add_argument
    add("--review", type=Path, metavar="DIR", help="look at what callers corrected (LOUPE_FEEDBACK_DIR)")
    add("--accept", metavar="1,3-7|all", help="of the last sheet; without these two flags it asks")
    add("--reject", metavar="1,3-7|all", help="what neither names waits on")
    add("--add", type=Path, metavar="DIR", help="train a run's head again, with what was accepted")
    add("--from", type=Path, metavar="RUN", dest="base", help="the finished run, such as runs/photos")
    args = parser.read()
    if args.resume and args.fresh:
        raise UserError("--resume goes on with an unfinished run, --fresh discards it: give one of the two.")
    if args.resume and args.check:
        raise UserError("--check trains nothing: leave --resume out.")
    if any((args.review, args.add, args.base, args.accept, args.reject)):
        check_corrections(args)
        if args.base and args.base.name in ("", ".."):
            args.base = args.base.resolve()
        return args, {}
    # Without DATA, train on the drawn sample.
    if args.data is None and not args.resume:
        if args.recipe not in (None, SAMPLE_RECIPE):
            raise UserError(
                f"--recipe {args.recipe} needs the pictures' folder: python train.py --recipe {args.recipe} DATA"
            )
        args.data, args.recipe = SAMPLE, SAMPLE_RECIPE
    return args, given_settings(args)


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
        others = ("resume", "fresh", "no_publish", "publish_anyway")
        given += [f"--{name.replace('_', '-')}" for name in others if getattr(args, name)]
    if given:
        reason = "--review trains nothing" if args.review else "--add takes data and settings from the run"
        raise UserError(f"{reason}: leave {given[0]} out.")


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the recipe, overridden by the flags, without those that neither names."""
    from loupe.training.recipes import load

    flags = {key: getattr(args, key) for key in names() if hasattr(args, key)}
    given = {**(load(args.recipe) if args.recipe else {}), **flags}
    checked = Settings().having(given)
    return {key: getattr(checked, key) for key in given}


def settings_of(given: dict[str, Any]) -> Settings:
    """Return the defaults, overridden by what is given."""
    from loupe.training.settings import check

    settings = Settings().having(given)
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
    run_script(main, "nothing is kept: the same command begins again")
