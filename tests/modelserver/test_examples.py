"""Classify, Regress and MultiInference, over real sockets, to the official client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from loupe import tfrecord
from loupe.engines.savedmodel import WARMUP
from loupe.modelserver.examples import MAX_COPIED_BYTES, MAX_EXAMPLES
from loupe.modelserver.warmup import MAX_BATCH
from tests.support import models
from tests.support.servers import ModelServer, model_server

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
HALF = "half_plus_two"
NEEDS_TENSORFLOW = (UNIMPLEMENTED, "tf.Examples need the tensorflow engine: --engine=tensorflow")


class Client:
    """The official one."""

    def __init__(self, server: ModelServer, model: str) -> None:
        channel = grpc.insecure_channel(f"localhost:{server.port}")
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.model = model

    def classify(self, signature: str, given: Any = None, **spec: Any) -> Any:
        request = classification_pb2.ClassificationRequest(input=given)
        request.model_spec.MergeFrom(self.spec(signature, **spec))
        return self.stub.Classify(request, timeout=60)

    def regress(self, signature: str, given: Any = None, **spec: Any) -> Any:
        request = regression_pb2.RegressionRequest(input=given)
        request.model_spec.MergeFrom(self.spec(signature, **spec))
        return self.stub.Regress(request, timeout=60)

    def infer(self, given: Any, *tasks: tuple[str, str], **spec: Any) -> Any:
        """Each task is a signature and a method."""
        request = inference_pb2.MultiInferenceRequest(input=given)
        for signature, method in tasks:
            request.tasks.add(model_spec=self.spec(signature, **spec), method_name=method)
        return self.stub.MultiInference(request, timeout=60)

    def spec(self, signature: str, **more: Any) -> Any:
        return classification_pb2.ClassificationRequest(
            model_spec={"name": self.model, "signature_name": signature} | more
        ).model_spec


def example(**features: float) -> Any:
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def given(*values: float) -> Any:
    return input_pb2.Input(example_list={"examples": [example(x=value) for value in values]})


def refusal(call: Any, *arguments: Any, **more: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more)
    return caught.value.code(), caught.value.details()


def scores(result: Any) -> list[list[tuple[str, float]]]:
    return [[(c.label, c.score) for c in row.classes] for row in result.classifications]


def values(result: Any) -> list[float]:
    return [regression.value for regression in result.regressions]


# ------------------------------------------------------------------------------------------------------- the models


def write_odd(folder: Path) -> Path:
    """Write a model with a signature for every way to fit a call, or not. All of them say that they are for Predict, as
    those of TensorFlow 2 do."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        # Tensors for an example's x.
        examples = tf.compat.v1.placeholder(tf.string, [None], name="tf_example")
        x = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        pair = tf.concat([x, x + 1], 1)
        labels = tf.tile(tf.constant([[b"no", b"\xff"]]), [tf.shape(x)[0], 1])
        one, two = x[:1], pair[:1]
        chance = tf.random.uniform([tf.shape(x)[0], 1])
        more = tf.compat.v1.placeholder(tf.string, [None], name="more")
        more_x = tf.io.parse_example(more, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        number = tf.compat.v1.placeholder(tf.float32, [None], name="number")
        column = tf.compat.v1.placeholder(tf.string, [None, 1], name="column")
        # Signatures: inputs and outputs.
        signatures = {
            "both": ({"inputs": examples}, {"classes": labels, "scores": pair}),
            "labels": ({"inputs": examples}, {"classes": labels}),
            "scores": ({"inputs": examples}, {"scores": pair}),
            "flat classes": ({"inputs": examples}, {"scores": x[:, 0]}),
            "no scores": ({"inputs": examples}, {"scores": tf.cast(pair, tf.float64)}),
            "no labels": ({"inputs": examples}, {"classes": pair}),
            "one row of scores": ({"inputs": examples}, {"scores": two}),
            "one row of labels": ({"inputs": examples}, {"classes": labels[:1]}),
            "narrow": ({"inputs": examples}, {"classes": labels, "scores": x}),
            "two inputs": ({"inputs": examples, "more": more}, {"scores": pair, "outputs": x}),
            "three outputs": ({"inputs": examples}, {"scores": pair, "classes": labels, "outputs": x}),
            "other input": ({"examples": examples}, {"scores": pair}),
            "other outputs": ({"inputs": examples}, {"probabilities": pair}),
            "flat": ({"inputs": examples}, {"outputs": x[:, 0]}),
            "wide": ({"inputs": examples}, {"outputs": pair}),
            "scalar": ({"inputs": examples}, {"outputs": tf.reduce_sum(x)}),
            "one row": ({"inputs": examples}, {"outputs": one}),
            "whole numbers": ({"inputs": examples}, {"outputs": tf.cast(x, tf.int32)}),
            "complex": ({"inputs": examples}, {"outputs": tf.cast(x, tf.complex64)}),
            "texts": ({"inputs": examples}, {"outputs": examples}),
            "other input to regress": ({"examples": examples}, {"outputs": x}),
            "number": ({"inputs": number}, {"outputs": number}),
            "column": ({"inputs": column}, {"outputs": tf.strings.to_number(column)}),
            "chance": ({"inputs": examples}, {"outputs": chance}),
            "chance as scores": ({"inputs": examples}, {"scores": chance}),
            "another tensor": ({"inputs": more}, {"outputs": more_x * 2}),
            "serving_default": ({"x": number}, {"y": number + 1}),
        }
        # Save them.
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        build = tf.compat.v1.saved_model.signature_def_utils.predict_signature_def
        made = {name: build(*sides) for name, sides in signatures.items()}
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=made)
        builder.save()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    models.write_half_plus_two(made / HALF / "7")
    (made / "odd").mkdir()
    write_odd(made / "odd" / "1")
    return made


@pytest.fixture(scope="module")
def half(folder: Path) -> Iterator[Client]:
    with model_server(folder, HALF, engine="tensorflow") as server:
        yield Client(server, HALF)


@pytest.fixture(scope="module")
def odd(folder: Path) -> Iterator[Client]:
    with model_server(folder, "odd", engine="tensorflow") as server:
        yield Client(server, "odd")


@pytest.fixture(scope="module")
def openvino(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A model of Loupe's, and the signatures of half_plus_two beside its own."""
    with model_server(folder_for_openvino(tmp_path_factory.mktemp("openvino")), HALF) as server:
        assert server.engine == "openvino"
        yield Client(server, HALF)


def folder_for_openvino(made: Path) -> Path:
    models.write_half_plus_two(made / HALF / "7")
    return made


# --------------------------------------------------------------------------------------------------------- classify


def test_classify_answers_a_score_for_each_example(half: Client) -> None:
    response = half.classify("classify_x_to_y", given(2, 6))
    assert scores(response.result) == [[("", 3.0)], [("", 5.0)]]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (HALF, 7, "classify_x_to_y")


