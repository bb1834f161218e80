"""Unpack a zip or tar file from the internet: inside its folder, within limits, completely or not at all.

    written = unpack(Path("data/flowers.tgz"), Path("data/flowers"), place)

`place` gets the archive's file names and returns which to write and where. The folder is filled beside and renamed into
place. Links, devices and names that lead elsewhere are refused, and with them the whole archive.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from loupe.errors import UserError
from loupe.training.data.download import CHUNK, Bar

MAX_FILES = 200_000
MAX_BYTES = 20_000_000_000
DAMAGE_ERRORS = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)

Places = dict[str, str]  # file of the archive → its place in the folder
Read = Callable[[str], IO[bytes]]


def unpack(archive: Path, folder: Path, place: Callable[[Sequence[str]], Places]) -> list[str]:
    """Unpack the files that `place` chooses and return their names in `folder`, which must be absent or empty."""
    # Begin with an empty folder beside.
    staging = folder.with_name(f".part-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        # Choose, check and write the files.
        with open_archive(archive) as (sizes, read):
            places = place(list(sizes))
            if not places:
                raise UserError(f"{archive} holds nothing of what was looked for: is it the right one?")
            _check_contents(archive, sizes, places, folder.parent)
            bar = Bar(f"unpacking {archive.name}", 0, sum(sizes[name] for name in places))
            for name in sizes:  # in the archive's order: a tar is read from front to back
                if name in places:
                    _write(read(name), staging / places[name], bar)
            bar.end()
        # Put the folder into place.
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
    except DAMAGE_ERRORS as error:
        raise UserError(f"{archive} is damaged, or neither zip nor tar: remove it and fetch it again.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return list(places.values())


@contextmanager
def open_archive(archive: Path) -> Iterator[tuple[dict[str, int], Read]]:
    """Yield the archive's files with their sizes, and a function that opens one of them."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            files = {entry.filename: entry for entry in packed.infolist() if not entry.is_dir()}
            yield {name: entry.file_size for name, entry in files.items()}, lambda name: packed.open(files[name])
        return
    with tarfile.open(archive) as tar:
        entries = {entry.name.removeprefix("./"): entry for entry in tar if not entry.isdir()}
        for name, entry in entries.items():
            if not entry.isreg():
                raise UserError(f"{archive} holds {name!r}, which is no plain file: nothing was unpacked.")
        yield {name: entry.size for name, entry in entries.items()}, lambda name: _content(tar, entries[name])


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(entry)
    assert file is not None, "a plain file"
    return file


def _check_contents(archive: Path, sizes: dict[str, int], places: Places, target: Path) -> None:
    """Refuse archives with unsafe names, too many files, or more bytes than the disk has free."""
    for name in [*sizes, *places.values()]:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or ":" in parts[0] or "\\" in name or "\0" in name:
            raise UserError(f"{archive} holds {name!r}, which would land elsewhere: nothing was unpacked.")
    bytes_needed = sum(sizes[name] for name in places)
    if len(places) > MAX_FILES or bytes_needed > MAX_BYTES:
        raise UserError(
            f"{archive} would give {len(places)} files of {bytes_needed / 1e9:.1f} GB: too much to be right."
        )
    free = shutil.disk_usage(target).free
    if bytes_needed > free:
        raise UserError(
            f"{target} has {free / 1e6:.0f} MB free, and {archive} takes {bytes_needed / 1e6:.0f} MB unpacked."
        )


def _write(file: IO[bytes], target: Path, bar: Bar) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with file, target.open("xb") as copy:
        while chunk := file.read(CHUNK):
            copy.write(chunk)
            bar.add(len(chunk))
