"""Unpack a zip or a tar that came from elsewhere: within its folder, within bounds, whole or not at all.

    written = unpack(Path("data/flowers.tgz"), Path("data/flowers"), place)

`place` is given the archive's file names and says which are wanted and where each goes. The folder is filled beside and
renamed into place. Links, devices and names that lead elsewhere are refused, and with them the whole archive.
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

MOST_FILES = 200_000
MOST_BYTES = 20_000_000_000
DAMAGES = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError)

Places = dict[str, str]  # a file of the archive → where it goes in the folder
Read = Callable[[str], IO[bytes]]


def unpack(archive: Path, folder: Path, place: Callable[[Sequence[str]], Places]) -> list[str]:
    """What was written, as names in `folder`, which must not be there, or be empty."""
    part = folder.with_name(f".part-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with opened(archive) as (sizes, read):
            places = place(list(sizes))
            if not places:
                raise UserError(f"{archive} holds nothing of what was looked for: is it the right one?")
            _check(archive, sizes, places, folder.parent)
            bar = Bar(f"unpacking {archive.name}", 0, sum(sizes[name] for name in places))
            for name in sizes:  # in the archive's order: a tar is read from front to back
                if name in places:
                    _write(read(name), part / places[name], bar)
            bar.end()
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except DAMAGES as error:
        raise UserError(f"{archive} is damaged, or neither zip nor tar: remove it and fetch it again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return list(places.values())


@contextmanager
def opened(archive: Path) -> Iterator[tuple[dict[str, int], Read]]:
    """The archive's files with their sizes, and how to read one."""
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


def _check(archive: Path, sizes: dict[str, int], places: Places, home: Path) -> None:
    for name in [*sizes, *places.values()]:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or ":" in parts[0] or "\\" in name or "\0" in name:
            raise UserError(f"{archive} holds {name!r}, which would land elsewhere: nothing was unpacked.")
    need = sum(sizes[name] for name in places)
    if len(places) > MOST_FILES or need > MOST_BYTES:
        raise UserError(f"{archive} would give {len(places)} files of {need / 1e9:.1f} GB: too much to be right.")
    free = shutil.disk_usage(home).free
    if need > free:
        raise UserError(f"{home} has {free / 1e6:.0f} MB free, and {archive} takes {need / 1e6:.0f} MB unpacked.")


def _write(file: IO[bytes], to: Path, bar: Bar) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with file, to.open("xb") as copy:
        while chunk := file.read(CHUNK):
            copy.write(chunk)
            bar.add(len(chunk))
