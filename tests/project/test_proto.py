"""proto.py held against the official messages: what one writes the other reads, whatever the values."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tensorflow.core.protobuf.saved_model_pb2  # noqa: F401  its messages are looked up
import tensorflow_serving.apis.prediction_log_pb2  # noqa: F401
from google.protobuf import descriptor, descriptor_pool
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from loupe import proto
from tests.support.servers import ROOT

examples = settings(deadline=None, max_examples=60, derandomize=True)

OFFICIAL_POOL = descriptor_pool.Default()  # holds the messages of every module that is imported above
NOT_PUBLISHED = {"BatchingParameters", "MonitoringConfig", "PrometheusConfig"}  # read from files, never sent
MESSAGES = [name for _, name, _ in proto._entries(proto.SCHEMA)]
NUMERIC = [name for name in proto.BY_NAME if name not in ("string", "bfloat16")]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def arrays(name: str) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return hnp.arrays(np.dtype(name), SHAPES)


def floats() -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """float32 by their bits, so that every kind of NaN, infinity and subnormal occurs."""
    return hnp.arrays(np.uint32, SHAPES).map(lambda bits: bits.view(np.float32))


def same(array: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Return True if the arrays are equal bit for bit; a NaN equals itself."""
    return array.shape == other.shape and array.dtype == other.dtype and array.tobytes() == other.tobytes()


def official(ours: Any, message_class: Any) -> Any:
    return message_class.FromString(ours.SerializeToString())


# --------------------------------------------------------------------------------------------------------- schema


@pytest.mark.parametrize("name", sorted(set(MESSAGES) - NOT_PUBLISHED))
def test_every_field_has_the_number_and_type_of_the_official_message(name: str) -> None:
    ours = proto._classes[name].DESCRIPTOR
    theirs = OFFICIAL_POOL.FindMessageTypeByName(ours.full_name.replace("NodeWithAttributes", "NodeDef"))
    for field in ours.fields:
        twin = theirs.fields_by_number[field.number]
        assert twin.name == field.name
        assert twin.is_repeated == field.is_repeated
        assert field_type(twin) == field_type(field), f"{name}.{field.name}"
        if field.message_type and not field.message_type.GetOptions().map_entry:
            assert twin.message_type.full_name == field.message_type.full_name


def field_type(field: Any) -> Any:
    """Return a field's type. Enumerations are int32 on the wire; a map is described by its pair."""
    number = field.type
    if number == descriptor.FieldDescriptor.TYPE_ENUM:
        return descriptor.FieldDescriptor.TYPE_INT32
    if field.message_type and field.message_type.GetOptions().map_entry:
        return [field_type(entry) for entry in field.message_type.fields]
    return number


class Recorder:
    """A channel on which nothing is called: it only learns what the official stubs would call."""

    def __init__(self) -> None:
        self.responses: dict[str, Any] = {}

    def unary_unary(self, path: str, response_deserializer: Any, **_: Any) -> None:
        self.responses[path] = type(response_deserializer(b""))


@pytest.mark.parametrize("method", proto.METHODS.values())
def test_every_method_is_a_method_of_the_official_service(method: proto.Method) -> None:
    channel = Recorder()
    model_service_pb2_grpc.ModelServiceStub(channel)
    prediction_service_pb2_grpc.PredictionServiceStub(channel)
    assert channel.responses[method.path].DESCRIPTOR.full_name == method.response.DESCRIPTOR.full_name


def test_every_dtype_has_tensorflows_number_and_name() -> None:
    for dtype in proto.BY_NUMBER.values():
        assert tf.dtypes.as_dtype(dtype.number).name == dtype.name


def test_proto_imports_no_tensorflow() -> None:
    code = "import sys, proto; print([m for m in sys.modules if 'tensorflow' in m or m == 'ml_dtypes'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


# -------------------------------------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("as_values", [False, True])
@pytest.mark.parametrize("name", NUMERIC)
@examples
@given(data=st.data())
def test_tensorflow_reads_our_tensors(name: str, as_values: bool, data: st.DataObject) -> None:
    array = data.draw(arrays(name))
    assume(array.size or not as_values)  # tf.make_ndarray cannot read an empty tensor without content
    theirs = official(proto.to_tensor(array, as_values=as_values), tensor_pb2.TensorProto)
    if name == "float16" or not as_values:
        assert same(tf.make_ndarray(theirs), array)
    else:
        np.testing.assert_array_equal(tf.make_ndarray(theirs), array)
    assert same(proto.to_array(proto.to_tensor(array)), array)


@pytest.mark.parametrize("name", NUMERIC)
@examples
@given(data=st.data())
def test_we_read_tensorflows_tensors(name: str, data: st.DataObject) -> None:
    array = data.draw(arrays(name))
    theirs = tf.make_tensor_proto(array)
    np.testing.assert_array_equal(proto.to_array(proto.Tensor.FromString(theirs.SerializeToString())), array)
    if name == "uint64":  # from a list, TensorFlow itself takes these through float64
        return
    listed = tf.make_tensor_proto(array.tolist(), dtype=name, shape=array.shape)  # this fills the typed field
    np.testing.assert_array_equal(proto.to_array(proto.Tensor.FromString(listed.SerializeToString())), array)


