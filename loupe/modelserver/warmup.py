"""Replay a model's own warm-up requests before it is served, with TensorFlow Serving's file, rules and messages.

    open_engine = warmup.replaying(chooser("auto", options), is_urgent)
    engine = open_engine(model)         # has answered every request in assets.extra/tf_serving_warmup_requests

If a record holds the answer as well, as Loupe's exports do, the engine's is compared with it, and a difference is said
in the log: the model computes otherwise here than where it was exported. Without the file nothing is done. A request
that fails fails the load, and so do a damaged file and one of more than 1,000 records. Differences: what openvino does
not compute (Classify, Regress, MultiInference, and Predict with another signature than `serving_default`) is skipped
with a log line; TensorFlow Serving runs it. A record of more than 32 MiB is refused. Warming up ends after 30 seconds,
and a batch of more than 256 is skipped as well, since a file of a few kilobytes may ask for hours. At the start of the
server no further record is run after 0.3 seconds, only read: nobody is served meanwhile, and the first use of a batch
size costs little more than its second.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from grpc import StatusCode

from loupe import proto, tfrecord
from loupe.engines.engine import Engine, Opener
from loupe.engines.refused import Refused, invalid, say
from loupe.engines.savedmodel import WARMUP, Array, SavedModel
from loupe.modelserver import examples
from loupe.modelserver.answers import check_request

MAX_RECORDS = 1000
SECONDS = 30.0  # after this no further record is begun
URGENT_SECONDS = 0.3  # after this no further record is run where callers wait for the first version of a model
MAX_BATCH = 256
# By how much of 1, or of its own size, an answer may differ. int8 was judged by its labels when it was made.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}
MAX_REASON = 500  # characters of a reason, which may quote names from the file
WITH_EXAMPLES: dict[str, Callable[..., Any]] = {
    "classify_log": examples.classify,
    "regress_log": examples.regress,
    "multi_inference_log": examples.multi_inference,
}


def replaying(open_engine: Opener, is_urgent: Callable[[], bool] = lambda: False) -> Opener:
    """Return an opener that replays the model's requests before it returns the engine; few of them where it is
    urgent."""

    def open_and_replay(model: SavedModel) -> Engine:
        engine = open_engine(model)
        try:
            _replay(model, engine, is_urgent())
        except BaseException:
            engine.close()
            raise
        return engine

    return open_and_replay


def _replay(model: SavedModel, engine: Engine, is_urgent: bool) -> None:
    path, began = model.folder / WARMUP, time.monotonic()
    try:
        for count, record in enumerate(tfrecord.read(path), 1):
            where, passed = f"{path}, record {count}", time.monotonic() - began
            if passed > SECONDS:
                say(f"{path}: warming up has taken {SECONDS:.0f} s; record {count} and what follows is passed over")
                return
            if count > MAX_RECORDS:
                raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
            if is_urgent and passed > URGENT_SECONDS:
                _read(record, where)  # a damaged one is still found
            else:
                _run(record, model, engine, where)
    except FileNotFoundError:
        return
    except tfrecord.Damaged as error:
        text = f"{path}: {error}. Please verify your warmup data is in TFRecord format."
        raise Refused(StatusCode.DATA_LOSS, text) from error
    except OSError as error:
        raise Refused(StatusCode.UNAVAILABLE, f"{path} cannot be read: {error.strerror or error}") from error


def _run(record: bytes, model: SavedModel, engine: Engine, where: str) -> None:
    kind, log = _read(record, where)
    if kind != "predict_log" and (not kind or engine.name != "tensorflow"):
        hint = "; --engine=tensorflow runs it" if kind else ""
        say(f"{where}, is no Predict request: passed over{hint}")
        return
    try:
        if kind == "predict_log":
            _predict(log, model, engine, where)
        elif not _is_large(examples.count(log.request.input), where):
            WITH_EXAMPLES[kind](log.request, model, engine)
    except Refused as error:
        if error.code != StatusCode.UNIMPLEMENTED:
            raise Refused(error.code, f"{where}: {str(error)[:MAX_REASON]}") from error
        say(f"{where}: {str(error)[:MAX_REASON]}; passed over")


def _read(record: bytes, where: str) -> tuple[str, Any]:
    """Return a record's kind, by the name of its field, and that field; "" for a kind that is never run."""
    try:
        log = proto.PredictionLog.FromString(record)
    except proto.WireError as error:
        raise invalid(f"Failed to parse warmup record: {where}") from error
    for kind in ("predict_log", *WITH_EXAMPLES):
        if log.HasField(kind):
            return kind, getattr(log, kind)
    return "", None


def _predict(log: Any, model: SavedModel, engine: Engine, where: str) -> None:
    name, inputs, outputs = check_request(log.request, model)
    batch = max((len(array) for array in inputs.values() if array.ndim), default=1)
    if _is_large(batch, where):
        return
    answer = engine.run(name, inputs, outputs)
    for alias, difference in _differences(log.response, answer, TOLERANCES.get(engine.precision, 1.0)):
        say(f"{where}: {alias} differs by {difference:.2g} from what was recorded; is the version as it was exported?")


def _is_large(batch: int, where: str) -> bool:
    if batch > MAX_BATCH:
        say(f"{where}, is a batch of {batch}, more than {MAX_BATCH}: passed over")
    return batch > MAX_BATCH


def _differences(recorded: Any, answer: dict[str, Array], tolerance: float) -> Iterator[tuple[str, float]]:
    """Yield the outputs that differ from those recorded by more than the tolerance, and by how much."""
    for alias in sorted(set(recorded.outputs) & set(answer)):
        try:
            expected = proto.to_array(recorded.outputs[alias])
        except ValueError:
            continue  # of a type that is not compared
        got = answer[alias]
        if expected.dtype.kind != "f" or got.dtype.kind != "f":
            continue
        if expected.shape != got.shape:
            yield alias, math.inf
        elif got.size:
            difference = float((np.abs(got - expected) / np.maximum(1, np.abs(expected))).max())
            if not difference <= tolerance:  # written so that NaN counts
                yield alias, difference
