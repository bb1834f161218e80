"""Classify pictures: files, folders, addresses, by a model on this machine or a server's.

    python predict.py photo.jpg                              # by models/tires
    python predict.py photos --model models/photos --csv labels.csv
    python predict.py photos --model http://localhost:9696   # a Loupe gateway
    python predict.py photos --model grpc://host:8500 --name photos
    python predict.py 'photos/**/*.jpg' https://example.org/a.jpg --json -
    find . -name '*.jpg' | python predict.py - --jsonl out.jsonl
    python predict.py photos --sort-into sorted              # a folder a label
    python predict.py --submission sample_submission.csv --images test

A folder is searched through. Where pictures lie in folders named by the
labels, accuracy and confusions are told as well. Ctrl-C, a kill or a server
that goes away loses nothing that is done: --resume goes on with the CSV.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from loupe.cli import Parser, run_script
from loupe.errors import LoupeError, UserError

if TYPE_CHECKING:
    from loupe.client.bulk.find import Findings
    from loupe.client.bulk.row import Row
    from loupe.client.bulk.run import Outputs
    from loupe.client.bulk.submission import Form
    from loupe.client.bulk.summary import Summary
    from loupe.client.model import Model

SAMPLE = Path(__file__).resolve().parent / "models" / "tires"


def main() -> int:
    # Check the arguments and find the pictures, both before a model is loaded.
    args = arguments()
    found = None if args.submission else find_pictures(args)
    with open_model(args) as model:
        # Choose the outputs.
        from loupe.client.bulk.run import run
        from loupe.client.bulk.summary import Summary

        form = None
        if args.submission:
            found, form = find_asked(args, model)
        assert found
        check_found(found)
        done = rows_done(args, model, found) if args.resume else []
        outputs = outputs_of(args, done)
        summary = Summary(model.labels)
        # Classify, and tell what came of it.
        started = time.monotonic()
        try:
            run(model, found.pictures, outputs, done, summary)
        except (KeyboardInterrupt, LoupeError) as error:
            tell(args, summary, found, started)
            print(kept(args, summary, len(found.pictures)), file=sys.stderr)
            if isinstance(error, KeyboardInterrupt):
                return 130
            raise
        tell(args, summary, found, started)
        if form and outputs.rows is not None:
            missing = form.write(args.output, outputs.rows, model.card)
            note = f"; {missing:,} have no usable picture and say what is likeliest without one" if missing else ""
            print(f"{args.output}: {len(form.ids):,} rows{note}", file=sys.stderr)
    return 1 if summary.failed or found.unreadable else 0


def arguments() -> argparse.Namespace:
    parser = Parser(__doc__, usage="%(prog)s [PICTURE …] [flags]")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="a file, folder, glob or address; - for a list")
    # Which model.
    add = parser.add_argument_group("the model", "On this machine, or at a server.").add_argument
    add("--model", default=str(SAMPLE), metavar="WHERE", help="a folder, http://… or grpc://… (models/tires)")
    add("--name", metavar="NAME", help="which model of a TensorFlow Serving to ask")
    add("--version", type=int, metavar="N", help="of a folder's model (the newest)")
    add("--engine", default="openvino", choices=("openvino", "tensorflow", "auto"), help="of a folder's model")
    add("--labels", default="", metavar="A,B,…", help="of a model that Loupe did not make")
    add("--preprocess", default="", metavar="NAME", help="how such a model's pixels are made, as LOUPE_PREPROCESS")
    add("--patience", type=float, default=30, metavar="S", help="seconds to ask again while a server is away (30)")
    add("--key", help="of a gateway that wants one")
    # Which pictures.
    add = parser.add_argument_group("a table of pictures", "Instead of PICTURE.").add_argument
    add("--ids", type=Path, metavar="CSV", help="classify the pictures that it lists")
    add("--submission", type=Path, metavar="SAMPLE", help="fill in a competition's sample_submission.csv")
    add("--images", type=Path, metavar="DIR", help="the folder of these pictures")
    add("--id-column", metavar="NAME", help="of the CSV (id, image, filename …, or the first)")
    add("--label-column", metavar="NAME", help="of the CSV: the truth, to compare with")
    # Where to.
    add = parser.add_argument_group("the answers", "Without any of these, a line a picture.").add_argument
    add("--csv", metavar="FILE", help="a row a picture; - for stdout")
    add("--json", metavar="FILE", help="one list, with all scores")
    add("--jsonl", metavar="FILE", help="an object a line, with all scores")
    add("--top", type=int, metavar="K", help="only the K best scores")
    add("--sort-into", type=Path, metavar="DIR", help="copy each picture into a folder for its label")
    add("--link", action="store_true", help="link there instead of copying")
    add("--output", type=Path, default=Path("submission.csv"), metavar="FILE", help="of --submission (submission.csv)")
    add("--resume", action="store_true", help="go on with the --csv that was broken off")
    add("--quiet", action="store_true", help="no line a picture, only the summary")
    args = parser.read()
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other."""
    if sum(map(bool, (args.pictures, args.ids, args.submission))) != 1:
        raise UserError("Name pictures, or a table by --ids, or one by --submission: one of the three.")
    if (args.ids or args.submission) and not args.images:
        raise UserError("Name the folder of the pictures by --images.")
    if (args.images or args.id_column or args.label_column) and not (args.ids or args.submission):
        raise UserError(
            "--images, --id-column and --label-column belong to --ids; without a table name the folder alone"
        )
    if args.resume and (not args.csv or args.csv == "-" or args.json or args.jsonl or args.submission):
        raise UserError("--resume goes on with a CSV file: give --csv FILE, and no other output file.")
    if args.link and not args.sort_into:
        raise UserError("--link says how --sort-into works: give both.")
    if [args.csv, args.json, args.jsonl].count("-") > 1:
        raise UserError("Only one of --csv, --json and --jsonl can go to stdout.")
    if args.top is not None and args.top < 1:
        raise UserError("--top must be 1 or more.")
    from loupe.client.bulk.table_file import part_of

    if args.csv and not args.resume and args.csv != "-" and part_of(Path(args.csv)).exists():
        raise UserError(
            f"{part_of(Path(args.csv))} is left from a run that was broken off: --resume goes on with it; delete it to "
            "begin anew."
        )


