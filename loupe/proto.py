"""Convert between numpy and TensorFlow Serving's gRPC messages, without TensorFlow and without its generated files.

    channel = grpc.insecure_channel("localhost:8500")
    request = proto.predict_request("tires", {"image": pixels})
    answer = proto.call(channel, proto.PREDICT)(request, timeout=5)
    proto.to_array(answer.outputs["probabilities"])

SCHEMA below lists everything that Loupe sends and reads, under the official names: field numbers, names, types. The
message classes are made from it in a descriptor pool of their own, so they can live in one process beside TensorFlow's
and tensorflow-serving-api's. Fields not listed are kept when a message is read and written again, never interpreted.
Not covered: sparse, complex, quantised and resource tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

# A package, then its messages: name, and of each field number, name, type. `*` is repeated, `map` is a map from string.
# Enumerations travel as int32; fields of a oneof stand like others.
SCHEMA = """
google.protobuf:
Int64Value                  1 value int64
StringValue                 1 value string
BoolValue                   1 value bool
Any                         1 type_url string; 2 value bytes

tensorflow:
TensorShapeProto            2 dim *TensorShapeProto.Dim; 3 unknown_rank bool
TensorShapeProto.Dim        1 size int64; 2 name string
TensorProto                 1 dtype int32; 2 tensor_shape TensorShapeProto; 4 tensor_content bytes; 5 float_val *float;
                            6 double_val *double; 7 int_val *int32; 8 string_val *bytes; 10 int64_val *int64;
                            11 bool_val *bool; 13 half_val *int32; 16 uint32_val *uint32; 17 uint64_val *uint64
TensorInfo                  1 name string; 2 dtype int32; 3 tensor_shape TensorShapeProto
SignatureDef                1 inputs map TensorInfo; 2 outputs map TensorInfo; 3 method_name string
MetaGraphDef                1 meta_info_def MetaGraphDef.MetaInfoDef; 2 graph_def GraphDef;
                            5 signature_def map SignatureDef
MetaGraphDef.MetaInfoDef    4 tags *string
GraphDef                    1 node *NodeDef
NodeDef                     1 name string; 2 op string; 3 input *string
NodeWithAttributes          5 attr map AttrValue
AttrValue                   8 tensor TensorProto
SavedModel                  1 saved_model_schema_version int64; 2 meta_graphs *MetaGraphDef
Example                     1 features Features
Features                    1 feature map Feature
Feature                     1 bytes_list BytesList; 2 float_list FloatList; 3 int64_list Int64List
BytesList                   1 value *bytes
FloatList                   1 value *float
Int64List                   1 value *int64

tensorflow.serving:
ModelSpec                   1 name string; 2 version Int64Value; 3 signature_name string; 4 version_label string
PredictRequest              1 model_spec ModelSpec; 2 inputs map TensorProto; 3 output_filter *string
PredictResponse             1 outputs map TensorProto; 2 model_spec ModelSpec
Input                       1 example_list ExampleList; 2 example_list_with_context ExampleListWithContext
ExampleList                 1 examples *Example
ExampleListWithContext      1 examples *Example; 2 context Example
ClassificationRequest       1 model_spec ModelSpec; 2 input Input
ClassificationResponse      1 result ClassificationResult; 2 model_spec ModelSpec
ClassificationResult        1 classifications *Classifications
Classifications             1 classes *Class
Class                       1 label string; 2 score float
RegressionRequest           1 model_spec ModelSpec; 2 input Input
RegressionResponse          1 result RegressionResult; 2 model_spec ModelSpec
RegressionResult            1 regressions *Regression
Regression                  1 value float
MultiInferenceRequest       1 tasks *InferenceTask; 2 input Input
MultiInferenceResponse      1 results *InferenceResult
InferenceTask               1 model_spec ModelSpec; 2 method_name string
InferenceResult             1 model_spec ModelSpec; 2 classification_result ClassificationResult;
                            3 regression_result RegressionResult
PredictionLog               2 classify_log ClassifyLog; 3 regress_log RegressLog; 6 predict_log PredictLog;
                            4 multi_inference_log MultiInferenceLog
