"""Export in float32 or bfloat16; `auto` measures both on real pictures.

    precision, lines = choose(source, pixels)

bfloat16 halves the weights and is up to four times as fast on processors that compute in it (AVX-512 BF16, AMX); on
others it is slower than float32, which is why `auto` measures. bfloat16 is chosen only if it is faster and agrees.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loupe.errors import UserError
from loupe.export.graph.savedmodel import Network, freeze, loaded, network_of, network_without_heatmap, save
from loupe.export.graph.simplify import folded, in_precision
from loupe.export.source import Source

PRECISIONS = ("float32", "bfloat16", "auto")
LEAST_GAIN = 1.05  # times as fast as float32, for both batch sizes: less is noise
BATCHES = (1, 8)  # batch sizes
ROUNDS = 8
NEAR_TIE = 0.02  # of probability, between the two best
MAX_DIFFERENCE = 0.1  # of a probability: rounding moves a picture near the border of a sharp network most

Array = np.ndarray[Any, Any]


def network_in(source: Source, precision: str) -> Network:
    """Return the leanest network with the source's answers, in float32 or bfloat16."""
    if source.model is None:
        if precision != "float32":
            raise UserError(
                f"This model can only be exported as it is, in float32, and not in {precision}: leave --precision out."
            )
        return source.network
    lean = folded(source.model)
    model = lean if precision == "float32" else in_precision(lean, precision)
    return network_of(model) if source.card.heatmap else network_without_heatmap(model)


def choose(source: Source, pixels: Array) -> tuple[str, list[str]]:
    """Return float32 or bfloat16 for this model on this machine, and lines that say why."""
    if source.model is None:
        return "float32", ["precision          float32: this model can only be exported as it is"]
    if not len(pixels):
        raise UserError("--precision auto needs pictures to measure with: name a folder of some by --images.")
    # Export in both precisions, then compare answers and times.
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        asks = {}
        for precision in ("float32", "bfloat16"):
            folder = Path(scratch) / precision
            card = replace(source.card, precision=precision)
            save(freeze(network_in(source, precision), card), card, folder)
            asks[precision] = partial(_probabilities, stack.enter_context(loaded(folder)))
        float32, bfloat16 = (np.concatenate([ask(pixels[n : n + 8]) for n in range(0, len(pixels), 8)])
                             for ask in asks.values())  # fmt: skip
        times = {size: _interleaved(asks, pixels[:size]) for size in BATCHES}
    # Take bfloat16 only if it gives the same labels and is faster.
    lines = [
        f"{size} at once".ljust(19) + f"float32 {ms['float32']:.1f} ms a picture, bfloat16 {ms['bfloat16']:.1f} ms"
        for size, ms in times.items()
    ]
    relabelled, largest = _differences(float32, bfloat16)
    if relabelled or not largest <= MAX_DIFFERENCE:
        reason = (
            f"bfloat16 gives {relabelled} of {len(float32)} pictures another label, and moves probabilities by "
            f"{largest:.2g}"
        )
        return "float32", [*lines, f"precision          float32: {reason}"]
    if any(ms["float32"] < LEAST_GAIN * ms["bfloat16"] for ms in times.values()):
        return "float32", [*lines, "precision          float32: bfloat16 is not faster on this machine"]
    reason = f"faster here, and the same labels on {len(float32)} pictures (probabilities move by up to {largest:.2g})"
    return "bfloat16", [*lines, f"precision          bfloat16: {reason}"]


def _probabilities(ask: Any, pixels: Array) -> Array:
    probabilities: Array = ask("serving_default", {"image": pixels}, outputs=["probabilities"])["probabilities"]
    return probabilities


def _interleaved(asks: Mapping[str, Callable[[Array], Array]], pixels: Array) -> dict[str, float]:
    """Return the median ms a picture of each. They take turns, so that other load on the machine affects all alike."""
    milliseconds: dict[str, list[float]] = {name: [] for name in asks}
    for turn in range(ROUNDS + 1):
        for name, ask in asks.items():
            started = time.perf_counter()
            ask(pixels)
            if turn:  # the first round sets up what later ones use
                milliseconds[name].append((time.perf_counter() - started) * 1e3 / len(pixels))
    return {name: statistics.median(times) for name, times in milliseconds.items()}


def _differences(float32: Array, bfloat16: Array) -> tuple[int, float]:
    """Return the number of pictures with another label, near-ties aside, and the largest difference of a
    probability."""
    best = np.sort(float32, axis=1)
    clear = best[:, -1] - best[:, -2] > NEAR_TIE
    relabelled = clear & (float32.argmax(axis=1) != bfloat16.argmax(axis=1))
    return int(relabelled.sum()), float(np.abs(float32 - bfloat16).max())
