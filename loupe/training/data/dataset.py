"""A data set as arrays: every file looked at once, decoded, and split.

    data = read(Source(Path("photos")), height=224, width=224, seed=42, spill=Path("runs"))
    data.pixels[data.train], data.classes[data.train], data.labels
    larger = data.resized(299, 299, spill=Path("runs"))        # the same pictures and splits

`layout.py` says which files there are, `splits.py` how they are split. Files that are no readable picture are left
out and listed. One pass over the bytes gives pixels, checksum, fingerprint and what else `doctor.py` judges by.
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
from loupe.images.decode import FORMATS, NAMES
from loupe.images.resize import Pixels
from loupe.training.data.duplicates import fingerprint, twins
from loupe.training.data.layout import File, Skipped, Source, Submission, find
from loupe.training.data.splits import Indices, split, trainable
from loupe.training.progress import bar

__all__ = ["Dataset", "File", "Indices", "Picture", "Skipped", "Source", "decode_all", "read"]

CUT = 0.15  # share of a class's training pictures that a missing split takes
FEWEST = 8  # pictures of a class: enough for each split to hold one
SHOWN = 5  # skipped files that the summary lists
IN_MEMORY = 2_000_000_000  # bytes of pixels; more than that goes to a file on the disk
LARGEST = 250_000_000  # bytes of a file: 40 megapixels need fewer in any format
LOOK = 128  # px: brightness, sharpness and fingerprint are judged at this size, whatever training reads at
GLANCE = 32  # px at which pictures to predict are tried
WAITING = 128  # pictures decoded ahead
WHY = {
    "empty": "empty: 0 bytes",
    "damaged": "damaged or cut short",
    "no picture": "not a picture",
    "unsupported": f"a kind of picture that is not read here; save it as {NAMES}",
    "too large": "larger than 40 megapixels or 250 MB; save it smaller",
}
STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
AVIF = (b"ftypavif", b"ftypavis")  # from the fifth byte on


@dataclass(frozen=True)
class Picture:
    """A file that could be read, and what one look at it told."""

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
    source: str = ""  # which CSV and columns the labels are from

    def summary(self, name: str, size: int | None = None) -> str:
        """`size`: px that training reads at, where these pixels were only looked at."""
        _, height, width, _ = self.pixels.shape
        here = f"at {width}×{height}, {self.pixels.nbytes / 1e6:.0f} MB of pixels"
        at = f"to be read at {size}×{size}" if size else here
        lines = [
            f"{name}: {len(self.labels)} classes, {len(self.train)} training, {len(self.validation)} validation, "
            f"{len(self.calibration)} calibration and {len(self.test)} test pictures {at}"
        ]
        if self.source:
            lines.append(f"labels: {self.source}")
        faulty = [one for one in self.skipped if one.kind != "unused"]
        if faulty:
            lines += [f"skipped {len(faulty)} file{'s'[: len(faulty) != 1]}:", *(f"  {one}" for one in faulty[:SHOWN])]
        if len(faulty) > SHOWN:
            lines.append(f"  … and {len(faulty) - SHOWN} more")
        return "\n".join(lines)

    def before_cut(self) -> dict[str, int]:
        """Different training pictures of each class, before validation and test are cut from them."""
        return self.counts(trainable(_given(self.pictures), self.classes, [one.sha256 for one in self.pictures]))

    def counts(self, split: Indices) -> dict[str, int]:
        return {label: int((self.classes[split] == number).sum()) for number, label in enumerate(self.labels)}

    @property
    def digest(self) -> str:
        """Another picture, label or split, another digest."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.calibration, self.test):
            for row in part:
                digest.update(f"{self.pictures[row].sha256} {self.labels[self.classes[row]]}\n".encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def resized(self, height: int, width: int, spill: Path) -> Dataset:
        """The same pictures and splits, decoded at another size."""
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
    """`spill`: the folder that takes a nameless file of pixels if there are too many for the memory. `fewest`: training
    pictures below which a class is refused; 0 to look at a data set that is not ready to be trained on."""
    layout = find(source)
    pixels, pictures, skipped = decode_all(layout.files, height, width, spill)
    classes = np.array([layout.labels.index(picture.file.label) for picture in pictures], dtype=np.int64)
    given = _given(pictures)
    sha256s = [picture.sha256 for picture in pictures]
    pairs = twins(sha256s, [picture.fingerprint for picture in pictures], pixels)
    parts = split(given, classes, sha256s, pairs, seed, validation_share, test_share)
    data = Dataset(
        root=source.root if source.root.is_dir() else source.root.parent,
        labels=layout.labels,
        pictures=pictures,
        pixels=pixels,
        classes=classes,
        train=parts.train,
        validation=parts.validation,
        calibration=parts.calibration,
        test=parts.test,
        skipped=layout.skipped + skipped + _unreadable(layout.predict),
        predict=layout.predict,
        submission=layout.submission,
        twins=pairs,
        source=layout.source,
    )
    if fewest:
        _refuse_small(data, fewest)
    return data


def _given(pictures: Sequence[Picture]) -> dict[str, Indices]:
    splits = np.array([picture.file.split or "train" for picture in pictures], dtype=np.str_)
    return {name: np.flatnonzero(splits == name) for name in ("train", "validation", "test")}


def _refuse_small(data: Dataset, fewest: int) -> None:
    left = data.counts(data.train)
    for label, count in data.before_cut().items():
        if count < fewest or not left[label]:
            raise UserError(
                f"{label!r} has {count} readable and different training pictures; at least {fewest} are needed, not "
                "counting copies of other classes' and of test pictures. Add some, or take that class out."
            )


def decode_all(
    files: Sequence[File], height: int, width: int, spill: Path
) -> tuple[Pixels, list[Picture], list[Skipped]]:
    """The pixels and facts of what can be read, in order, and what cannot. Shows its progress on a terminal."""
    pixels = _room((len(files), height, width, 3), spill)
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor() as pool, bar("reading pictures", len(files)) as step, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of metadata that does no harm
        for answer in _ahead(pool, files, height, width):
            step(1)
            if isinstance(answer, Skipped):
                skipped.append(answer)
            else:
                pixels[len(pictures)] = answer[0]
                pictures.append(answer[1])
    return pixels[: len(pictures)], pictures, skipped


def _unreadable(files: Sequence[File]) -> list[Skipped]:
    """What is wrong with pictures to predict; they stay asked for."""
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = pool.map(_fault, files)
        return [replace(one, why=f"{one.why}; its row says the most frequent class") for one in faults if one]


def _fault(file: File) -> Skipped | None:
    answer = _read(file, GLANCE, GLANCE)
    return answer if isinstance(answer, Skipped) else None


def _ahead(
    pool: ThreadPoolExecutor, files: Sequence[File], height: int, width: int
) -> Iterator[tuple[Pixels, Picture] | Skipped]:
    """Answers in order, worked out in threads; so few ahead that they fit the memory."""
    waiting: deque[Future[tuple[Pixels, Picture] | Skipped]] = deque()
    for file in files:
        waiting.append(pool.submit(_look, file, height, width))
        if len(waiting) >= WAITING:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _look(file: File, height: int, width: int) -> tuple[Pixels, Picture] | Skipped:
    answer = _read(file, height, width)
    if isinstance(answer, Skipped):
        return answer
    data, pixels = answer
    bits, brightness, sharpness = _judge(pixels if min(height, width) >= LOOK else decode(data, LOOK, LOOK))
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # the header alone
        facts = (image.width, image.height, image.mode, image.format or "")
    return pixels, Picture(file, hashlib.sha256(data).hexdigest(), *facts, len(data), bits, brightness, sharpness)


def _read(file: File, height: int, width: int) -> tuple[bytes, Pixels] | Skipped:
    data = b""
    try:
        if file.path.stat().st_size > LARGEST:
            return Skipped(file.path, WHY["too large"], "too large")
        data = file.path.read_bytes()
        return data, decode(data, height, width)
    except ImageError as error:
        kind = _kind(error, data)
        return Skipped(file.path, WHY[kind], kind)
    except OSError as error:
        return Skipped(file.path, f"cannot be read ({error.strerror})", "unreadable")


def _kind(error: ImageError, data: bytes) -> str:
    if not data:
        return "empty"
    if isinstance(error, TooManyPixels):
        return "too large"
    if isinstance(error, UnsupportedImage):
        return "unsupported"
    return "damaged" if data.startswith(STARTS) or data[4:12] in AVIF else "no picture"


def _judge(pixels: Pixels) -> tuple[int, float, float]:
    """Fingerprint, brightness and sharpness."""
    grey = Image.fromarray(pixels).convert("L").resize((LOOK, LOOK), Image.Resampling.BILINEAR)
    light = np.asarray(grey, dtype=np.float32)
    inner = light[1:-1, 1:-1]
    edges = 4 * inner - light[:-2, 1:-1] - light[2:, 1:-1] - light[1:-1, :-2] - light[1:-1, 2:]
    return fingerprint(grey), float(light.mean()), float(edges.var() / (light.var() + 1))


def _room(shape: tuple[int, int, int, int], spill: Path) -> Pixels:
    size = int(np.prod(shape, dtype=np.int64))
    if size <= IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    try:
        with tempfile.TemporaryFile(dir=spill) as file:
            if hasattr(os, "posix_fallocate"):  # else a disk that fills up would kill the process on a later write
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    except OSError as error:
        raise UserError(
            f"{size / 1e9:.1f} GB of pixels do not fit the disk of {spill} ({error.strerror}). Free some, name another "
            "disk with --runs, or train at a smaller --size."
        ) from error