def find_pictures(args: argparse.Namespace) -> Findings:
    from loupe.client.bulk import find

    if args.ids:
        return find.find_ids(args.ids, args.images, args.id_column, args.label_column)
    words: list[str] = []
    for word in args.pictures:
        words += find.lines(sys.stdin.buffer.read()) if word == "-" else [word]
    return find.find(words, without=args.sort_into)


def find_asked(args: argparse.Namespace, model: Model) -> tuple[Findings, Form]:
    """Return the pictures that a sample submission asks for, and the form to fill in."""
    from loupe.client.bulk import find
    from loupe.client.bulk.submission import Form

    form = Form.read(args.submission, model.labels)
    return find.find_ids(args.submission, args.images, form.header[0], None), form


def check_found(found: Findings) -> None:
    for folder in found.unreadable:
        print(f"cannot be read: {folder}", file=sys.stderr)
    if not found.pictures:
        others = f"; its {found.others:,} files are no pictures by their names" if found.others else ""
        raise UserError(f"No picture was found{others}. Name files, or a folder with JPEG, PNG or the like.")


def open_model(args: argparse.Namespace) -> Model:
    from loupe.client.connect import connect, load

    labels = [label.strip() for label in args.labels.split(",")] if args.labels else []
    if "://" in args.model:
        return connect(
            args.model,
            model=args.name,
            key=args.key,
            labels=labels,
            preprocess=args.preprocess,
            patience=args.patience,
        )
    return load(
        args.model,
        version=args.version,
        engine=args.engine,
        at_once=-1,
        labels=labels,
        preprocess=args.preprocess,
    )


def outputs_of(args: argparse.Namespace, done: list[Row]) -> Outputs:
    from loupe.client.bulk.run import Outputs
    from loupe.client.bulk.sort_into import Sorter
    from loupe.client.bulk.table_file import TableFile

    targets = {"csv": args.csv, "json": args.json, "jsonl": args.jsonl}
    return Outputs(
        tables=[TableFile(kind, target, done if kind == "csv" else []) for kind, target in targets.items() if target],
        sorter=Sorter(args.sort_into, args.link) if args.sort_into else None,
        rows={} if args.submission else None,
        show=not args.quiet and not any(targets.values()) and not args.submission,
        top=args.top,
    )


def rows_done(args: argparse.Namespace, model: Model, found: Findings) -> list[Row]:
    from loupe.client.bulk.table_file import done_before

    done = done_before(Path(args.csv), [each.picture.name for each in found.pictures], model.batch)
    versions = {row.version for row in done if row.version is not None}
    if versions - {model.version}:
        raise UserError(
            f"{args.csv} was begun with version {min(versions)} of the model, and now {model.version} answers: delete "
            f"{args.csv}.part and begin anew, or ask for --version {min(versions)}."
        )
    return done


def tell(args: argparse.Namespace, summary: Summary, found: Findings, started: float) -> None:
    """Print the summary: on stdout, unless a table goes there."""
    if summary.count == 1 and not summary.failed and not args.csv:  # its line has said it all
        return
    stream = sys.stderr if "-" in (args.csv, args.json, args.jsonl) else sys.stdout
    text = summary.text(time.monotonic() - started)
    if found.others:
        text += f"\n{found.others:,} other files are no pictures by their names, and were left alone"
    print(text, file=stream, flush=True)


def kept(args: argparse.Namespace, summary: Summary, count: int) -> str:
    done = f"{summary.count:,} of {count:,} are done"
    if args.csv and args.csv != "-":
        return f"{done} and kept in {args.csv}.part; the same command with --resume goes on"
    return done


if __name__ == "__main__":
    run_script(main)
