"""Add an int8 variant for Loupe's model server: OpenVINO's, quantised by NNCF, beside the SavedModel it was made from.

    verdict = add(folder, card, quantisation_pictures, heldout, truth)  # folder: a SavedModel as graph.save writes it
    print(verdict)                                                      # kept or not, and why

A SavedModel in bfloat16 cannot be quantised; then `float32=` is a folder with the same network in float32.

The variant lies in `assets.extra/openvino-int8/`: model.xml, model.bin and SHA256SUMS. By the sums the server detects a
variant that is damaged, half copied or of another version. Only the layers up to the last feature map compute in int8;
the head, the softmax, the heat map and the familiarity compute as before. The variant is kept if, picture by picture,
it turns no more than 1 % of right answers wrong, net of those that it turns right, and if it is faster here than the
SavedModel in OpenVINO, or at least smaller and not a tenth slower. The server uses it wherever it exists.

Not covered: whether it is faster on another machine. Needs NNCF and OpenVINO, no TensorFlow.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loupe import checksums
from loupe.card import Card
from loupe.errors import UserError
from loupe.quiet import quiet

FOLDER = Path("assets.extra", "openvino-int8")
MAX_QUANTISATION = 300  # pictures to quantise on: more do not change the ranges noticeably
MAX_HELDOUT = 500  # pictures to compare on, if there are as many: 1 % of too few is less than one picture
MAX_LOST = 0.01  # share of right answers that may turn wrong
LEAST_SPEED = 0.9  # times the SavedModel's, for a variant that is only smaller
TIMED_BATCHES = (1, 8)
TIMING_SECONDS = 1.5  # for each batch size
BATCH = 16

Array = np.ndarray[Any, Any]
Ask = Callable[[Array], dict[str, Array]]


@dataclass(frozen=True)
class Accuracy:
    images: int
    right: int  # of the SavedModel's answers
    broken: int  # right in the SavedModel, wrong in int8
    mended: int  # wrong in the SavedModel, right in int8
    by_labels: bool  # False: compared with the SavedModel's own answers, since the pictures have no labels
    moved: dict[str, float]  # output → mean difference
    unfamiliar: tuple[int, int] | None  # pictures below the card's limit, before and after

    @property
    def good(self) -> bool:
        return self.right > 0 and self.broken - self.mended <= MAX_LOST * self.right

    @property
    def line(self) -> str:
        owner = "right answers" if self.by_labels else "answers (the pictures have no labels, so the SavedModel's own)"
        moved = ", ".join(f"{name} {by:.3f}" for name, by in self.moved.items())
        strangers = f"; unfamiliar pictures {self.unfamiliar[0]} → {self.unfamiliar[1]}" if self.unfamiliar else ""
        return (
            f"of {self.right} {owner} it turns {self.broken} wrong, and {self.mended} of the other "
            f"{self.images - self.right} right; outputs move on average by: {moved}{strangers}"
        )


@dataclass(frozen=True)
class Cost:
    """Time and size of the SavedModel, as the server would use it otherwise, and of the int8 variant."""

    milliseconds: dict[int, tuple[float, float]]  # batch size → ms a picture
    megabytes: tuple[float, float]

    @property
    def speed(self) -> float:
        """Return how many times as fast int8 is, over all batch sizes (geometric mean)."""
        return statistics.geometric_mean(before / after for before, after in self.milliseconds.values())

    @property
    def good(self) -> bool:
        return self.speed > 1 or (self.speed > LEAST_SPEED and self.megabytes[1] < self.megabytes[0])

    @property
    def line(self) -> str:
        times = ", ".join(f"{b:.2g} → {a:.2g} at batch {n}" for n, (b, a) in self.milliseconds.items())
        verdict = f"{self.speed:.2f} × as fast" if self.speed > 1 else f"not faster here ({self.speed:.2f} ×)"
        return f"{verdict}: ms a picture {times}; {self.megabytes[0]:.1f} → {self.megabytes[1]:.1f} MB"


@dataclass(frozen=True)
class Verdict:
    kept: bool
    reason: str
    accuracy: Accuracy | None = None  # None where there is no int8 model to measure
    cost: Cost | None = None

    def __str__(self) -> str:
        return f"{'kept' if self.kept else 'not kept'}: {self.reason}"


def add(
    folder: Path,
    card: Card,
    quantisation_pictures: Array,
    heldout: Array,
    truth: Sequence[int] | None,
    float32: Path | None = None,
) -> Verdict:
    """Make the variant and keep it if it is good. The pictures are uint8 [N, H, W, 3]; `truth` has the classes of the
    held-out ones, or is None."""
    # Check what is needed.
    _import_tools()
    if not len(quantisation_pictures) or not len(heldout):
        return Verdict(False, "there are no pictures to calibrate and check it on; name a folder with --images")
    # Quantise, measure accuracy and cost, and decide.
    variant, verdict = folder / FOLDER, None
    try:
        with quiet(stdout=True):
            problem = quantise(float32 or folder, variant, quantisation_pictures[:MAX_QUANTISATION])
            if problem:
                verdict = Verdict(False, problem)
            else:
                asks = load_ask(folder, card.precision), load_ask(variant / "model.xml", "float32")
                before, after = (answers_of(ask, heldout) for ask in asks)
                accuracy = compare(before, after, truth, card.unfamiliar_below)
                cost = Cost(time_in_turns(*asks, heldout), (_megabytes(folder), _megabytes(variant)))
                bind(folder)
                verdict = decide(accuracy, cost)
    finally:
        # Delete a variant that is not kept.
        if verdict is None or not verdict.kept:
            shutil.rmtree(variant, ignore_errors=True)
    return verdict


def decide(accuracy: Accuracy, cost: Cost) -> Verdict:
    if not accuracy.right:
        return Verdict(False, f"none of the {accuracy.images} pictures is answered right to begin with", accuracy, cost)
    if not accuracy.good:
        return Verdict(False, f"{accuracy.line}. At most {MAX_LOST:.0%} may turn, on balance", accuracy, cost)
    if not cost.good:
        return Verdict(False, cost.line, accuracy, cost)
    return Verdict(True, f"{accuracy.line}; {cost.line}", accuracy, cost)


def _import_tools() -> tuple[Any, Any]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else both send usage data
    try:
        import nncf  # type: ignore[import-untyped]
        import openvino
    except ImportError as error:
        raise UserError(f"--int8 needs {error.name}: `pipenv sync --categories export` installs it.") from error
    nncf.set_log_level(logging.ERROR)
    return openvino, nncf


# ------------------------------------------------------------------------------------------------------ quantising


def quantise(folder: Path, variant: Path, quantisation_pictures: Array) -> str | None:
    """Quantise the float32 SavedModel in `folder` into the folder `variant`. Return the reason if that cannot be
    done."""
    # Quantise all but the nodes after the feature map.
    openvino, nncf = _import_tools()
    model = openvino.Core().read_model(str(folder))
    float_nodes = _nodes_after_feature_map(model)
    try:
        quantised = nncf.quantize(
            model,
            nncf.Dataset([picture[None] for picture in quantisation_pictures]),
            subset_size=len(quantisation_pictures),
            preset=nncf.QuantizationPreset.MIXED,  # closer to float32, above all after swish
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=float_nodes, validate=False),
        )
    except Exception as error:  # NNCF raises errors of every type; the SavedModel is published anyway
        return f"NNCF cannot quantise this network: {_first_line(error)}"
    # Save the result.
    if not any(node.get_type_name() == "FakeQuantize" for node in quantised.get_ops()):
        return "the network has no layer that NNCF can quantise"
    shutil.rmtree(variant, ignore_errors=True)
    variant.mkdir(parents=True)
    openvino.save_model(quantised, str(variant / "model.xml"), compress_to_fp16=False)
    return None


def bind(folder: Path) -> None:
    """Write the checksums. They include the SavedModel's: once that is saved again, bind again."""
    if (variant := folder / FOLDER).is_dir():
        checksums.write(variant, ("model.bin", "model.xml", "../../saved_model.pb"))


