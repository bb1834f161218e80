"""One question after the other, by the official stubs and raw HTTP, and TensorFlow Serving's answer to each, verbatim.

    pytest tests/modelserver/test_conformance.py                      # our own server, with each engine

    python -m tests.support.models /tmp/conformance                    # against any other: the models it must serve
    tensorflow_model_server --port=8500 --rest_api_port=8501 --model_config_file=/tmp/conformance/models.config \
        --allow_version_labels_for_unavailable_models
    pytest tests/modelserver/test_conformance.py --grpc localhost:8500 --rest localhost:8501

    python -m tests.modelserver.test_conformance                       # the known differences

Where our server answers otherwise on purpose, the case says so and why. Against another server the answer expected is
TensorFlow Serving's; what is known to differ between its versions is a pattern.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.support import models
from tests.support.servers import model_server

PATIENCE = 60  # seconds
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION, UNIMPLEMENTED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED
PICTURE = np.zeros((1, models.SIDE, models.SIDE, 3), np.uint8)
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
NEEDS_TENSORFLOW = (UNIMPLEMENTED, "tf.Examples need the tensorflow engine: --engine=tensorflow")
NO_EXAMPLES = "openvino does not read tf.Examples"
SHAPES_CHECKED = "a shape that does not fit the signature is refused: TensorFlow Serving passes it to the graph"


class Target:
    """A server, asked by the official stubs and by raw HTTP."""

    def __init__(self, grpc_address: str, rest_address: str) -> None:
        self.channel = grpc.insecure_channel(grpc_address)
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self._rest = rest_address

    # ------------------------------------------------------------------------------------------------------ gRPC

    def predict(self, spec: dict[str, Any] | None, outputs: tuple[str, ...] = (), **inputs: Any) -> Any:
        request = predict_pb2.PredictRequest(model_spec=spec, output_filter=outputs)
        for name, value in inputs.items():
            tensor = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
            request.inputs[name].CopyFrom(tensor)
        return self.predictions.Predict(request, timeout=PATIENCE)

    def answer(self, spec: dict[str, Any] | None, outputs: tuple[str, ...] = (), **inputs: Any) -> dict[str, Any]:
        response = self.predict(spec, outputs, **inputs)
        return {name: tf.make_ndarray(tensor).tolist() for name, tensor in response.outputs.items()}

    def status(self, spec: dict[str, Any] | None) -> list[tuple[int, int, int]]:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        listed = self.models.GetModelStatus(request, timeout=PATIENCE).model_version_status
        return [(version.version, version.state, version.status.error_code) for version in listed]

    def metadata(self, spec: dict[str, Any] | None, *fields: str) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=fields)
        return self.predictions.GetModelMetadata(request, timeout=PATIENCE)

    def signatures(self, name: str) -> dict[str, str]:
        """Return each signature's method name."""
        packed = self.metadata({"name": name}, "signature_def").metadata["signature_def"]
        found = get_model_metadata_pb2.SignatureDefMap()
        assert packed.Unpack(found)
        return {key: signature.method_name for key, signature in found.signature_def.items()}

    def classify(self, spec: dict[str, Any] | None, *values: float) -> list[Any]:
        request = classification_pb2.ClassificationRequest(model_spec=spec, input=_examples(values))
        result = self.predictions.Classify(request, timeout=PATIENCE).result
        return [[round(c.score, 4) for c in found.classes] for found in result.classifications]

    def regress(self, spec: dict[str, Any] | None, *values: float) -> list[float]:
        request = regression_pb2.RegressionRequest(model_spec=spec, input=_examples(values))
        result = self.predictions.Regress(request, timeout=PATIENCE).result
        return [round(found.value, 4) for found in result.regressions]

    def multi_inference(self, *tasks: tuple[str, str, str]) -> list[str]:
        """Ask with (model, signature, method)s. Return what kinds of results there are."""
        request = inference_pb2.MultiInferenceRequest(input=_examples((1.0,)))
        for name, signature, method in tasks:
            request.tasks.add(model_spec={"name": name, "signature_name": signature}, method_name=method)
        results = self.predictions.MultiInference(request, timeout=PATIENCE).results
        return [str(result.WhichOneof("result")) for result in results]

    def reload(self, **config: Any) -> int:
        request = model_management_pb2.ReloadConfigRequest(config=config)
        return int(self.models.HandleReloadConfigRequest(request, timeout=PATIENCE).status.error_code)

    def unknown_method(self) -> None:
        self.channel.unary_unary("/tensorflow.serving.PredictionService/Nope")(b"", timeout=PATIENCE)

    # ------------------------------------------------------------------------------------------------------ REST

    def rest(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Return the status, and the body: the JSON in it, or its first words where it is none."""
        connection = http.client.HTTPConnection(self._rest, timeout=PATIENCE)
        sent = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
        connection.request(method, path, sent, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, json.loads(text) if text.lstrip().startswith("{") else " ".join(text.split())[:40]


def _examples(values: tuple[float, ...]) -> Any:
    given = input_pb2.Input()
    given.example_list.SetInParent()
    for value in values:
        given.example_list.examples.add().features.feature["x"].float_list.value.append(value)
    return given


@dataclass(frozen=True)
class Case:
    """A question, and TensorFlow Serving's answer to it. `ours`, where our server answers otherwise on purpose, and
    why; `openvino`, likewise with that engine."""

    name: str
    ask: Callable[[Target], Any]
    expected: Any  # a value, (status, details) of gRPC, or a re.Pattern in the place of a text
    ours: Any = None
    openvino: Any = None
    why: str = field(default="")


HALF = {"name": "half"}
TIRES = {"name": "tires"}


def floats(values: list[float]) -> Any:
    return np.array(values, np.float32)


def half(x: Any, **spec: Any) -> Callable[[Target], Any]:
    return lambda target: target.answer({**HALF, **spec}, x=np.array(x, np.float32))


def rest_error(method: str, path: str, body: Any = None, **headers: str) -> Callable[[Target], Any]:
    return lambda target: target.rest(method, path, body, **headers)


def refused(status: int, text: Any) -> tuple[int, Any]:
    return status, {"error": text}


GRPC_CASES = [
    Case("predict", half([1, 2]), {"y": [2.5, 3.0]}),
    Case("predict by version", half([1], version={"value": 1}), {"y": [2.5]}),
    Case("predict by label", half([1], version_label="stable"), {"y": [2.5]}),
    Case("predict a batch of none", half([]), {"y": []}),
    Case(
        "the answer names model, version and signature",
        lambda t: (lambda spec: (spec.name, spec.version.value, spec.signature_name))(
            t.predict(HALF, x=floats([1])).model_spec
        ),
        ("half", 2, "serving_default"),
    ),
    Case(
        "a label's answer names the version",
        lambda t: t.predict({**HALF, "version_label": "stable"}, x=floats([1])).model_spec.version.value,
        1,
    ),
    Case(
        "values come in float_val",
        lambda t: (lambda y: (list(y.float_val), y.tensor_content))(
            t.predict(HALF, x=floats([1, 2])).outputs["y"]
        ),
        ([2.5, 3.0], b""),
    ),
    Case(
        "the output filter prunes",
        lambda t: sorted(t.answer(TIRES, ("probabilities",), image=PICTURE)),
        ["probabilities"],
    ),
    Case("no model spec", lambda t: t.predict(None), (INVALID, "Missing ModelSpec")),
    Case("no name", lambda t: t.predict({}), (INVALID, "ModelSpec has no name specified.")),
    Case("unknown model", lambda t: t.predict({"name": "nope"}),
         (NOT_FOUND, "Servable not found for request: Latest(nope)")),
    Case("unknown version", half([1], version={"value": 99}),
         (NOT_FOUND, "Servable not found for request: Specific(half, 99)")),
    Case("unknown label", half([1], version_label="canary"),
         (INVALID, "Unrecognized servable version label: canary")),
    Case("unknown signature", half([1], signature_name="nope"),
         (PRECONDITION, 'Serving signature key "nope" not found.')),
    Case("unknown input", lambda t: t.predict(TIRES, wrong=PICTURE),
         (INVALID, "input tensor alias not found in signature: wrong. Inputs expected to be in the set {image}.")),
    Case("no input", lambda t: t.predict(TIRES),
         (INVALID, "input size does not match signature: 0!=1 len({}) != len({image}). Sent extra: {}. Missing but "
          "required: {image}.")),
    Case("unknown output", lambda t: t.predict(TIRES, ("nope",), image=PICTURE),
         (INVALID, "output tensor alias not found in signature: nope Outputs expected to be in the set "
          "{heatmap,probabilities}.")),
    Case("an output twice", lambda t: t.predict(TIRES, ("probabilities",) * 2, image=PICTURE),
         (INVALID, "duplicate output tensor alias: probabilities")),
    Case("another type", lambda t: t.predict(HALF, x=np.array([1.0])),
         (INVALID, "Expects arg[0] to be float but double is provided")),
    Case("a tensor that contradicts itself",
         lambda t: t.predict(HALF, x=tensor_pb2.TensorProto(
             dtype=1, tensor_content=b"abc", tensor_shape={"dim": [{"size": 1}]})),
         (INVALID, "tensor parsing error: x")),
    Case("too few values are repeated",
         lambda t: t.answer(HALF, x=tensor_pb2.TensorProto(
             dtype=1, float_val=[2.0], tensor_shape={"dim": [{"size": 3}]})),
         {"y": [3.0, 3.0, 3.0]}),
    Case("another size", lambda t: np.shape(t.answer(TIRES, image=PICTURE[:, :16])["probabilities"]), (1, 3),
         ours=(INVALID, "input image must have the shape [?,32,32,3], not [1,16,32,3]"), why=SHAPES_CHECKED),
    Case("another rank", lambda t: t.answer(TIRES, image=PICTURE[0]), (INVALID, re.compile(".*4-dimensional.*")),
         ours=(INVALID, "input image must have the shape [?,32,32,3], not [32,32,3]"), why=SHAPES_CHECKED),
    Case("four channels", lambda t: t.answer(TIRES, image=np.zeros((1, 32, 32, 4), np.uint8)),
         (INVALID, re.compile("input depth must be evenly divisible by filter depth: 4 vs 3.*")),
         ours=(INVALID, "input image must have the shape [?,32,32,3], not [1,32,32,4]"), why=SHAPES_CHECKED),
    Case("status, newest first", lambda t: t.status(HALF), [(2, 30, 0), (1, 30, 0)]),
    Case("status of a version", lambda t: t.status({**HALF, "version": {"value": 1}}), [(1, 30, 0)]),
    Case("status of a label", lambda t: t.status({**HALF, "version_label": "stable"}), [(1, 30, 0)]),
    Case("status without a spec", lambda t: t.status(None), (INVALID, "Missing ModelSpec")),
    Case("status of no model", lambda t: t.status({"name": "none"}),
         (NOT_FOUND, "Could not find any versions of model none")),
    Case("status of no version", lambda t: t.status({**HALF, "version": {"value": 9}}),
         (NOT_FOUND, "Could not find version 9 of model half")),
    Case("status of no label", lambda t: t.status({**HALF, "version_label": "none"}),
         (INVALID, "Unrecognized servable version label: none")),
    Case("metadata", lambda t: t.signatures("half"),
         {"serving_default": "tensorflow/serving/predict", "classify_x_to_y": CLASSIFY, "regress_x_to_y": REGRESS},
         why="a TF1 loader adds its init op as a signature in some versions"),
    Case("metadata of nothing", lambda t: t.metadata(HALF),
         (INVALID, "GetModelMetadataRequest must specify at least one metadata_field")),
    Case("metadata of another field", lambda t: t.metadata(HALF, "nope"),
         (INVALID, "Metadata field nope is not supported")),
    Case("metadata without a spec", lambda t: t.metadata(None, "signature_def"), (INVALID, "Missing ModelSpec")),
    Case("classify", lambda t: t.classify({**HALF, "signature_name": "classify_x_to_y"}, 1, 4), [[2.5], [4.0]],
         openvino=NEEDS_TENSORFLOW, why=NO_EXAMPLES),
    Case("regress", lambda t: t.regress({**HALF, "signature_name": "regress_x_to_y"}, 1, 4), [2.5, 4.0],
         openvino=NEEDS_TENSORFLOW, why=NO_EXAMPLES),
    Case("both at once",
         lambda t: t.multi_inference(("half", "classify_x_to_y", CLASSIFY), ("half", "regress_x_to_y", REGRESS)),
         ["classification_result", "regression_result"], openvino=NEEDS_TENSORFLOW, why=NO_EXAMPLES),
    Case("classify nothing", lambda t: t.classify({**HALF, "signature_name": "classify_x_to_y"}),
         (INVALID, "Input is empty.")),
    Case("classify by no signature", lambda t: t.classify({**HALF, "signature_name": "nope"}, 1),
         (INVALID, "No signature was found with the name: nope")),
    Case("regress without a spec", lambda t: t.regress(None, 1), (INVALID, "Missing ModelSpec")),
    Case("two models at once",
         lambda t: t.multi_inference(("half", "classify_x_to_y", CLASSIFY), ("tires", "regress_x_to_y", REGRESS)),
         (INVALID, "All ModelSpecs in a MultiInferenceRequest must access the same model name.")),
    Case("a signature twice",
         lambda t: t.multi_inference(("half", "classify_x_to_y", CLASSIFY), ("half", "classify_x_to_y", CLASSIFY)),
         (INVALID, "Duplicate evaluation of signature: classify_x_to_y")),
    Case("reload nothing", lambda t: t.reload(),
         (INVALID, "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
          "currently supported")),
    Case("reload a model twice",
         lambda t: t.reload(model_config_list={"config": [{"name": "a", "model_platform": "tensorflow"}] * 2}),
         (INVALID, "Illegal to list model a multiple times in config list")),
    Case("no such method", lambda t: t.unknown_method(), (UNIMPLEMENTED, re.compile(".*"))),
]  # fmt: skip

PREDICT = "/v1/models/half:predict"
REST_CASES = [
    Case("rows", rest_error("POST", PREDICT, {"instances": [1.0, 2.0]}), (200, {"predictions": [2.5, 3.0]})),
    Case("named rows", rest_error("POST", PREDICT, {"instances": [{"x": 1.0}]}), (200, {"predictions": [2.5]})),
    Case("columns", rest_error("POST", PREDICT, {"inputs": [1.0, 2.0]}), (200, {"outputs": [2.5, 3.0]})),
    Case("named columns", rest_error("POST", PREDICT, {"inputs": {"x": [1.0]}}), (200, {"outputs": [2.5]})),
    Case("a signature by name",
         rest_error("POST", PREDICT, {"signature_name": "serving_default", "instances": [1.0]}),
         (200, {"predictions": [2.5]})),
    Case("by version", rest_error("POST", "/v1/models/half/versions/1:predict", {"instances": [1.0]}),
         (200, {"predictions": [2.5]})),
    Case("by label", rest_error("POST", "/v1/models/half/labels/stable:predict", {"instances": [1.0]}),
         (200, {"predictions": [2.5]})),
    Case("an object for each row of several outputs",
         lambda t: sorted(t.rest("POST", "/v1/models/tires:predict", {"instances": PICTURE.tolist()})[1]
                          ["predictions"][0]),
         ["heatmap", "probabilities"]),
    Case("infinities", rest_error("POST", PREDICT, '{"instances": [Infinity, -Infinity]}'),
         (200, {"predictions": [float("inf"), float("-inf")]})),
    Case("not a number", lambda t: str(t.rest("POST", PREDICT, '{"instances": [NaN]}')),
         "(200, {'predictions': [nan]})"),
    Case("a gzip body",
         lambda t: t.rest("POST", PREDICT, __import__("gzip").compress(b'{"instances": [1.0]}'),
                          **{"Content-Encoding": "gzip"}),
         (200, {"predictions": [2.5]})),
    Case("classify over REST",
         rest_error("POST", "/v1/models/half:classify",
                    {"signature_name": "classify_x_to_y", "examples": [{"x": 1.0}, {"x": 4.0}]}),
         (200, {"results": [[["", 2.5]], [["", 4.0]]]}), openvino=refused(501, NEEDS_TENSORFLOW[1]), why=NO_EXAMPLES),
    Case("regress over REST",
         rest_error("POST", "/v1/models/half:regress",
                    {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": 4.0}]}),
         (200, {"results": [2.5, 4.0]}), openvino=refused(501, NEEDS_TENSORFLOW[1]), why=NO_EXAMPLES),
    Case("status over REST", rest_error("GET", "/v1/models/half/versions/1"),
         (200, {"model_version_status": [
             {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]})),
    Case("metadata over REST", lambda t: t.rest("GET", "/v1/models/half/metadata")[1]["model_spec"],
         {"name": "half", "signature_name": "", "version": "2"}),
    Case("no model over REST", rest_error("GET", "/v1/models/nope"),
         refused(404, "Could not find any versions of model nope")),
    Case("predict by no model", rest_error("POST", "/v1/models/nope:predict", {"instances": [1.0]}),
         refused(404, "Servable not found for request: Latest(nope)")),
    Case("predict by no version", rest_error("POST", "/v1/models/half/versions/99:predict", {"instances": [1.0]}),
         refused(404, "Servable not found for request: Specific(half, 99)")),
    Case("predict by no label", rest_error("POST", "/v1/models/half/labels/canary:predict", {"instances": [1.0]}),
         refused(400, "Unrecognized servable version label: canary")),
    Case("predict by no signature", rest_error("POST", PREDICT, {"signature_name": "nope", "instances": [1.0]}),
         refused(400, 'Serving signature name: "nope" not found in signature def')),
    Case("neither rows nor columns", rest_error("POST", PREDICT, {}),
         refused(400, "Missing 'inputs' or 'instances' key")),
    Case("both rows and columns", rest_error("POST", PREDICT, {"instances": [1], "inputs": [1]}),
         (400, re.compile(r"JSON Value: \{.*\} Not formatted correctly expecting only one of 'inputs' or 'instances' "
                          r"keys to exist |JSON Value: \{.*\} Not formatted correctly expecting only one of "
                          r"'instances' or 'inputs' .*", re.DOTALL))),
    Case("no rows", rest_error("POST", PREDICT, {"instances": []}),
         (400, re.compile(r"JSON Value: \{.*\} No values in 'instances' array", re.DOTALL))),
    Case("rows of different sizes", rest_error("POST", PREDICT, {"instances": [[1], [1, 2]]}),
         refused(400, "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor "
                      "size: 1 but got: 2")),
    Case("a value of another type", rest_error("POST", "/v1/models/tires:predict", {"inputs": [[[[1.5, 2, 3]]]]}),
         refused(400, "JSON Value: 1.5 Type: Number is not of expected type: uint8")),
    Case("an empty body", rest_error("POST", PREDICT, ""), refused(400, "JSON Parse error: The document is empty")),
    Case("no JSON", rest_error("POST", PREDICT, "instances"),
         refused(400, "JSON Parse error: Invalid value. at offset: 0")),
    Case("predict by GET", rest_error("GET", PREDICT), refused(400, f"Malformed request: GET {PREDICT}")),
    Case("status by POST", rest_error("POST", "/v1/models/half"),
         refused(400, "Malformed request: POST /v1/models/half")),
    Case("no name over REST", rest_error("GET", "/v1/models"), refused(400, "Missing model name in request.")),
    Case("another path", lambda t: t.rest("GET", "/nope")[0], 404),
]  # fmt: skip
CASES = [*GRPC_CASES, *REST_CASES]


# ---------------------------------------------------------------------------------------------------------- the tests


@dataclass
class Asked:
    target: Target
    is_ours: bool
    engine: str = ""


@pytest.fixture(scope="module", params=["openvino", "tensorflow"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    if address := request.config.getoption("--grpc"):
        if request.param == "tensorflow":
            pytest.skip("one server, asked once")
        yield Asked(Target(address, request.config.getoption("--rest")), is_ours=False)
        return
    folder = tmp_path_factory.mktemp("conformance")
    flags = (
        f"--model_config_file={models.write_conformance(folder)}",
        "--allow_version_labels_for_unavailable_models",
    )
    with model_server(folder, "half", *flags, engine=request.param) as server:
        target = Target(f"localhost:{server.port}", f"localhost:{server.rest_port}")
        yield Asked(target, is_ours=True, engine=request.param)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_answer_is_tensorflow_servings(case: Case, asked: Asked) -> None:
    try:
        got = case.ask(asked.target)
    except grpc.RpcError as error:
        got = (error.code(), error.details())
    expected = case.expected
    if asked.is_ours:
        expected = (case.openvino if asked.engine == "openvino" else None) or case.ours or expected
    assert matches(got, expected), f"{got!r}, not {expected!r}; {case.why}"


def matches(got: Any, expected: Any) -> bool:
    if isinstance(expected, re.Pattern):
        return bool(expected.fullmatch(str(got)))
    if isinstance(expected, tuple) and isinstance(got, tuple) and len(expected) == len(got):
        texts = [value["error"] if isinstance(value, dict) and set(value) == {"error"} else value for value in got]
        wanted = [
            value["error"] if isinstance(value, dict) and set(value) == {"error"} else value for value in expected
        ]
        return all(matches(*pair) for pair in zip(texts, wanted, strict=True))
    return bool(got == expected)


if __name__ == "__main__":
    for listed in CASES:
        if listed.ours or listed.openvino:
            print(f"{listed.name}: {listed.why}")
