"""Keep what a data set is in its run, so that --add can go on with it without opening any of its pictures again.

    write(run.staging / "data.json", data)
    data = read(run / "data.json")         # the same rows, labels and splits; pixels are decoded when asked for
    data.pixels[[3, 7]]                    # UserError if these files are gone, or are others now

Paths are absolute, so that a run outlives a change of folder; names that are no valid text are read back unchanged.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from loupe.errors import UserError
from loupe.images.api import decode
from loupe.training.data.dataset import Dataset, File, Picture, Skipped
from loupe.training.data.names import Submission
from loupe.training.data.splits import Indices

ADVICE = (
    ", and its features are not kept in runs/.features any more. Bring the run's pictures back, or train anew with "
    "train.py DATA."
)
SPLITS = ("train", "validation", "calibration", "test")


class Unread:
    """The pixels of pictures, as an array would give them, each decoded anew when it is asked for."""

    dtype = np.dtype(np.uint8)

    def __init__(self, pictures: Sequence[Picture], height: int, width: int) -> None:
        self.pictures = pictures
        self.shape = (len(pictures), height, width, 3)
        self.nbytes = 0  # none is in memory

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, selection: Any) -> Any:
        rows = np.arange(len(self))[selection]
        with ThreadPoolExecutor() as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of harmless metadata
            pixels = list(pool.map(self._decode, np.atleast_1d(rows).tolist()))
        return np.stack(pixels) if np.ndim(rows) else pixels[0]

    def _decode(self, row: int) -> Any:
        picture, (_, height, width, _) = self.pictures[row], self.shape
        try:
            data = picture.file.path.read_bytes()
        except OSError as error:
            raise UserError(f"{picture.file.path} cannot be read ({error.strerror}){ADVICE}") from error
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise UserError(f"{picture.file.path} is another picture than the run learnt from{ADVICE}")
        return decode(data, height, width)


def unread(pictures: Sequence[Picture], height: int, width: int) -> Any:
    """Return the pictures' pixels as a data set has them, though none is read yet."""
    return Unread(pictures, height, width)


def write(path: Path, data: Dataset) -> None:
    content = {
        "root": str(data.root.absolute()),
        "labels": data.labels,
        "height": data.pixels.shape[1],
        "width": data.pixels.shape[2],
        "pictures": [
            {**asdict(picture), "file": _file(picture.file), "fingerprint": f"{picture.fingerprint:x}"}
            for picture in data.pictures
        ],
        "classes": data.classes.tolist(),
        **{name: getattr(data, name).tolist() for name in SPLITS},
        "skipped": [[str(entry.path), entry.why, entry.category] for entry in data.skipped],
        "predict": [_file(file) for file in data.predict],
        "submission": asdict(data.submission) if data.submission else None,
        "twins": data.twins,
        "source": data.source,
    }
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _file(file: File) -> dict[str, str]:
    return {**asdict(file), "path": str(file.path.absolute())}


def read(path: Path) -> Dataset:
    try:
        content = json.loads(path.read_bytes())
        pictures = [_picture(entry) for entry in content["pictures"]]
        return Dataset(
            root=Path(content["root"]),
            labels=tuple(content["labels"]),
            pictures=pictures,
            pixels=unread(pictures, content["height"], content["width"]),
            classes=_indices(content["classes"]),
            **{name: _indices(content[name]) for name in SPLITS},
            skipped=[Skipped(Path(name), why, category) for name, why, category in content["skipped"]],
            predict=[_read_file(entry) for entry in content["predict"]],
            submission=_submission(content["submission"]),
            twins=[(one, other) for one, other in content["twins"]],
            source=content["source"],
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} has no {path.name}: it was trained before --add was there. Train it again, then add."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: the run is damaged. Train it again, then add.") from error


def _picture(entry: dict[str, Any]) -> Picture:
    return Picture(**{**entry, "file": _read_file(entry["file"]), "fingerprint": int(entry["fingerprint"], 16)})


def _read_file(entry: dict[str, str]) -> File:
    return File(**{**entry, "path": Path(entry["path"])})  # type: ignore[arg-type]


def _submission(entry: dict[str, Any] | None) -> Submission | None:
    return Submission(**{**entry, "columns": tuple(entry["columns"])}) if entry else None


def _indices(values: list[int]) -> Indices:
    return np.array(values, dtype=np.int64)
