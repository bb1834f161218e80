"""The interface of an engine: it computes the signatures of one SavedModel.

engine.run("serving_default", {"image": pixels}, ["probabilities"], deadline=time.monotonic() + 5)
engine.run_examples(examples, {"classify": ["classes", "scores"], "regress": ["outputs"]})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from grpc import StatusCode

from loupe.engines.refused import Refused
from loupe.engines.savedmodel import Array, SavedModel


class Engine(Protocol):
    name: str
    precision: str  # float32, bfloat16 or int8
    at_once: int  # calls that are computed at the same time; others wait

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float | None = None
    ) -> dict[str, Array]:
        """Return the outputs by name, or raise Refused: also where the deadline, a time of time.monotonic(), comes
        first. Many threads may call it at once."""

    def run_examples(
        self, examples: Array, outputs: Mapping[str, Sequence[str]], deadline: float | None = None
    ) -> dict[str, dict[str, Array]]:
        """Return the outputs of several signatures, by signature and name, computed in one run. Each has one input, a
        vector of serialized tf.Examples, and all get the same."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Options:
    threads: int = 0  # threads for one operation; 0: one for each CPU
    streams: int = 0  # operations, or whole calls, at the same time; 0: the engine chooses
    mixed_precision: str = ""  # "bfloat16" or nothing


Opener = Callable[[SavedModel], Engine]


def out_of_time() -> Refused:
    return Refused(StatusCode.DEADLINE_EXCEEDED, "the deadline was over before the call's turn came")
