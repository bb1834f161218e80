"""Find the pictures that are meant: files, folders, globs, addresses, or a list on stdin.

    found = find(["photos", "more/*.jpg", "https://example.org/a.jpg"])
    [(each.picture.name, each.truth) for each in found.pictures]

Folders are searched through, in the order of their names. Of their files those with a picture's ending are taken; how
many others there were is kept, so that nobody wonders. A picture that is named twice is taken once.
"""

from __future__ import annotations

import codecs
import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from loupe.client.picture import Picture, is_address, picture_of
from loupe.errors import UserError

ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif"}


@dataclass(frozen=True)
class Found:
    picture: Picture
    truth: str | None = None  # the folder's name, or the label that a CSV gives


@dataclass
class Findings:
    pictures: list[Found] = field(default_factory=list)
    others: int = 0  # files in folders that are no pictures by their names
    links: int = 0  # to folders, which are not followed
    unreadable: list[str] = field(default_factory=list)  # folders


class _Finder:
    """Collects findings. `without` is a folder that is left out."""

    def __init__(self, without: Path | None) -> None:
        self.findings = Findings()
        self._without = without.resolve() if without else None
        self._seen: set[str] = set()

    def take(self, name: str) -> None:
        key = name if is_address(name) else os.path.abspath(name)  # noqa: PTH100 (a name may be no path at all)
        if key not in self._seen:
            self._seen.add(key)
            self.findings.pictures.append(Found(picture_of(name)) if is_address(name) else _found(name))

    def expand(self, pattern: str) -> None:
        matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise UserError(f"Nothing matches {pattern!r}; in quotes, ** stands for any folders: 'photos/**/*.jpg'.")
        for match in matches:
            if self._without and Path(match).resolve().is_relative_to(self._without):
                continue
            if not Path(match).is_dir():
                self.take(match)
            elif "**" not in pattern:  # which has matched what is in the folder, too
                self.search(match)

    def search(self, folder: str) -> None:
        def keep_error(error: OSError) -> None:
            self.findings.unreadable.append(f"{error.filename} ({error.strerror})")

        for parent, folders, files in os.walk(folder, onerror=keep_error):
            seen = [name for name in sorted(folders) if not name.startswith(".")]
            self.findings.links += sum(Path(parent, name).is_symlink() for name in seen)
            folders[:] = [name for name in seen if not self._without or Path(parent, name).resolve() != self._without]
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if Path(name).suffix.lower() in ENDINGS:
                    self.take(os.path.join(parent, name))  # noqa: PTH118 (keeps "./" as it was given)
                else:
                    self.findings.others += 1


def find(words: Iterable[str], without: Path | None = None) -> Findings:
    """Find what the words name. `without` is a folder that is left out: copies are written there."""
    finder = _Finder(without)
    for word in words:
        # os.path, since Path raises an OSError where a word is too long for a path.
        if is_address(word) or os.path.isfile(word):  # noqa: PTH113
            finder.take(word)
        elif os.path.isdir(word):  # noqa: PTH112
            finder.search(word)
        elif os.path.exists(word) or not glob.has_magic(word):  # noqa: PTH110
            finder.take(word)  # what is not there becomes an error of its own
        else:
            finder.expand(word)
    return finder.findings


def _found(path: str) -> Found:
    return Found(Picture(path, Path(path)), Path(path).absolute().parent.name)


def lines(data: bytes) -> list[str]:
    """Return the paths and addresses of a list, a line each, or each ended by a NUL as `find -print0` does."""
    data = data.removeprefix(codecs.BOM_UTF8)
    words = data.split(b"\0") if b"\0" in data else [line.strip() for line in data.split(b"\n")]
    return [os.fsdecode(word) for word in words if word.strip()]
