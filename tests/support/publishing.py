"""Processes that publish.

    subprocess.run(child("print(versions(home))", tmp_path), cwd=ROOT)

The first argument is the models folder; the model is called toy.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

PRELUDE = """
    import os, random, resource, shutil, sys, time
    from pathlib import Path
    from loupe.errors import UserError
    from loupe.export.publish.publication import publication, rollback, versions
    models, home = Path(sys.argv[1]), Path(sys.argv[1]) / "toy"
"""


def child(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code), *map(str, arguments)]


def names(home: Path) -> list[str]:
    """Return the names in a model's folder, without its ledger."""
    return sorted(entry.name for entry in home.iterdir() if entry.name != ".numbers")