ClassifyLog                 1 request ClassificationRequest; 2 response ClassificationResponse
RegressLog                  1 request RegressionRequest; 2 response RegressionResponse
PredictLog                  1 request PredictRequest; 2 response PredictResponse
MultiInferenceLog           1 request MultiInferenceRequest; 2 response MultiInferenceResponse
SignatureDefMap             1 signature_def map SignatureDef
GetModelMetadataRequest     1 model_spec ModelSpec; 2 metadata_field *string
GetModelMetadataResponse    1 model_spec ModelSpec; 2 metadata map Any
GetModelStatusRequest       1 model_spec ModelSpec
GetModelStatusResponse      1 model_version_status *ModelVersionStatus
ModelVersionStatus          1 version int64; 2 state int32; 3 status StatusProto
StatusProto                 1 error_code int32; 2 error_message string
ReloadConfigRequest         1 config ModelServerConfig
ReloadConfigResponse        1 status StatusProto
ModelServerConfig           1 model_config_list ModelConfigList; 2 custom_model_config Any
ModelConfigList             1 config *ModelConfig
ModelConfig                 1 name string; 2 base_path string; 3 model_type int32; 4 model_platform string;
                            7 model_version_policy FileSystemStoragePathSourceConfig.ServableVersionPolicy;
                            8 version_labels map int64
FileSystemStoragePathSourceConfig
FileSystemStoragePathSourceConfig.ServableVersionPolicy
                            100 latest FileSystemStoragePathSourceConfig.ServableVersionPolicy.Latest;
                            101 all FileSystemStoragePathSourceConfig.ServableVersionPolicy.All;
                            102 specific FileSystemStoragePathSourceConfig.ServableVersionPolicy.Specific
FileSystemStoragePathSourceConfig.ServableVersionPolicy.Latest      1 num_versions uint32
FileSystemStoragePathSourceConfig.ServableVersionPolicy.All
FileSystemStoragePathSourceConfig.ServableVersionPolicy.Specific    1 versions *int64
BatchingParameters          1 max_batch_size Int64Value; 2 batch_timeout_micros Int64Value;
                            3 max_enqueued_batches Int64Value; 4 num_batch_threads Int64Value;
                            5 thread_pool_name StringValue; 6 allowed_batch_sizes *int64;
                            7 pad_variable_length_inputs bool; 8 enable_large_batch_splitting BoolValue;
                            9 max_execution_batch_size Int64Value
MonitoringConfig            1 prometheus_config PrometheusConfig
PrometheusConfig            1 enable bool; 2 path string
"""
SERVICES = """
tensorflow.serving:
PredictionService   Predict PredictRequest PredictResponse; Classify ClassificationRequest ClassificationResponse;
                    Regress RegressionRequest RegressionResponse;
                    MultiInference MultiInferenceRequest MultiInferenceResponse;
                    GetModelMetadata GetModelMetadataRequest GetModelMetadataResponse
ModelService        GetModelStatus GetModelStatusRequest GetModelStatusResponse;
                    HandleReloadConfigRequest ReloadConfigRequest ReloadConfigResponse
"""

PREDICT_SIGNATURE = "serving_default"
SIGNATURE_MAP_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
MAX_TENSOR_BYTES = 1 << 31  # protobuf itself ends at 2 GiB
MAX_RANK = 254  # TensorFlow's own
MAX_SPREAD_BYTES = 1 << 24  # for tensors of which only some values are sent: a few bytes may declare any shape

# ModelVersionStatus.state
START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50
STATES = {START: "START", LOADING: "LOADING", AVAILABLE: "AVAILABLE", UNLOADING: "UNLOADING", END: "END"}


# ---------------------------------------------------------------------------------------------- message classes


POOL = descriptor_pool.DescriptorPool()  # of our own, so that the official messages may live in the same process


def _entries(text: str) -> Iterator[tuple[str, str, list[list[str]]]]:
    """Yield each entry's package, its name, and the words of each of its fields."""
    package = ""
    joined: list[str] = []
    for line in text.strip().splitlines():
        if line.startswith(" "):
            joined[-1] += line
        elif line:
            joined.append(line)
    for entry in joined:
        if entry.endswith(":"):
            package = entry[:-1]
            continue
        name, _, fields = entry.partition(" ")
        yield package, name, [field.split() for field in fields.split(";") if field.strip()]


def _build() -> dict[str, Any]:
    """Put one file for each package into the pool. Return the message classes by name, without the package."""
    # Where each name lies.
    entries = list(_entries(SCHEMA))
    full_names = {name: f".{package}.{name}" for package, name, _ in entries}
    files: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    # Describe the messages.
    for package, name, fields in entries:
        file = files.get(package)
        if file is None:
            file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
            file.dependency.extend(f"{earlier}.proto" for earlier in files)
            files[package] = file
        owner, _, own_name = name.rpartition(".")
        descriptor = messages[owner].nested_type.add(name=own_name) if owner else file.message_type.add(name=name)
        messages[name] = descriptor
        for words in fields:
            _add_field(descriptor, full_names, full_names[name], words)
    # Describe the services.
    for package, name, calls in _entries(SERVICES):
        service = files[package].service.add(name=name)
        for call, request, response in calls:
            service.method.add(name=call, input_type=full_names[request], output_type=full_names[response])
    for file in files.values():
        POOL.Add(file)
    return {
        name: message_factory.GetMessageClass(POOL.FindMessageTypeByName(full_names[name][1:])) for name in messages
    }


