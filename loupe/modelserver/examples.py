"""Answer Classify, Regress and MultiInference, whose inputs are tf.Examples. They need the tensorflow engine.

    examples.classify(request, model, engine)           # a ClassificationResult, or Refused
    examples.multi_inference(request, model, engine)    # a MultiInferenceResponse, computed in one run of the graph

Statuses, messages and the order of the checks are TensorFlow Serving's. As with its default flags, a signature is
judged by its inputs and outputs, not by its method name. Three differences, so that no request breaks or occupies the
server: at most 4096 examples are taken at once; the copies of a context are at most 256 MiB together; and a signature
whose input is no vector of strings is refused before the graph runs.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from grpc import StatusCode

from loupe import proto
from loupe.engines.engine import Engine
from loupe.engines.refused import Refused, invalid
from loupe.engines.savedmodel import Array, SavedModel

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
INPUTS, CLASSES, SCORES, OUTPUTS = "inputs", "classes", "scores", "outputs"  # names in a signature
MAX_EXAMPLES = 4096
MAX_COPIED_BYTES = 1 << 28  # of a context, which is copied in front of every example


# ------------------------------------------------------------------------------------------------------- the calls


def classify(request: Any, model: SavedModel, engine: Engine, deadline: float | None = None) -> Any:
    name, signature = _signature(request, model)
    outputs = {name: _outputs_to_classify(signature)}
    rows = _serialized(request.input)
    return _classification(_run(rows, outputs, model, engine, deadline)[name], len(rows))


def regress(request: Any, model: SavedModel, engine: Engine, deadline: float | None = None) -> Any:
    name, signature = _signature(request, model)
    outputs = {name: _outputs_to_regress(signature)}
    rows = _serialized(request.input)
    return _regression(_run(rows, outputs, model, engine, deadline)[name], len(rows))


def multi_inference(request: Any, model: SavedModel, engine: Engine, deadline: float | None = None) -> Any:
    """Return the response without its model specs: which version this is, the caller knows."""
    # Check the tasks.
    outputs: dict[str, list[str]] = {}
    for task in request.tasks:
        spec = task.model_spec
        name = spec.signature_name or proto.PREDICT_SIGNATURE
        if not spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in outputs:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in model.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        outputs[name] = _outputs_of_task(task, model.signatures[name])
    # Compute them together.
    rows = _serialized(request.input)
    arrays = _run(rows, outputs, model, engine, deadline)
    # Put each one's result into the response.
    response = proto.MultiInferenceResponse()
    for task, name in zip(request.tasks, outputs, strict=True):
        result = response.results.add()
        if task.method_name == CLASSIFY:
            result.classification_result.CopyFrom(_classification(arrays[name], len(rows)))
        else:
            result.regression_result.CopyFrom(_regression(arrays[name], len(rows)))
    return response


def count(given: Any) -> int:
    """Return how many examples an Input holds."""
    return len(given.example_list.examples) + len(given.example_list_with_context.examples)


# -------------------------------------------------------------------------------------------------- the signature


def _signature(request: Any, model: SavedModel) -> tuple[str, Any]:
    name = request.model_spec.signature_name or proto.PREDICT_SIGNATURE
    if name not in model.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return name, model.signatures[name]


def _outputs_of_task(task: Any, signature: Any) -> list[str]:
    if task.method_name == CLASSIFY:
        return _outputs_to_classify(signature)
    if task.method_name == REGRESS:
        return _outputs_to_regress(signature)
    raise Refused(StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")


def _outputs_to_classify(signature: Any) -> list[str]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {_text(signature)}")
    outputs = [name for name in (CLASSES, SCORES) if name in signature.outputs]
    if not outputs:
        raise invalid(
            f'Expected classification signature outputs to contain at least one of "{CLASSES}" or "{SCORES}". '
            f"Signature was: {_text(signature)}"
        )
    return outputs


def _outputs_to_regress(signature: Any) -> list[str]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if INPUTS not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {_text(signature)}")
    if OUTPUTS not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {_text(signature)}")
    return [OUTPUTS]


def _text(signature: Any) -> str:
    """Return a signature as protobuf prints it. In proto.py's messages the types are numbers: they get their names."""
    return re.sub(r"(?<=\bdtype: )\d+", lambda found: _enum_name(int(found[0])), str(signature))


