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
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from loupe.cli import Parser, plain, run_script
from loupe.errors import LoupeError, Unauthorized, UserError

if TYPE_CHECKING:
    from loupe.client.bulk.find import Findings
    from loupe.client.bulk.lock import Lock
    from loupe.client.bulk.row import Row
    from loupe.client.bulk.run import Outputs
    from loupe.client.bulk.submission import Form
    from loupe.client.bulk.summary import Summary
    from loupe.client.model import Model

SAMPLE = Path(__file__).resolve().parent / "models" / "tires"


def main() -> int:
    from loupe.client.bulk.stdout import keep_streams

    # Check the arguments and find the pictures, both before a model is loaded.
    keep_streams()
    args = arguments()
    found = None if args.submission else find_pictures(args)
    if found:
        check_found(found)
    with ExitStack() as stack:
        lock = stack.enter_context(lock_of(args)) if args.csv_file else None
        model = stack.enter_context(open_model(args))
        form = None
        if args.submission:
            found, form = find_asked(args, model)
            check_found(found)
        assert found
        # Begin, or go on.
        done = rows_done(args, model, found, lock) if args.resume and lock else []
        if lock and not args.resume:
            lock.begin(model, args.model)
        # Classify, and tell what came of it.
        return classify(args, model, found, done, form)


def classify(args: argparse.Namespace, model: Model, found: Findings, done: list[Row], form: Form | None) -> int:
    """Return the exit status."""
    from loupe.client.bulk.run import run
    from loupe.client.bulk.stdout import ReaderGone
    from loupe.client.bulk.summary import Summary

    outputs = outputs_of(args, done)
    summary = Summary(model.labels, truths_given=bool(args.label_column), before=len(done))
    started = time.monotonic()
    try:
        run(model, found.pictures, outputs, done, summary)
        tell(args, summary, found, started)
    except (KeyboardInterrupt, LoupeError) as error:
        # What is done is told; on stderr, as stdout may be what failed.
        if isinstance(error, ReaderGone):
            print(kept(args, summary, len(found.pictures)), file=sys.stderr)
            return 1
        if summary.count:
            tell(args, summary, found, started, stream=sys.stderr)
        print(kept(args, summary, len(found.pictures)), file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            return 130
        raise
    if form and outputs.rows is not None:
        missing = form.write(args.output, outputs.rows, model.card)
        note = f"; {missing:,} have no usable picture and say what is likeliest without one" if missing else ""
        print(f"{args.output}: {len(form.ids):,} rows{note}", file=sys.stderr)
    return 1 if summary.failed or summary.unsorted or found.unreadable else 0


def arguments() -> argparse.Namespace:
    parser = Parser(__doc__, usage="%(prog)s [PICTURE …] [flags]")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="a file, folder, glob or address; - for a list")
    # Which model.
    add = parser.add_argument_group("the model", "On this machine, or at a server.").add_argument
    add("--model", default=str(SAMPLE), metavar="WHERE", help="a folder, http://… or grpc://… (models/tires)")
    add("--name", metavar="NAME", help="which model of a TensorFlow Serving to ask")
    add("--version", type=int, metavar="N", help="of a folder's model (the newest)")
    add("--engine", choices=("openvino", "tensorflow", "auto"), help="of a folder's model (openvino)")
    add("--labels", default="", metavar="A,B,…", help="of a model that Loupe did not make")
    add("--preprocess", default="", metavar="NAME", help="how such a model's pixels are made, as LOUPE_PREPROCESS")
    add("--patience", type=float, metavar="S", help="seconds to ask again while a server is away (30)")
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
    add("--output", type=Path, metavar="FILE", help="of --submission (submission.csv)")
    add("--resume", action="store_true", help="go on with the --csv that was broken off")
    add("--quiet", action="store_true", help="no line a picture, only the summary")
    args = parser.read()
    check(args)
    check_model(args)
    check_outputs(args)
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
    if args.submission and (args.id_column or args.label_column or args.top):
        raise UserError("--id-column, --label-column and --top do not go with --submission: its sample says it all.")
    if args.output and not args.submission:
        raise UserError("--output belongs to --submission; other tables are written by --csv, --json and --jsonl.")
    if args.link and not args.sort_into:
        raise UserError("--link says how --sort-into works: give both.")
    if args.top is not None and args.top < 1:
        raise UserError("--top must be 1 or more.")


