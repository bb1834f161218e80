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
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from loupe import files
from loupe.client.picture import Picture
from loupe.errors import UserError


class Sorter:
    def __init__(self, folder: Path, link: bool) -> None:
        self._folder, self._link = folder, link

    def put(self, picture: Picture, label: str) -> Path:
        target = self._folder / files.folder_name(label)
        try:
            target.mkdir(parents=True, exist_ok=True)
            if isinstance(picture.source, Path):
                return self._put_file(picture.source, target)
            name = Path(unquote(urlsplit(picture.name).path)).name or "picture"
            return self._put_bytes(picture.read(), target, name)
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise UserError(f"{picture.name} cannot be put into {target} ({reason}); what is done stays.") from error

    def _put_file(self, source: Path, target: Path) -> Path:
        for path in _names(target, source.name):
            if not os.path.lexists(path):
                if self._link:
                    path.symlink_to(source.resolve())
                else:
                    part = path.with_name(f".part-{path.name}")
                    shutil.copy2(source, part)
                    part.rename(path)
                return path
            if path.exists() and (path.samefile(source) or filecmp.cmp(path, source, shallow=False)):
                return path
        raise AssertionError("names are endless")

    def _put_bytes(self, content: bytes, target: Path, name: str) -> Path:
        for path in _names(target, name):
            if not os.path.lexists(path):
                part = path.with_name(f".part-{path.name}")
                part.write_bytes(content)
                part.rename(path)
                return path
            if path.is_file() and path.read_bytes() == content:
                return path
        raise AssertionError("names are endless")


def _names(folder: Path, name: str) -> Iterator[Path]:
    """Yield photo.jpg, photo-2.jpg, photo-3.jpg …"""
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    yield folder / name
    number = 2
    while True:
        yield folder / f"{stem}-{number}{ending}"
        number += 1
