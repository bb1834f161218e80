"""Write what a resumed run goes on with: a file that is never half written.

write(run.state / "head.npz", weights=…, about=…)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from loupe.errors import UserError


def write(path: Path, **arrays: Any) -> None:
    """Write the arrays beside `path`, and rename the file into place."""
    staging = path.with_suffix(".part")
    try:
        with staging.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        raise UserError(
            f"The state cannot be saved to {path.parent} ({error.strerror}). Free it, then --resume."
        ) from error
