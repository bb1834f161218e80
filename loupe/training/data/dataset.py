"""A data set as arrays: every file is read once, decoded, and put into a split.

    data = read(Source(Path("photos")), height=224, width=224, seed=42, spill=Path("runs"))
    data.pixels[data.train], data.classes[data.train], data.labels
    larger = data.resized(299, 299, spill=Path("runs"))        # the same pictures and splits

`layout.py` says which files there are, `splits.py` how they are split. Files that are no readable picture are left
out and listed. One pass over the bytes gives pixels, checksum, fingerprint and the measures that `doctor.py` checks.
No TensorFlow in here.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from loupe.errors import ImageError, TooManyPixels, UnsupportedImage, UserError
from loupe.images.api import decode
from loupe.images.decode import FORMATS, HEIC_BRANDS, NAMES
from loupe.images.resize import Pixels
from loupe.progress import bar
from loupe.training.data.duplicates import fingerprint, twins
from loupe.training.data.layout import File, Skipped, Source, Submission, find
from loupe.training.data.names import label_of
from loupe.training.data.splits import Indices, split, trainable

__all__ = ["Dataset", "File", "Indices", "Picture", "Skipped", "Source", "decode_all", "read"]

CUT = 0.15  # share of a class's training pictures that a missing split takes
FEWEST = 8  # pictures of a class: enough for one in each split
IN_MEMORY = 2_000_000_000  # bytes of pixels; more than that goes to a file on the disk
LARGEST_FILE = 250_000_000  # bytes of a file: 40 megapixels need fewer in any format
LOOK_SIZE = 128  # px: brightness, sharpness and fingerprint are measured at this size, whatever training reads at
GLANCE_SIZE = 32  # px at which pictures to predict are decoded as a test
DECODED_AHEAD = 128  # pictures decoded ahead
EXPLANATIONS = {
    "empty": "empty (0 bytes)",
    "damaged": "damaged or cut short",
    "no picture": "not a picture",
    "unsupported": f"a kind of picture that is not read here; save it as {NAMES}",
    "heic": "HEIC, which is read only where pillow-heif is installed: pip install pillow-heif",
    "too large": "larger than 40 megapixels or 250 MB; save it smaller",
}
MAGIC_BYTES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
AVIF_MAGIC = (b"ftypavif", b"ftypavis")  # from the fifth byte on


@dataclass(frozen=True)
class Picture:
    """A file that could be read, and what was measured in it."""

    file: File
    sha256: str  # of the file's bytes, in hex
    width: int  # px, as in the file
    height: int
    mode: str
    format: str
    size: int  # bytes
    fingerprint: int  # perceptual hash, its bits packed
    brightness: float  # mean of grey, 0…255
    sharpness: float  # variance of the Laplacian over the variance of grey; higher is sharper


@dataclass(frozen=True)
class Dataset:
    root: Path
    labels: tuple[str, ...]
    pictures: list[Picture]
    pixels: Pixels  # [N, H, W, 3]
    classes: Indices  # [N]
    train: Indices
    validation: Indices  # chooses the best state
    calibration: Indices  # the other half of the validation pictures: fits temperature, threshold and familiarity
    test: Indices
    skipped: list[Skipped] = field(default_factory=list)
    predict: list[File] = field(default_factory=list)
    submission: Submission | None = None
    twins: list[tuple[int, int]] = field(default_factory=list)  # rows of the same picture: exact or near
    source: str = ""  # the CSV and columns that gave the labels

    def summary(self, name: str, size: int | None = None) -> str:
        """Return the lines that the terminal shows. `size` is the side in px that training reads at, if these pixels
        are of another size."""
        # Classes, pictures of each split, and their size. Files that were left out are among the doctor's findings.
        _, height, width, _ = self.pixels.shape
        in_memory = f", {self.pixels.nbytes / 1e6:.0f} MB of pixels" if self.pixels.nbytes else ""
        size_read = f"at {width}×{height}{in_memory}"
        size_text = f"to be read at {size}×{size}" if size else size_read
        lines = [
            f"{name}: {len(self.labels)} class{'es'[: 2 * (len(self.labels) != 1)]}, {len(self.train)} training, "
            f"{len(self.validation)} validation, {len(self.calibration)} calibration and {len(self.test)} test "
            f"pictures {size_text}"
        ]
        if self.source:
            lines.append(f"labels: {self.source}")
        return "\n".join(lines)

    def before_cut(self) -> dict[str, int]:
        """Return the number of different training pictures of each class, before other splits are cut from them."""
        return self.counts(
            trainable(_given_splits(self.pictures), self.classes, [picture.sha256 for picture in self.pictures])
        )

    def counts(self, split: Indices) -> dict[str, int]:
        return {label: int((self.classes[split] == number).sum()) for number, label in enumerate(self.labels)}

    @property
    def digest(self) -> str:
        """A digest that changes with any picture, label or split."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation, self.calibration, self.test):
            for row in rows:
                digest.update(f"{self.pictures[row].sha256} {self.labels[self.classes[row]]}\n".encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def has_pixels(self, row: int) -> bool:
        """Return False for a picture whose pixels are read when they are asked for (record.py), if its file is gone."""
        if self.pixels.nbytes:
            return True
        picture = self.pictures[row]
        try:
            return picture.file.path.stat().st_size == picture.size
        except OSError:
            return False

    def resized(self, height: int, width: int, spill: Path) -> Dataset:
        """Return the same pictures and splits, decoded at another size."""
        pixels, pictures, skipped = decode_all([picture.file for picture in self.pictures], height, width, spill)
        if skipped or any(new.sha256 != old.sha256 for new, old in zip(pictures, self.pictures, strict=True)):
            changed = skipped[0].path if skipped else self.root
            raise UserError(f"{changed} changed while it was trained on. Leave the pictures alone, and start again.")
        return replace(self, pixels=pixels)


def read(
    source: Source,
    height: int,
    width: int,
    seed: int,
    spill: Path,
    validation_share: float = CUT,
    test_share: float = CUT,
    fewest: int = FEWEST,
) -> Dataset:
    """Read a data set. `spill` is a folder for a nameless file of pixels if they are too many for the memory. A class
    with less than `fewest` training pictures is refused; 0 allows a look at a data set that is not ready for training.
    """
    # Find and decode the files.
    layout = find(source)
    for folder in layout.empty if fewest else ():
        raise UserError(f"Class {label_of(folder)!r} has no pictures: add some to {folder}, or remove it.")
    pixels, pictures, skipped = decode_all(layout.files, height, width, spill)
    classes = np.array([layout.labels.index(picture.file.label) for picture in pictures], dtype=np.int64)
    # Find duplicates, and split.
    given_rows = _given_splits(pictures)
    sha256s = [picture.sha256 for picture in pictures]
    twin_pairs = twins(sha256s, [picture.fingerprint for picture in pictures], pixels)
    rows_by_split = split(given_rows, classes, sha256s, twin_pairs, seed, validation_share, test_share)
    # Put it all together, and refuse classes that are too small.
    data = Dataset(
        root=source.root if source.root.is_dir() else source.root.parent,
        labels=layout.labels,
        pictures=pictures,
        pixels=pixels,
        classes=classes,
        train=rows_by_split.train,
        validation=rows_by_split.validation,
        calibration=rows_by_split.calibration,
        test=rows_by_split.test,
        skipped=layout.skipped + skipped + _unreadable(layout.predict, layout.files),
        predict=layout.predict,
        submission=layout.submission,
        twins=twin_pairs,
        source=layout.source,
    )
    if fewest:
        _refuse_small(data, fewest)
    return data


def _given_splits(pictures: Sequence[Picture]) -> dict[str, Indices]:
    splits = np.array([picture.file.split or "train" for picture in pictures], dtype=np.str_)
    return {name: np.flatnonzero(splits == name) for name in ("train", "validation", "test")}


def _refuse_small(data: Dataset, fewest: int) -> None:
    left_to_train = data.counts(data.train)
    for label, count in data.before_cut().items():
        if count < fewest or not left_to_train[label]:
            raise UserError(
                f"{label!r} has {count} readable and different training pictures; at least {fewest} are needed, not "
                "counting copies of other classes' and of test pictures. Add some, or take that class out."
            )


def decode_all(
    files: Sequence[File], height: int, width: int, spill: Path
) -> tuple[Pixels, list[Picture], list[Skipped]]:
    """Return the pixels and facts of all files that can be read, in order, and those that cannot. Shows its progress on
    a terminal."""
    pixels = _allocate((len(files), height, width, 3), spill)
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor() as pool, bar("reading pictures", len(files)) as step, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of harmless metadata
        for result in _decode_ahead(pool, files, height, width):
            step(1)
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                pixels[len(pictures)] = result[0]
                pictures.append(result[1])
    return pixels[: len(pictures)], pictures, skipped


def _unreadable(files: Sequence[File], read_already: Sequence[File]) -> list[Skipped]:
    """Return what is wrong with pictures to predict. They stay in the submission."""
    paths = {file.path for file in read_already}  # of test pictures with labels, which may be asked for as well
    files = [file for file in files if file.path not in paths]
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = pool.map(_find_fault, files)
        return [replace(fault, why=f"{fault.why}; its row says the most frequent class") for fault in faults if fault]


def _find_fault(file: File) -> Skipped | None:
    result = _decode_file(file, GLANCE_SIZE, GLANCE_SIZE)
    return result if isinstance(result, Skipped) else None


def _decode_ahead(
    pool: ThreadPoolExecutor, files: Sequence[File], height: int, width: int
) -> Iterator[tuple[Pixels, Picture] | Skipped]:
    """Yield the results in order, computed in threads, and only as many ahead as fit the memory."""
    pending: deque[Future[tuple[Pixels, Picture] | Skipped]] = deque()
    for file in files:
        pending.append(pool.submit(_examine_file, file, height, width))
        if len(pending) >= DECODED_AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _examine_file(file: File, height: int, width: int) -> tuple[Pixels, Picture] | Skipped:
    result = _decode_file(file, height, width)
    if isinstance(result, Skipped):
        return result
    data, pixels = result
    hash_bits, brightness, sharpness = _measure(
        pixels if min(height, width) >= LOOK_SIZE else decode(data, LOOK_SIZE, LOOK_SIZE)
    )
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # the header alone
        facts = (image.width, image.height, image.mode, image.format or "")
    return pixels, Picture(file, hashlib.sha256(data).hexdigest(), *facts, len(data), hash_bits, brightness, sharpness)


def _decode_file(file: File, height: int, width: int) -> tuple[bytes, Pixels] | Skipped:
    data = b""
    try:
        if file.path.stat().st_size > LARGEST_FILE:
            return Skipped(file.path, EXPLANATIONS["too large"], "too large")
        data = file.path.read_bytes()
        return data, decode(data, height, width)
    except ImageError as error:
        category = _category_of(error, data)
        return Skipped(file.path, EXPLANATIONS[category], category)
    except OSError as error:
        return Skipped(file.path, f"cannot be read ({error.strerror})", "unreadable")


def _category_of(error: ImageError, data: bytes) -> str:
    """Return the category of a file that cannot be decoded, one of doctor.SKIPPED."""
    if not data:
        return "empty"
    if isinstance(error, TooManyPixels):
        return "too large"
    if isinstance(error, UnsupportedImage):
        return "heic" if data[8:12] in HEIC_BRANDS else "unsupported"
    return "damaged" if data.startswith(MAGIC_BYTES) or data[4:12] in AVIF_MAGIC else "no picture"


def _measure(pixels: Pixels) -> tuple[int, float, float]:
    """Return fingerprint, brightness and sharpness."""
    grey = Image.fromarray(pixels).convert("L").resize((LOOK_SIZE, LOOK_SIZE), Image.Resampling.BILINEAR)
    values = np.asarray(grey, dtype=np.float32)
    inner = values[1:-1, 1:-1]
    laplacian = 4 * inner - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
    return fingerprint(grey), float(values.mean()), float(laplacian.var() / (values.var() + 1))


def _allocate(shape: tuple[int, int, int, int], spill: Path) -> Pixels:
    """Return an empty array for the pixels: in memory, or in a nameless file on the disk."""
    size = int(np.prod(shape, dtype=np.int64))
    if size <= IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    try:
        with tempfile.TemporaryFile(dir=spill) as file:
            if hasattr(os, "posix_fallocate"):  # otherwise a full disk would kill the process on a later write
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    except OSError as error:
        raise UserError(
            f"{size / 1e9:.1f} GB of pixels do not fit the disk of {spill} ({error.strerror}). Free some, name another "
            "disk with --runs, or train at a smaller --size."
        ) from error