def _enum_name(number: int) -> str:
    dtype = proto.BY_NUMBER.get(number)
    return f"DT_{dtype.tensorflow_name.upper()}" if dtype else str(number)


# ----------------------------------------------------------------------------------------------- examples to arrays


def _serialized(given: Any) -> list[bytes]:
    """Return the examples as bytes. A context is put in front of each, which merges the two."""
    # Count them.
    total = count(given)
    if not total:
        raise invalid("Input is empty.")
    if total > MAX_EXAMPLES:
        raise invalid(f"at most {MAX_EXAMPLES} examples are taken at once, not {total}; send them in several requests")
    # Refuse a context that would be copied too often.
    context = given.example_list_with_context.context.SerializeToString()
    if len(context) * total > MAX_COPIED_BYTES:
        raise invalid(
            f"a context of {len(context)} bytes for {total} examples makes more than {MAX_COPIED_BYTES >> 20} MiB of "
            "copies; send fewer examples at once"
        )
    # Put them together.
    rows = [example.SerializeToString() for example in given.example_list.examples]
    return rows + [context + example.SerializeToString() for example in given.example_list_with_context.examples]


def _run(
    rows: list[bytes], outputs: dict[str, list[str]], model: SavedModel, engine: Engine, deadline: float | None
) -> dict[str, dict[str, Array]]:
    for name in outputs:
        _refuse_misfit(model.signatures[name].inputs[INPUTS], len(rows))
    return engine.run_examples(np.array(rows, object), outputs, deadline)


def _refuse_misfit(declared: Any, size: int) -> None:
    dtype, shape = proto.BY_NUMBER.get(declared.dtype), proto.shape_of(declared.tensor_shape)
    if declared.dtype != proto.STRING:
        type_name = dtype.tensorflow_name if dtype else f"dtype {declared.dtype}"
        raise invalid(f"Expects arg[0] to be {type_name} but string is provided")
    if shape not in (None, (-1,), (size,)):
        sizes = ",".join("?" if size < 0 else str(size) for size in shape or ())
        raise invalid(f"input {INPUTS} must have the shape [{sizes}], not [{size}]")


# ----------------------------------------------------------------------------------------------- arrays to results


def _classification(arrays: dict[str, Array], size: int) -> Any:
    # Check the arrays.
    for name, wanted in ((CLASSES, "DT_STRING"), (SCORES, "DT_FLOAT")):
        if name in arrays:
            _refuse_bad_classes(name, arrays[name], wanted, size)
    widths = [np.shape(array)[1] for array in arrays.values()]
    if len(set(widths)) > 1:
        raise invalid(f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}")
    # Write a result for each example.
    blank = [[None] * widths[0]] * size  # in place of the array that the signature does not have
    labels = arrays[CLASSES].tolist() if CLASSES in arrays else blank
    scores = arrays[SCORES].tolist() if SCORES in arrays else blank
    result = proto.ClassificationResult()
    for row in zip(labels, scores, strict=True):
        classes = result.classifications.add().classes
        for label, score in zip(*row, strict=True):
            classes.add(label=label.decode(errors="replace") if label else None, score=score)
    return result


def _refuse_bad_classes(name: str, array: Array, wanted: str, size: int) -> None:
    shape, dtype = np.shape(array), _dtype_name(array)
    if len(shape) != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape_text(shape)}")
    if dtype != wanted:
        raise invalid(f"Expected {name} Tensor of {wanted}. Got: {dtype}")
    if shape[0] != size:
        raise invalid(f"Expected {name} output batch size of {size}. Got: {shape[0]}")


def _regression(arrays: dict[str, Array], size: int) -> Any:
    array = arrays[OUTPUTS]
    shape, dtype = np.shape(array), _dtype_name(array)
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape_text(shape)}"
        )
    if shape[0] != size:
        raise invalid(f"Input batch size did not match output batch size: {size} vs. {shape[0]}")
    if dtype != "DT_FLOAT":
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {dtype}")
    result = proto.RegressionResult()
    for value in array.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _dtype_name(array: Array) -> str:
    """Return an array's type as TensorFlow's enumeration calls it, one that proto.py does not know included."""
    try:
        return _enum_name(proto.dtype_of(np.asarray(array)).number)
    except ValueError:
        return f"DT_{np.asarray(array).dtype.name.upper()}"


def _shape_text(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
