"""Answer calls, whichever way they came. Requests and responses are proto.py's messages.

    answers = Answers(versions)
    answers.predict(request)    # a PredictResponse, or Refused

Statuses and messages are TensorFlow Serving's. One difference is on purpose: an input whose shape does not fit the
signature is refused. TensorFlow Serving passes it to the graph unchecked, which may answer anything or abort the whole
server. Not covered: Classify, Regress and MultiInference, default values of inputs in a signature.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from grpc import StatusCode

import proto
from loupe.engines.engine import Engine
from loupe.engines.refused import Refused, invalid
from loupe.engines.savedmodel import Array, SavedModel
from loupe.modelserver.versions import Versions, refuse_label

TF_NAMES = {"float32": "float", "float64": "double", "float16": "half"}  # where TensorFlow's names are not numpy's
METADATA_FIELD = "signature_def"


class Answers:
    def __init__(self, versions: Versions, *, as_content: bool = False) -> None:
        self.versions = versions
        self._as_values = not as_content

    def signature_inputs(self, spec: Any) -> Mapping[str, Any]:
        """Return the TensorInfo of each input of the signature that a ModelSpec names. REST reads JSON by them."""
        with self.versions.lease(spec) as version:
            assert version.model
            name = spec.signature_name or proto.PREDICT_SIGNATURE
            signature = version.model.signatures.get(name)
            if signature is None:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            return dict(signature.inputs)

    def predict(self, request: Any, deadline: float | None = None) -> Any:
        _refuse_missing_spec(request)
        with self.versions.lease(request.model_spec) as version:
            assert version.model and version.engine
            name, signature, arrays = compute(request, version.model, version.engine)
            response = proto.PredictResponse(model_spec=proto.model_spec(self.versions.name, version.number, name))
        for alias, array in arrays.items():
            tensor = _to_tensor(array, signature.outputs[alias].dtype, self._as_values)
            response.outputs[alias].CopyFrom(tensor)
        return response

    def metadata(self, request: Any) -> Any:
        _refuse_missing_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != METADATA_FIELD:
                raise invalid(f"Metadata field {field} is not supported")
        with self.versions.lease(request.model_spec) as version:
            assert version.model
            signatures = proto.SignatureMap()
            for name, signature in version.model.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response = proto.GetModelMetadataResponse(model_spec=proto.model_spec(self.versions.name, version.number))
        packed = response.metadata[METADATA_FIELD]
        packed.type_url, packed.value = proto.SIGNATURE_MAP_URL, signatures.SerializeToString(deterministic=True)
        return response

    def status(self, request: Any) -> Any:
        _refuse_missing_spec(request)
        spec = request.model_spec
        refuse_label(spec)
        number = spec.version.value if spec.HasField("version") else None
        states = self.versions.states() if spec.name == self.versions.name else []
        states = [state for state in states if number in (None, state[0])]
        if not states:
            versions = "any versions" if number is None else f"version {number}"
            raise Refused(StatusCode.NOT_FOUND, f"Could not find {versions} of model {spec.name}")
        response = proto.GetModelStatusResponse()
        for version, state, error in states:
            entry = response.model_version_status.add(version=version, state=state)
            entry.status.error_code = error.number if error else 0
            entry.status.error_message = str(error or "")
        return response


def compute(request: Any, model: SavedModel, engine: Engine) -> tuple[str, Any, dict[str, Array]]:
    """Return the signature that a PredictRequest asks for, its name first, and the arrays that it gives."""
    name, inputs, outputs = check_request(request, model)
    arrays = engine.run(name, inputs, outputs)
    return name, model.signatures[name], {alias: arrays[alias] for alias in outputs}


def check_request(request: Any, model: SavedModel) -> tuple[str, dict[str, Array], list[str]]:
    """Return the signature's name, the inputs and the names of the outputs, as the model has them. Raises Refused."""
    name = request.model_spec.signature_name or proto.PREDICT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise Refused(StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    inputs = _inputs(request, signature)
    outputs = _outputs(request, signature)
    _refuse_misfits(inputs, request, signature)
    return name, inputs, outputs


def _refuse_missing_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _inputs(request: Any, signature: Any) -> dict[str, Array]:
    sent, wanted = set(request.inputs), set(signature.inputs)
    if len(sent) != len(wanted):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_set(sent)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(sent - wanted)}. Missing but required: {_set(wanted - sent)}."
        )
    arrays = {}
    for alias in sorted(sent):
        if alias not in wanted:
            raise invalid(
                f"input tensor alias not found in signature: {alias}. Inputs expected to be in the set {_set(wanted)}."
            )
        try:
            arrays[alias] = proto.to_array(request.inputs[alias])
        except ValueError as error:
            raise invalid(f"tensor parsing error: {alias}") from error
    return arrays


def _outputs(request: Any, signature: Any) -> list[str]:
    wanted: list[str] = []
    for alias in request.output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_set(set(signature.outputs))}."
            )
        if alias in wanted:
            raise invalid(f"duplicate output tensor alias: {alias}")
        wanted.append(alias)
    return wanted or sorted(signature.outputs)


def _refuse_misfits(inputs: dict[str, Array], request: Any, signature: Any) -> None:
    for position, (alias, array) in enumerate(inputs.items()):
        declared, sent = signature.inputs[alias], request.inputs[alias]
        if sent.dtype != declared.dtype:
            raise invalid(
                f"Expects arg[{position}] to be {_type_name(declared.dtype)} but {_type_name(sent.dtype)} is provided"
            )
        shape = proto.shape_of(declared.tensor_shape)
        fits = shape is None or (
            len(shape) == array.ndim
            and all(size in (-1, given) for size, given in zip(shape, array.shape, strict=True))
        )
        if shape is not None and not fits:
            sizes = ",".join("?" if size < 0 else str(size) for size in shape)
            given = ",".join(map(str, array.shape))
            raise invalid(f"input {alias} must have the shape [{sizes}], not [{given}]")


def _to_tensor(array: Array, declared: int, as_values: bool) -> Any:
    dtype = proto.BY_NUMBER.get(declared)
    if dtype is None:
        raise Refused(StatusCode.UNIMPLEMENTED, f"an output of dtype {declared} is not one that this server sends")
    return proto.to_tensor(array, dtype.name, as_values=as_values)


def _type_name(number: int) -> str:
    dtype = proto.BY_NUMBER.get(number)
    return TF_NAMES.get(dtype.name, dtype.name) if dtype else f"dtype {number}"


def _set(names: Collection[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
