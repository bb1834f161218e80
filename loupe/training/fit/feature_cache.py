"""A cache of features: what a frozen backbone gives for each picture, computed once, so that heads train in seconds.

    cache = Cache(Path("runs/.features"), limit=8e9)
    cached = cache.features(front, pixels, ids, dependencies)    # CachedFeatures: .array, float16 [N, …]

An entry is a folder named after everything its values depend on (network, weights, size, precision, augmentation). It
holds a row for each picture, found by the picture's own SHA-256. So a picture added to a data set costs one picture, a
killed run goes on where it was, and values of another run are never mistaken for these. Deleting any of it is safe.
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
from loupe.progress import bar

BATCH = 32
RECORD = 64 + 1 + 8 + 1  # bytes of an id (a SHA-256), a space, a row's CRC-32 and a line's end
IN_MEMORY = 2_000_000_000  # bytes of features; more than that is read from the disk batch by batch
DTYPE = np.dtype(np.float16)


@dataclass(frozen=True)
class CachedFeatures:
    array: Any  # float16 [N, …]
    computed: int  # how many rows were computed just now
    seconds: float
    folder: Path | None  # of the entry; None if the features are too large for the cache


class Cache:
    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit

    def features(
        self, front: keras.Model, pixels: Callable[[Sequence[int]], Any], ids: list[str], dependencies: dict[str, Any]
    ) -> CachedFeatures:
        """Return the features of all pictures, computing only those that are not cached. `pixels` turns rows into the
        input of `front`; `ids` has an id for each row; `dependencies` is whatever else the values depend on."""
        started = time.monotonic()
        # The entry's folder is named after everything the values depend on.
        shape = tuple(front.output.shape[1:])
        bytes_needed = len(ids) * (DTYPE.itemsize * int(np.prod(shape)) + RECORD)
        folder = self.folder / _digest({**dependencies, "weights": weights_digest(front), "shape": shape})
        try:
            # Too large for the cache: compute everything, keep nothing.
            if bytes_needed > self.limit:
                array = self._allocate((len(ids), *shape))
                for rows, values in compute_features(front, pixels, list(range(len(ids)))):
                    array[rows] = values
                return CachedFeatures(array, len(ids), time.monotonic() - started, None)
            # Compute the missing rows, each picture once, and read all of them.
            with _lock(_make_folder(folder)):
                self._make_room(folder, bytes_needed)
                entry = Entry(folder, shape, dependencies)
                missing = [row for row, picture_id in enumerate(ids) if picture_id not in entry.row_of]
                missing = sorted({ids[row]: row for row in reversed(missing)}.values())  # of an id, its first row
                for rows, values in compute_features(front, pixels, missing):
                    entry.append([ids[row] for row in rows], values)
                array = entry.take(ids)
        except OSError as error:
            full = (
                "The disk is full" if error.errno == errno.ENOSPC else f"{error.strerror}: {error.filename or folder}"
            )
            raise UserError(
                f"{full}, so the features cannot be kept in {self.folder}. Free it, or give --cache-gb 0 or --runs."
            ) from error
        return CachedFeatures(array, len(missing), time.monotonic() - started, folder)

    def _allocate(self, shape: tuple[int, ...]) -> Any:
        """Return an array for features that are not cached: in memory, or in a nameless file of full size."""
        size = DTYPE.itemsize * int(np.prod(shape))
        if size <= IN_MEMORY:
            return np.empty(shape, DTYPE)
        with tempfile.TemporaryFile(dir=_make_folder(self.folder)) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, DTYPE, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)

    def size(self) -> int:
        return sum(_size(entry) for entry in self._entries())

    def _entries(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [entry for entry in self.folder.iterdir() if (entry / "about.json").exists()]

    def _make_room(self, kept_entry: Path, bytes_needed: int) -> None:
        """Delete the entries that were not used for longest. `kept_entry` stays, and so does what another run is
        filling."""
        others = sorted((entry for entry in self._entries() if entry != kept_entry), key=_last_used)
        total = sum(_size(entry) for entry in others) + max(bytes_needed, _size(kept_entry))
        for entry in others:
            if total <= self.limit:
                break
            with suppress(OSError), _lock(entry, wait=False):
                total -= _size(entry)
                shutil.rmtree(entry, ignore_errors=True)


class Entry:
    """Two files with records of fixed length: the rows, and for each row its picture's id and checksum.

    From the first record on that is cut short, damaged or does not fit its row, both files are cut off and computed
    again.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dependencies: dict[str, Any]) -> None:
        self.shape = shape
        self.row_bytes = DTYPE.itemsize * int(np.prod(shape))
        self.ids, self.rows = folder / "ids.txt", folder / "rows.f16"
        (folder / "about.json").write_text(json.dumps(dependencies, indent=2) + "\n")
        for path in (self.ids, self.rows):
            path.touch()
        names = self._intact_names()
        os.truncate(self.ids, len(names) * RECORD)
        os.truncate(self.rows, len(names) * self.row_bytes)
        self.row_of = {name: row for row, name in enumerate(names)}

    def _intact_names(self) -> list[str]:
        """Return the ids of the records that are whole, up to the first that is not."""
        names: dict[str, None] = {}
        with self.ids.open("rb") as ids, self.rows.open("rb") as rows:
            while match := re.fullmatch(rb"([0-9a-f]{64}) ([0-9a-f]{8})\n", ids.read(RECORD)):
                name, row = match[1].decode(), rows.read(self.row_bytes)
                if name in names or len(row) < self.row_bytes or zlib.crc32(row) != int(match[2], 16):
                    break
                names[name] = None
        return list(names)

    def append(self, names: list[str], values: Any) -> None:
        rows = [row.tobytes() for row in np.ascontiguousarray(values, DTYPE)]
        with self.rows.open("ab") as file:
            file.write(b"".join(rows))
        with self.ids.open("a") as file:
            file.write("".join(f"{name} {zlib.crc32(row):08x}\n" for name, row in zip(names, rows, strict=True)))
        for name in names:
            self.row_of[name] = len(self.row_of)

    def take(self, names: list[str]) -> Any:
        order = np.array([self.row_of[name] for name in names], np.int64)
        rows = np.memmap(self.rows, DTYPE, "r", shape=(len(self.row_of), *self.shape))
        if rows.nbytes <= IN_MEMORY:
            return np.asarray(rows[order])
        return Mapped(rows, order)


