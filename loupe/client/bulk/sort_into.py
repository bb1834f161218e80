"""Put copies of pictures, or links to them, into a folder for each label.

    sorter = Sorter(Path("sorted"), link=False)
    sorter.put(picture, "cracked")             # → sorted/cracked/photo.jpg

Nothing is ever overwritten: where another file has the name already, the copy becomes photo-2.jpg. The same picture is
not put twice, so that a run which is repeated or resumed changes nothing.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from loupe import files
from loupe.client.picture import Picture
from loupe.errors import LoupeError, UserError

LONGEST_NAME, LONGEST_ENDING = 255, 20  # bytes


class NotSorted(LoupeError):
    """The picture was classified, and could not be read once more."""


@dataclass(frozen=True)
class FetchedOnce(Picture):
    """A picture by its address, whose bytes are kept while it is in hand: they are classified, and then written."""

    _bytes: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    def read(self) -> bytes:
        if not self._bytes:
            self._bytes.append(super().read())
        return self._bytes[0]


@dataclass
class _Taken:
    """The files photo.jpg, photo-2.jpg … of a folder, as far as they were looked at."""

    last: int = 0
    by_size: dict[int, list[Path]] = field(default_factory=lambda: defaultdict(list))


class Sorter:
    def __init__(self, folder: Path, link: bool) -> None:
        self._folder, self._link = folder, link
        self._taken: dict[tuple[Path, str], _Taken] = defaultdict(_Taken)

    def put(self, picture: Picture, label: str) -> Path:
        """Raise NotSorted if the picture cannot be read, UserError if the folder cannot be written."""
        target = self._folder / files.folder_name(label)
        source = picture.source
        try:
            target.mkdir(parents=True, exist_ok=True)
            if isinstance(source, Path):
                return self._put_file(source, target)
            name = Path(unquote(urlsplit(picture.name).path)).name.replace("\0", "") or "picture"
            return self._put_bytes(picture.read(), target, name)
        except LoupeError as error:
            raise NotSorted(str(error)) from error
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            if isinstance(source, Path) and error.filename == str(source):
                raise NotSorted(f"{source} cannot be read ({reason}).") from error
            raise UserError(f"{picture.name} cannot be put into {target} ({reason}); what is done stays.") from error

    def _put_file(self, source: Path, target: Path) -> Path:
        def is_same(path: Path) -> bool:
            return path.samefile(source) or filecmp.cmp(path, source, shallow=False)

        def make(path: Path) -> None:
            if self._link:
                path.symlink_to(source.resolve())
            else:
                shutil.copy2(source, path)

        return self._put(target, source.name, source.stat().st_size, is_same, make)

    def _put_bytes(self, content: bytes, target: Path, name: str) -> Path:
        def make(path: Path) -> None:
            path.write_bytes(content)

        return self._put(target, name, len(content), lambda path: path.read_bytes() == content, make)

    def _put(
        self, folder: Path, name: str, size: int, is_same: Callable[[Path], bool], make: Callable[[Path], None]
    ) -> Path:
        # Find the first free name, and look at each file on the way once only.
        taken = self._taken[folder, name]
        path = folder / _numbered(name, taken.last + 1)
        while os.path.lexists(path):
            taken.last += 1
            if path.is_file():
                taken.by_size[path.stat().st_size].append(path)
            path = folder / _numbered(name, taken.last + 1)
        # The same picture may be there already.
        for other in taken.by_size[size]:
            if is_same(other):
                return other
        part = folder / f".part-{os.getpid()}"
        part.unlink(missing_ok=True)
        make(part)
        part.rename(path)
        return path


def _numbered(name: str, number: int) -> str:
    """Return photo.jpg, photo-2.jpg, photo-3.jpg …, cut to what a file system takes."""
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    if len(os.fsencode(ending)) > LONGEST_ENDING:
        stem, ending = name, ""
    ending = (f"-{number}" if number > 1 else "") + ending
    room = LONGEST_NAME - len(os.fsencode(ending))
    return (stem if len(os.fsencode(stem)) <= room else os.fsencode(stem)[:room].decode(errors="ignore")) + ending
