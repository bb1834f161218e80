"""The int8 variant for our own model server: OpenVINO's, quantised by NNCF, beside the SavedModel it was made from.

    verdict = add(folder, card, calibration, validation, truth)     # folder: a SavedModel as graph.save writes it
    print(verdict)                                                  # kept or not, and why

A SavedModel in bfloat16 cannot be quantised; the same network in float32 then lies elsewhere: `float32=` that folder.

It lies in `assets.extra/openvino-int8/`: model.xml, model.bin and SHA256SUMS, by which the server tells one that is
damaged, half copied or another version's. Only the layers up to the last feature map compute in int8; the head, the
softmax, the heat map and the familiarity compute as before. It is kept if picture by picture it turns no more than 1 %
of right answers wrong, net of those that it turns right, and if it is faster here than the SavedModel in OpenVINO, or
at least smaller and not a tenth slower: the server takes it wherever it is.

Not covered: whether it is faster on another machine. Needs NNCF and OpenVINO, no TensorFlow.
"""

from __future__ import annotations

import hashlib
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

from loupe.card import Card
from loupe.errors import UserError
from loupe.export.quiet import quiet

FOLDER = Path("assets.extra", "openvino-int8")
MOST = 300  # pictures to calibrate on: more do not move the ranges in a way that shows
JUDGED = 500  # pictures to judge it on, where there are as many: 1 % of too few is less than one picture
TURNED = 0.01  # of the right answers, that may turn wrong
SLOWER = 0.9  # of the speed: the least for a variant that is only smaller
BATCHES = (1, 8)
SECONDS = 1.5  # spent on timing each batch size
BATCH = 16

Array = np.ndarray[Any, Any]
Ask = Callable[[Array], dict[str, Array]]


@dataclass(frozen=True)
class Accuracy:
    images: int
    right: int  # of the SavedModel's answers
    broken: int  # right there, wrong in int8
    mended: int  # wrong there, right in int8
    by_labels: bool  # or by the SavedModel's own answers, where the pictures have no labels
    moved: dict[str, float]  # output → by how much on average
    unfamiliar: tuple[int, int] | None  # pictures below the card's limit, before and after

    @property
    def good(self) -> bool:
        return self.right > 0 and self.broken - self.mended <= TURNED * self.right

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
    """Of the SavedModel as the server would use it otherwise, and of int8."""

    milliseconds: dict[int, tuple[float, float]]  # batch size → ms a picture
    megabytes: tuple[float, float]

    @property
    def speed(self) -> float:
        """How many times as fast, over all batch sizes (geometric mean)."""
        return statistics.geometric_mean(before / after for before, after in self.milliseconds.values())

    @property
    def good(self) -> bool:
        return self.speed > 1 or (self.speed > SLOWER and self.megabytes[1] < self.megabytes[0])

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
    calibration: Array,
    validation: Array,
    truth: Sequence[int] | None,
    float32: Path | None = None,
) -> Verdict:
    """`calibration` and `validation`: uint8 [N, H, W, 3]; `truth`: the validation pictures' classes, or None."""
    _tools()
    if not len(calibration) or not len(validation):
        return Verdict(False, "there are no pictures to calibrate and check it on; name a folder with --images")
    variant, verdict = folder / FOLDER, None
    try:
        with quiet(stdout=True):
            impossible = quantise(float32 or folder, variant, calibration[:MOST])
            if impossible:
                verdict = Verdict(False, impossible)
            else:
                asks = _asks(folder, card.precision), _asks(variant / "model.xml", "float32")
                before, after = (_answers(ask, validation) for ask in asks)
                accuracy = compared(before, after, truth, card.unfamiliar_below)
                cost = Cost(_milliseconds(*asks, validation), (_megabytes(folder), _megabytes(variant)))
                bind(folder)
                verdict = judged(accuracy, cost)
    finally:
        if verdict is None or not verdict.kept:
            shutil.rmtree(variant, ignore_errors=True)
    return verdict


def judged(accuracy: Accuracy, cost: Cost) -> Verdict:
    if not accuracy.right:
        return Verdict(False, f"none of the {accuracy.images} pictures is answered right to begin with", accuracy, cost)
    if not accuracy.good:
        return Verdict(False, f"{accuracy.line}. At most {TURNED:.0%} may turn, on balance", accuracy, cost)
    if not cost.good:
        return Verdict(False, cost.line, accuracy, cost)
    return Verdict(True, f"{accuracy.line}; {cost.line}", accuracy, cost)


def _tools() -> tuple[Any, Any]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # both report to their makers otherwise
    try:
        import nncf  # type: ignore[import-untyped]
        import openvino
    except ImportError as error:
        raise UserError(f"--int8 needs {error.name}: `pipenv sync --categories export` installs it.") from error
    nncf.set_log_level(logging.ERROR)
    return openvino, nncf


# ------------------------------------------------------------------------------------------------------ quantising


