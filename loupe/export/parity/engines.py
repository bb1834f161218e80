"""Run the stages of the parity gate that need no other process: TensorFlow, loaded as TensorFlow Serving does, and
OpenVINO.

    answers = session(folder, card, pixels, familiarity, advance)   # Fault where it does not load or contradicts itself
    answers = openvino(folder, card, pixels, advance)

Each answers the first picture alone and then all of them, several at once: an answer must not depend on which other
pictures are in the batch, since servers put callers' pictures into batches as they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from loupe.card import Card
from loupe.export.graph.savedmodel import FEATURES, loaded
from loupe.export.parity.tolerance import AT_ONCE, BOUNDS, Advance, Answers, Array, Fault, Skipped, Unsupported
from loupe.familiarity import Familiarity

OUTPUTS = ("probabilities", "heatmap", "familiarity")
FEATURE_COUNT = 64  # features on which the exported familiarity is checked

Ask = Callable[[Array], dict[str, Array]]  # pixels → outputs by name


def session(folder: Path, card: Card, pixels: Array, familiarity: Familiarity | None, advance: Advance) -> Answers:
    with loaded(folder) as ask:
        _check_card(ask("describe", {"request": np.array([b"", b""], object)})["card"], card)
        answers = in_batches(lambda batch: ask("serving_default", {"image": batch}), pixels, advance)
        _check_heatmap(answers, card)
        if familiarity:
            features = spread_features(familiarity)
            given = {f"{FEATURES}:0": features}
            scores = ask("serving_default", {"image": pixels[:1]}, given, outputs=["familiarity"])["familiarity"]
            _check_formula(familiarity, features, scores)
    return answers


def openvino(folder: Path, card: Card, pixels: Array, advance: Advance) -> Answers:
    if not find_spec("openvino"):
        raise Skipped("openvino is not installed")
    from loupe.engines.openvino_engine import compile_model

    try:
        compiled = compile_model(folder, card.precision)
    except RuntimeError as error:
        raise Unsupported(str(error)) from error
    names = {name: port for port in compiled.outputs for name in port.names if name in OUTPUTS}

    def ask(batch: Array) -> dict[str, Array]:
        answer = compiled(batch)
        return {name: np.array(answer[port]) for name, port in names.items()}

    answers = in_batches(ask, pixels, advance)
    _check_heatmap(answers, card)
    return answers


def in_batches(ask: Ask, pixels: Array, advance: Advance) -> Answers:
    """Ask for the first picture alone, then for all in batches. The first call is not timed, since engines set
    themselves up in it."""
    # Ask for the first picture alone.
    alone = ask(pixels[:1])
    _check_batch(alone, 1)
    # Ask for all.
    batches: list[dict[str, Array]] = []
    began = time.perf_counter()
    for start in range(0, len(pixels), AT_ONCE):
        batch = pixels[start : start + AT_ONCE]
        batches.append(ask(batch))
        _check_batch(batches[-1], len(batch))
        advance(len(batch))
    ms = (time.perf_counter() - began) * 1e3 / len(pixels)
    # Put the answers together.
    joined = {name: np.concatenate([answer[name] for answer in batches]) for name in batches[0]}
    return Answers(
        joined["probabilities"], joined.get("heatmap"), joined.get("familiarity"), ms, alone["probabilities"]
    )


def spread_features(familiarity: Familiarity) -> Array:
    """Return features near the centroids and far from them: the pictures may all be unfamiliar to the model."""
    random = np.random.default_rng(0)
    classes, width = familiarity.centroids.shape
    far = random.uniform(0, 2 * familiarity.marks[-1], (FEATURE_COUNT, 1)) / np.sqrt(width)
    steps = random.normal(0, 1, (FEATURE_COUNT, width)) * far
    return np.asarray(familiarity.centroids[random.integers(0, classes, FEATURE_COUNT)] + steps, np.float32)


def _check_card(answers: Array, card: Card) -> None:
    if list(answers) == [card.to_json().encode()] * 2:
        return
    try:
        served_card = Card.from_json(answers[0])
    except (ValueError, IndexError) as error:
        raise Fault("describes itself by no card") from error
    different = [key for key, value in card.to_dict().items() if served_card.to_dict()[key] != value]
    difference = f"{', '.join(different)} differ" if different else "it is written in another way"
    raise Fault(f"describes itself by another card than the model's: {difference}")


def _check_formula(familiarity: Familiarity, features: Array, scores: Array) -> None:
    difference = float(np.abs(scores - familiarity.score(features)).max())
    if not difference <= BOUNDS["float32"].familiarity:
        raise Fault(f"computes familiarity otherwise than training: {difference:.2g} apart")


def _check_heatmap(answers: Answers, card: Card) -> None:
    if (answers.heatmap is not None) != card.heatmap:
        raise Fault(f"gives {'no' if card.heatmap else 'a'} heat map, and its card says otherwise")


def _check_batch(answer: dict[str, Array], count: int) -> None:
    for name, values in answer.items():
        if values.ndim < 1 or len(values) != count:
            raise Fault(f"gives {name} of shape {list(values.shape)} for {count} pictures: servers cannot batch it")
