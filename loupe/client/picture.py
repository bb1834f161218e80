"""Turn what people hand over into pictures: a path, bytes, an array, a PIL image, an address, or many of these.

    picture = picture_of("photo.jpg")            # Picture("photo.jpg", Path("photo.jpg"))
    picture_of(array, "picture 2")               # arrays and bytes have no name of their own
    picture.read()                               # the bytes of a picture file

Arrays and PIL images become PNG files in memory, without loss, so that whatever is given takes the one path for pixels.
An address is fetched as a browser on this machine would, through the proxies that the environment names (http_proxy,
https_proxy, no_proxy). Gateways and model servers are asked without them.
"""

from __future__ import annotations

import http.client
import io
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loupe import files
from loupe.errors import FetchFailed, PictureUnreadable, UserError

MAX_BYTES = 100_000_000  # of a file or of what an address gives
FETCH_SECONDS = 20.0  # for all of it
PIECE = 1 << 16  # bytes read at a time
AGENT = "Loupe (a picture is fetched by its address)"
KEPT_IN_ADDRESSES = "%/:=&?~#+!$,;'@()*[]"
AS_THEY_ARE = ("1", "L", "LA", "I;16", "I;16B", "P", "RGB", "RGBA")  # modes that PNG holds without loss
WITH_ALPHA = ("La", "RGBa", "PA")


@dataclass(frozen=True)
class Picture:
    name: str
    source: bytes | Path | str | PictureUnreadable = field(repr=False)  # a text is an address; an error is raised

    @property
    def address(self) -> str | None:
        return self.source if isinstance(self.source, str) else None

    def read(self) -> bytes:
        """Return the bytes: read the file, or fetch the address."""
        if isinstance(self.source, PictureUnreadable):
            raise self.source
        if isinstance(self.source, bytes):
            return self.source
        return _fetch(self.source) if isinstance(self.source, str) else _read(self.source)


def is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def is_one(given: Any) -> bool:
    """Return True for a single picture, False for many."""
    if isinstance(given, np.ndarray):
        return given.ndim != 4 and given.dtype.kind not in "OSU"  # an array of paths is many
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Picture)
    return isinstance(given, kinds) or hasattr(given, "read")


def many(given: Any) -> Iterable[Any]:
    """Return what holds many pictures, or refuse what cannot."""
    if isinstance(given, Mapping) or hasattr(given, "columns") or not isinstance(given, Iterable):
        raise UserError(f"{type(given).__name__} is no picture: give {WANTED}.")
    return given


WANTED = (
    "a path, bytes, an open file, a uint8 array [height, width, 3] of red, green and blue, a PIL image, an address, or "
    "a list of these"
)


def picture_of(given: Any, name: str = "picture") -> Picture:
    if isinstance(given, Picture):
        return given
    if isinstance(given, str) and is_address(given):
        return Picture(given, given)
    if isinstance(given, str | os.PathLike):
        path = os.fsdecode(given)
        return Picture(path, Path(path).expanduser() if path.startswith("~") else Path(path))
    if hasattr(given, "read"):
        return picture_of(given.read(), str(getattr(given, "name", name)))
    if isinstance(given, bytes | bytearray | memoryview):
        return Picture(name, bytes(given))
    if isinstance(given, Image.Image):
        return Picture(_name_of(given) or name, _png(given))
    if isinstance(given, np.ndarray):
        return Picture(name, _png(_image(given)))
    hint = "; give its .numpy(), as uint8 and channels last" if hasattr(given, "numpy") else ""
    raise PictureUnreadable(f"{type(given).__name__} is no picture{hint}: give {WANTED}.")


def picture_or_error(given: Any, name: str) -> Picture:
    """Return a picture; what is none becomes one whose error is raised when it is read."""
    try:
        return picture_of(given, name)
    except PictureUnreadable as error:
        return Picture(name, error)


def _name_of(image: Image.Image) -> str:
    return str(getattr(image, "filename", "") or "")


def _image(array: np.ndarray[Any, Any]) -> Image.Image:
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not fits or 0 in pixels.shape:
        raise PictureUnreadable(
            f"An array of {array.dtype} {list(array.shape)} is no picture: give uint8 [height, width, 3], from 0 to "
            "255, channels last."
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(image: Image.Image) -> bytes:
    if image.mode == "F" or 0 in image.size:
        raise PictureUnreadable(
            f"A PIL image of mode {image.mode}, {image.width}×{image.height}, is no picture: give RGB or L, 0 to 255."
        )
    file = io.BytesIO()
    try:
        if image.mode == "I":  # 32 bits, of which PNG takes 16
            image = Image.fromarray(np.asarray(image).clip(0, 65535).astype(np.uint16))
        mode = image.mode if image.mode in AS_THEY_ARE else "RGBA" if image.mode in WITH_ALPHA else "RGB"
        converted = image if mode == image.mode else image.convert(mode)
        converted.save(file, "PNG", compress_level=1, exif=image.getexif())  # with the orientation, which is obeyed
    except (OSError, ValueError, SyntaxError) as error:  # cut short, or closed
        raise PictureUnreadable(f"This PIL image cannot be read ({error}).") from error
    return file.getvalue()


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise PictureUnreadable(f"{path} is a folder; give its pictures, or the folder to predict.py.")
        return files.read(path, MAX_BYTES)  # no pipe is waited for
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise PictureUnreadable(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _fetch(address: str) -> bytes:
    deadline = time.monotonic() + FETCH_SECONDS
    pieces, size = [], 0
    try:
        quoted = urllib.parse.quote(address, safe=KEPT_IN_ADDRESSES)
        request = urllib.request.Request(quoted, headers={"User-Agent": AGENT})
        with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as response:
            while size <= MAX_BYTES and (piece := response.read1(PIECE)):
                pieces.append(piece)
                size += len(piece)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it took longer than {FETCH_SECONDS:.0f} s")
    except urllib.error.HTTPError as error:
        raise FetchFailed(f"{address} answered {error.code} {error.reason}; check the address.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FetchFailed(f"{address} could not be fetched ({getattr(error, 'reason', error)}).") from error
    if size > MAX_BYTES:
        raise FetchFailed(f"{address} gives more than {MAX_BYTES // 1_000_000} MB; is it a picture?")
    return b"".join(pieces)
