"""The folder of a run, whole or not at all.

    with Run(Path("runs"), "tires") as run:     # run.part: runs/.part-tires-<process>, gone afterwards
        run.write(data, metrics, backbone, seed)
        folder = run.keep(finished=True)        # runs/tires, in place of an earlier one

What was interrupted is kept as runs/tires-interrupted, so that it never replaces a finished run.
"""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from loupe.card import Card
from loupe.errors import UserError
from loupe.training.dataset import Dataset


class Run:
    def __init__(self, runs: Path, name: str) -> None:
        self.name = name
        self.home = runs / name
        self.part = runs / f".part-{name}-{os.getpid()}"

    def __enter__(self) -> Run:
        try:
            for left in self.part.parent.glob(f".part-{self.name}-*"):
                if not _alive(left.name.rpartition("-")[2]):
                    shutil.rmtree(left)
            self.part.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.part.parent} ({error.strerror}). Free it, or name another folder with --runs."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.part, ignore_errors=True)

    def write(self, data: Dataset, metrics: dict[str, Any], backbone: dict[str, Any], seed: int) -> None:
        card = Card(
            name=self.name,
            labels=data.labels,
            height=data.pixels.shape[1],
            width=data.pixels.shape[2],
            backbone=backbone,
            metrics={"split": "test", "images": len(data.test), "accuracy": metrics["accuracy"], "ece": metrics["ece"]},
            training={
                "images": data.counts(data.train),
                "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "seed": seed,
                "tensorflow": version("tensorflow"),
            },
        )
        (self.part / "card.json").write_text(card.to_json())
        (self.part / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")

    def keep(self, finished: bool) -> Path:
        home = self.home if finished else self.home.with_name(f"{self.name}-interrupted")
        old = self.part.with_name(self.part.name.replace(".part-", ".old-", 1))
        if home.exists():
            home.rename(old)
        self.part.rename(home)
        shutil.rmtree(old, ignore_errors=True)
        return home


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return int(process) != os.getpid()
