"""Check where answers are to be written, before a model is loaded. A file that is not ours is never replaced.

check_targets({"--csv": Target("labels.csv", OURS["csv"])}, inputs=["photos", "test.csv"])
path_of("labels.csv")        # the file itself, where this is a link
is_stream("/dev/stderr")     # a pipe or a device: it is written straight
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loupe.client.bulk.find import ENDINGS
from loupe.client.bulk.row import FIELDS
from loupe.errors import UserError

STDOUT = "-"
STDOUTS = {STDOUT, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}
OURS = {  # how a file of each kind begins
    "csv": (",".join(FIELDS).encode() + b"\n",),
    "json": (b'[\n{"file": ', b"[]\n"),
    "jsonl": (b'{"file": ',),
}


@dataclass(frozen=True)
class Target:
    name: str
    ours: tuple[bytes, ...]  # beginnings of a file that may be replaced


def path_of(name: str) -> Path:
    return Path(os.path.realpath(name))


def is_stream(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 (of a text)
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def check_targets(targets: Mapping[str, Target], inputs: Iterable[str]) -> None:
    """Raise UserError if one cannot be written, or if writing it would destroy something. `inputs` are paths that are
    read."""
    flags: dict[Path, str] = {}
    read = {path_of(name) for name in inputs if "\0" not in name}
    for flag, target in targets.items():
        if target.name == STDOUT or is_stream(target.name):
            continue
        path = path_of(target.name)
        if path in flags:
            raise UserError(f"{flags[path]} and {flag} name the same file, {target.name}: give each its own.")
        flags[path] = flag
        if path in read:
            raise UserError(f"{target.name} is read by this command, and {flag} would replace it; name another file.")
        _check_path(flag, target, path)


def _check_path(flag: str, target: Target, path: Path) -> None:
    # The name, and the folder.
    if path.suffix.lower() in ENDINGS:
        raise UserError(f"{flag} {target.name} has a picture's ending; name a table there, such as labels.csv.")
    if path.is_dir():
        raise UserError(f"{flag} {target.name} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {target.name} cannot be written: there is no folder {path.parent}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {target.name} cannot be written: {path.parent} is not yours to write to.")
    # What is there already, under its name or under that which it has meanwhile.
    for each in (path, part_of(path)):
        try:
            mode = each.stat().st_mode
            if not stat.S_ISREG(mode):
                raise UserError(f"{flag}: {each} is no regular file; name another.")
            with each.open("rb") as file:
                beginning = file.read(1 << 16)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{flag} {target.name} cannot be written: {each} ({error.strerror}).") from error
        if beginning and not beginning.startswith(target.ours):
            raise UserError(f"{each} is there already and was not written by predict.py; move it, or name another.")
