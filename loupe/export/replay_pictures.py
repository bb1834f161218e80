"""The pictures that an export is checked and calibrated on.

    chosen = for_replay(run, images, labels)      # the run's validation pictures, a folder's, or the sample's
    chosen.what, chosen.pictures, chosen.notes    # "validation", …, and what a person should know of it
    pixels = read(chosen, height, width)          # uint8, as the gateway decodes; what cannot be read is left out
    pixels, truth = read_labelled(chosen, labels, height, width)

No TensorFlow in here.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from loupe.errors import ImageError, UserError
from loupe.images.api import decode
from loupe.images.resize import Pixels

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
KEPT = "pictures.json"  # training writes it into the run
REPLAY, CALIBRATION = 128, 300  # pictures, at most
ROOM = 1_000_000_000  # bytes of pixels, at most
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif"}


@dataclass(frozen=True)
class Answered:
    """What training's own network said of a picture."""

    label: str
    confidence: float
    familiarity: float | None


@dataclass(frozen=True)
class Picture:
    path: Path
    label: str | None
    answered: Answered | None = None


@dataclass(frozen=True)
class Pictures:
    what: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    def truth(self, labels: Sequence[str]) -> list[int] | None:
        """Each picture's place among the labels; None where some bear none of these."""
        known = {label: place for place, label in enumerate(labels)}
        found = [known[picture.label] for picture in self.pictures if picture.label in known]
        return found if found and len(found) == len(self.pictures) else None


def for_replay(run: Path | None, images: Path | None, labels: Sequence[str], most: int = REPLAY) -> Pictures:
    return _choose(run, images, labels, "validation", most)


def for_calibration(run: Path | None, images: Path | None, labels: Sequence[str], most: int = CALIBRATION) -> Pictures:
    return _choose(run, images, labels, "training", most)


def read(chosen: Pictures, height: int, width: int) -> Pixels:
    return readable(chosen, height, width)[1]


def read_labelled(chosen: Pictures, labels: Sequence[str], height: int, width: int) -> tuple[Pixels, list[int] | None]:
    """The pixels, and their places among the labels where all bear one."""
    left, pixels = readable(chosen, height, width)
    return pixels, left.truth(labels)


def readable(chosen: Pictures, height: int, width: int) -> tuple[Pictures, Pixels]:
    """Those that can be read, and their pixels [N, H, W, 3], in the same order."""
    kept: list[Picture] = []
    pixels: list[Pixels] = []
    unread = 0
    for picture in chosen.pictures[: max(1, ROOM // (height * width * 3))]:
        try:
            pixels.append(decode(picture.path.read_bytes(), height, width))
            kept.append(picture)
        except (ImageError, OSError):
            unread += 1
    notes = chosen.notes + ((f"{unread} of the {chosen.what} pictures cannot be read and are left out",) * bool(unread))
    stacked = np.stack(pixels) if pixels else np.zeros((0, height, width, 3), np.uint8)
    return replace(chosen, pictures=tuple(kept), notes=notes), stacked


def _choose(run: Path | None, images: Path | None, labels: Sequence[str], part: str, most: int) -> Pictures:
    if images:
        return Pictures(images.resolve().name, _even(_of_folder(images, labels), most))
    notes: tuple[str, ...] = ()
    if run and (run / KEPT).is_file():
        folder, listed = _of_run(run / KEPT, part)
        there = [picture for picture in listed if picture.path.is_file()]
        if len(there) < len(listed):
            notes = (f"{len(listed) - len(there)} of {len(listed)} {part} pictures are no longer in {folder}",)
        if there:
            return Pictures(part, _even(there, most), notes)
    sample = [Picture(path, None) for path in sorted(SAMPLES.glob("*.jpg"))[:most]]
    instead = "the sample's pictures are taken; --images FOLDER names better ones"
    return Pictures("sample", tuple(sample), (*notes, instead))


def _of_run(path: Path, part: str) -> tuple[Path, list[Picture]]:
    try:
        content = json.loads(path.read_bytes())
        folder = Path(content["folder"])
        return folder, [_picture(folder, *entry) for entry in content[part]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged. Delete it, and name a folder of pictures by --images.") from error


def _picture(folder: Path, name: str, label: str, *said: Any) -> Picture:
    if not said:
        return Picture(folder / name, str(label))
    answer, confidence, familiarity = said
    near = None if familiarity is None else float(familiarity)
    return Picture(folder / name, str(label), Answered(str(answer), float(confidence), near))


def _of_folder(folder: Path, labels: Sequence[str]) -> list[Picture]:
    """Folders named by labels, wherever they are in it, give their pictures these; else all pictures, unlabelled."""
    if not folder.is_dir():
        raise UserError(f"--images {folder} is no folder. Name one that holds pictures, or one folder a label.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    known = set(labels)
    inside = {path: known.intersection(path.relative_to(folder).parts[:-1]) for path in found}
    labelled = [Picture(path, min(names)) for path, names in inside.items() if names]
    if not found:
        raise UserError(f"--images {folder} holds no picture. Name a folder that does.")
    return labelled or [Picture(path, None) for path in found]


def _even(pictures: Iterable[Picture], most: int) -> tuple[Picture, ...]:
    """At most so many, one of each label in turn; the same ones each time."""
    groups: dict[str | None, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.label].append(picture)
    shuffle = random.Random(0)
    mixed = [shuffle.sample(group, len(group)) for group in groups.values()]
    return tuple(picture for picture in chain.from_iterable(zip_longest(*mixed)) if picture)[:most]
