"""Draw the sample data set: pictures of tires, cracked and normal.

    python data/tires.py                      # data/tires/<split>/<class>/*.jpg
    python data/tires.py --out DIR --seed 7   # somewhere else, other pictures
    python data/tires.py --force              # draw again over what is there

The splits are training_data and testing_data, the classes cracked and normal.

From Python: `draw(Path("data/tires"), seed=42)`. A picture depends on the seed,
its split, its class and its index alone, so the order of drawing does not
matter. Both classes share every nuisance: size, view, light, exposure,
contrast, noise, blur, grooves, lettering, dirt, scratches. Normal pictures
often bear dark thin lines too, but smooth ones: the branching and the jagged
course are what tells.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

OUT = Path("data/tires")
CLASSES = ("cracked", "normal")
SPLITS = {"training_data": 400, "testing_data": 120}
MARK = "drawn.json"  # tells a folder made here from one that is not ours to replace


def _draw_one(task: tuple[Path, int, int, int, int]) -> None:
    from data.tire_picture import save  # numpy and Pillow, which only the processes that draw need

    path, *seed = task
    save(path, tuple(seed), cracked=CLASSES[task[3]] == "cracked")


def _drawn(out: Path) -> dict[str, Any] | None:
    """Return the note of an earlier drawing in the folder, or None."""
    try:
        note = json.loads((out / MARK).read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def draw(out: Path = OUT, seed: int = 42, splits: dict[str, int] = SPLITS, force: bool = False) -> bool:
    """Draw the set into `out`, or return False if it is there already. A killed run leaves at most `out`.part."""
    # Refuse to replace folders that were not drawn here.
    out = Path(out).resolve() if out.name in ("", "..") else out
    staging, note = out.with_name(out.name + ".part"), {"seed": seed, **splits}
    for folder in (out, staging):
        if folder.exists() and _drawn(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} was not drawn by data/tires.py: move it away, or choose another --out.")
    # The pictures to draw; if all are there, nothing is done.
    names = [
        Path(split) / label / f"{index:03}.jpg"
        for split, count in splits.items()
        for label in CLASSES
        for index in range(count // len(CLASSES))
    ]
    if not force and _drawn(out) is not None:
        unknown_files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()} - {*names, Path(MARK)}
        if _drawn(out) != note or unknown_files:
            content = f"also {min(unknown_files)}" if unknown_files else f"another drawing ({_drawn(out)})"
            raise FileExistsError(f"{out} holds {content}: add --force to draw over it all.")
        if all((out / name).is_file() for name in names):
            return False
    # An empty folder beside.
    shutil.rmtree(staging, ignore_errors=True)
    for split in splits:
        for label in CLASSES:
            (staging / split / label).mkdir(parents=True)
    (staging / MARK).write_text(json.dumps(note) + "\n")
    # Draw in several processes.
    tasks = [
        (staging / name, seed, list(splits).index(name.parts[0]), CLASSES.index(name.parts[1]), int(name.stem))
        for name in names
    ]
    processes, ignore_ctrl_c = (
        min(os.cpu_count() or 1, 8),
        (signal.SIGINT, signal.SIG_IGN),
    )  # only this process handles Ctrl-C
    with multiprocessing.get_context("spawn").Pool(processes, signal.signal, ignore_ctrl_c) as pool:
        for done, _ in enumerate(pool.imap_unordered(_draw_one, tasks, chunksize=4), 1):
            if sys.stderr.isatty():
                end = "\n" * (done == len(tasks))
                print(f"\rdrawing {out}: {done} of {len(tasks)} pictures", end=end, file=sys.stderr)
    # Put the folder into place.
    if out.exists():
        shutil.rmtree(out)
    staging.rename(out)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", default=OUT, help="folder to make (data/tires)")
    parser.add_argument("--seed", type=int, metavar="N", default=42, help="another seed, other pictures (42)")
    parser.add_argument("--force", action="store_true", help="draw again over an earlier drawing")
    args = parser.parse_args()
    if args.seed < 0:
        parser.error("--seed is a whole number from 0 up")
    try:
        if not draw(args.out, args.seed, force=args.force):
            print(f"{args.out}: all pictures are there already (--force draws them again).")
    except OSError as error:
        print(f"tires.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntires.py: interrupted, nothing was drawn", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
