"""Bound what a call of a model of ours may cost: a large batch is computed in pieces, since an engine keeps the memory
that its largest batch needed, and few cards are given at once.

    engine = PiecewiseEngine(engine)     # the same answers

Only for models of our own, whose rows are known to be computed each for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loupe.engines.engine import Engine
from loupe.engines.refused import invalid
from loupe.engines.savedmodel import DESCRIBE, Array

MAX_ROWS = 8  # at once; larger batches are hardly faster
MAX_CARDS = 1024  # a request of a few bytes may ask for any number


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
        if signature == DESCRIBE and rows > MAX_CARDS:
            raise invalid(f"at most {MAX_CARDS} cards are given at once")
        if rows <= MAX_ROWS or signature == DESCRIBE:
            return self._engine.run(signature, inputs, outputs, deadline)
        pieces = []
        for start in range(0, rows, MAX_ROWS):
            # Copies: an engine may keep its last input, and with a part of an array the whole of it.
            piece = {alias: array[start : start + MAX_ROWS].copy() for alias, array in inputs.items()}
            pieces.append(self._engine.run(signature, piece, outputs, deadline))
        return {alias: np.concatenate([piece[alias] for piece in pieces]) for alias in outputs}

    def run_examples(
        self, examples: Array, outputs: Mapping[str, Sequence[str]], deadline: float | None = None
    ) -> dict[str, dict[str, Array]]:
        return self._engine.run_examples(examples, outputs, deadline)

    def close(self) -> None:
        self._engine.close()
