"""The stages of the parity gate that run in this process: TensorFlow Serving's way of loading, and OpenVINO's.

    answers = session(folder, card, pixels, familiarity)     # Fault where it does not load or contradicts itself
    answers = openvino(folder, card, pixels)

Each answers the first picture alone and then all of them, some at once: what one picture gets must not depend on which
others came with it, since servers put callers' pictures into batches as they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from loupe.card import Card
from loupe.export.graph.savedmodel import FEATURES, loaded
from loupe.export.parity.tolerance import AT_ONCE, BOUNDS, Answers, Array, Fault, NotTaken, Skipped, Step
from loupe.familiarity import Familiarity

OUTPUTS = ("probabilities", "heatmap", "familiarity")
SPREAD = 64  # features that the exported familiarity is tried with

Ask = Callable[[Array], dict[str, Array]]  # of pixels; outputs by name


def session(folder: Path, card: Card, pixels: Array, familiarity: Familiarity | None, step: Step) -> Answers:
    with loaded(folder) as ask:
        _check_card(ask("describe", {"request": np.array([b"", b""], object)})["card"], card)
        found = in_batches(lambda some: ask("serving_default", {"image": some}), pixels, step)
        _check_heatmap(found, card)
        if familiarity:
            features = spread(familiarity)
            inner = {f"{FEATURES}:0": features}
            scores = ask("serving_default", {"image": pixels[:1]}, inner, outputs=["familiarity"])["familiarity"]
            _check_formula(familiarity, features, scores)
    return found


def openvino(folder: Path, card: Card, pixels: Array, step: Step) -> Answers:
    if not find_spec("openvino"):
        raise Skipped("openvino is not installed")
    from loupe.engines.openvino_engine import compile_model

    try:
        compiled = compile_model(folder, card.precision)
    except RuntimeError as error:
        raise NotTaken(str(error)) from error
    names = {name: port for port in compiled.outputs for name in port.names if name in OUTPUTS}

    def ask(some: Array) -> dict[str, Array]:
        answer = compiled(some)
        return {name: np.array(answer[port]) for name, port in names.items()}

    found = in_batches(ask, pixels, step)
    _check_heatmap(found, card)
    return found


def in_batches(ask: Ask, pixels: Array, step: Step) -> Answers:
    """Timed without the first question, in which engines prepare themselves."""
    alone = ask(pixels[:1])
    _check_batch(alone, 1)
    found: list[dict[str, Array]] = []
    began = time.perf_counter()
    for start in range(0, len(pixels), AT_ONCE):
        some = pixels[start : start + AT_ONCE]
        found.append(ask(some))
        _check_batch(found[-1], len(some))
        step(len(some))
    ms = (time.perf_counter() - began) * 1e3 / len(pixels)
    joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    return Answers(
        joined["probabilities"], joined.get("heatmap"), joined.get("familiarity"), ms, alone["probabilities"]
    )


def spread(familiarity: Familiarity) -> Array:
    """Features as near to the centroids as the held-out pictures' and farther: pictures may all be strangers to it."""
    random = np.random.default_rng(0)
    classes, width = familiarity.centroids.shape
    far = random.uniform(0, 2 * familiarity.marks[-1], (SPREAD, 1)) / np.sqrt(width)
    steps = random.normal(0, 1, (SPREAD, width)) * far
    return np.asarray(familiarity.centroids[random.integers(0, classes, SPREAD)] + steps, np.float32)


def _check_card(described: Array, card: Card) -> None:
    if list(described) == [card.to_json().encode()] * 2:
        return
    try:
        told = Card.from_json(described[0])
    except (ValueError, IndexError) as error:
        raise Fault("describes itself by no card") from error
    wrong = [key for key, value in card.to_dict().items() if told.to_dict()[key] != value]
    named = f"{', '.join(wrong)} differ" if wrong else "it is written in another way"
    raise Fault(f"describes itself by another card than the model's: {named}")


def _check_formula(familiarity: Familiarity, features: Array, scores: Array) -> None:
    apart = float(np.abs(scores - familiarity.score(features)).max())
    if not apart <= BOUNDS["float32"].familiarity:
        raise Fault(f"computes familiarity otherwise than training: {apart:.2g} apart")


def _check_heatmap(found: Answers, card: Card) -> None:
    if (found.heatmap is not None) != card.heatmap:
        raise Fault(f"gives {'no' if card.heatmap else 'a'} heat map, and its card says otherwise")


def _check_batch(answer: dict[str, Array], count: int) -> None:
    for name, values in answer.items():
        if values.ndim < 1 or len(values) != count:
            raise Fault(f"gives {name} of shape {list(values.shape)} for {count} pictures: servers cannot batch it")
