"""Say what is counted and timed. Here nothing is done with it; prometheus.py, where that is wanted, keeps it.

metrics = Metrics()
with metrics.call("tires", "Predict", "GRPC"):        # a whole call, counted with its status
    with metrics.computing("tires", "Predict", "openvino"): ...
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path


class Metrics:
    def call(self, model: str, api: str, entrypoint: str) -> AbstractContextManager[None]:
        return nullcontext()

    def computing(self, model: str, api: str, engine: str) -> AbstractContextManager[None]:
        return nullcontext()

    def examples(self, model: str, count: int) -> None:
        """Note how many tf.Examples a call had."""

    def load_ended(self, folder: Path, *, loaded: bool, seconds: float) -> None:
        """Note that a version was loaded, or could not be."""