@pytest.mark.parametrize("name", [*NUMERIC, "bfloat16"])
@examples
@given(data=st.data())
def test_few_values_spread_as_in_tensorflow(name: str, data: st.DataObject) -> None:
    numpy_name = "float32" if name == "bfloat16" else name
    value = data.draw(hnp.arrays(np.dtype(numpy_name), st.integers(0, 3)))
    tensor = proto.to_tensor(value, name, as_values=True)
    tensor.tensor_shape.dim[0].size = data.draw(st.integers(len(value), 6))
    with tf.device("CPU"):
        theirs = tf.raw_ops.ParseTensor(serialized=tensor.SerializeToString(), out_type=name).numpy()
    np.testing.assert_array_equal(proto.to_array(tensor), theirs.astype(numpy_name))


@examples
@given(floats(), st.booleans())
def test_bfloat16_rounds_as_in_tensorflow(array: np.ndarray[Any, Any], as_values: bool) -> None:
    assume(array.size or not as_values)
    tensor = proto.to_tensor(array, "bfloat16", as_values=as_values)
    theirs = tf.make_ndarray(official(tensor, tensor_pb2.TensorProto))
    with np.errstate(all="ignore"):
        expected = array.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.isnan(theirs), np.isnan(array))
    whole = ~np.isnan(array)
    assert theirs[whole].tobytes() == expected[whole].tobytes()
    np.testing.assert_array_equal(proto.to_array(tensor), expected.astype(np.float32))


@examples
@given(floats())
def test_bfloat16_arrays_are_taken_as_they_are(array: np.ndarray[Any, Any]) -> None:
    with np.errstate(all="ignore"):
        half = array.astype(ml_dtypes.bfloat16)
    assert proto.to_tensor(half).tensor_content == half.tobytes()
    assert proto.to_tensor(half, "bfloat16").dtype == proto.BFLOAT16
    back = proto.to_array(proto.Tensor.FromString(tf.make_tensor_proto(half).SerializeToString()))
    np.testing.assert_array_equal(back, half.astype(np.float32))


@examples
@given(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3), st.data())
def test_strings_travel_whole_both_ways(shape: tuple[int, ...], data: st.DataObject) -> None:
    count = int(np.prod(shape))
    items = data.draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
    array = np.array([*items, None], object)[:-1].reshape(shape)
    assert tf.make_ndarray(official(proto.to_tensor(array), tensor_pb2.TensorProto)).tolist() == array.tolist()
    theirs = tf.make_tensor_proto(array, dtype=tf.string, shape=shape)
    assert proto.to_array(proto.Tensor.FromString(theirs.SerializeToString())).tolist() == array.tolist()


@examples
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=3))
def test_text_keeps_its_trailing_nuls(words: list[str]) -> None:
    tensor = proto.to_tensor(words, "string")
    assert list(tensor.string_val) == [word.encode() for word in words]


@pytest.mark.parametrize(("value", "dtype"), [("é\0", 7), (b"\0", 7), (True, 10), (7, 9), (0.5, 2)])
def test_a_plain_value_is_a_scalar_tensor(value: Any, dtype: int) -> None:
    theirs = official(proto.to_tensor(value), tensor_pb2.TensorProto)
    assert (theirs.dtype, list(theirs.tensor_shape.dim)) == (dtype, [])
    expected = value.encode() if isinstance(value, str) else value
    assert tf.make_ndarray(theirs).item() == expected


# ------------------------------------------------------------------------------------------------------- messages


@examples
@given(st.text("ab/", max_size=3), st.none() | st.integers(-(2**63), 2**63 - 1), st.lists(st.text("xy"), max_size=3))
def test_predict_requests_are_read_by_the_other_side(name: str, version: int | None, outputs: list[str]) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    ours = proto.predict_request(name, {"image": image}, signature="s", version=version, outputs=outputs)
    theirs = official(ours, predict_pb2.PredictRequest)
    assert (theirs.model_spec.name, theirs.model_spec.signature_name) == (name, "s")
    assert (theirs.model_spec.version.value if theirs.model_spec.HasField("version") else None) == version
    assert list(theirs.output_filter) == outputs
    np.testing.assert_array_equal(tf.make_ndarray(theirs.inputs["image"]), image)
    assert proto.PredictRequest.FromString(theirs.SerializeToString()) == ours


@pytest.mark.parametrize("name", ["uint8", "float32", "int64", "float16", "bool"])
@pytest.mark.parametrize("shape", [(1, 299, 299, 3), (3, 5), (0, 4), ()])
def test_a_packed_request_is_the_same_as_the_message(name: str, shape: tuple[int, ...]) -> None:
    array = (np.random.default_rng(0).random(shape) * 200).astype(name)
    inputs = {"image": array, "a second input, " * 20: array.T}
    packed = proto.packed_request("tires", inputs, outputs=["probabilities"])
    assert proto.PredictRequest.FromString(packed) == proto.predict_request("tires", inputs, outputs=["probabilities"])
    read = predict_pb2.PredictRequest.FromString(packed)
    assert np.array_equal(tf.make_ndarray(read.inputs["image"]), array)


