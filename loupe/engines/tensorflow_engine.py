"""The tensorflow engine: every signature, in a `tf.compat.v1.Session`, as TensorFlow Serving loads and runs models.

    engine = open_model(savedmodel.read(folder), Options())

This is the only module through which serving imports TensorFlow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from grpc import StatusCode

from loupe import proto
from loupe.engines import machine
from loupe.engines.engine import Engine, Options, out_of_time
from loupe.engines.refused import BY_NUMBER, Refused, invalid, say
from loupe.engines.savedmodel import Array, SavedModel, sample_batch
from loupe.quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's own log lines are kept out of the server's log
import tensorflow as tf  # noqa: E402

tf.get_logger().setLevel("ERROR")
# The first session of a process says at any log level that it is the first: let that be one nobody sees.
with quiet(), tf.compat.v1.Session(graph=tf.Graph()) as first:
    first.run(first.graph.create_op("NoOp", []))


class TensorFlowEngine:
    name = "tensorflow"

    def __init__(self, model: SavedModel, options: Options) -> None:
        self.at_once = options.streams or options.threads or machine.share()
        self.precision = options.mixed_precision or model.precision
        self._signatures = model.signatures
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=_settings(options))
        try:
            with self._session.graph.as_default():
                tf.compat.v1.saved_model.loader.load(self._session, list(model.tags), str(model.folder))
        except BaseException:
            self._session.close()
            raise
        self._warm_up()

    def _warm_up(self) -> None:
        """Run one batch of zeros, since the first run builds the executor. If it fails the model is served all the
        same, as by TensorFlow Serving."""
        signature = self._signatures.get(proto.PREDICT_SIGNATURE)
        batch = sample_batch(signature) if signature else None
        if signature and batch:
            try:
                self.run(proto.PREDICT_SIGNATURE, batch, list(signature.outputs))
            except Refused as error:
                say(f"the model is loaded and could not compute a batch of zeros: {error}")

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float | None = None
    ) -> dict[str, Array]:
        declared = self._signatures[signature]
        feed = {declared.inputs[alias].name: array for alias, array in inputs.items()}
        results: dict[str, Array] = self._compute(
            {alias: declared.outputs[alias].name for alias in outputs}, feed, deadline
        )
        return results

    def run_examples(
        self, examples: Array, outputs: Mapping[str, Sequence[str]], deadline: float | None = None
    ) -> dict[str, dict[str, Array]]:
        feed: dict[str, Array] = {}
        fetched: dict[str, dict[str, str]] = {}
        for name, aliases in outputs.items():
            declared = self._signatures[name]
            feed |= {info.name: examples for info in declared.inputs.values()}
            fetched[name] = {alias: declared.outputs[alias].name for alias in aliases}
        results: dict[str, dict[str, Array]] = self._compute(fetched, feed, deadline)
        return results

    def _compute(self, fetched: Any, feed: Mapping[str, Array], deadline: float | None) -> Any:
        """Return the arrays of the tensors in `fetched`, in the place of their names."""
        try:
            return self._session.run(fetched, feed, options=_until(deadline))
        except tf.errors.OpError as error:
            raise _refused(error) from error
        except UnicodeDecodeError as error:  # in the message of an error, which quotes what was sent
            raise invalid("the model cannot compute this, and its reason is no UTF-8") from error
        except (ValueError, TypeError, RuntimeError) as error:  # the signature names tensors that the graph lacks
            raise Refused(StatusCode.INTERNAL, f"the model cannot compute this: {error}") from error

    def close(self) -> None:
        self._session.close()


def open_model(model: SavedModel, options: Options) -> Engine:
    try:
        return TensorFlowEngine(model, options)
    except tf.errors.OpError as error:
        raise _refused(error) from error
    except Exception as error:  # a broken graph raises errors of every type
        raise Refused(StatusCode.INVALID_ARGUMENT, f"tensorflow cannot load it: {error}") from error


def _until(deadline: float | None) -> Any:
    if deadline is None:
        return None
    milliseconds = int((deadline - time.monotonic()) * 1000)
    if milliseconds <= 0:
        raise out_of_time()
    return tf.compat.v1.RunOptions(timeout_in_ms=milliseconds)


def _settings(options: Options) -> Any:
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=options.threads, inter_op_parallelism_threads=options.streams or options.threads
    )
    if options.mixed_precision == "bfloat16":
        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = 1  # RewriterConfig.ON
    return config


def _refused(error: Any) -> Refused:
    """Return the error in the words of the graph, which are TensorFlow Serving's; Python's session adds its own."""
    if isinstance(error.__context__, tf.errors.OpError):
        error = error.__context__
    return Refused(BY_NUMBER.get(error.error_code, StatusCode.UNKNOWN), str(error.message))