class Mapped:
    """Rows of a file too large for the memory, in another order; read when they are indexed."""

    def __init__(self, rows: Any, order: Any) -> None:
        self.rows, self.order = rows, order
        self.shape = (len(order), *rows.shape[1:])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, selection: Any) -> Any:
        return self.rows[self.order[selection]]


def compute_features(
    front: keras.Model, pixels: Callable[[Sequence[int]], Any], rows: list[int]
) -> Iterator[tuple[Any, Any]]:
    """Yield rows and their features, a batch at a time."""
    run = tf.function(lambda x: front(tf.cast(x, tf.float32), training=False), reduce_retracing=True)
    with bar("features", len(rows)) as step:
        for start in range(0, len(rows), BATCH):
            batch_rows = rows[start : start + BATCH]
            values = run(pixels(batch_rows)).numpy().astype(np.float32)
            yield batch_rows, np.clip(values, -65504, 65504)  # what float16 can hold
            step(len(batch_rows))


def weights_digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(keras.ops.convert_to_numpy(weight).tobytes())
    return digest.hexdigest()


def _digest(dependencies: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:20]


def _make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # another run makes room
            total += path.stat().st_size
    return total


def _last_used(entry: Path) -> float:
    try:
        return (entry / "about.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Lock the entry for one process. Another waits until the features are there, and then has nothing to compute."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
