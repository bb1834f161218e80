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
from loupe.engines import savedmodel
from loupe.engines.choose import chooser
from loupe.engines.engine import Options
from loupe.engines.refused import Refused
from loupe.engines.savedmodel import WARMUP
from loupe.modelserver.examples import MAX_COPIED_BYTES, MAX_EXAMPLES
from loupe.modelserver.warmup import MAX_BATCH, replaying
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


def classes(result: Any) -> list[list[tuple[str, float]]]:
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
def openvino(folder: Path) -> Iterator[Client]:
    with model_server(folder, HALF) as server:
        assert server.engine == "openvino"
        yield Client(server, HALF)


# --------------------------------------------------------------------------------------------------------- answers


def test_classify_gives_each_example_a_score(half: Client) -> None:
    response = half.classify("classify_x_to_y", given(2, 6))
    assert classes(response.result) == [[("", 3.0)], [("", 5.0)]]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (HALF, 7, "classify_x_to_y")


def test_regress_gives_each_example_a_value(half: Client) -> None:
    response = half.regress("regress_x_to_y", given(2, 6), version={"value": 7})
    assert values(response.result) == [3.0, 5.0]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (HALF, 7, "regress_x_to_y")


def test_multi_inference_answers_each_task_in_its_order(half: Client) -> None:
    response = half.infer(given(2), ("regress_x_to_y", REGRESS), ("classify_x_to_y", CLASSIFY))
    first, second = response.results
    assert values(first.regression_result) == [3.0]
    assert classes(second.classification_result) == [[("", 3.0)]]
    assert [result.WhichOneof("result") for result in response.results] == [
        "regression_result",
        "classification_result",
    ]
    for result, name in ((first, "regress_x_to_y"), (second, "classify_x_to_y")):
        spec = result.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == (HALF, 7, name)


def test_the_context_is_part_of_every_example_and_an_example_overrides_it(half: Client) -> None:
    examples = [example(), example(x=6)]
    shared = input_pb2.Input(example_list_with_context={"context": example(x=2), "examples": examples})
    assert values(half.regress("regress_x_to_y", shared).result) == [3.0, 5.0]


def test_classes_have_labels_scores_or_both(odd: Client) -> None:
    assert classes(odd.classify("both", given(2)).result) == [[("no", 2.0), ("\ufffd", 3.0)]]
    assert classes(odd.classify("labels", given(2)).result) == [[("no", 0.0), ("\ufffd", 0.0)]]
    assert classes(odd.classify("scores", given(2)).result) == [[("", 2.0), ("", 3.0)]]


def test_a_regression_may_be_a_plain_vector(odd: Client) -> None:
    assert values(odd.regress("flat", given(2, 6)).result) == [2.0, 6.0]


def test_multi_inference_runs_the_graph_once_for_all_tasks(odd: Client) -> None:
    first, second = odd.infer(given(2, 6), ("chance", REGRESS), ("chance as scores", CLASSIFY)).results
    drawn = values(first.regression_result)
    assert drawn == [row[0][1] for row in classes(second.classification_result)]
    assert drawn != values(odd.infer(given(2, 6), ("chance", REGRESS)).results[0].regression_result)


def test_multi_inference_feeds_all_inputs_with_the_same_examples(odd: Client) -> None:
    response = odd.infer(given(3), ("flat", REGRESS), ("another tensor", REGRESS))
    assert [values(result.regression_result) for result in response.results] == [[3.0], [6.0]]


def test_as_many_examples_as_are_allowed_are_answered(half: Client) -> None:
    assert values(half.regress("regress_x_to_y", given(*[2] * MAX_EXAMPLES)).result) == [3.0] * MAX_EXAMPLES


# --------------------------------------------------------------------------------------- refusals, with either engine


@pytest.fixture(params=["half", "openvino"])
def either(request: pytest.FixtureRequest) -> Client:
    client: Client = request.getfixturevalue(request.param)
    return client


def test_a_request_without_a_model_spec_is_refused(either: Client) -> None:
    missing = (INVALID, "Missing ModelSpec")
    assert refusal(either.stub.Classify, classification_pb2.ClassificationRequest(), timeout=60) == missing
    assert refusal(either.stub.Regress, regression_pb2.RegressionRequest(), timeout=60) == missing
    nameless = (INVALID, "ModelSpec has no name specified.")
    assert refusal(either.infer, given(2)) == nameless
    assert refusal(either.infer, given(2), ("regress_x_to_y", REGRESS), name="") == nameless


def test_a_model_or_version_that_is_not_there_is_not_found(either: Client) -> None:
    nope = (NOT_FOUND, "Servable not found for request: Latest(nope)")
    assert refusal(either.classify, "classify_x_to_y", given(2), name="nope") == nope
    assert refusal(either.regress, "regress_x_to_y", given(2), name="nope") == nope
    assert refusal(either.infer, given(2), ("regress_x_to_y", REGRESS), name="nope") == nope
    nine = (NOT_FOUND, f"Servable not found for request: Specific({HALF}, 9)")
    assert refusal(either.regress, "regress_x_to_y", given(2), version={"value": 9}) == nine