def _nodes_after_feature_map(model: Any) -> list[str]:
    """Return the names of all nodes that are computed from the last feature map. The probabilities are traced back to
    it through everything that is no map."""
    # Go back from the probabilities to the last feature maps.
    maps, seen, waiting = [], set(), [model.output("probabilities").get_node()]
    while waiting:
        for port in waiting.pop().inputs():
            source = port.get_source_output()
            name = source.get_node().get_friendly_name()
            if _is_map(source) and source.get_node().get_type_name() != "Constant":
                maps.append(source)
            elif name not in seen:
                seen.add(name)
                waiting.append(source.get_node())
    # Collect everything that is computed from these.
    after: set[str] = set()
    while maps:
        for port in maps.pop().get_target_inputs():
            node = port.get_node()
            if node.get_friendly_name() not in after:
                after.add(node.get_friendly_name())
                maps += node.outputs()
    return sorted(after)


def _is_map(output: Any) -> bool:
    """Return True for an output of rank 4 that is wide: pooled features are sometimes kept as [N, C, 1, 1]."""
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic or shape.rank.get_length() < 4:
        return False
    return [side.is_dynamic or side.get_length() > 1 for side in list(shape)[1:]].count(True) > 1


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# -------------------------------------------------------------------------------------------------------- measuring


