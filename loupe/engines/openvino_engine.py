"""The openvino engine: `serving_default` compiled from the frozen SavedModel, `describe` from the card beside it.

    engine = open_model(savedmodel.read(folder), Options())

Where the export left an int8 variant in `assets.extra/openvino-int8/`, that variant computes, unless
`--mixed_precision` asks for bfloat16. If it is damaged, half copied or of another version, the log names it and the
SavedModel computes.

A single caller gets every processor for one picture. Where callers come together, the model is compiled a second time,
with as many streams as OpenVINO finds best for throughput, and those that are not alone go there: on two processors
each of two streams has one, and nobody waits at the end of each layer for the other. That takes the memory of the
weights once more, so it is done when two callers have met some times, in the background, and only where the memory is
there. `--tensorflow_inter_op_parallelism` fixes the number of streams instead. Calls wait in the order in which they
came. It computes in float32 unless the card says bfloat16. Not covered: any other signature; those need the tensorflow
engine.
"""

from __future__ import annotations

import hashlib
import math
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from grpc import StatusCode

from loupe import checksums, files, proto
from loupe.engines import machine
from loupe.engines.engine import Engine, Options, out_of_time
from loupe.engines.refused import Refused, invalid, say
from loupe.engines.savedmodel import CARD, DESCRIBE, Array, SavedModel, sample_batch
from loupe.engines.turns import OutOfTurns, Turns

# `import openvino` alone reports the import to Google Analytics, unless its telemetry package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# It also imports its converter if it can: half of the time that it takes, for what is not used here.
CONVERTER = "openvino.tools.ovc"
is_left_out = CONVERTER not in sys.modules
if is_left_out:
    sys.modules[CONVERTER] = None  # type: ignore[assignment]
import openvino  # noqa: E402

if is_left_out:
    del sys.modules[CONVERTER]

openvino.Tensor(np.zeros(1, np.uint8))  # its first look at numpy: two threads that are the first at once wait for ever

INT8 = Path("assets.extra", "openvino-int8")
CHECKED_FILES = ("model.bin", "model.xml", "../../saved_model.pb")  # relative to the variant's folder, as in SHA256SUMS
COMPILING = threading.Lock()  # one model at a time is compiled for several, so that memory is judged rightly
LOOK_SECONDS = 60.0  # between two looks at the memory that is left
MEETING_SECONDS = 0.5  # after which callers count as alone again: between two calls each does something else
MAX_SHARED_BYTES = 16 << 20  # of inputs that are not copied: an infer request keeps them until its next
WIDE = ("int64", "uint64", "float64")
MEETINGS = 8  # calls that came while another was computed, before the model is compiled for several at once
WEIGHT_COPIES, SPARE_BYTES = 4, 200 << 20  # of memory that must be left for that; two copies of the weights were seen


class Streams:
    """The model, compiled for some number of calls at the same time, and the infer requests that compute them."""

    def __init__(self, network: Any, precision: str, options: Options, hint: str) -> None:
        self.compiled = _compile(network, precision, options, hint)
        self.count: int = self.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        # One request more than run at once, so that a caller's arrays are copied while another's are computed.
        self.turns = Turns([self.compiled.create_infer_request() for _ in range(self.count + 1)])