def test_a_signature_that_is_not_there_is_refused(either: Client) -> None:
    unknown = (INVALID, "No signature was found with the name: nope")
    assert refusal(either.classify, "nope", given(2)) == unknown
    assert refusal(either.regress, "nope", given(2)) == unknown
    text = "Requested signature not found in model graph: nope"
    assert refusal(either.infer, given(2), ("nope", REGRESS)) == (INVALID, text)


def test_no_signature_named_is_the_default_one_printed_if_it_does_not_fit(either: Client) -> None:
    signature = """inputs {
  key: "x"
  value {
    name: "x:0"
    dtype: DT_FLOAT
    tensor_shape {
      dim {
        size: -1
      }
    }
  }
}
outputs {
  key: "y"
  value {
    name: "y:0"
    dtype: DT_FLOAT
    tensor_shape {
      dim {
        size: -1
      }
    }
  }
}
method_name: "tensorflow/serving/predict"
"""
    for call, kind in ((either.classify, "classification"), (either.regress, "regression")):
        text = f"No {kind} inputs found in SignatureDef: {signature}"
        assert refusal(call, "", given(2)) == (INVALID, text)


def test_no_examples_are_refused(either: Client) -> None:
    empty = (INVALID, "Input is empty.")
    for nothing in (None, given(), input_pb2.Input(example_list_with_context={"context": example(x=2)})):
        assert refusal(either.classify, "classify_x_to_y", nothing) == empty
        assert refusal(either.regress, "regress_x_to_y", nothing) == empty
        assert refusal(either.infer, nothing, ("regress_x_to_y", REGRESS)) == empty


def test_tasks_that_do_not_go_together_are_refused(either: Client) -> None:
    regress = ("regress_x_to_y", REGRESS)
    text = "Duplicate evaluation of signature: regress_x_to_y"
    assert refusal(either.infer, given(2), regress, regress) == (INVALID, text)
    text = "Unsupported signature method_name: tensorflow/serving/predict"
    predict = ("serving_default", "tensorflow/serving/predict")
    assert refusal(either.infer, given(2), predict) == (UNIMPLEMENTED, text)
    request = inference_pb2.MultiInferenceRequest(input=given(2))
    request.tasks.add(model_spec=either.spec("regress_x_to_y"), method_name=REGRESS)
    request.tasks.add(model_spec=either.spec("classify_x_to_y", name="other"), method_name=CLASSIFY)
    text = "All ModelSpecs in a MultiInferenceRequest must access the same model name."
    assert refusal(either.stub.MultiInference, request, timeout=60) == (INVALID, text)
    request.tasks[1].ClearField("model_spec")
    text = "Found ModelSpec with an empty model name."
    assert refusal(either.stub.MultiInference, request, timeout=60) == (INVALID, text)


def test_more_examples_than_allowed_are_refused(either: Client) -> None:
    text = "at most 4096 examples are taken at once, not 4097; send them in several requests"
    assert refusal(either.regress, "regress_x_to_y", given(*[2] * (MAX_EXAMPLES + 1))) == (INVALID, text)


