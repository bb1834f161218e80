"""Answer calls, whichever way they came. Requests and responses are proto.py's messages.

    answers = Answers(models, metrics)
    answers.predict(request, deadline)    # a PredictResponse, or Refused

Statuses and messages are TensorFlow Serving's. One difference is on purpose: an input whose shape does not fit the
signature is refused, before its values are read. TensorFlow Serving passes it to the graph unchecked, which may answer
anything or abort the whole server. Not covered: default values of inputs in a signature.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from grpc import StatusCode

from loupe import proto
from loupe.engines.refused import Refused, invalid
from loupe.engines.savedmodel import Array, SavedModel
from loupe.modelserver import examples
from loupe.modelserver.config import served_models
from loupe.modelserver.metrics import Metrics
from loupe.modelserver.models import Models
from loupe.modelserver.versions import Version

METADATA_FIELD = "signature_def"
GRPC, REST = "GRPC", "REST"  # the way a call came, as the metrics name it


class Answers:
    def __init__(self, models: Models, metrics: Metrics, *, as_content: bool = False) -> None:
        self._models = models
        self._metrics = metrics
        self._as_values = not as_content

    def predict(self, request: Any, deadline: float | None = None, entrypoint: str = GRPC) -> Any:
        _refuse_missing_spec(request)
        name = request.model_spec.name
        with self._models.lease(request.model_spec) as version, self._metrics.call(name, "Predict", entrypoint):
            assert version.model and version.engine
            signature_name, inputs, outputs = check_request(request, version.model)
            with self._metrics.computing(name, "Predict", version.engine.name):
                arrays = version.engine.run(signature_name, inputs, outputs, deadline)
            signature = version.model.signatures[signature_name]
        response = proto.PredictResponse(model_spec=proto.model_spec(name, version.number, signature_name))
        for alias in outputs:
            _fill(response.outputs[alias], arrays[alias], signature.outputs[alias].dtype, self._as_values)
        return response

    def signature_inputs(self, spec: Any) -> Mapping[str, Any]:
        """Return the inputs of the signature that a ModelSpec names, as REST reads them."""
        with self._models.lease(spec) as version:
            assert version.model
            name = spec.signature_name or proto.PREDICT_SIGNATURE
            if name not in version.model.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            inputs: Mapping[str, Any] = version.model.signatures[name].inputs
            return inputs

    def metadata(self, request: Any, deadline: float | None = None) -> Any:
        _refuse_missing_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != METADATA_FIELD:
                raise invalid(f"Metadata field {field} is not supported")
        spec = request.model_spec
        with self._models.lease(spec) as version:
            assert version.model
            signatures = proto.SignatureMap()
            for name, signature in version.model.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response = proto.GetModelMetadataResponse(model_spec=proto.model_spec(spec.name, version.number))
        packed = response.metadata[METADATA_FIELD]
        packed.type_url, packed.value = proto.SIGNATURE_MAP_URL, signatures.SerializeToString(deterministic=True)
        return response

    def status(self, request: Any, deadline: float | None = None) -> Any:
        _refuse_missing_spec(request)
        spec = request.model_spec
        number = self._models.number(spec)
        states = [state for state in self._models.states(spec.name) if number in (None, state[0])]
        if not states:
            versions = "any versions" if number is None else f"version {number}"
            raise Refused(StatusCode.NOT_FOUND, f"Could not find {versions} of model {spec.name}")
        response = proto.GetModelStatusResponse()
        for version, state, error in states:
            entry = response.model_version_status.add(version=version, state=state)
            entry.status.error_code = error.number if error else 0
            entry.status.error_message = str(error or "")
        return response

    def classify(self, request: Any, deadline: float | None = None, entrypoint: str = GRPC) -> Any:
        _refuse_missing_spec(request)
        with self._counted(request.model_spec, "Classify", entrypoint, examples.count(request.input)) as version:
            assert version.model and version.engine
            result = examples.classify(request, version.model, version.engine, deadline)
            return proto.ClassificationResponse(result=result, model_spec=_answered(request.model_spec, version))

    def regress(self, request: Any, deadline: float | None = None, entrypoint: str = GRPC) -> Any:
        _refuse_missing_spec(request)
        with self._counted(request.model_spec, "Regress", entrypoint, examples.count(request.input)) as version:
            assert version.model and version.engine
            result = examples.regress(request, version.model, version.engine, deadline)
            return proto.RegressionResponse(result=result, model_spec=_answered(request.model_spec, version))

    def multi_inference(self, request: Any, deadline: float | None = None, entrypoint: str = GRPC) -> Any:
        """Answer all tasks with the version that the first one asks for, as TensorFlow Serving does."""
        spec = request.tasks[0].model_spec if request.tasks else proto.ModelSpec()
        with self._counted(spec, "MultiInference", entrypoint, examples.count(request.input)) as version:
            assert version.model and version.engine
            response = examples.multi_inference(request, version.model, version.engine, deadline)
            for task, result in zip(request.tasks, response.results, strict=True):
                result.model_spec.CopyFrom(_answered(task.model_spec, version))
        return response

    @contextmanager
    def _counted(self, spec: Any, api: str, entrypoint: str, count: int) -> Iterator[Version]:
        """Lease the version, and count and time the call with its examples."""
        with self._models.lease(spec) as version, self._metrics.call(spec.name, api, entrypoint):
            assert version.engine
            with self._metrics.computing(spec.name, api, version.engine.name):
                yield version
            self._metrics.examples(spec.name, count)

    def reload(self, request: Any, deadline: float | None = None) -> Any:
        """Serve other models: HandleReloadConfigRequest."""
        self._models.reload(served_models(request.config), deadline)
        return proto.ReloadConfigResponse(status={"error_code": 0})


def check_request(request: Any, model: SavedModel) -> tuple[str, dict[str, Array], list[str]]:
    """Return the signature's name, the inputs and the names of the outputs, as the model has them. Raises Refused."""
    name = request.model_spec.signature_name or proto.PREDICT_SIGNATURE
    signature = model.signatures.get(name)
    if signature is None:
        raise Refused(StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    _refuse_other_names(request, signature)
    outputs = _outputs(request, signature)
    inputs = {}
    for position, alias in enumerate(sorted(request.inputs)):
        tensor = request.inputs[alias]
        _refuse_misfit(position, alias, tensor, signature.inputs[alias])
        try:
            inputs[alias] = proto.to_array(tensor)
        except ValueError as error:
            raise invalid(f"tensor parsing error: {alias}") from error
    return name, inputs, outputs


def _answered(asked: Any, version: Version) -> Any:
    """Return the ModelSpec of an answer."""
    return proto.model_spec(asked.name, version.number, asked.signature_name or proto.PREDICT_SIGNATURE)


def _refuse_missing_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _refuse_other_names(request: Any, signature: Any) -> None:
    sent, wanted = set(request.inputs), set(signature.inputs)
    if len(sent) != len(wanted):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_set(sent)}) != len({_set(wanted)}). "
            f"Sent extra: {_set(sent - wanted)}. Missing but required: {_set(wanted - sent)}."
        )
    for alias in sorted(sent - wanted):
        raise invalid(
            f"input tensor alias not found in signature: {alias}. Inputs expected to be in the set {_set(wanted)}."
        )


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


