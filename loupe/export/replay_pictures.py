"""Choose and read the pictures that an export is compared and quantised on. Needs no TensorFlow.

chosen = for_replay(run, images, labels)      # the run's validation pictures, a folder's, or the sample's
chosen.origin, chosen.pictures, chosen.notes  # "validation", …; notes are for the user
pixels = read(chosen, height, width)          # uint8, as the gateway decodes; what cannot be read is left out
pixels, truth = read_labelled(chosen, labels, height, width)
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
SAMPLE = "sample"  # the origin of pictures that are none of the model's own
PICTURES_FILE = "pictures.json"  # in the run's folder; training writes it
REPLAY, QUANTISATION = 128, 300  # pictures, at most
A_LABEL, JUDGED = 30, 500  # pictures that tell whether labels are in their order: of each label, and at most
NAMED = 10  # folders, at most, in a note
MAX_PIXEL_BYTES = 1_000_000_000  # at most
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif"}


@dataclass(frozen=True)
class TrainingNote:
    """The answer of training's own network for a picture."""

    label: str
    confidence: float
    familiarity: float | None


@dataclass(frozen=True)
class Picture:
    path: Path
    label: str | None
    noted: TrainingNote | None = None


@dataclass(frozen=True)
class Pictures:
    origin: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    def truth(self, labels: Sequence[str]) -> list[int] | None:
        """Return each picture's index among the labels, None if some have none of them."""
        index_of = {label: index for index, label in enumerate(labels)}
        indices = [index_of[picture.label] for picture in self.pictures if picture.label in index_of]
        return indices if indices and len(indices) == len(self.pictures) else None


def for_replay(run: Path | None, images: Path | None, labels: Sequence[str], most: int = REPLAY) -> Pictures:
    return _choose(run, images, labels, "validation", most)


def for_quantisation(
    run: Path | None, images: Path | None, labels: Sequence[str], most: int = QUANTISATION
) -> Pictures:
    return _choose(run, images, labels, "training", most)


def for_labels(images: Path | None, labels: Sequence[str], replayed: Pictures) -> Pictures:
    """Return further pictures of the folder: of ten labels, those that are replayed have too few each to tell two that
    are swapped."""
    if images is None or replayed.truth(labels) is None:
        return replace(replayed, pictures=(), notes=())
    more = for_replay(None, images, labels, min(JUDGED, A_LABEL * len(labels)))
    return replace(more, pictures=tuple(picture for picture in more.pictures if picture not in replayed.pictures))


def read(chosen: Pictures, height: int, width: int) -> Pixels:
    return readable(chosen, height, width)[1]


def read_labelled(chosen: Pictures, labels: Sequence[str], height: int, width: int) -> tuple[Pixels, list[int] | None]:
    """Return the pixels, and the pictures' indices among the labels if all have one."""
    usable, pixels = readable(chosen, height, width)
    return pixels, usable.truth(labels)


def readable(chosen: Pictures, height: int, width: int) -> tuple[Pictures, Pixels]:
    """Return the pictures that can be read, and their pixels [N, H, W, 3] in the same order."""
    kept: list[Picture] = []
    pixels: list[Pixels] = []
    unreadable = 0
    for picture in chosen.pictures[: max(1, MAX_PIXEL_BYTES // (height * width * 3))]:
        try:
            pixels.append(decode(picture.path.read_bytes(), height, width))
            kept.append(picture)
        except (ImageError, OSError):
            unreadable += 1
    notes = chosen.notes + (
        (f"{unreadable} of the {chosen.origin} pictures cannot be read and are left out",) * bool(unreadable)
    )
    stacked = np.stack(pixels) if pixels else np.zeros((0, height, width, 3), np.uint8)
    return replace(chosen, pictures=tuple(kept), notes=notes), stacked


def _choose(run: Path | None, images: Path | None, labels: Sequence[str], split: str, most: int) -> Pictures:
    if images:
        pictures = _sample_evenly(_from_folder(images, labels), most)
        return Pictures(images.resolve().name, pictures, _named_otherwise(images, pictures))
    notes: tuple[str, ...] = ()
    if run and (run / PICTURES_FILE).is_file():
        folder, listed = _from_run(run / PICTURES_FILE, split)
        present = [picture for picture in listed if picture.path.is_file()]
        if len(present) < len(listed):
            notes = (f"{len(listed) - len(present)} of {len(listed)} {split} pictures are no longer in {folder}",)
        if present:
            return Pictures(split, _sample_evenly(present, most), notes)
    sample = [Picture(path, None) for path in sorted(SAMPLES.glob("*.jpg"))[:most]]
    advice = "the sample's pictures are taken; --images FOLDER names better ones"
    return Pictures(SAMPLE, tuple(sample), (*notes, advice))


def _from_run(path: Path, split: str) -> tuple[Path, list[Picture]]:
    try:
        content = json.loads(path.read_bytes())
        folder = Path(content["folder"])
        return folder, [_picture(folder, *entry) for entry in content[split]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged. Delete it, and name a folder of pictures by --images.") from error


def _picture(folder: Path, name: str, label: str, *answer: Any) -> Picture:
    if not answer:
        return Picture(folder / name, str(label))
    noted_label, confidence, familiarity = answer
    score = None if familiarity is None else float(familiarity)
    return Picture(folder / name, str(label), TrainingNote(str(noted_label), float(confidence), score))


def _from_folder(folder: Path, labels: Sequence[str]) -> list[Picture]:
    """Return the pictures in a folder. Subfolders named like a label, at any depth, give their pictures that label;
    without any, all pictures are unlabelled."""
    if not folder.is_dir():
        raise UserError(f"--images {folder} is no folder. Name one that holds pictures, or one folder a label.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    label_names = set(labels)
    labels_of = {path: label_names.intersection(path.relative_to(folder).parts[:-1]) for path in paths}
    labelled = [Picture(path, min(names)) for path, names in labels_of.items() if names]
    if not paths:
        raise UserError(f"--images {folder} holds no picture. Name a folder that does.")
    return labelled or [Picture(path, None) for path in paths]


def _named_otherwise(folder: Path, pictures: tuple[Picture, ...]) -> tuple[str, ...]:
    """Return a note for the user where the pictures lie in folders, and none of these is named like a label."""
    names = sorted({picture.path.parent.name for picture in pictures if picture.path.parent != folder})
    if any(picture.label for picture in pictures) or not names:
        return ()
    shown = f"{', '.join(names[:NAMED])}{', …' * (len(names) > NAMED)}"
    return (f"no folder in --images ({shown}) is named like a label: whether the labels are right is not checked",)


def class_folders(images: Path) -> list[str]:
    """Return the names of the folders directly in this one that hold pictures, in the order of Keras's and PyTorch's
    class names."""
    return [
        folder.name
        for folder in sorted(images.iterdir() if images.is_dir() else ())
        if folder.is_dir() and any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
    ]


def _sample_evenly(pictures: Iterable[Picture], most: int) -> tuple[Picture, ...]:
    """Return at most `most` pictures, one of each label in turn, always the same ones."""
    groups: dict[str | None, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[picture.label].append(picture)
    shuffle = random.Random(0)
    mixed = [shuffle.sample(group, len(group)) for group in groups.values()]
    return tuple(picture for picture in chain.from_iterable(zip_longest(*mixed)) if picture)[:most]