def _add_field(owner: Any, full_names: Mapping[str, str], owner_name: str, words: list[str]) -> None:
    number, name, *map_word, field_type = words
    field = owner.field.add(name=name, number=int(number), label=1)
    if map_word:  # a map is a repeated pair of key and value
        entry = owner.nested_type.add(name=name.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        entry_name = f"{owner_name}.{entry.name}"
        _add_field(entry, full_names, entry_name, ["1", "key", "string"])
        _add_field(entry, full_names, entry_name, ["2", "value", field_type])
        field.label, field.type, field.type_name = 3, 11, entry_name
        return
    if field_type.startswith("*"):
        field.label, field_type = 3, field_type[1:]
    if field_type[0].isupper():
        field.type, field.type_name = 11, full_names[field_type]
    else:
        field.type = getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{field_type.upper()}")


_classes = _build()
Tensor = _classes["TensorProto"]
TensorShape = _classes["TensorShapeProto"]
Signature = _classes["SignatureDef"]
SignatureMap = _classes["SignatureDefMap"]
SavedModel = _classes["SavedModel"]
NodeWithAttributes = _classes["NodeWithAttributes"]  # a NodeDef: reading the attributes of every node would take long
Example = _classes["Example"]
ModelSpec = _classes["ModelSpec"]
PredictRequest = _classes["PredictRequest"]
PredictResponse = _classes["PredictResponse"]
ClassificationRequest = _classes["ClassificationRequest"]
ClassificationResponse = _classes["ClassificationResponse"]
RegressionRequest = _classes["RegressionRequest"]
RegressionResponse = _classes["RegressionResponse"]
ClassificationResult = _classes["ClassificationResult"]
RegressionResult = _classes["RegressionResult"]
MultiInferenceRequest = _classes["MultiInferenceRequest"]
MultiInferenceResponse = _classes["MultiInferenceResponse"]
PredictionLog = _classes["PredictionLog"]
GetModelMetadataRequest = _classes["GetModelMetadataRequest"]
GetModelMetadataResponse = _classes["GetModelMetadataResponse"]
GetModelStatusRequest = _classes["GetModelStatusRequest"]
GetModelStatusResponse = _classes["GetModelStatusResponse"]
ReloadConfigRequest = _classes["ReloadConfigRequest"]
ReloadConfigResponse = _classes["ReloadConfigResponse"]
ModelServerConfig = _classes["ModelServerConfig"]
BatchingParameters = _classes["BatchingParameters"]
MonitoringConfig = _classes["MonitoringConfig"]
WireError = message.DecodeError  # raised by FromString for bytes that are no such message


# ------------------------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class DType:
    """An element type of TensorFlow: its number, its numpy type, and the field that holds its values one by one."""

    name: str
    number: int
    numpy: np.dtype[Any]  # the type of the bytes in tensor_content
    values: str

    @property
    def tensorflow_name(self) -> str:
        """Return the name in TensorFlow's messages, which is not numpy's for three types."""
        return {"float32": "float", "float64": "double", "float16": "half"}.get(self.name, self.name)


BFLOAT16, HALF, STRING = 14, 19, 7
_DTYPES = [
    DType("float32", 1, np.dtype("<f4"), "float_val"),
    DType("float64", 2, np.dtype("<f8"), "double_val"),
    DType("int32", 3, np.dtype("<i4"), "int_val"),
    DType("uint8", 4, np.dtype("u1"), "int_val"),
    DType("int16", 5, np.dtype("<i2"), "int_val"),
    DType("int8", 6, np.dtype("i1"), "int_val"),
    DType("string", STRING, np.dtype(object), "string_val"),
    DType("int64", 9, np.dtype("<i8"), "int64_val"),
    DType("bool", 10, np.dtype("?"), "bool_val"),
    DType("bfloat16", BFLOAT16, np.dtype("<u2"), "half_val"),  # the upper half of a float32; numpy has no such type
    DType("uint16", 17, np.dtype("<u2"), "int_val"),
    DType("float16", HALF, np.dtype("<f2"), "half_val"),
    DType("uint32", 22, np.dtype("<u4"), "uint32_val"),
    DType("uint64", 23, np.dtype("<u8"), "uint64_val"),
]
BY_NUMBER = {dtype.number: dtype for dtype in _DTYPES}
BY_NAME = {dtype.name: dtype for dtype in _DTYPES}


def dtype_of(array: np.ndarray[Any, Any]) -> DType:
    """Return an array's element type; every kind of text and bytes is `string`."""
    name = "string" if array.dtype.kind in "OSU" else array.dtype.name
    if name not in BY_NAME:
        raise ValueError(f"no wire type for numpy's {name}; known are {', '.join(BY_NAME)}")
    return BY_NAME[name]


def to_tensor(value: Any, dtype: str | None = None, *, as_values: bool = False, into: Any = None) -> Any:
    """Return a tensor message for an array (or what numpy makes of `value`), as `dtype` if given. It is a new one, or
    `into`, an empty one.

    `as_values` fills the typed field (`float_val` …), as TensorFlow Serving's answers do, instead of
    `tensor_content`."""
    # Convert to the element type.
    array = np.asarray(value)
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        array = np.asarray(value, object)  # numpy's text types drop trailing NULs
    if dtype == "bfloat16" and array.dtype.name != "bfloat16":
        array, element_type = _to_bfloat16(array.astype(np.float32)), BY_NAME["bfloat16"]
    else:
        array = array if dtype in (None, "string") else array.astype(dtype, copy=False)
        element_type = dtype_of(array)
    # Write type, shape and values.
    tensor = Tensor() if into is None else into
    tensor.dtype = element_type.number
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if element_type.number == STRING:
        tensor.string_val.extend(_as_bytes(item) for item in array.ravel().tolist())
        return tensor
    if array.dtype.name == "bfloat16":  # a caller may use the type of ml_dtypes
        array = array.view(np.uint16)
    flat = np.ascontiguousarray(array, element_type.numpy).ravel()
    if as_values:
        bits = flat.view(np.uint16) if element_type.number == HALF else flat
        getattr(tensor, element_type.values).extend(bits.tolist())
    else:
        tensor.tensor_content = flat.tobytes()
    return tensor


def to_array(tensor: Any) -> np.ndarray[Any, Any]:
    """Return the array of a tensor message: bfloat16 becomes float32, strings become bytes. ValueError if it
    contradicts itself.

    As in TensorFlow, if there are too few values the last one repeats, and if there are none all are zero."""
    # Check type, shape and size.
    element_type = BY_NUMBER.get(tensor.dtype)
    if element_type is None:
        raise ValueError(f"dtype {tensor.dtype} is not one that this reads")
    if len(tensor.tensor_shape.dim) > MAX_RANK:
        raise ValueError(f"a tensor has at most {MAX_RANK} dimensions, not {len(tensor.tensor_shape.dim)}")
    shape = shape_of(tensor.tensor_shape)
    if shape is None or any(size < 0 for size in shape):
        raise ValueError("a tensor's shape must be whole: no unknown rank, no negative size")
    count = 0 if 0 in shape else 1
    for size in shape:
        count *= size
        if count * element_type.numpy.itemsize > MAX_TENSOR_BYTES:
            raise ValueError(f"a tensor of shape {list(shape)} is larger than {MAX_TENSOR_BYTES >> 30} GiB")
    # Read the values.
    content = tensor.tensor_content
    if content:
        if element_type.number == STRING:
            raise ValueError("strings travel in string_val, not in tensor_content")
        if len(content) != count * element_type.numpy.itemsize:
            raise ValueError(f"{len(content)} bytes do not make a {element_type.name} tensor of shape {list(shape)}")
        flat = np.frombuffer(content, element_type.numpy)
    else:
        values = getattr(tensor, element_type.values)
        if len(values) < count and count * element_type.numpy.itemsize > MAX_SPREAD_BYTES:
            raise ValueError(f"{len(values)} values are too few to be spread over the shape {list(shape)}")
        flat = _repeat_last(values, element_type, count)
    if element_type.number == BFLOAT16:
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.reshape(shape)


def shape_of(shape: Any) -> tuple[int, ...] | None:
    """Return the sizes of a shape message, -1 where open; None if even the rank is unknown."""
    return None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)


