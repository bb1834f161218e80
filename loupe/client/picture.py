"""Turn what people hand over into pictures: a path, bytes, an array, a PIL image, an address, or many of these.

    pictures_of("photo.jpg")                     # [Picture("photo.jpg", Path("photo.jpg"))]
    pictures_of([array, image, b"…"])            # named "picture 1", "picture 2", "picture 3"
    picture.read()                               # the bytes of a picture file

Arrays and PIL images become PNG files in memory, without loss, so that whatever is given takes the one path for pixels.
"""

from __future__ import annotations

import http.client
import io
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loupe.errors import FetchFailed, PictureUnreadable, UserError

MAX_BYTES = 100_000_000  # of a file or of what an address gives
FETCH_SECONDS = 20.0
AGENT = "Loupe (a picture is fetched by its address)"


@dataclass(frozen=True)
class Picture:
    name: str
    source: bytes | Path | str = field(repr=False)  # a text is an address

    @property
    def address(self) -> str | None:
        return self.source if isinstance(self.source, str) else None

    def read(self) -> bytes:
        """Return the bytes: read the file, or fetch the address."""
        if isinstance(self.source, bytes):
            return self.source
        return _fetch(self.source) if isinstance(self.source, str) else _read(self.source)


def is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def is_one(given: Any) -> bool:
    """Return True for a single picture, False for many."""
    if isinstance(given, np.ndarray):
        return given.ndim != 4
    return isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | Picture)


def pictures_of(given: Any) -> list[Picture]:
    if is_one(given):
        return [picture_of(given)]
    if not isinstance(given, Iterable):
        raise UserError(f"{type(given).__name__} is no picture: give {WANTED}.")
    return [picture_of(each, f"picture {number}") for number, each in enumerate(given, 1)]


WANTED = "a path, bytes, a uint8 array [height, width, 3], a PIL image, an address, or a list of these"


def picture_of(given: Any, name: str = "picture") -> Picture:
    if isinstance(given, Picture):
        return given
    if isinstance(given, str) and is_address(given):
        return Picture(given, given)
    if isinstance(given, str | os.PathLike):
        path = os.fsdecode(given)
        return Picture(path, Path(path))
    if isinstance(given, bytes | bytearray | memoryview):
        return Picture(name, bytes(given))
    if isinstance(given, Image.Image):
        return Picture(_name_of(given) or name, _png(given))
    if isinstance(given, np.ndarray):
        return Picture(name, _png(_image(given)))
    raise UserError(f"{type(given).__name__} is no picture: give {WANTED}.")


def _name_of(image: Image.Image) -> str:
    return str(getattr(image, "filename", "") or "")


def _image(array: np.ndarray[Any, Any]) -> Image.Image:
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not fits or 0 in pixels.shape:
        raise UserError(
            f"An array of {array.dtype} {list(array.shape)} is no picture: give uint8 [height, width, 3], from 0 to "
            "255, channels last."
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    convertible = image if image.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA") else image.convert("RGB")
    convertible.save(file, "PNG", compress_level=1, exif=image.getexif())  # with the orientation, which is obeyed
    return file.getvalue()


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise PictureUnreadable(f"{path} is a folder; give its pictures, or the folder to predict.py.")
        if path.stat().st_size > MAX_BYTES:
            raise PictureUnreadable(f"{path} is larger than {MAX_BYTES // 1_000_000} MB; is it a picture?")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise PictureUnreadable(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _fetch(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": AGENT})
    try:
        with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as response:
            data: bytes = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise FetchFailed(f"{address} answered {error.code} {error.reason}; check the address.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FetchFailed(f"{address} could not be fetched ({getattr(error, 'reason', error)}).") from error
    if len(data) > MAX_BYTES:
        raise FetchFailed(f"{address} gives more than {MAX_BYTES // 1_000_000} MB; is it a picture?")
    return data
