"""The model server's answers over gRPC, to the official client and to proto.py's: both engines alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from loupe import proto
from tests.support import models
from tests.support.servers import ModelServer, model_server

ENGINES = ["openvino", "tensorflow"]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, models.SIDE, models.SIDE, 3), np.uint8)
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
HEALTH = "/grpc.health.v1.Health/Check"


class Client:
    """The official one."""

    def __init__(self, server: ModelServer) -> None:
        self.channel = grpc.insecure_channel(f"localhost:{server.port}")
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, spec: dict[str, Any] | None, outputs: tuple[str, ...] = (), **inputs: Any) -> Any:
        request = predict_pb2.PredictRequest(model_spec=spec, output_filter=outputs)
        for name, value in inputs.items():
            tensor = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
            request.inputs[name].CopyFrom(tensor)
        return self.predictions.Predict(request, timeout=60)

    def metadata(self, spec: dict[str, Any] | None, *fields: str) -> Any:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=fields)
        return self.predictions.GetModelMetadata(request, timeout=60)

    def status(self, spec: dict[str, Any] | None) -> Any:
        return self.models.GetModelStatus(get_model_status_pb2.GetModelStatusRequest(model_spec=spec), timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    models.write(made / "tires" / "3")
    models.write_plain(made / "plain" / "1")
    return made


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[ModelServer]:
    with model_server(folder, "tires", "--enable_grpc_healthcheck_service", engine=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ModelServer) -> Client:
    return Client(server)


@pytest.fixture(scope="module", params=["openvino", pytest.param("tensorflow", marks=pytest.mark.slow)])
def plain(request: pytest.FixtureRequest, folder: Path) -> Iterator[Client]:
    with model_server(folder, "plain", engine=request.param) as running:
        yield Client(running)


def refusal(call: Any, *arguments: Any, **more: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more)
    return caught.value.code(), caught.value.details()


def answers(response: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


# -------------------------------------------------------------------------------------------------------- answers


def test_predict_answers_the_official_client_in_typed_values(client: Client) -> None:
    response = client.predict({"name": "tires"}, image=IMAGES)
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("tires", 3, "serving_default")
    arrays = answers(response)
    assert {name: array.shape for name, array in arrays.items()} == {"probabilities": (2, 3), "heatmap": (2, 16, 16)}
    np.testing.assert_allclose(arrays["probabilities"].sum(1), 1, atol=1e-5)
    assert len(response.outputs["probabilities"].float_val) == 6
    assert not response.outputs["probabilities"].tensor_content


def test_proto_and_the_official_client_get_the_same_bits(client: Client) -> None:
    ours = proto.call(client.channel, proto.PREDICT)(proto.predict_request("tires", {"image": IMAGES}), timeout=60)
    theirs = answers(client.predict({"name": "tires", "signature_name": "serving_default"}, image=IMAGES))
    assert set(ours.outputs) == set(theirs)
    for name, array in theirs.items():
        assert proto.to_array(ours.outputs[name]).tobytes() == array.tobytes()


def test_both_engines_agree_with_tensorflow_in_this_process(client: Client, folder: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder / "tires" / "3"))
        expected = session.run({"probabilities": "probabilities:0", "heatmap": "heatmap:0"}, {"image:0": IMAGES})
    arrays = answers(client.predict({"name": "tires"}, image=IMAGES))
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7])
def test_any_batch_size_is_answered_each_image_by_itself(client: Client, size: int) -> None:
    images = np.resize(IMAGES, (size, *IMAGES.shape[1:]))
    arrays = answers(client.predict({"name": "tires"}, ("probabilities",), image=images))["probabilities"]
    alone = answers(client.predict({"name": "tires"}, ("probabilities",), image=IMAGES))["probabilities"]
    np.testing.assert_allclose(arrays.reshape(-1, 3), np.resize(alone, (size, 3)).reshape(-1, 3), atol=1e-6)


def test_concurrent_callers_get_each_their_own_answer(client: Client) -> None:
    images = np.random.default_rng(1).integers(0, 256, (40, 1, models.SIDE, models.SIDE, 3), np.uint8)

    def ask(image: Any) -> bytes:
        return answers(client.predict({"name": "tires"}, image=image))["probabilities"].tobytes()

    alone = [ask(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, images)) == alone


@pytest.mark.parametrize("engine", ["openvino", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_an_empty_batch_spoils_nothing_for_the_next_caller(sample_models: Path, engine: str) -> None:
    """OpenVINO fails at a MaxPool, for every later batch of one, once it has computed an empty batch."""
    image = np.zeros((1, 224, 224, 3), np.uint8)
    with model_server(sample_models, "tires", engine=engine) as server:
        client = Client(server)
        wanted = answers(client.predict({"name": "tires"}, image=image))["probabilities"]
        with contextlib.suppress(grpc.RpcError):
            client.predict({"name": "tires"}, image=image[:0])
        assert np.array_equal(answers(client.predict({"name": "tires"}, image=image))["probabilities"], wanted)


def test_describe_answers_the_card_for_every_request(client: Client) -> None:
    response = client.predict({"name": "tires", "signature_name": "describe"}, request=[b"", b"x"])
    assert response.outputs["card"].string_val == [models.card().encode()] * 2
    assert response.model_spec.signature_name == "describe"


def test_an_output_filter_prunes(client: Client) -> None:
    assert set(client.predict({"name": "tires"}, ("heatmap",), image=IMAGES).outputs) == {"heatmap"}


def test_a_version_can_be_named(client: Client) -> None:
    assert client.predict({"name": "tires", "version": {"value": 3}}, image=IMAGES).model_spec.version.value == 3


def test_one_value_stands_for_a_whole_image(client: Client) -> None:
    few = tf.make_tensor_proto(5, tf.uint8, (1, 32, 32, 3))
    whole = np.full((1, 32, 32, 3), 5, np.uint8)
    spread, sent_whole = client.predict({"name": "tires"}, image=few), client.predict({"name": "tires"}, image=whole)
    assert spread == sent_whole


def test_a_model_that_knows_nothing_of_loupe_is_served(plain: Client) -> None:
    pixels = np.ones((2, 32, 32, 3), np.float32)
    arrays = answers(plain.predict({"name": "plain"}, input_8=pixels))["dense_7"]
    assert arrays.tolist() == [[1, 1, 1, 0]] * 2
    assert refusal(plain.predict, {"name": "plain"}, input_8=pixels.astype(np.float64)) == (
        INVALID, "Expects arg[0] to be float but double is provided",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- errors


def shape(size: int) -> Any:
    return tf.TensorShape([size, models.SIDE, models.SIDE, 3]).as_proto()


TIRES = {"name": "tires"}
JUNK = tensor_pb2.TensorProto(dtype=4, tensor_shape=shape(1), tensor_content=b"123")
PREDICT_ERRORS: list[tuple[Any, tuple[str, ...], dict[str, Any], grpc.StatusCode, str]] = [
    (None, (), {}, INVALID, "Missing ModelSpec"),
    ({}, (), {}, INVALID, "ModelSpec has no name specified."),
    ({"name": "nope"}, (), {}, NOT_FOUND, "Servable not found for request: Latest(nope)"),
    (TIRES | {"version": {"value": 99}}, (), {}, NOT_FOUND, "Servable not found for request: Specific(tires, 99)"),
    (TIRES | {"version_label": "stable"}, (), {}, INVALID, "Unrecognized servable version label: stable"),
    (
        TIRES | {"signature_name": "nope"}, (), {"image": IMAGES}, grpc.StatusCode.FAILED_PRECONDITION,
        'Serving signature key "nope" not found.',
    ),
    (
        TIRES, (), {"wrong": IMAGES}, INVALID,
        "input tensor alias not found in signature: wrong. Inputs expected to be in the set {image}.",
    ),
    (
        TIRES, (), {}, INVALID,
        "input size does not match signature: 0!=1 len({}) != len({image}). "
        "Sent extra: {}. Missing but required: {image}.",
    ),
    (
        TIRES, (), {"image": IMAGES, "more": IMAGES}, INVALID,
        "input size does not match signature: 2!=1 len({image,more}) != len({image}). "
        "Sent extra: {more}. Missing but required: {}.",
    ),
    (
        TIRES, ("nope",), {"image": IMAGES}, INVALID,
        "output tensor alias not found in signature: nope Outputs expected to be in the set {heatmap,probabilities}.",
    ),
    (TIRES, ("heatmap",) * 2, {"image": IMAGES}, INVALID, "duplicate output tensor alias: heatmap"),
    (TIRES, (), {"image": JUNK}, INVALID, "tensor parsing error: image"),
    (
        TIRES, (), {"image": IMAGES.astype(np.float32)}, INVALID,
        "Expects arg[0] to be uint8 but float is provided",
    ),
    (TIRES, (), {"image": IMAGES[0]}, INVALID, "input image must have the shape [?,32,32,3], not [32,32,3]"),
    (
        TIRES, (), {"image": IMAGES[:, :16]}, INVALID,
        "input image must have the shape [?,32,32,3], not [2,16,32,3]",
    ),
    (
        TIRES | {"signature_name": "describe"}, (), {"request": b""}, INVALID,
        "input request must have the shape [?], not []",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "outputs", "inputs", "code", "text"), PREDICT_ERRORS, ids=[e[-1] for e in PREDICT_ERRORS]
)
def test_predict_refuses_in_tensorflow_servings_words(
    client: Client, spec: Any, outputs: tuple[str, ...], inputs: dict[str, Any], code: grpc.StatusCode, text: str
) -> None:
    assert refusal(client.predict, spec, outputs, **inputs) == (code, text)


def test_a_shape_that_declares_gigabytes_is_refused_and_the_server_lives(client: Client) -> None:
    huge = tensor_pb2.TensorProto(dtype=4, tensor_shape=shape(1 << 40), int_val=[1])
    assert refusal(client.predict, TIRES, image=huge) == (INVALID, "tensor parsing error: image")
    assert client.predict(TIRES, image=IMAGES).outputs


def test_what_is_no_message_and_what_is_no_method_are_refused(client: Client) -> None:
    raw = client.channel.unary_unary(proto.PREDICT.path)
    assert refusal(raw, b"\xff\xff", timeout=60)[0] is grpc.StatusCode.INTERNAL
    nope = client.channel.unary_unary("/tensorflow.serving.PredictionService/Nope")
    assert refusal(nope, b"", timeout=60)[0] is grpc.StatusCode.UNIMPLEMENTED


# -------------------------------------------------------------------------------------------- metadata and status


def test_metadata_is_the_signatures_of_the_saved_model(client: Client, folder: Path) -> None:
    response = client.metadata(TIRES, "signature_def")
    assert (response.model_spec.name, response.model_spec.version.value) == ("tires", 3)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    graph = tf.compat.v1.saved_model.loader.load(
        tf.compat.v1.Session(graph=tf.Graph()), ["serve"], str(folder / "tires" / "3")
    )
    assert dict(signatures.signature_def) == dict(graph.signature_def)
    assert signatures.signature_def["serving_default"].method_name == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("spec", "fields", "code", "text"),
    [
        (None, ("signature_def",), INVALID, "Missing ModelSpec"),
        (TIRES, (), INVALID, "GetModelMetadataRequest must specify at least one metadata_field"),
        (TIRES, ("nope",), INVALID, "Metadata field nope is not supported"),
        ({"name": "nope"}, ("signature_def",), NOT_FOUND, "Servable not found for request: Latest(nope)"),
    ],
)
def test_metadata_refuses_in_tensorflow_servings_words(
    client: Client, spec: Any, fields: tuple[str, ...], code: grpc.StatusCode, text: str
) -> None:
    assert refusal(client.metadata, spec, *fields) == (code, text)


def test_status_tells_every_version(client: Client) -> None:
    for spec in (TIRES, TIRES | {"version": {"value": 3}}):
        (entry,) = client.status(spec).model_version_status
        assert (entry.version, entry.state, entry.status.error_code) == (3, proto.AVAILABLE, 0)
    assert refusal(client.status, {"name": "nope"}) == (NOT_FOUND, "Could not find any versions of model nope")
    missing = TIRES | {"version": {"value": 9}}
    assert refusal(client.status, missing) == (NOT_FOUND, "Could not find version 9 of model tires")
    assert refusal(client.status, None) == (INVALID, "Missing ModelSpec")


def test_the_health_service_is_there_where_it_is_asked_for(client: Client) -> None:
    assert client.channel.unary_unary(HEALTH)(b"", timeout=60) == b"\x08\x01"


def test_the_health_service_is_not_there_by_default(plain: Client) -> None:
    assert refusal(plain.channel.unary_unary(HEALTH), b"", timeout=60)[0] is grpc.StatusCode.UNIMPLEMENTED
