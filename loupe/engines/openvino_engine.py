"""The openvino engine: `serving_default` compiled from the frozen SavedModel, `describe` from the card beside it.

    engine = open_model(savedmodel.read(folder), Options())

Where the export left an int8 variant in `assets.extra/openvino-int8/`, that one computes, unless `--mixed_precision`
asks for bfloat16; one that is damaged, half copied or another version's is named in the log, and the
SavedModel computes.
One stream over all CPUs and a few infer requests: a single caller gets the whole machine, concurrent ones take turns
(`--tensorflow_inter_op_parallelism` makes more streams of fewer threads). float32 unless the card says bfloat16.
Not covered: any other signature; those need the tensorflow engine.
"""

from __future__ import annotations

import hashlib
import queue
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grpc import StatusCode

import proto
from loupe import files
from loupe.engines.engine import Engine, Options
from loupe.engines.refused import Refused, invalid, say
from loupe.engines.savedmodel import CARD, DESCRIBE, Array, SavedModel, sample_batch

# `import openvino` alone reports the import to Google Analytics, unless its telemetry package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
import openvino  # noqa: E402

INT8 = Path("assets.extra", "openvino-int8")
SUMMED = ("model.bin", "model.xml", "../../saved_model.pb")  # as `sha256sum --check` finds them from there
LARGEST_SUMS = 1 << 16  # bytes
MOST_CARDS = 1024  # a request of some bytes may ask for any number


class OpenVinoEngine:
    name = "openvino"

    def __init__(self, model: SavedModel, source: Path, precision: str, options: Options) -> None:
        """`source`: the SavedModel's folder, or what else gives its outputs."""
        self._card = model.card
        signature = model.signatures[proto.PREDICT_SIGNATURE]
        compiled = compile_model(source, precision, options)
        self._inputs = _ports(compiled.inputs, signature.inputs)
        self._outputs = _ports(compiled.outputs, signature.outputs)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # One more than run at once, so that a caller's arrays are copied while another's are computed.
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + 1):
            self._idle.put(compiled.create_infer_request())
        if batch := sample_batch(signature):
            self.run(proto.PREDICT_SIGNATURE, batch, list(signature.outputs))

    def run(self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        if signature == DESCRIBE and self._card is not None:
            if len(inputs["request"]) > MOST_CARDS:
                raise invalid(f"at most {MOST_CARDS} cards are given at once")
            return {alias: np.full(len(inputs["request"]), self._card, object) for alias in outputs}
        if signature != proto.PREDICT_SIGNATURE:
            raise Refused(
                StatusCode.UNIMPLEMENTED, f"signature {signature} needs the tensorflow engine: --engine=tensorflow"
            )
        if not all(array.size for array in inputs.values()):
            raise invalid("an input is empty, and openvino would fail for every later caller, too")
        request = self._idle.get()
        try:
            found = request.infer({self._inputs[alias]: array for alias, array in inputs.items()})
            return {alias: found[self._outputs[alias]] for alias in outputs}
        except RuntimeError as error:
            raise invalid(f"the model cannot compute this: {_reason(error)}") from error
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """Nothing to do: its memory goes with it."""


def compile_model(path: Path, precision: str = "float32", options: Options | None = None) -> Any:
    """Compile a SavedModel's folder, or a file that OpenVINO reads, as it is served. RuntimeError if that fails."""
    options = options or Options()
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32", "PERFORMANCE_HINT": "LATENCY"}
    if options.threads:
        settings["INFERENCE_NUM_THREADS"] = str(options.threads)
    if options.streams:
        settings["NUM_STREAMS"] = str(options.streams)
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # a file cut short beneath a map ends the process
    return core.compile_model(core.read_model(str(path)), "CPU", settings)


def open_model(model: SavedModel, options: Options) -> Engine:
    if proto.PREDICT_SIGNATURE not in model.signatures:
        raise invalid(f"it has no signature {proto.PREDICT_SIGNATURE}, the one that openvino serves")
    if DESCRIBE in model.signatures and model.card is None:  # half copied, it may be
        raise invalid(f"it has the signature {DESCRIBE}, but no card in {CARD}")
    precision = options.mixed_precision or model.precision
    if options.mixed_precision != "bfloat16" and (engine := _int8(model, options)):
        return engine
    try:
        return OpenVinoEngine(model, model.folder, precision, options)
    except RuntimeError as error:
        raise invalid(f"openvino cannot load it: {_reason(error)}") from error


def _int8(model: SavedModel, options: Options) -> OpenVinoEngine | None:
    folder = model.folder / INT8
    if not folder.is_dir():
        return None
    try:
        _refuse_damaged(folder)
        engine = OpenVinoEngine(model, folder / "model.xml", "float32", options)
    except (Refused, RuntimeError, OSError) as error:
        reason = _reason(error) if isinstance(error, RuntimeError) else error
        say(f"the int8 variant {folder} cannot be used: {reason}; the SavedModel is served. Export again, or delete it")
        return None
    say(f"{model.folder} computes in int8, by {INT8}")
    return engine


def _refuse_damaged(folder: Path) -> None:
    """OpenVINO alone notices a file that is too short, and not one of the right length that has not arrived yet, nor
    a variant that was made from another version."""
    sums = files.read(folder / "SHA256SUMS", LARGEST_SUMS).splitlines()
    for name in SUMMED:
        with files.opened(folder / name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if f"{found}  {name}".encode() not in sums:
            raise invalid(f"{(folder / name).name} is not as it was exported")


def _ports(ports: Sequence[Any], declared: Mapping[str, Any]) -> dict[str, int]:
    """Where each of the signature's names is; OpenVINO numbers its inputs and outputs in an order of its own."""
    found = {name: index for index, port in enumerate(ports) for name in port.names}
    missing = set(declared) - set(found)
    if missing:
        raise invalid(f"openvino finds no {', '.join(sorted(missing))} in it")
    return {alias: found[alias] for alias in declared}


def _reason(error: RuntimeError) -> str:
    """The telling part of OpenVINO's message: not the lines that name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "src/" not in line and not line.startswith("To facilitate")]
    return " ".join(telling or lines or ["no reason given"])