def check_model(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect on such a model, and fill in those that were not given."""
    is_address = "://" in args.model
    useless = {"--version": args.version, "--engine": args.engine} if is_address else {
        "--name": args.name, "--key": args.key, "--patience": args.patience
    }  # fmt: skip
    for flag, value in useless.items():
        if value is not None:
            kind = "an address" if is_address else "a folder"
            raise UserError(f"{flag} has no effect where --model is {kind}; leave it out.")
    if args.model.startswith("grpc://") and "/" not in args.model[7:].rstrip("/") and not args.name:
        raise UserError(f"Which model at {args.model}? --name says it, such as --name tires.")
    args.engine = args.engine or "openvino"
    args.patience = 30.0 if args.patience is None else args.patience


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written or would destroy something. Sets args.csv_file, unless it is a stream."""
    from loupe.client.bulk.target import OURS, STDOUT, STDOUTS, Target, check_targets, is_stream, part_of, path_of

    # Which outputs there are.
    for kind in ("csv", "json", "jsonl"):
        if getattr(args, kind) in STDOUTS:
            setattr(args, kind, STDOUT)
    if [args.csv, args.json, args.jsonl].count(STDOUT) > 1:
        raise UserError("Only one of --csv, --json and --jsonl can go to stdout.")
    targets = {f"--{kind}": Target(getattr(args, kind), OURS[kind]) for kind in OURS if getattr(args, kind)}
    if args.submission:
        from loupe.client.bulk.submission import beginnings

        args.output = args.output or Path("submission.csv")
        targets["--output"] = Target(str(args.output), beginnings(args.submission))
    # Nothing that is read, or is not ours, is replaced.
    check_targets(targets, [*args.pictures, *(str(table) for table in (args.ids, args.submission) if table)])
    # An earlier run's part is neither lost nor made up.
    args.csv_file = path_of(args.csv) if args.csv and args.csv != STDOUT and not is_stream(args.csv) else None
    if args.resume and (not args.csv_file or args.json or args.jsonl or args.submission):
        raise UserError("--resume goes on with a CSV file: give --csv FILE, and no other output file.")
    if args.csv_file and not args.resume and part_of(args.csv_file).exists():
        raise UserError(
            f"{part_of(args.csv_file)} is left from a run that was broken off, or belongs to one that is running: "
            "--resume goes on with it; delete it to begin anew."
        )


def lock_of(args: argparse.Namespace) -> Lock:
    from loupe.client.bulk.lock import Lock
    from loupe.client.bulk.target import part_of

    if args.resume and not part_of(args.csv_file).exists():
        raise UserError(f"There is nothing to resume: {part_of(args.csv_file)} is not there.")
    return Lock(args.csv_file)


def find_pictures(args: argparse.Namespace) -> Findings:
    from loupe.client.bulk import find, ids

    if args.ids:
        return ids.find_ids(args.ids, args.images, args.id_column, args.label_column)
    words: list[str] = []
    for word in args.pictures:
        words += find.lines(sys.stdin.buffer.read()) if word == "-" else [word]
    return find.find(words, without=args.sort_into)


def find_asked(args: argparse.Namespace, model: Model) -> tuple[Findings, Form]:
    """Return the pictures that a sample submission asks for, and the form to fill in."""
    from loupe.client.bulk.ids import find_ids
    from loupe.client.bulk.submission import Form

    form = Form.read(args.submission, model.labels)
    return find_ids(args.submission, args.images, form.header[0], None), form


def check_found(found: Findings) -> None:
    for folder in found.unreadable:
        print(f"cannot be read: {plain(folder)}", file=sys.stderr)
    if not found.pictures:
        others = f"; its {found.others:,} files are no pictures by their names" if found.others else ""
        raise UserError(f"No picture was found{others}. Name files, or a folder with JPEG, PNG or the like.")


def open_model(args: argparse.Namespace) -> Model:
    from loupe.client.connect import connect, load

    labels = [label.strip() for label in args.labels.split(",")] if args.labels else []
    if "://" in args.model:
        try:
            return connect(
                args.model,
                model=args.name,
                key=args.key,
                labels=labels,
                preprocess=args.preprocess,
                patience=args.patience,
            )
        except Unauthorized as error:
            raise UserError(f"{error} --key gives it.") from error
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


def rows_done(args: argparse.Namespace, model: Model, found: Findings, lock: Lock) -> list[Row]:
    from loupe.client.bulk.table_file import done_before

    done = done_before(args.csv_file, [each.picture.name for each in found.pictures], model.batch)
    lock.check(model, args.model)
    return done


def tell(
    args: argparse.Namespace, summary: Summary, found: Findings, started: float, stream: TextIO | None = None
) -> None:
    """Print the summary: on stdout, unless a table goes there."""
    from loupe.client.bulk import stdout

    if summary.count == 1 and not summary.failed and not args.csv and not args.quiet:  # its line has said it all
        return
    text = summary.text(time.monotonic() - started)
    if found.others:
        one = found.others == 1
        text += f"\n{found.others:,} other {'file is no picture' if one else 'files are no pictures'} by "
        text += f"{'its name, and was' if one else 'their names, and were'} left alone"
    if found.links:
        text += f"\n{found.links:,} folders that are links were not followed"
    if stream or "-" in (args.csv, args.json, args.jsonl):
        print(text, file=stream or sys.stderr, flush=True)
    else:
        stdout.write(f"{text}\n", flush=True)


def kept(args: argparse.Namespace, summary: Summary, count: int) -> str:
    from loupe.client.bulk.target import part_of

    done = f"{summary.count:,} of {count:,} are done"
    if args.csv_file and part_of(args.csv_file).exists():
        return f"{done} and kept in {part_of(args.csv_file)}; the same command with --resume goes on"
    return done


if __name__ == "__main__":
    run_script(main)