def quantise(folder: Path, variant: Path, calibration: Array) -> str | None:
    """From the float32 SavedModel in `folder` to the folder `variant`; or why that cannot be."""
    openvino, nncf = _tools()
    model = openvino.Core().read_model(str(folder))
    kept_float = _behind_the_feature_map(model)
    try:
        quantised = nncf.quantize(
            model,
            nncf.Dataset([picture[None] for picture in calibration]),
            subset_size=len(calibration),
            preset=nncf.QuantizationPreset.MIXED,  # nearer to float32, most of all behind swish
            target_device=nncf.TargetDevice.CPU,
            ignored_scope=nncf.IgnoredScope(names=kept_float, validate=False),
        )
    except Exception as error:  # a graph that NNCF cannot follow: the SavedModel stands, whatever the reason
        return f"NNCF cannot quantise this network: {_first_line(error)}"
    if not any(node.get_type_name() == "FakeQuantize" for node in quantised.get_ops()):
        return "the network has no layer that NNCF can quantise"
    shutil.rmtree(variant, ignore_errors=True)
    variant.mkdir(parents=True)
    openvino.save_model(quantised, str(variant / "model.xml"), compress_to_fp16=False)
    return None


def bind(folder: Path) -> None:
    """Its sums, as `sha256sum --check` reads them. The SavedModel's is among them: written anew, it is bound anew."""
    if (variant := folder / FOLDER).is_dir():
        files = {name: (variant / name).read_bytes() for name in ("model.bin", "model.xml", "../../saved_model.pb")}
        sums = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
        (variant / "SHA256SUMS").write_text("".join(sums))


def _behind_the_feature_map(model: Any) -> list[str]:
    """The names of all that is computed from the last feature map: what the probabilities are traced back to, through
    everything that is no map itself."""
    maps, seen, waiting = [], set(), [model.output("probabilities").get_node()]
    while waiting:
        for entry in waiting.pop().inputs():
            source = entry.get_source_output()
            name = source.get_node().get_friendly_name()
            if _is_map(source) and source.get_node().get_type_name() != "Constant":
                maps.append(source)
            elif name not in seen:
                seen.add(name)
                waiting.append(source.get_node())
    behind: set[str] = set()
    while maps:
        for entry in maps.pop().get_target_inputs():
            node = entry.get_node()
            if node.get_friendly_name() not in behind:
                behind.add(node.get_friendly_name())
                maps += node.outputs()
    return sorted(behind)


def _is_map(output: Any) -> bool:
    """Of rank 4, and wide: pooled features are sometimes kept as [N, C, 1, 1]."""
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic or shape.rank.get_length() < 4:
        return False
    return [side.is_dynamic or side.get_length() > 1 for side in list(shape)[1:]].count(True) > 1


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# -------------------------------------------------------------------------------------------------------- measuring


def _asks(path: Path, precision: str) -> Ask:
    """As the model server computes it."""
    from loupe.engines.openvino_engine import compile_model

    request = compile_model(path, precision).create_infer_request()

    def ask(pixels: Array) -> dict[str, Array]:
        return {name: value.copy() for port, value in request.infer({0: pixels}).items() for name in port.names}

    return ask


def _answers(ask: Ask, pixels: Array) -> dict[str, Array]:
    parts = [ask(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def compared(
    before: dict[str, Array], after: dict[str, Array], truth: Sequence[int] | None, limit: float | None = None
) -> Accuracy:
    tops = [_top(answers["probabilities"]) for answers in (before, after)]
    classes = np.asarray(tops[0] if truth is None else truth)
    was, now = (top == classes for top in tops)
    return Accuracy(
        images=len(classes),
        right=int(was.sum()),
        broken=int((was & ~now).sum()),
        mended=int((~was & now).sum()),
        by_labels=truth is not None,
        moved={name: float(np.abs(after[name] - before[name]).mean()) for name in sorted(before)},
        unfamiliar=None if limit is None else (_below(limit, before), _below(limit, after)),
    )


def _top(probabilities: Array) -> Array:
    """-1, which is no class, where there is no number to go by."""
    return np.where(np.isfinite(probabilities).all(axis=1), probabilities.argmax(axis=1), -1)


def _below(limit: float, answers: dict[str, Array]) -> int:
    return int((answers["familiarity"] < limit).sum()) if "familiarity" in answers else 0


def _milliseconds(before: Ask, after: Ask, pictures: Array) -> dict[int, tuple[float, float]]:
    """The median of each, taken in turns, so that whatever else the machine does falls on both alike."""
    found = {}
    for batch in BATCHES:
        pixels = np.resize(pictures, (batch, *pictures.shape[1:]))
        times: tuple[list[float], list[float]] = ([], [])
        before(pixels), after(pixels)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or len(times[0]) < 5:
            for ask, taken in zip((before, after), times, strict=True):
                started = time.perf_counter()
                ask(pixels)
                taken.append((time.perf_counter() - started) * 1e3 / batch)
        found[batch] = (statistics.median(times[0]), statistics.median(times[1]))
    return found


def _megabytes(folder: Path) -> float:
    """Of the SavedModel's own files, or of the variant's."""
    if (folder / "model.bin").exists():
        files = list(folder.iterdir())
    else:
        files = [folder / "saved_model.pb", *(folder / "variables").glob("*")]
    return sum(path.stat().st_size for path in files) / 1e6
