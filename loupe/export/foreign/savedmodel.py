"""A plain SavedModel, of Keras, TensorFlow 1 or a tf.Module: its one signature from a picture to a row of outputs.

original = read(Path("exported/"))        # raises UserError where it is none such
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from loupe.errors import UserError
from loupe.export.foreign.original import Original, in_batches
from loupe.export.foreign.output_kind import Ending, Inlined, draws_lots, ending_of, inlined
from loupe.export.foreign.vet_savedmodel import refuse_reaching_out
from loupe.export.source import BATCH

REFERENCES = {"Variable", "VariableV2"}  # TensorFlow 1's own variables
INSTEAD = "export it without its augmentation layers, or convert the .keras."
ASSIGNMENTS = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}


def read(folder: Path) -> Original:
    saved = vetted(folder)
    model = _loaded(folder)
    key, function = _signature(folder, model)
    inputs, outputs = function.structured_input_signature[1], function.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(
            f"{folder} takes {_names(inputs)} and gives {_names(outputs)}: Loupe serves one input, one output."
        )
    name, picture = next(iter(inputs.items()))
    output, answer = next(iter(outputs.items()))
    _check(folder, name, picture, answer)

    def predict(scaled: Any) -> Any:
        assert model is not None  # it is what keeps the variables; the function does not
        return in_batches(lambda part: function(**{name: tf.cast(part, picture.dtype)})[output], scaled, BATCH)

    frozen = _frozen(folder, saved, key, function)

    def call(scaled: Any) -> Any:
        return tf.import_graph_def(frozen.graph, {frozen.image: tf.cast(scaled, picture.dtype)}, [frozen.answer])[0]

    note = "no heat map: a SavedModel does not tell its layers apart"
    ending = Ending(ending_of(frozen.graph, frozen.answer))
    whole = bool(picture.dtype.is_integer)
    return Original(picture.shape[1], picture.shape[2], predict, call, None, whole, ending, (note,))


def _loaded(folder: Path) -> Any:
    try:
        return tf.saved_model.load(str(folder))
    except Exception as error:  # of missing or torn variables, and of operations that this TensorFlow does not have
        raise UserError(f"{folder} cannot be loaded: its variables are missing or damaged ({_line(error)}).") from error


def _frozen(folder: Path, saved: SavedModel, key: str, function: Any) -> Inlined:
    """The signature with its variables made constants."""
    if _writes(function):
        raise UserError(f"{folder} changes itself as it answers, as in training: {INSTEAD}")
    try:
        frozen = _by_session(folder, key) if _kinds(saved) & REFERENCES else inlined(function)
    except Exception as error:  # of whatever was put into it
        raise UserError(f"{folder} cannot be frozen, its variables made constants: {_line(error)}") from error
    if draws_lots(frozen):
        raise UserError(f"{folder} answers at random, as in training: {INSTEAD}")
    return frozen


def _by_session(folder: Path, key: str) -> Inlined:
    """As TensorFlow 1 did it. Loaded by TensorFlow 2, its variables cannot be frozen: they would be served without
    their values."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(folder))
        definition = meta.signature_def[key]
        image, answer = (next(iter(ends.values())).name for ends in (definition.inputs, definition.outputs))
        graph = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, meta.graph_def, [answer.partition(":")[0]]
        )
    return Inlined(graph, image, answer)


def _writes(function: Any) -> bool:
    """Whether it changes its variables by answering: Keras 3 exports augmentation layers as in training, with their
    seeds counted on."""
    library = function.graph.as_graph_def().library
    return any(node.op in ASSIGNMENTS for each in library.function for node in each.node_def)


def vetted(folder: Path) -> SavedModel:
    if (folder / "assets.extra" / "card.json").is_file():
        raise UserError(f"{folder} is a Loupe model already: copy it to models/<name>/<version>/ as it is.")
    path = folder / "saved_model.pb"
    if not path.is_file():
        raise UserError(f"{folder} is neither a run (card.json, model.keras) nor a SavedModel (saved_model.pb).")
    try:
        saved = SavedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is damaged: it cannot be read as a SavedModel.") from error
    refuse_reaching_out(folder, saved)
    return saved


def _kinds(saved: SavedModel) -> set[str]:
    """Of the operations in it."""
    graphs = [meta.graph_def for meta in saved.meta_graphs]
    functions = [function for graph in graphs for function in graph.library.function]
    kinds = {node.op for graph in graphs for node in graph.node}
    return kinds | {node.op for function in functions for node in function.node_def}


def _signature(folder: Path, model: Any) -> tuple[str, Any]:
    named = {name: function for name, function in model.signatures.items() if not name.startswith("__")}
    if not named:
        raise UserError(f"{folder} has no signature to serve by: write it by model.export(…), or with `signatures=`.")
    if "serving_default" not in named and len(named) > 1:
        raise UserError(f"{folder} has the signatures {', '.join(sorted(named))}, and none is serving_default.")
    key = "serving_default" if "serving_default" in named else next(iter(named))
    return key, named[key]


def _check(folder: Path, name: str, picture: Any, answer: Any) -> None:
    kind = picture.dtype.name
    if picture.dtype == tf.string:
        raise UserError(f"{folder}: its input {name} takes encoded files (strings), and Loupe gives decoded pixels.")
    if not (picture.dtype.is_floating or picture.dtype.is_integer):
        raise UserError(f"{folder}: its input {name} is {kind}, and no pixels.")
    if picture.shape.rank != 4 or picture.shape[3] not in (3, None):
        raise UserError(f"{folder}: its input {name} is {_shape(picture)}, and Loupe gives pictures, [N, H, W, 3].")
    if picture.shape[0] is not None:
        raise UserError(
            f"{folder}: its input {name} is {_shape(picture)}, for {picture.shape[0]} at a time and no other number."
        )
    if answer.shape.rank not in (2, None) or not answer.dtype.is_floating:
        raise UserError(
            f"{folder} gives {answer.dtype.name} {_shape(answer)}, and Loupe serves a row for each picture, [N, C]."
        )


def _shape(spec: Any) -> str:
    if spec.shape.rank is None:
        return "of any shape"
    return (
        str(["N" if n == 0 and side is None else side for n, side in enumerate(spec.shape)])
        .replace("None", "any")
        .replace("'", "")
    )


def _names(specs: dict[str, Any]) -> str:
    return f"{len(specs)} ({', '.join(sorted(specs))})" if specs else "none"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
