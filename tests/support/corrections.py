"""Folders of corrections as the gateway and a review leave them.

path = put(root, "cracked", encoded(picture()), said="normal")       # waits for a review
put(root, "cracked", data, state="accepted")
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from loupe import feedback, files
from loupe.images.decode import suffix_of


def put(
    root: Path, label: str, data: bytes, said: str = "normal", state: str = "waiting", age: int = 0, **more: Any
) -> Path:
    """Return the path of a picture that is said to be of this label. `age` is its time, in seconds."""
    (root / "waiting").mkdir(parents=True, exist_ok=True)
    note = {
        "label": label, "predicted": {"label": said, "confidence": 0.974, "certain": False, "reason": "unfamiliar"},
        "model": {"name": "tires", "version": 3}, "time": "2026-05-04T10:20:30Z", "request_id": "x", **more,
    }  # fmt: skip
    suffix, folder = suffix_of(data), files.folder_name(label)
    with feedback.locked(root):
        feedback.keep(root, data, suffix, note)
    path = root / "waiting" / folder / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
    os.utime(path, (1000 + age, 1000 + age))
    if state != "waiting":
        assert feedback.move(root, feedback.read(path), state)
    return root / state / folder / path.name
