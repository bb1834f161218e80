"""What an engine is: it computes the signatures of one SavedModel.

engine.run("serving_default", {"image": pixels}, ["probabilities"])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from loupe.engines.savedmodel import Array, SavedModel


class Engine(Protocol):
    name: str

    def run(self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Refused if it cannot. Called by many threads at once."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Options:
    threads: int = 0  # for one operation; 0: as many as there are CPUs
    streams: int = 0  # operations, or whole calls, at once; 0: the engine's own choice
    mixed_precision: str = ""  # "bfloat16" or nothing


Opener = Callable[[SavedModel], Engine]
