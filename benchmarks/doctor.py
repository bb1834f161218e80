"""Measure what the doctor finds, and its false alarms: plants faults in a copy of a data set and prints what is found.

    python benchmarks/doctor.py photos    # photos/{train,validation}/<class>/…
    python benchmarks/doctor.py photos --pairs pairs.png    # false pairs

Planted, 20 of each: files cut short, text files called .jpg, exact copies in the other split, copies resized to 50…90 %
and saved anew (JPEG of quality 40…95, PNG, WebP), pictures under another class's label; then 5 % of all labels swapped.
A false alarm is a file, a picture in a set, or a label that nothing was done to; the data's own faults count as such.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.training.data.dataset import Dataset, Indices, Source, read
from loupe.training.data.doctor import Findings, examine
from loupe.training.data.label_errors import describe, label_errors, out_of_fold, rather_wrong

EACH = 20
MANY = 0.05  # share of all labels, in the second measurement of swapped ones
ALARMS = 0.05  # share of the untouched labels that may be doubted
SIZE = 150  # px
REPEATS = 3  # with other labels swapped
SIDE = 160  # px of a picture in --pairs
FILES = ("damaged", "empty", "no picture")
COPIES = ("leakage", "copies", "two labels", "near leakage", "near copies")


@dataclass
class Planted:
    cut: set[Path] = field(default_factory=set)
    text: set[Path] = field(default_factory=set)
    copies: set[frozenset[Path]] = field(default_factory=set)
    near: set[frozenset[Path]] = field(default_factory=set)
    swapped: dict[Path, str] = field(default_factory=dict)  # and their true labels


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("data", type=Path, help="a folder with train/ and validation/, of a folder a class each")
    parser.add_argument("--seed", type=int, default=42, help="of what is planted where (42)")
    parser.add_argument("--pairs", type=Path, help="a PNG of the pairs found that were not planted")
    args = parser.read()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        shutil.copytree(args.data, root)
        planted = plant(root, np.random.default_rng(args.seed))
        started = time.perf_counter()
        data = read(Source(root), SIZE, SIZE, args.seed, Path(folder))
        findings = examine(data)
        print(f"{len(data.pictures) + len(data.skipped):,} files looked at in {time.perf_counter() - started:.0f} s\n")
        print(findings.table(), "\n")
        print(f"{'':<38}{'found':>9}   {'false alarms':>14}")
        unplanted = files_and_copies(data, findings, planted)
        if args.pairs and unplanted:
            draw(data, unplanted, args.pairs)
        labels(data, planted, args.seed)


def plant(root: Path, rng: np.random.Generator) -> Planted:
    # Choose the pictures to plant faults in.
    train, validation = root / "train", root / "validation"
    if not (train.is_dir() and validation.is_dir()):
        raise UserError(f"{root.parent} has no train and validation folders, and copies across splits need both.")
    files = sorted(path for path in train.rglob("*") if path.is_file())
    labels = sorted(folder.name for folder in train.iterdir() if folder.is_dir())
    chosen = [files[number] for number in rng.permutation(len(files))[: 4 * EACH]]
    # Plant one fault in each.
    planted = Planted()
    for number, path in enumerate(chosen):
        label = path.parent.name
        fault, name = divmod(number, EACH)
        if fault == 0:
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * rng.uniform(0.05, 0.95))])
            planted.cut.add(path)
            text = train / label / f"text-{name}.jpg"
            text.write_text("Notes on this picture: none.\n" * int(rng.integers(1, 500)))
            planted.text.add(text)
        elif fault == 1:
            planted.copies.add(frozenset((path, Path(shutil.copy(path, validation / label / f"copy-{name}.jpg")))))
        elif fault == 2:
            planted.near.add(
                frozenset((path, _save_anew(path, (train, validation)[name % 2] / label / f"near-{name}", rng)))
            )
        else:
            wrong = str(rng.choice([other_label for other_label in labels if other_label != label]))
            planted.swapped[path.rename(train / wrong / f"swapped-{name}{path.suffix}")] = label
    return planted


def _save_anew(path: Path, target: Path, rng: np.random.Generator) -> Path:
    share = rng.uniform(0.5, 0.9)
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((round(opened.width * share), round(opened.height * share)))
    suffix = str(rng.choice([".jpg", ".jpg", ".png", ".webp"]))
    image.save(target.with_suffix(suffix), quality=int(rng.integers(40, 96)))
    return target.with_suffix(suffix)


def files_and_copies(data: Dataset, findings: Findings, planted: Planted) -> list[frozenset[Path]]:
    """Print a line for each kind of fault, and return the pairs found that were not planted."""
    # Files that are no pictures.
    total = len(data.pictures) + len(data.skipped)
    bad = {path for finding in findings.groups if finding.category in FILES for path in finding.paths}
    _line("files cut short", len(bad & planted.cut), EACH, len(bad - planted.cut - planted.text), total)
    _line("text files called .jpg", len(bad & planted.text), EACH, len(bad - planted.cut - planted.text), total)
    # Copies, exact and near.
    paths = [picture.file.path for picture in data.pictures]
    planted_pairs = planted.copies | planted.near
    sets = [
        {paths[row] for row in rows}
        for finding in findings.groups
        if finding.category in COPIES
        for rows in finding.sets
    ]
    unplanted = [frozenset(paths[row] for row in pair) for pair in data.twins]
    unplanted = [pair for pair in unplanted if pair not in planted_pairs]
    false_alarms = len({path for pair in unplanted for path in pair})
    for title, pairs in (("exact copies in the other split", planted.copies), ("resized and saved anew", planted.near)):
        hits = sum(any(pair <= rows_of_set for rows_of_set in sets) for pair in pairs)
        _line(title, hits, EACH, false_alarms, total)
    # False alarms of lighting, and pairs that were not planted.
    oddly_lit = {
        row for finding in findings.groups if finding.category in ("dark", "bright", "blurred") for row in finding.rows
    }
    _line("(dark, bright, blurred: none planted)", 0, 0, len(oddly_lit), total)
    for pair in unplanted:
        print("  not planted:", " = ".join(sorted(str(path.relative_to(data.root)) for path in pair)))
    return unplanted


def labels(data: Dataset, planted: Planted, seed: int) -> None:
    features = describe(data.pixels)
    given = data.classes
    truth = np.array(
        [data.labels.index(planted.swapped.get(picture.file.path, picture.file.label)) for picture in data.pictures]
    )
    print()
    _labels(f"{EACH} labels swapped, on disk", features, given, truth, seed)
    rng = np.random.default_rng(seed)
    for count in (EACH, round(MANY * len(truth))):
        for _ in range(REPEATS):
            swapped = truth.copy()
            rows = rng.choice(len(truth), count, replace=False)
            swapped[rows] = (truth[rows] + rng.integers(1, len(data.labels), count)) % len(data.labels)
            _labels(f"{count} labels swapped, elsewhere", features, swapped, truth, seed)


def _labels(title: str, features: Any, given: Indices, truth: Indices, seed: int) -> None:
    probabilities = out_of_fold(features, given, seed)
    wrong = given != truth
    scores = probabilities[np.arange(len(given)), given]
    limit = np.quantile(scores[~wrong], ALARMS)
    right = float((probabilities.argmax(axis=1) == truth)[~wrong].mean())
    suspects = [
        error for error in label_errors(probabilities, given, share=1.0) if error.score <= limit and wrong[error.row]
    ]
    named = sum(suspect.suggested == truth[suspect.row] for suspect in suspects)
    _line(title, int((wrong & (scores <= limit)).sum()), int(wrong.sum()), round(ALARMS * len(given)), len(given))
    print(f"  {named} with the right suggestion; the judge itself is right about {right:.1%} of untouched labels")
    listed = rather_wrong(label_errors(probabilities, given))
    false_alarms, expected = sum(not wrong[error.row] for error in listed), sum(1 - error.wrong for error in listed)
    print(f"  a report lists {len(listed)}, and expects {expected:.0f} of them to be right; {false_alarms} are")


def _line(title: str, hits: int, planted: int, alarms: int, total: int) -> None:
    share = f"{hits}/{planted}" if planted else ""
    print(f"{title:<38}{share:>9}   {alarms:>5} = {alarms / total:.2%}")


def draw(data: Dataset, pairs: list[frozenset[Path]], target: Path) -> None:
    sheet = Image.new("RGB", (2 * SIDE, SIDE * len(pairs)), "white")
    for number, pair in enumerate(pairs):
        for column, path in enumerate(sorted(pair)):
            with Image.open(path) as image:
                sheet.paste(image.convert("RGB").resize((SIDE, SIDE)), (column * SIDE, number * SIDE))
    sheet.save(target)


if __name__ == "__main__":
    run_script(main)
