"""Export a trained model as the SavedModel that TensorFlow Serving and Loupe's own model server serve.

    python convert.py runs/tires               # → models/tires/<next version>/
    python convert.py runs/tires --precision auto --int8 --keep 3
    python convert.py model.h5 --labels cup,fork --preprocess xception
    python convert.py runs/tires --to onnx     # → exports/tires-onnx/
    python convert.py --show models/tires      # what is in any SavedModel
    python convert.py --rollback tires         # the newest goes out of service

A server that watches the folder takes the new version by itself. Nothing is published unless pictures get the same
answers from the trained model, the SavedModel as TensorFlow Serving loads it, OpenVINO, and the service over HTTP.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.export.run_folder import check_run, refuse_unfinished

if TYPE_CHECKING:
    from loupe.export.source import Source

PRECISIONS = ("float32", "bfloat16", "auto")
FORMATS = ("onnx", "litert", "openvino")
OUTPUT_KINDS = ("logits", "softmax", "sigmoid")
MAX_COUNT = 1024  # of versions to keep, and of pictures in a batch
FOREIGN_FLAGS = ("labels", "preprocess", "size", "ends_in")
EXPORTS = Path("exports")
PUBLISH_FLAGS = ("precision", "int8", "keep", "warm_up", "no_parity", "publish_anyway", "few_images")


def main() -> None:
    args = arguments()
    if args.show:
        from loupe.export.publish.show import show

        print(show(args.show))
    elif args.rollback:
        from loupe.export.publish.publication import rollback

        done = rollback(args.models, args.rollback)
        print(f"out of service     version {done.withdrawn} of {args.rollback}, moved to {done.moved}")
        print(f"in service         version {done.serving}, within a second or two")
        print(f"to undo it         mv {done.moved} {done.moved.with_name(str(done.withdrawn))}")
    else:
        export(args)


def export(args: argparse.Namespace) -> None:
    # Read the model.
    if args.name:
        from loupe.card import check_name

        check_name(args.name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # deprecation warnings as well
    source = read(args)
    # Write another format, if asked for.
    if args.to:
        from loupe.export.variants import formats

        folder = (args.out or EXPORTS) / f"{source.card.name}-{args.to}"
        print(f"written            {formats.write(source, args.to, folder, args.images)}")
        return
    # Publish a version.
    from loupe.export.convert import Options, convert
    from loupe.export.publish.show import show

    options = Options(
        args.models, args.precision or "float32", args.int8, not args.no_parity, args.keep, args.images,
        few_images=args.few_images, anyway=args.publish_anyway, **({"batches": args.warm_up} if args.warm_up else {}),
    )  # fmt: skip
    folder = convert(source, options)
    print(f"published          {folder}\n")
    try:
        print(show(folder))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{folder} is published all the same") from error


def read(args: argparse.Namespace) -> Source:
    """Read a run or a model made elsewhere. TensorFlow takes seconds to load, so the arguments are checked first."""
    is_model_of_run = args.source.name == "model.keras" and (args.source.parent / "card.json").is_file()
    path = args.source.parent if is_model_of_run else args.source
    refuse_unfinished(path)
    if not path.is_file() and not (path / "saved_model.pb").exists():
        check_run(path)
        refuse_flags(args, FOREIGN_FLAGS, f"{path} is a run, whose card says that already")
        from loupe.export.source import read_run

        return read_run(path, args.name)
    from loupe.export.foreign.read import read_model

    return read_model(
        path, labels=args.labels, preprocess=args.preprocess, size=args.size, name=args.name, output=args.ends_in,
        images=args.images,
    )  # fmt: skip


def refuse_flags(args: argparse.Namespace, flags: tuple[str, ...], reason: str) -> None:
    for flag in flags:
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} does not go with this: {reason}.")


def arguments() -> argparse.Namespace:
    # Define the flags, in groups.
    parser = Parser(__doc__, usage="%(prog)s SOURCE [flags]")
    add = parser.add_argument
    add("source", type=Path, nargs="?", metavar="SOURCE", help="a finished run; or a .keras, .h5 or SavedModel")
    add("--models", type=Path, default=Path("models"), metavar="DIR", help="where versions are published (models)")
    add("--name", help="of the model (as the run's card says, or the file's name)")
    add("--images", type=Path, metavar="DIR", help="pictures to compare with, best in a folder a label (the run's own)")
    group = parser.add_argument_group("what is published", "How the version is made and checked, and which stay.")
    add = group.add_argument
    add(
        "--precision",
        choices=PRECISIONS,
        metavar="NAME",
        help="float32; bfloat16: half the size, faster where the processor has it; auto: measured here (float32)",
    )
    add("--int8", action="store_true", help="also an OpenVINO variant in int8, for Loupe's own model server")
    add("--few-images", action="store_true", help="int8 though --images has fewer than 100; the card will say so")
    add("--keep", type=count, metavar="N", help="delete all but the newest N versions afterwards")
    add("--warm-up", type=sizes, metavar="N,N", help="batch sizes that a server runs before it serves (1,2,4,8)")
    add("--publish-anyway", action="store_true", help="also a run that is no better than saying the commonest class")
    add("--no-parity", action="store_true", help="publish without comparing answers; the card will say so")
    group = parser.add_argument_group("a model that Loupe did not train", "What its file does not say of itself.")
    add = group.add_argument
    add("--labels", metavar="A,B", help="what its outputs mean, in order; or a text file of them, one a line")
    add(
        "--preprocess",
        metavar="NAME",
        help="what it expects of pixels: xception, resnet50, …; rescale: 0…1; none: 0…255 (what its own layers tell)",
    )
    add("--size", metavar="PX", help="of its input: 299, or 320x240 for height x width (what the model says)")
    add(
        "--ends-in", choices=OUTPUT_KINDS, metavar="NAME", help=f"{either(OUTPUT_KINDS)}, where its output is misjudged"
    )
    group = parser.add_argument_group("instead of publishing", "Nothing is published by these.")
    add = group.add_argument
    add("--to", choices=FORMATS, metavar="NAME", help=f"write {either(FORMATS)}, with the card beside it")
    add("--out", type=Path, metavar="DIR", help="where that goes (exports)")
    add("--show", type=Path, metavar="DIR", help="say what is in a SavedModel: signatures, names, types, shapes")
    add("--rollback", metavar="NAME", help="take a model's newest version out of service; it is moved aside")
    # Refuse those that do not go together.
    args = parser.read()
    actions = [bool(args.source), bool(args.show), bool(args.rollback)]
    if sum(actions) != 1:
        raise UserError("Give one of these: a SOURCE to export, --show DIR, or --rollback NAME. --help has examples.")
    if args.to or not args.source:
        reason = "nothing is published by --to" if args.to else "nothing is exported here"
        refuse_flags(args, PUBLISH_FLAGS, reason)
    if not args.int8:
        refuse_flags(args, ("few_images",), "it is about the pictures that --int8 is judged on")
    if not args.to:
        refuse_flags(args, ("out",), "it says where --to writes; versions are published to --models")
    if not args.source:
        refuse_flags(args, (*FOREIGN_FLAGS, "to", "name", "images"), "nothing is exported here")
    return args


def either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {MAX_COUNT}, not {text!r}")
    return int(text)


def sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({count(number.strip()) for number in text.split(",")}))


if __name__ == "__main__":
    run_script(main, "nothing was published or written: the same command begins again")