class OpenVinoEngine:
    name = "openvino"

    def __init__(self, model: SavedModel, source: Path, precision: str, options: Options) -> None:
        """Compile `source`: the SavedModel's folder, or another file with the same outputs."""
        self.precision = precision
        self._card = model.card
        self._options = options
        signature = model.signatures[proto.PREDICT_SIGNATURE]
        # Compile it for one caller.
        self._network = _read(source)
        self._alone = Streams(self._network, precision, options, "LATENCY")
        self._together: Streams | None = None  # for several; made when they have met
        self._inputs = _ports(self._alone.compiled.inputs, signature.inputs)
        self._outputs = _ports(self._alone.compiled.outputs, signature.outputs)
        self._empty = {alias: _no_rows(info) for alias, info in signature.outputs.items()}
        # How many are inside, and how often they have met.
        self._lock = threading.Lock()
        self._inside = self._meetings = 0
        self._last_meeting = -math.inf
        processors = options.threads or machine.share()
        self._may_stream = not options.streams and processors > 1
        self.at_once = processors if self._may_stream else self._alone.count
        if not self._may_stream:
            self._network = None
        self._weight_bytes = _weight_bytes(source)
        self._is_closed = self._has_complained = False
        self._look_at = 0.0  # when memory is looked at again
        # The first run sets the engine up.
        if batch := sample_batch(signature):
            self.run(proto.PREDICT_SIGNATURE, batch, list(signature.outputs))

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float | None = None
    ) -> dict[str, Array]:
        # The card.
        if signature == DESCRIBE and self._card is not None:
            return {alias: np.full(len(inputs["request"]), self._card, object) for alias in outputs}
        # Refuse what openvino cannot compute.
        if signature != proto.PREDICT_SIGNATURE:
            raise Refused(
                StatusCode.UNIMPLEMENTED, f"signature {signature} needs the tensorflow engine: --engine=tensorflow"
            )
        if not all(array.size for array in inputs.values()):
            return self._nothing(inputs, outputs)
        # Compute, with an infer request that nobody else uses.
        try:
            with self._streams() as streams, streams.turns.take(deadline) as request:
                given = {self._inputs[alias]: array for alias, array in inputs.items()}
                # Arrays that may be kept, and that OpenVINO does not want to write to, as it does to scalars.
                are_shared = sum(array.nbytes for array in inputs.values()) <= MAX_SHARED_BYTES
                are_shared = are_shared and all(array.ndim for array in inputs.values())
                results = request.infer(given, share_inputs=are_shared)
                return {alias: results[self._outputs[alias]] for alias in outputs}
        except OutOfTurns as error:
            raise out_of_time() from error
        except RuntimeError as error:
            raise invalid(f"the model cannot compute this: {_reason(error)}") from error
        except (TypeError, ValueError) as error:  # of arrays that openvino does not take
            raise invalid(f"openvino does not take this input: {error}") from error

    @contextmanager
    def _streams(self) -> Iterator[Streams]:
        """Yield where a call is computed: by whether it is alone, or was until just now."""
        with self._lock:
            self._inside += 1
            now = time.monotonic()
            if self._inside > 1:
                self._last_meeting = now
                self._meetings += 1
                if self._meetings >= MEETINGS and self._may_stream and now >= self._look_at:
                    self._look_at = math.inf
                    threading.Thread(target=self._make_streams, name="streams", daemon=True).start()
            is_alone = now - self._last_meeting > MEETING_SECONDS
        try:
            yield self._alone if is_alone or not self._together else self._together
        finally:
            with self._lock:
                self._inside -= 1

    def _make_streams(self) -> None:
        """Compile the model for several callers, if there is memory for it; otherwise look again in a minute."""
        with COMPILING:
            left = machine.memory_left()
            if left is not None and left < SPARE_BYTES + WEIGHT_COPIES * self._weight_bytes:
                self._complain(f"{left >> 20} MB of memory are left, too little to compute for several at once")
                self._look_at = time.monotonic() + LOOK_SECONDS
                return
            try:
                together = None
                if not self._is_closed:
                    together = Streams(self._network, self.precision, self._options, "THROUGHPUT")
            except Exception as error:  # what cannot be had is done without
                reason = _reason(error) if isinstance(error, RuntimeError) else repr(error)
                self._complain(f"openvino cannot compile for several at once: {reason}")
                return
        if together and together.count > 1 and not self._is_closed:
            self._together = together
        self._network = None

    def _complain(self, reason: str) -> None:
        if not self._has_complained:
            say(f"callers take turns: {reason}")
        self._has_complained = True

    def _nothing(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Answer a batch of no rows. OpenVINO would fail at it, and for every later caller, too."""
        empty = {alias: array for alias, array in self._empty.items() if array is not None and alias in outputs}
        if len(empty) < len(outputs) or any(0 in array.shape[1:] or len(array) for array in inputs.values()):
            raise invalid("an input is empty, which openvino cannot compute for this model; --engine=tensorflow can")
        return empty

    def run_examples(
        self, examples: Array, outputs: Mapping[str, Sequence[str]], deadline: float | None = None
    ) -> dict[str, dict[str, Array]]:
        raise Refused(StatusCode.UNIMPLEMENTED, "tf.Examples need the tensorflow engine: --engine=tensorflow")

    def close(self) -> None:
        """Compile nothing any more. The memory is freed with the object."""
        self._is_closed = True


def compile_model(path: Path, precision: str = "float32", options: Options | None = None) -> Any:
    """Compile a SavedModel's folder, or a file that OpenVINO reads, as it is served to a single caller. RuntimeError if
    that fails."""
    return _compile(_read(path), precision, options or Options(), "LATENCY")


def _read(path: Path) -> Any:
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # if a memory-mapped file is cut short, the process is killed
    return core.read_model(str(path))


def _compile(network: Any, precision: str, options: Options, hint: str) -> Any:
    """Compile for one caller (hint LATENCY) or for several (THROUGHPUT). In a file of int8 the rounding is written."""
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32", "PERFORMANCE_HINT": hint}
    if options.threads:
        settings["INFERENCE_NUM_THREADS"] = str(options.threads)
    if options.streams:
        settings["NUM_STREAMS"] = str(options.streams)
    return openvino.Core().compile_model(network, "CPU", settings)


def open_model(model: SavedModel, options: Options) -> Engine:
    if proto.PREDICT_SIGNATURE not in model.signatures:
        raise invalid(f"it has no signature {proto.PREDICT_SIGNATURE}, the one that openvino serves")
    if DESCRIBE in model.signatures and model.card is None:  # perhaps only half copied
        raise invalid(f"it has the signature {DESCRIBE}, but no card in {CARD}")
    _refuse_wide_numbers(model.signatures[proto.PREDICT_SIGNATURE])
    precision = options.mixed_precision or model.precision
    if options.mixed_precision != "bfloat16" and (engine := _open_int8(model, options)):
        return engine
    try:
        return OpenVinoEngine(model, model.folder, precision, options)
    except RuntimeError as error:
        raise invalid(f"openvino cannot load it: {_reason(error)}") from error


def _refuse_wide_numbers(signature: Any) -> None:
    """Refuse what OpenVINO's CPU plugin would compute in 32 bits: larger numbers came out wrong, without a word."""
    for alias, info in (*signature.inputs.items(), *signature.outputs.items()):
        dtype = proto.BY_NUMBER.get(info.dtype)
        if dtype and dtype.name in WIDE:
            raise invalid(f"{alias} is {dtype.name}, which openvino computes in 32 bits; --engine=tensorflow does not")


def _open_int8(model: SavedModel, options: Options) -> OpenVinoEngine | None:
    folder = model.folder / INT8
    if not folder.is_dir():
        return None
    try:
        _refuse_damaged(folder)
        engine = OpenVinoEngine(model, folder / "model.xml", "int8", options)
    except (Refused, RuntimeError, OSError) as error:
        reason = _reason(error) if isinstance(error, RuntimeError) else error
        say(f"the int8 variant {folder} cannot be used: {reason}; the SavedModel is served. Export again, or delete it")
        return None
    say(f"{model.folder} computes in int8, by {INT8}")
    return engine


def _refuse_damaged(folder: Path) -> None:
    """Refuse a variant that does not match its checksums. OpenVINO itself only notices a file that is too short: not
    one of full length that is still being copied, nor a variant of another version."""
    sums = checksums.read(folder)
    for name in CHECKED_FILES:
        with files.opened(folder / name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sums.get(name) != digest:
            raise invalid(f"{(folder / name).name} is not as it was exported")


def _ports(ports: Sequence[Any], declared: Mapping[str, Any]) -> dict[str, int]:
    """Return the position of each of the signature's names: OpenVINO numbers inputs and outputs in its own order."""
    index_of = {name: index for index, port in enumerate(ports) for name in port.names}
    missing = set(declared) - set(index_of)
    if missing:
        raise invalid(f"openvino finds no {', '.join(sorted(missing))} in it")
    return {alias: index_of[alias] for alias in declared}


def _weight_bytes(source: Path) -> int:
    """Return the size of the files that hold a model's weights."""
    if source.is_file():
        return source.with_suffix(".bin").stat().st_size
    return sum(path.stat().st_size for path in (source / "saved_model.pb", *(source / "variables").glob("*")))


def _no_rows(info: Any) -> Array | None:
    """Return no rows of a tensor that takes any number of them; None if it does not, or their size is open."""
    dtype, shape = proto.BY_NUMBER.get(info.dtype), proto.shape_of(info.tensor_shape)
    if dtype is None or not shape or shape[0] >= 0 or min(shape[1:], default=0) < 0:
        return None
    return np.empty((0, *shape[1:]), dtype.numpy)


def _reason(error: RuntimeError) -> str:
    """Return OpenVINO's message without the lines that name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if "src/" not in line and not line.startswith("To facilitate")]
    return " ".join(useful or lines or ["no reason given"])