def load_ask(path: Path, precision: str) -> Ask:
    """Load a model as the model server does. Return a function from pixels to its outputs."""
    from loupe.engines.openvino_engine import compile_model

    request = compile_model(path, precision).create_infer_request()

    def ask(pixels: Array) -> dict[str, Array]:
        return {name: value.copy() for port, value in request.infer({0: pixels}).items() for name in port.names}

    return ask


def answers_of(ask: Ask, pixels: Array) -> dict[str, Array]:
    batches = [ask(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    return {name: np.concatenate([answer[name] for answer in batches]) for name in batches[0]}


def compare(
    before: dict[str, Array], after: dict[str, Array], truth: Sequence[int] | None, limit: float | None = None
) -> Accuracy:
    predictions = [_top_class(answers["probabilities"]) for answers in (before, after)]
    classes = np.asarray(predictions[0] if truth is None else truth)
    right_before, right_after = (top == classes for top in predictions)
    return Accuracy(
        images=len(classes),
        right=int(right_before.sum()),
        broken=int((right_before & ~right_after).sum()),
        mended=int((~right_before & right_after).sum()),
        by_labels=truth is not None,
        moved={name: float(np.abs(after[name] - before[name]).mean()) for name in sorted(before)},
        unfamiliar=None if limit is None else (_below(limit, before), _below(limit, after)),
    )


def _top_class(probabilities: Array) -> Array:
    """Return the top class; -1, which is no class, where there is no number to go by."""
    return np.where(np.isfinite(probabilities).all(axis=1), probabilities.argmax(axis=1), -1)


def _below(limit: float, answers: dict[str, Array]) -> int:
    return int((answers["familiarity"] < limit).sum()) if "familiarity" in answers else 0


def time_in_turns(before: Ask, after: Ask, pictures: Array) -> dict[int, tuple[float, float]]:
    """Return the median ms a picture of both, for each batch size. They take turns, so that other load on the machine
    affects both alike."""
    medians = {}
    for batch in TIMED_BATCHES:
        pixels = np.resize(pictures, (batch, *pictures.shape[1:]))
        times: tuple[list[float], list[float]] = ([], [])
        before(pixels), after(pixels)
        end = time.monotonic() + TIMING_SECONDS
        while time.monotonic() < end or len(times[0]) < 5:
            for ask, durations in zip((before, after), times, strict=True):
                started = time.perf_counter()
                ask(pixels)
                durations.append((time.perf_counter() - started) * 1e3 / batch)
        medians[batch] = (statistics.median(times[0]), statistics.median(times[1]))
    return medians


def _megabytes(folder: Path) -> float:
    """Return the size of the SavedModel's own files, or of the variant's."""
    if (folder / "model.bin").exists():
        files = list(folder.iterdir())
    else:
        files = [folder / "saved_model.pb", *(folder / "variables").glob("*")]
    return sum(path.stat().st_size for path in files) / 1e6
