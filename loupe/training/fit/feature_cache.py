"""What a frozen backbone makes of each picture, computed once and kept: heads then train in seconds.

    cache = Cache(Path("runs/.features"), limit=8e9)
    kept = cache.features(front, pixels, ids, about)      # Kept: kept.array, float16 [N, …], read or mapped from disk

An entry is a folder named after everything its values depend on (network, weights, size, precision, augmentation); in
it a row a picture, found by the picture's own SHA-256. So a picture added to a data set costs one picture, a run that
was killed goes on where it was, and no other run's values can be taken for one's own. Deleting any of it is safe.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loupe.errors import UserError
from loupe.training.progress import bar

BATCH = 32
RECORD = 64 + 1 + 8 + 1  # bytes of an id (a SHA-256), a space, a row's CRC-32 and a line's end
IN_MEMORY = 2_000_000_000  # bytes of features; more than that is read from the disk batch by batch
STORED = np.dtype(np.float16)


@dataclass(frozen=True)
class Kept:
    array: Any  # float16 [N, …]
    computed: int  # how many of them just now
    seconds: float
    place: Path | None  # None: too large for the cache


class Cache:
    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit

    def features(
        self, front: keras.Model, pixels: Callable[[Sequence[int]], Any], ids: list[str], about: dict[str, Any]
    ) -> Kept:
        """`pixels`: rows → what `front` takes; `ids`: of every row; `about`: what else the values depend on."""
        started = time.monotonic()
        shape = tuple(front.output.shape[1:])
        needed = len(ids) * (STORED.itemsize * int(np.prod(shape)) + RECORD)
        place = self.folder / _digest({**about, "weights": weights_of(front), "shape": shape})
        try:
            if needed > self.limit:
                array = self._room((len(ids), *shape))
                for rows, values in computed(front, pixels, list(range(len(ids)))):
                    array[rows] = values
                return Kept(array, len(ids), time.monotonic() - started, None)
            with _locked(_made(place)):
                self._make_room(place, needed)
                entry = Entry(place, shape, about)
                missing = [row for row, name in enumerate(ids) if name not in entry.place_of]
                missing = list({ids[row]: row for row in missing}.values())
                for rows, values in computed(front, pixels, missing):
                    entry.append([ids[row] for row in rows], values)
                array = entry.take(ids)
        except OSError as error:
            full = "The disk is full" if error.errno == errno.ENOSPC else f"{error.strerror}: {error.filename or place}"
            raise UserError(
                f"{full}, so the features cannot be kept in {self.folder}. Free it, or give --cache-gb 0 or --runs."
            ) from error
        return Kept(array, len(missing), time.monotonic() - started, place)

    def _room(self, shape: tuple[int, ...]) -> Any:
        """For features that are not kept: in memory, or in a nameless file whose blocks are had before it is filled."""
        size = STORED.itemsize * int(np.prod(shape))
        if size <= IN_MEMORY:
            return np.empty(shape, STORED)
        with tempfile.TemporaryFile(dir=_made(self.folder)) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, STORED, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)

    def size(self) -> int:
        return sum(_size(entry) for entry in self._entries())

    def _entries(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [entry for entry in self.folder.iterdir() if (entry / "about.json").exists()]

    def _make_room(self, wanted: Path, needed: int) -> None:
        """The entries longest not used go first; what is wanted stays, and what another run is filling."""
        others = sorted((entry for entry in self._entries() if entry != wanted), key=_used)
        total = sum(_size(entry) for entry in others) + max(needed, _size(wanted))
        for entry in others:
            if total <= self.limit:
                break
            with suppress(OSError), _locked(entry, wait=False):
                total -= _size(entry)
                shutil.rmtree(entry, ignore_errors=True)


class Entry:
    """Two files of records of one length each: the rows, and for each its picture's id and the row's checksum. From
    the first record on that is cut short, damaged or does not fit its row, both are cut off and computed again."""

    def __init__(self, folder: Path, shape: tuple[int, ...], about: dict[str, Any]) -> None:
        self.shape = shape
        self.row_bytes = STORED.itemsize * int(np.prod(shape))
        self.ids, self.rows = folder / "ids.txt", folder / "rows.f16"
        (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")
        for path in (self.ids, self.rows):
            path.touch()
        names = self._sound()
        os.truncate(self.ids, len(names) * RECORD)
        os.truncate(self.rows, len(names) * self.row_bytes)
        self.place_of = {name: row for row, name in enumerate(names)}

    def _sound(self) -> list[str]:
        names: dict[str, None] = {}
        with self.ids.open("rb") as ids, self.rows.open("rb") as rows:
            while match := re.fullmatch(rb"([0-9a-f]{64}) ([0-9a-f]{8})\n", ids.read(RECORD)):
                name, row = match[1].decode(), rows.read(self.row_bytes)
                if name in names or len(row) < self.row_bytes or zlib.crc32(row) != int(match[2], 16):
                    break
                names[name] = None
        return list(names)

    def append(self, names: list[str], values: Any) -> None:
        rows = [row.tobytes() for row in np.ascontiguousarray(values, STORED)]
        with self.rows.open("ab") as file:
            file.write(b"".join(rows))
        with self.ids.open("a") as file:
            file.write("".join(f"{name} {zlib.crc32(row):08x}\n" for name, row in zip(names, rows, strict=True)))
        for name in names:
            self.place_of[name] = len(self.place_of)

    def take(self, names: list[str]) -> Any:
        places = np.array([self.place_of[name] for name in names], np.int64)
        everything = np.memmap(self.rows, STORED, "r", shape=(len(self.place_of), *self.shape))
        if everything.nbytes <= IN_MEMORY:
            return np.asarray(everything[places])
        return Mapped(everything, places)


class Mapped:
    """Rows of a file too large for the memory, in another order; read when they are asked for."""

    def __init__(self, rows: Any, places: Any) -> None:
        self.rows, self.places = rows, places
        self.shape = (len(places), *rows.shape[1:])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, chosen: Any) -> Any:
        return self.rows[self.places[chosen]]


def computed(front: keras.Model, pixels: Callable[[Sequence[int]], Any], rows: list[int]) -> Iterator[tuple[Any, Any]]:
    """Features of these rows, a batch at a time."""
    run = tf.function(lambda x: front(tf.cast(x, tf.float32), training=False), reduce_retracing=True)
    with bar("features", len(rows)) as step:
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            values = run(pixels(chosen)).numpy().astype(np.float32)
            yield chosen, np.clip(values, -65504, 65504)  # what float16 can hold
            step(len(chosen))


def weights_of(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(keras.ops.convert_to_numpy(weight).tobytes())
    return digest.hexdigest()


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # another run makes room
            total += path.stat().st_size
    return total


def _used(entry: Path) -> float:
    try:
        return (entry / "about.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time; another waits until the features are there, and then has nothing to compute."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