def _repeat_last(values: Sequence[Any], element_type: DType, count: int) -> np.ndarray[Any, Any]:
    if element_type.number == STRING:
        strings = np.full(count, values[-1] if len(values) else b"", dtype=object)
        strings[: len(values)] = list(values[:count])
        return strings
    bits = np.dtype("<u2") if element_type.number == HALF else element_type.numpy
    # Values beyond the type's range wrap, as TensorFlow's own conversion does.
    flat = (
        np.array(values[:count], dtype=np.int64).astype(bits)
        if bits.kind in "iu" and element_type.number != 23
        else (np.array(values[:count], dtype=bits))
    )
    if len(flat) < count:
        flat = np.concatenate([flat, np.full(count - len(flat), flat[-1] if len(flat) else 0, dtype=bits)])
    return flat.view(element_type.numpy)


def _to_bfloat16(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round to the nearest, ties to even, as TensorFlow does; a NaN stays one."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where(np.isnan(array), quiet_nan, rounded).astype(np.uint16)


def _as_bytes(item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    raise ValueError(f"a string tensor holds text or bytes, not {type(item).__name__}")


# --------------------------------------------------------------------------------------------------------- calls


@dataclass(frozen=True)
class Method:
    """A remote call: its path, and the classes of its request and response."""

    service: str
    name: str
    request: Any
    response: Any

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


METHODS = {
    call: Method(f"{package}.{service}", call, _classes[request], _classes[response])
    for package, service, calls in _entries(SERVICES)
    for call, request, response in calls
}
PREDICT = METHODS["Predict"]
GET_MODEL_METADATA = METHODS["GetModelMetadata"]
GET_MODEL_STATUS = METHODS["GetModelStatus"]


def call(channel: Any, method: Method) -> Callable[..., Any]:
    """Return the callable for `method` on a grpc channel: `call(channel, PREDICT)(request, timeout=5)`. A request is a
    message or its bytes."""
    stub: Callable[..., Any] = channel.unary_unary(
        method.path,
        request_serializer=lambda request: request if type(request) is bytes else request.SerializeToString(),
        response_deserializer=method.response.FromString,
    )
    return stub


def model_spec(name: str, version: int | None = None, signature: str = "") -> Any:
    spec = ModelSpec(name=name, signature_name=signature)
    if version is not None:
        spec.version.value = version
    return spec


def predict_request(
    model: str,
    inputs: Mapping[str, Any],
    *,
    signature: str = PREDICT_SIGNATURE,
    version: int | None = None,
    outputs: Sequence[str] = (),
) -> Any:
    """Return a PredictRequest for arrays by input name. `outputs` names the outputs to return, all if empty."""
    request = PredictRequest(model_spec=model_spec(model, version, signature), output_filter=list(outputs))
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(value if isinstance(value, Tensor) else to_tensor(value))
    return request


def packed_request(model: str, inputs: Mapping[str, np.ndarray[Any, Any]], *, outputs: Sequence[str] = ()) -> bytes:
    """Return `predict_request(…).SerializeToString()` for arrays of numbers that are whole in memory. The arrays are
    most of the request and are copied once here; a message copies them several times."""
    pieces: list[Any] = [_packed_spec(model, tuple(outputs))]
    for name, array in inputs.items():
        element_type, content = dtype_of(array), array.reshape(-1).view(np.uint8).data
        tensor = _packed_shape(element_type.number, array.shape) + _field(Tensor, "tensor_content", len(content))
        key = name.encode()
        value = _field(_INPUT, "value", len(tensor) + len(content)) + tensor
        entry = _field(_INPUT, "key", len(key)) + key + value
        pieces += _field(PredictRequest, "inputs", len(entry) + len(content)), entry, content
    return b"".join(pieces)


_INPUT = message_factory.GetMessageClass(PredictRequest.DESCRIPTOR.fields_by_name["inputs"].message_type)


@lru_cache(64)
def _packed_spec(model: str, outputs: tuple[str, ...]) -> bytes:
    request = PredictRequest(model_spec=model_spec(model, None, PREDICT_SIGNATURE), output_filter=outputs)
    packed: bytes = request.SerializeToString()
    return packed


@lru_cache(64)
def _packed_shape(number: int, shape: tuple[int, ...]) -> bytes:
    tensor = Tensor(dtype=number)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    packed: bytes = tensor.SerializeToString()
    return packed


@lru_cache(256)
def _field(owner: Any, name: str, length: int) -> bytes:
    """Return the bytes before a field's content: its number, and the length in seven bits a byte."""
    packed = bytearray()
    for rest in (owner.DESCRIPTOR.fields_by_name[name].number << 3 | 2, length):
        while rest > 0x7F:
            packed.append(rest & 0x7F | 0x80)
            rest >>= 7
        packed.append(rest)
    return bytes(packed)


def signatures(metadata: Any) -> dict[str, Any]:
    """Return the signatures in a GetModelMetadataResponse, by name."""
    packed = metadata.metadata.get("signature_def")
    return dict(SignatureMap.FromString(packed.value).signature_def) if packed else {}
