"""Read a plain SavedModel of Keras, TensorFlow 1 or a tf.Module: its one signature from a picture to a row of outputs.

original = read(Path("exported/"))        # raises UserError where it has none
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from loupe.errors import UserError
from loupe.export.foreign.original import Original, in_batches
from loupe.export.foreign.output_kind import Ending, Inlined, ending_of, inlined, is_random
from loupe.export.foreign.vet_savedmodel import refuse_outside_access
from loupe.export.source import BATCH
from loupe.quiet import quiet

TF1_VARIABLES = {"Variable", "VariableV2"}  # the operations of TensorFlow 1's variables
ADVICE = "export it without its augmentation layers, or convert the .keras."
ASSIGNMENTS = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}


def read(folder: Path) -> Original:
    # Check and load it, and find its signature.
    saved = check_savedmodel(folder)
    model = _load(folder)
    key, function = _signature(folder, model)
    inputs, outputs = function.structured_input_signature[1], function.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(
            f"{folder} takes {_names(inputs)} and gives {_names(outputs)}: Loupe serves one input, one output."
        )
    name, image = next(iter(inputs.items()))
    output, answer = next(iter(outputs.items()))
    _check_signature(folder, name, image, answer)

    # Freeze the signature, and describe it as an original.
    def predict(scaled: Any) -> Any:
        assert model is not None  # the model keeps the variables alive, the function does not
        return in_batches(lambda pixels: function(**{name: tf.cast(pixels, image.dtype)})[output], scaled, BATCH)

    frozen = _freeze(folder, saved, key, function)

    def call(scaled: Any) -> Any:
        return tf.import_graph_def(frozen.graph, {frozen.image: tf.cast(scaled, image.dtype)}, [frozen.answer])[0]

    note = "no heat map: a SavedModel does not tell its layers apart"
    ending = Ending(ending_of(frozen.graph, frozen.answer))
    integer_pixels = bool(image.dtype.is_integer)
    return Original(image.shape[1], image.shape[2], predict, call, None, integer_pixels, ending, (note,))


def _load(folder: Path) -> Any:
    try:
        return tf.saved_model.load(str(folder))
    except Exception as error:  # missing or damaged variables, and operations that this TensorFlow lacks
        raise UserError(
            f"{folder} cannot be loaded: its variables are missing or damaged ({_first_line(error)})."
        ) from error


def _freeze(folder: Path, saved: SavedModel, key: str, function: Any) -> Inlined:
    """Return the signature's graph with its variables made constants."""
    if _writes_variables(function):
        raise UserError(f"{folder} changes itself as it answers, as in training: {ADVICE}")
    try:
        with quiet():
            frozen = _freeze_in_session(folder, key) if _operations(saved) & TF1_VARIABLES else inlined(function)
    except Exception as error:  # any operation may be in it
        raise UserError(f"{folder} cannot be frozen, its variables made constants: {_first_line(error)}") from error
    if is_random(frozen):
        raise UserError(f"{folder} answers at random, as in training: {ADVICE}")
    return frozen


def _freeze_in_session(folder: Path, key: str) -> Inlined:
    """Freeze the graph as TensorFlow 1 did it. Loaded by TensorFlow 2, its variables cannot be frozen: they would be
    served without their values."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(folder))
        definition = meta.signature_def[key]
        image, answer = (next(iter(ends.values())).name for ends in (definition.inputs, definition.outputs))
        graph = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, meta.graph_def, [answer.partition(":")[0]]
        )
    return Inlined(graph, image, answer)


def _writes_variables(function: Any) -> bool:
    """Return True if the function changes its variables by answering. Keras 3 exports augmentation layers as in
    training: they count their seeds on."""
    library = function.graph.as_graph_def().library
    return any(node.op in ASSIGNMENTS for each in library.function for node in each.node_def)


def check_savedmodel(folder: Path) -> SavedModel:
    """Refuse what is no SavedModel, or one that reaches outside itself. Return its content."""
    if (folder / "assets.extra" / "card.json").is_file():
        raise UserError(f"{folder} is a Loupe model already: copy it to models/<name>/<version>/ as it is.")
    path = folder / "saved_model.pb"
    if not path.is_file():
        raise UserError(f"{folder} is neither a run (card.json, model.keras) nor a SavedModel (saved_model.pb).")
    try:
        saved = SavedModel.FromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is damaged: it cannot be read as a SavedModel.") from error
    refuse_outside_access(folder, saved)
    return saved


def _operations(saved: SavedModel) -> set[str]:
    """Return the names of all operations in it."""
    graphs = [meta.graph_def for meta in saved.meta_graphs]
    functions = [function for graph in graphs for function in graph.library.function]
    names = {node.op for graph in graphs for node in graph.node}
    return names | {node.op for function in functions for node in function.node_def}


def _signature(folder: Path, model: Any) -> tuple[str, Any]:
    named = {name: function for name, function in model.signatures.items() if not name.startswith("__")}
    if not named:
        raise UserError(f"{folder} has no signature to serve by: write it by model.export(…), or with `signatures=`.")
    if "serving_default" not in named and len(named) > 1:
        raise UserError(f"{folder} has the signatures {', '.join(sorted(named))}, and none is serving_default.")
    key = "serving_default" if "serving_default" in named else next(iter(named))
    return key, named[key]


def _check_signature(folder: Path, name: str, image: Any, answer: Any) -> None:
    dtype = image.dtype.name
    if image.dtype == tf.string:
        raise UserError(f"{folder}: its input {name} takes encoded files (strings), and Loupe gives decoded pixels.")
    if not (image.dtype.is_floating or image.dtype.is_integer):
        raise UserError(f"{folder}: its input {name} is {dtype}, and no pixels.")
    if image.shape.rank != 4 or image.shape[3] not in (3, None):
        raise UserError(f"{folder}: its input {name} is {_shape(image)}, and Loupe gives pictures, [N, H, W, 3].")
    if image.shape[0] is not None:
        raise UserError(
            f"{folder}: its input {name} is {_shape(image)}, for {image.shape[0]} at a time and no other number."
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
