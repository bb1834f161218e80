"""Write and read SHA256SUMS files, as `sha256sum --check` reads them.

checksums.write(folder, ["model.bin", "../saved_model.pb"])     # names are relative to the folder
checksums.read(folder)["model.bin"]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from loupe import files

NAME = "SHA256SUMS"
MAX_BYTES = 1 << 16


def write(folder: Path, names: Iterable[str]) -> None:
    sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / NAME).write_text("".join(sums))


def read(folder: Path) -> dict[str, str]:
    """Return the digest of each name. Raises OSError if there is no such file."""
    lines = files.read(folder / NAME, MAX_BYTES).decode(errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