def test_a_context_that_would_be_copied_too_often_is_refused(either: Client) -> None:
    context = tf.train.Example()
    context.features.feature["text"].bytes_list.value.append(b"x" * (MAX_COPIED_BYTES // MAX_EXAMPLES))
    examples = [tf.train.Example()] * MAX_EXAMPLES
    many = input_pb2.Input(example_list_with_context={"context": context, "examples": examples})
    code, text = refusal(either.regress, "regress_x_to_y", many)
    size = context.ByteSize()
    makes = (
        f"a context of {size} bytes for 4096 examples makes more than 256 MiB of copies; send fewer examples at once"
    )
    assert (code, text) == (INVALID, makes)


def test_a_long_message_is_cut_as_tensorflow_serving_cuts_it(either: Client) -> None:
    code, text = refusal(either.classify, "n" * 20_000, given(2))
    assert code is INVALID
    assert text == "No signature was found with the name: ".ljust(1024, "n") + "...TRUNCATED"


def test_openvino_says_which_engine_answers(openvino: Client) -> None:
    assert refusal(openvino.classify, "classify_x_to_y", given(2)) == NEEDS_TENSORFLOW
    assert refusal(openvino.regress, "regress_x_to_y", given(2)) == NEEDS_TENSORFLOW
    assert refusal(openvino.infer, given(2), ("regress_x_to_y", REGRESS)) == NEEDS_TENSORFLOW


# ------------------------------------------------------------------------------ signatures and outputs that do not fit


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ("two inputs", "Expected one input Tensor."),
        ("three outputs", "Expected one or two output Tensors, found 3"),
        ("flat classes", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        ("no labels", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ("no scores", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ("one row of labels", "Expected classes output batch size of 2. Got: 1"),
        ("one row of scores", "Expected scores output batch size of 2. Got: 1"),
        ("narrow", "Tensors class and score should match in dim_size(1). Got 2 vs. 1"),
    ],
)
def test_what_cannot_be_classified_with_is_refused(odd: Client, signature: str, text: str) -> None:
    assert refusal(odd.classify, signature, given(2, 6)) == (INVALID, text)
    assert refusal(odd.infer, given(2, 6), (signature, CLASSIFY)) == (INVALID, text)


@pytest.mark.parametrize(
    ("signature", "text"),
    [
        ("two inputs", "Expected one input Tensor."),
        ("three outputs", "Expected one output Tensor."),
        ("wide", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]"),
        ("scalar", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []"),
        ("one row", "Input batch size did not match output batch size: 2 vs. 1"),
        ("whole numbers", "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
        ("complex", "Expected output Tensor of DT_FLOAT.  Got: DT_COMPLEX64"),
        ("texts", "Expected output Tensor of DT_FLOAT.  Got: DT_STRING"),
        ("number", "Expects arg[0] to be float but string is provided"),
        ("column", "input inputs must have the shape [?,1], not [2]"),
    ],
)
def test_what_cannot_be_regressed_with_is_refused(odd: Client, signature: str, text: str) -> None:
    assert refusal(odd.regress, signature, given(2, 6)) == (INVALID, text)
    assert refusal(odd.infer, given(2, 6), (signature, REGRESS)) == (INVALID, text)


def test_a_signature_with_other_names_is_printed(odd: Client) -> None:
    for call, signature, start, end in (
        (odd.classify, "other input", "No classification inputs found in SignatureDef: ", 'key: "examples"'),
        (odd.regress, "other input to regress", "No regression inputs found in SignatureDef: ", 'key: "examples"'),
        (odd.regress, "scores", "No regression outputs found in SignatureDef: ", 'key: "inputs"'),
        (
            odd.classify,
            "other outputs",
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            "Signature was: ",
            'key: "inputs"',
        ),
    ):
        code, text = refusal(call, signature, given(2))
        assert code is INVALID
        assert text.startswith(f"{start}inputs {{\n  {end}\n")
        assert text.endswith('method_name: "tensorflow/serving/predict"\n')


def test_an_example_without_a_feature_is_refused_in_the_graphs_words(half: Client) -> None:
    bad = input_pb2.Input(example_list={"examples": [example(z=2)]})
    text = (
        "Name: <unknown>, Feature: x (data type: float) is required but could not be found.\n"
        "\t [[{{node ParseExample/ParseExampleV2}}]]"
    )
    assert refusal(half.regress, "regress_x_to_y", bad) == (INVALID, text)


# --------------------------------------------------------------------------------------------------------- warm-up


def records(signature: str = "regress_x_to_y", size: int = 1) -> list[bytes]:
    """A record of each kind; `signature` is the one to regress with."""
    spec = {"name": HALF, "signature_name": signature}
    classify = {"name": HALF, "signature_name": "classify_x_to_y"}
    rows = given(*[2] * size)
    logs = [
        {"classify_log": {"request": {"model_spec": classify, "input": rows}}},
        {
            "multi_inference_log": {
                "request": {"tasks": [{"model_spec": classify, "method_name": CLASSIFY}], "input": rows}
            }
        },
        {"regress_log": {"request": {"model_spec": spec, "input": rows}}},
    ]
    return [prediction_log_pb2.PredictionLog(**log).SerializeToString() for log in logs]


def load(folder: Path, engine: str, requests: list[bytes]) -> None:
    models.write_half_plus_two(folder)
    (folder / WARMUP).parent.mkdir()
    tfrecord.write(folder / WARMUP, requests)
    replaying(chooser(engine, Options()))(savedmodel.read(folder)).close()


def test_warm_up_runs_requests_with_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path / "good", "tensorflow", records())
    assert "passed over" not in capsys.readouterr().err
    with pytest.raises(Refused, match="record 3: No signature was found with the name: nope") as refused:
        load(tmp_path / "bad", "tensorflow", records("nope"))
    assert refused.value.code is INVALID


def test_warm_up_passes_over_a_large_batch_and_what_openvino_does_not_compute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(tmp_path / "large", "tensorflow", records(size=MAX_BATCH + 1))
    assert capsys.readouterr().err.count("is a batch of 257, more than 256: passed over") == 3
    load(tmp_path / "openvino", "openvino", records("nope"))
    hint = "is no Predict request: passed over; --engine=tensorflow runs it"
    assert capsys.readouterr().err.count(hint) == 3