def test_predict_responses_metadata_and_status_are_read_by_the_other_side() -> None:
    # A PredictResponse.
    answer = predict_pb2.PredictResponse(model_spec={"name": "tires", "version": {"value": 3}, "signature_name": "s"})
    answer.outputs["probabilities"].CopyFrom(tf.make_tensor_proto([[0.25, 0.75]]))
    read = proto.PredictResponse.FromString(answer.SerializeToString())
    assert proto.to_array(read.outputs["probabilities"]).tolist() == [[0.25, 0.75]]
    assert official(read, predict_pb2.PredictResponse) == answer

    # Metadata.
    info = meta_graph_pb2.TensorInfo(name="image:0", dtype=4, tensor_shape={"dim": [{"size": -1}, {"size": 3}]})
    signature = meta_graph_pb2.SignatureDef(inputs={"image": info}, method_name="m")
    signature.defaults["image"].CopyFrom(tf.make_tensor_proto(1))  # a field that proto.py does not know
    metadata = get_model_metadata_pb2.GetModelMetadataResponse(model_spec={"name": "tires"})
    packed = get_model_metadata_pb2.SignatureDefMap(signature_def={"serving_default": signature})
    metadata.metadata["signature_def"].Pack(packed)
    theirs = proto.GetModelMetadataResponse.FromString(metadata.SerializeToString())
    read_signature = proto.signatures(theirs)["serving_default"]
    assert proto.shape_of(read_signature.inputs["image"].tensor_shape) == (-1, 3)
    assert theirs.metadata["signature_def"].type_url == proto.SIGNATURE_MAP_URL
    assert official(read_signature, meta_graph_pb2.SignatureDef) == signature

    # A status.
    status = get_model_status_pb2.GetModelStatusResponse()
    for state in proto.STATES:
        status.model_version_status.add(version=state, state=state, status={"error_code": 5, "error_message": "é"})
    ours = proto.GetModelStatusResponse.FromString(status.SerializeToString())
    names = get_model_status_pb2.ModelVersionStatus.State
    assert [proto.STATES[entry.state] for entry in ours.model_version_status] == [
        names.Name(entry.state) for entry in status.model_version_status
    ]
    assert official(ours, get_model_status_pb2.GetModelStatusResponse) == status


# -------------------------------------------------------------------------------------------------------- hostile


@examples
@given(st.sampled_from(MESSAGES), st.binary(max_size=60))
def test_bytes_that_are_no_message_are_a_wire_error(name: str, junk: bytes) -> None:
    with contextlib.suppress(proto.WireError):
        proto._classes[name].FromString(junk)


def huge_shapes() -> st.SearchStrategy[list[int]]:
    size = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, 2**31, 2**62, 2**63 - 1])
    return st.lists(size, max_size=70)


@examples
@given(
    st.integers(-5, 40), huge_shapes(), st.booleans(), st.binary(max_size=9), st.integers(0, 3), st.binary(max_size=2)
)
def test_a_tensor_that_contradicts_itself_is_a_value_error_and_allocates_nothing(
    dtype: int, shape: list[int], unknown: bool, content: bytes, count: int, text: bytes
) -> None:
    tensor = proto.Tensor(dtype=dtype, tensor_content=content, string_val=[text] * count)
    for name in ("float_val", "int_val", "half_val", "int64_val", "uint64_val", "bool_val", "double_val", "uint32_val"):
        getattr(tensor, name).extend([1] * count)
    tensor.tensor_shape.unknown_rank = unknown
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    try:
        array = proto.to_array(tensor)
    except ValueError:
        return
    assert array.nbytes <= proto.MAX_SPREAD_BYTES * 2  # bfloat16 is read into float32


@pytest.mark.parametrize("dtype", list(proto.BY_NUMBER))
@pytest.mark.parametrize("shape", [[1 << 40], [1 << 16, 1 << 16], [(1 << 63) - 1] * 4, [1 << 28, 2]])
def test_a_few_bytes_that_declare_gigabytes_are_refused_unallocated(dtype: int, shape: list[int]) -> None:
    tensor = proto.Tensor(dtype=dtype)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    tracemalloc.start()
    with pytest.raises(ValueError, match="larger than|too few"):
        proto.to_array(tensor)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_values_outside_their_type_do_not_crash() -> None:
    """Regression: numpy 2 raises OverflowError for these; TensorFlow wraps them."""
    tensor = proto.Tensor(dtype=4, int_val=[300, -1])
    tensor.tensor_shape.dim.add(size=2)
    assert proto.to_array(tensor).tolist() == [44, 255]
    half = proto.Tensor(dtype=proto.HALF, half_val=[0x13C00])
    assert proto.to_array(half).tolist() == struct.unpack("<e", b"\x00\x3c")[0]
