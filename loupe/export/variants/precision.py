"""Which precision a model is exported in, and `auto`: both are measured here, on real pictures.

    network, lines = in_precision_asked(source, "auto", pixels)

bfloat16 halves the weights and is up to four times as fast on processors that compute in it (AVX-512 BF16, AMX); on
others it is slower than float32, which is why `auto` measures. It is taken only if it is faster and agrees.
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
from loupe.export.graph.savedmodel import Network, freeze, loaded, network_of, plain, save
from loupe.export.graph.simplify import folded, in_precision
from loupe.export.source import Source

PRECISIONS = ("float32", "bfloat16", "auto")
FASTER = 1.05  # by which bfloat16 must beat float32, at both sizes: less is noise
SIZES = (1, 8)  # pictures at once
ROUNDS = 8
NEAR_TIE = 0.02  # of probability, between the two best
FARTHEST = 0.1  # of a probability, that rounding may move: a picture near the border of a sharp network moves most

Array = np.ndarray[Any, Any]


def network_in(source: Source, precision: str) -> Network:
    """The leanest network that answers what the source does, in float32 or bfloat16."""
    if source.model is None:
        if precision != "float32":
            raise UserError(
                f"This model can only be exported as it is, in float32, and not in {precision}: leave --precision out."
            )
        return source.network
    lean = folded(source.model)
    model = lean if precision == "float32" else in_precision(lean, precision)
    return network_of(model) if source.card.heatmap else plain(model)


def choose(source: Source, pixels: Array) -> tuple[str, list[str]]:
    """float32 or bfloat16 for this model on this machine, and lines that say why."""
    if source.model is None:
        return "float32", ["precision          float32: this model can only be exported as it is"]
    if not len(pixels):
        raise UserError("--precision auto needs pictures to measure with: name a folder of some by --images.")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        asks = {}
        for precision in ("float32", "bfloat16"):
            folder = Path(scratch) / precision
            card = replace(source.card, precision=precision)
            save(freeze(network_in(source, precision), card), card, folder)
            asks[precision] = partial(_probabilities, stack.enter_context(loaded(folder)))
        wide, narrow = (np.concatenate([ask(pixels[n : n + 8]) for n in range(0, len(pixels), 8)])
                        for ask in asks.values())  # fmt: skip
        times = {size: _interleaved(asks, pixels[:size]) for size in SIZES}
    lines = [
        f"{size} at once".ljust(19) + f"float32 {took['float32']:.1f} ms a picture, bfloat16 {took['bfloat16']:.1f} ms"
        for size, took in times.items()
    ]
    turned, farthest = _differences(wide, narrow)
    if turned or not farthest <= FARTHEST:
        why = (
            f"bfloat16 gives {turned} of {len(wide)} pictures another label, and moves probabilities by {farthest:.2g}"
        )
        return "float32", [*lines, f"precision          float32: {why}"]
    if any(took["float32"] < FASTER * took["bfloat16"] for took in times.values()):
        return "float32", [*lines, "precision          float32: bfloat16 is not faster on this machine"]
    why = f"faster here, and the same labels on {len(wide)} pictures (probabilities move by up to {farthest:.2g})"
    return "bfloat16", [*lines, f"precision          bfloat16: {why}"]


def _probabilities(ask: Any, pixels: Array) -> Array:
    found: Array = ask("serving_default", {"image": pixels}, outputs=["probabilities"])["probabilities"]
    return found


def _interleaved(asks: Mapping[str, Callable[[Array], Array]], pixels: Array) -> dict[str, float]:
    """Medians of ms a picture, taken in turns, so that a noisy moment hits both."""
    took: dict[str, list[float]] = {name: [] for name in asks}
    for turn in range(ROUNDS + 1):
        for name, ask in asks.items():
            started = time.perf_counter()
            ask(pixels)
            if turn:  # the first builds what later ones use
                took[name].append((time.perf_counter() - started) * 1e3 / len(pixels))
    return {name: statistics.median(times) for name, times in took.items()}


def _differences(wide: Array, narrow: Array) -> tuple[int, float]:
    """Pictures with another label, near-ties aside, and the largest step of a probability."""
    best = np.sort(wide, axis=1)
    clear = best[:, -1] - best[:, -2] > NEAR_TIE
    turned = clear & (wide.argmax(axis=1) != narrow.argmax(axis=1))
    return int(turned.sum()), float(np.abs(wide - narrow).max())
