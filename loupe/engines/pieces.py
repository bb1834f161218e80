"""Compute a large batch in pieces, so that its memory is bounded: an engine keeps what its largest batch needed.

    engine = PiecewiseEngine(engine)     # the same answers

Only for models of our own, whose rows are known to be computed each for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loupe.engines.engine import Engine
from loupe.engines.savedmodel import Array

MAX_ROWS = 8  # at once; larger batches are hardly faster


class PiecewiseEngine:
    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.precision = engine.precision
        self.at_once = engine.at_once
        self._engine = engine

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float | None = None
    ) -> dict[str, Array]:
        lengths = {len(array) for array in inputs.values() if array.ndim}
        rows = lengths.pop() if len(lengths) == 1 else 0
        if rows <= MAX_ROWS:
            return self._engine.run(signature, inputs, outputs, deadline)
        pieces = []
        for start in range(0, rows, MAX_ROWS):
            piece = {alias: array[start : start + MAX_ROWS] for alias, array in inputs.items()}
            pieces.append(self._engine.run(signature, piece, outputs, deadline))
        return {alias: np.concatenate([piece[alias] for piece in pieces]) for alias in outputs}

    def run_examples(
        self, examples: Array, outputs: Mapping[str, Sequence[str]], deadline: float | None = None
    ) -> dict[str, dict[str, Array]]:
        return self._engine.run_examples(examples, outputs, deadline)

    def close(self) -> None:
        self._engine.close()