def _refuse_misfit(position: int, alias: str, sent: Any, declared: Any) -> None:
    """Refuse a tensor by its type and shape, before anything is spent on its values."""
    if sent.dtype != declared.dtype:
        if sent.dtype not in proto.BY_NUMBER:
            raise invalid(f"tensor parsing error: {alias}")
        raise invalid(
            f"Expects arg[{position}] to be {_type_name(declared.dtype)} but {_type_name(sent.dtype)} is provided"
        )
    if len(sent.tensor_shape.dim) > proto.MAX_RANK:
        raise invalid(f"tensor parsing error: {alias}")
    shape, given = proto.shape_of(declared.tensor_shape), proto.shape_of(sent.tensor_shape)
    if shape is None or given is None:  # the model takes any; what is sent unknown is a parsing error
        return
    if len(shape) != len(given) or any(size not in (-1, got) for size, got in zip(shape, given, strict=True)):
        sizes = ",".join("?" if size < 0 else str(size) for size in shape)
        raise invalid(f"input {alias} must have the shape [{sizes}], not [{','.join(map(str, given))}]")


def _fill(tensor: Any, array: Array, declared: int, as_values: bool) -> None:
    dtype = proto.BY_NUMBER.get(declared)
    if dtype is None:
        raise Refused(StatusCode.UNIMPLEMENTED, f"an output of dtype {declared} is not one that this server sends")
    proto.to_tensor(array, dtype.name, as_values=as_values, into=tensor)


def _type_name(number: int) -> str:
    dtype = proto.BY_NUMBER.get(number)
    return dtype.tensorflow_name if dtype else f"dtype {number}"


def _set(names: Collection[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
