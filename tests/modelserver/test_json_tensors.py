"""JSON read as tensors and tensors written as JSON. The messages are TensorFlow Serving's, from its source."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from loupe import proto
from loupe.engines.refused import Refused
from loupe.modelserver.rest import json_tensors

COMPLEX64 = 8


def read(body: str | bytes, deadline: float = math.inf, **types: str) -> tuple[dict[str, Any], bool]:
    """The arrays that a body gives for a signature with these inputs, and whether they came by row."""
    numbers = {name: COMPLEX64 if kind == "complex64" else proto.BY_NAME[kind].number for name, kind in types.items()}
    signature = proto.Signature(inputs={name: {"dtype": number} for name, number in numbers.items()})
    content = body.encode() if isinstance(body, str) else body
    spec = proto.model_spec("m")
    request, by_row = json_tensors.read_predict(content, spec, lambda spec: dict(signature.inputs), deadline)
    return {name: proto.to_array(tensor) for name, tensor in request.inputs.items()}, by_row


def refusal(body: str | bytes, **types: str) -> str:
    with pytest.raises(Refused) as caught:
        read(body, math.inf, **types)
    assert caught.value.code.name in ("INVALID_ARGUMENT", "UNIMPLEMENTED")
    return str(caught.value)


def write(by_row: bool, **outputs: Any) -> str:
    tensors = {name: proto.to_tensor(array, as_values=True) for name, array in outputs.items()}
    return json_tensors.write_predict(tensors, by_row).decode()


# --------------------------------------------------------------------------------------------------------- read


@pytest.mark.parametrize(
    ("body", "kind", "wanted"),
    [
        ('{"instances": [1, 2.5, -Infinity]}', "float32", [1, 2.5, -np.inf]),
        ('{"inputs": 7}', "int64", 7),
        ('{"inputs": []}', "float32", []),
        ('{"instances": [[], []]}', "float32", [[], []]),
        ('{"instances": [true, false]}', "bool", [True, False]),
        ('{"instances": [300, -1]}', "uint8", [44, 255]),
        ('{"inputs": [18446744073709551615]}', "uint64", [2**64 - 1]),
        ('{"inputs": [0.1, 100000000000000000000, 4.9e-324]}', "float64", [0.1, 1e20, 5e-324]),
        ('{"instances": ["é", {"b64": "AP8="}, {"b64": "AP8"}]}', "string", ["é".encode(), b"\0\xff", b"\0\xff"]),
        ('{"instances": [{"x": "a"}, {"x": {"b64": ""}}]}', "string", [b"a", b""]),
    ],
)
def test_values_are_read(body: str, kind: str, wanted: Any) -> None:
    found, by_row = read(body, x=kind)
    assert found["x"].tolist() == wanted and by_row == ("instances" in body)


def test_several_inputs_are_read_by_their_names() -> None:
    for body in ('{"inputs": {"x": [1], "y": [[true]]}}', '{"instances": [{"y": [true], "x": 1}]}'):
        found, _ = read(body, x="float32", y="bool")
        assert (found["x"].tolist(), found["y"].tolist()) == ([1], [[True]])


def test_a_byte_order_mark_is_skipped_and_counted() -> None:
    assert read(b'\xef\xbb\xbf{"inputs": 1}', x="float32")[0]["x"] == 1
    assert refusal(b"\xef\xbb\xbf{a", x="float32").endswith("at offset: 4")


IN_ROW = "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
ERRORS: list[tuple[str, dict[str, str], str]] = [
    ("", {}, "JSON Parse error: The document is empty"),
    ("  ", {}, "JSON Parse error: The document is empty. at offset: 2"),
    ("instances = [1]", {}, "JSON Parse error: Invalid value. at offset: 0"),
    ('{"inputs": 1e999}', {}, "JSON Parse error: Number too big to be stored in double. at offset: 11"),
    ("[" * 100_000, {}, "JSON Parse error: The document is nested too deeply."),
    ('{"a":' * 100_000, {}, "JSON Parse error: The document is nested too deeply."),
    ("[1, 2]", {}, "JSON Value: [\n    1,\n    2\n] Is not object"),
    ('{"signature_name": 1}', {}, 'JSON Value: {\n    "signature_name": 1\n} not formatted correctly. '
     "'signature_name' key must be a string value."),
    ("{}", {}, "Missing 'inputs' or 'instances' key"),
    ('{"instances": 1}', {}, "JSON Value: {\n    \"instances\": 1\n} Excepting 'instances' to be an list/array"),
    ('{"instances": []}', {}, "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
    ('{"instances": 1, "inputs": 2}', {}, 'JSON Value: {\n    "instances": 1,\n    "inputs": 2\n} Not formatted '
     "correctly expecting only one of 'inputs' or 'instances' keys to exist "),
    ('{"instances": [1]}', {"x": "float32", "y": "float32"}, "instances is a plain list, but expecting list of "
     "objects as multiple input tensors required as per tensorinfo_map"),
    ('{"inputs": [1]}', {"x": "float32", "y": "float32"}, "inputs is a plain value/list, but expecting an object as "
     "multiple input tensors required as per tensorinfo_map"),
    ('{"inputs": {"x": 1}}', {"x": "float32", "y": "float32"}, "Missing named input: y in 'inputs' object."),
    ('{"instances": [{"x": 1}, 2]}', {}, "Expecting object but got list at item 1 of input list"),
    ('{"instances": [1, {"x": 1}]}', {}, "Expecting value/list but got object at item 1 of input list"),
    ('{"instances": [{"x": 1}, {"x": 1, "z": 2}]}', {}, "Failed to process element: 1 key: z of 'instances' list. "
     "Error: INVALID_ARGUMENT: JSON object: does not have named input: z"),
    ('{"instances": [{"x": 1}]}', {"x": "float32", "y": "float32"}, "Failed to process element: 0 of 'instances' list. "
     'JSON object: {\n    "x": 1\n} keys must be equal to: x,y'),
    ('{"instances": [[1], [2, 3]]}', {}, IN_ROW + "Expecting tensor size: 1 but got: 2"),
    ('{"instances": [[1, 2], [[1], [2]]]}', {}, IN_ROW + "Expecting shape [2] but got: [2,1]"),
    ('{"instances": [1, 1.5]}', {"x": "int32"}, IN_ROW + "JSON Value: 1.5 Type: Number is not of expected type: int32"),
    ('{"inputs": [1, 1e39]}', {"x": "int32"}, "JSON Value: 1e+39 Type: Number is not of expected type: int32"),
    ('{"inputs": [NaN]}', {"x": "int32"}, "JSON Value: NaN Type: Number is not of expected type: int32"),
    ('{"inputs": [2147483648]}', {"x": "uint8"}, "JSON Value: 2147483648 Type: Number is not of expected type: uint8"),
    ('{"inputs": [-1]}', {"x": "uint64"}, "JSON Value: -1 Type: Number is not of expected type: uint64"),
    ('{"inputs": [1]}', {"x": "bool"}, "JSON Value: 1 Type: Number is not of expected type: bool"),
    ('{"inputs": [1, true]}', {}, "JSON Value: true Type: True is not of expected type: float"),
    ('{"inputs": ["a\\n"]}', {"x": "float64"}, 'JSON Value: "a\\n" Type: String is not of expected type: double'),
    ('{"inputs": [null]}', {"x": "string"}, "JSON Value: null Type: Null is not of expected type: string"),
    ('{"inputs": [{"a": 1}]}', {}, 'JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: float'),
    ('{"inputs": [{"b64": 1}]}', {"x": "string"},
     'JSON Value: {\n    "b64": 1\n} not formatted correctly for base64 data'),
    ('{"inputs": {"b64": "?"}}', {"x": "string"}, "Unable to base64 decode"),
    ('{"inputs": {"b64": "AA="}}', {"x": "string"}, "Unable to base64 decode"),
    ('{"inputs": [16777216]}', {}, "Cannot convert JSON value: 16777216 to float without loss of precision."),
    ('{"inputs": [-1e39]}', {}, "Cannot convert JSON value: -1e+39 to float without loss of precision."),
    ('{"inputs": [9007199254740993]}', {"x": "float64"},
     "Cannot convert JSON value: 9007199254740993 to double without loss of precision."),
    ('{"inputs": [[1], 2]}', {}, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ('{"inputs": [1, [2]]}', {}, "Encountered list at unexpected level: 1 expected < 1"),
    ('{"inputs": [[1, 2], [3]]}', {}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ('{"inputs": [1]}', {"x": "complex64"}, "Conversion of JSON Value: 1 to type: complex64"),
    ('{"inputs": ' + "[" * 70 + "]" * 70 + "}", {}, "a tensor has less than 64 dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "types", "text"), ERRORS, ids=[entry[-1][:80] for entry in ERRORS])
def test_what_does_not_fit_is_refused_in_tensorflow_servings_words(body: str, types: dict[str, str], text: str) -> None:
    assert refusal(body, **(types or {"x": "float32"})) == text


def test_what_is_no_utf_8_is_refused() -> None:
    assert refusal(b'{"a": "\xff"}', x="float32") == "JSON Parse error: Invalid encoding in string. at offset: 7"


def test_a_signature_without_inputs_is_refused() -> None:
    assert refusal('{"inputs": 1}') == "Failed to get input map for signature: DEFAULT"


def test_a_quoted_value_is_cut() -> None:
    for body in (
        '{"instances": 1, "a": "' + "é" * 5_000_000 + '"}',
        '{"instances": 1, "a": [' + "[[1]], " * 500_000 + "1]}",
    ):
        assert 1000 < len(refusal(body, x="float32")) < 1200


def test_a_long_list_that_does_not_fit_is_given_up_at_the_deadline() -> None:
    body = json.dumps({"inputs": [0] * 1_000_000 + ["a"]})
    with pytest.raises(Refused, match="Timed out"):
        read(body, time.monotonic(), x="int32")


def test_whole_numbers_that_a_float_has_are_read_beside_fractions_and_large_decimals() -> None:
    found, _ = read('{"inputs": [16777215, -16777215, 0.5, 3.4e38, 100000000000000000000000]}', x="float32")
    assert np.array_equal(found["x"], np.array([16777215, -16777215, 0.5, 3.4e38, 1e23], np.float32))


# -------------------------------------------------------------------------------------------------------- write


def test_rows_stand_on_one_line_and_columns_on_many() -> None:
    y = np.array([[1, 2], [3, 4]], np.int32)
    assert write(True, y=y) == '{\n    "predictions": [[1, 2], [3, 4]\n    ]\n}'
    lines = ["{", '    "outputs": [', "        [", "            1,", "            2", "        ],"]
    assert write(False, y=y).split("\n")[:6] == lines


def test_several_outputs_stand_in_objects() -> None:
    outputs = {"z": np.array([b"a", b'"']), "y": np.array([[True], [False]])}
    rows = ['{\n            "y": [true],\n            "z": "a"\n        }',
            '{\n            "y": [false],\n            "z": "\\""\n        }']  # fmt: skip
    assert write(True, **outputs) == f'{{\n    "predictions": [\n        {rows[0]},\n        {rows[1]}\n    ]\n}}'
    assert json.loads(write(False, **outputs)) == {"outputs": {"y": [[True], [False]], "z": ["a", '"']}}


def test_bytes_are_written_as_base64_and_text_as_it_is() -> None:
    values = np.array([b"\0\xff", b"a"], object)
    first, second = (f'{{\n            "b64": "{text}"\n        }}' for text in ("AP8=", "YQ=="))
    assert write(True, y_bytes=values) == f'{{\n    "predictions": [{first}, {second}\n    ]\n}}'
    tensor = proto.to_tensor(np.array(["é\x01".encode(), b"\xff"], object))
    assert b'["\xc3\xa9\\u0001", "\xff"' in json_tensors.write_predict({"y": tensor}, True)


@pytest.mark.parametrize("shape", [(2, 0), (0, 2), (2, 0, 3), (2, 3, 0), (0,)])
def test_empty_outputs_are_empty_lists(shape: tuple[int, ...]) -> None:
    empty = np.zeros(shape, np.float32)
    assert json.loads(write(True, y=empty)) == {"predictions": empty.tolist()}
    assert json.loads(write(False, y=empty)) == {"outputs": empty.tolist()}


def test_what_has_no_rows_is_refused() -> None:
    with pytest.raises(Refused, match="Tensor name: y has no shape information "):
        write(True, y=np.float32(1))
    assert write(False, y=np.float32(1)) == '{\n    "outputs": 1.0\n}'
    with pytest.raises(Refused, match="Tensor name: z has inconsistent batch size: 1 expecting: 2"):
        write(True, y=np.zeros(2), z=np.zeros(1))
    with pytest.raises(Refused, match="Cannot convert empty tensor map to JSON"):
        write(True)


def test_an_output_of_another_type_is_refused() -> None:
    tensor = proto.Tensor(dtype=COMPLEX64, tensor_shape={"dim": [{"size": 1}]})
    with pytest.raises(Refused, match="Failed to write JSON value for tensor type: complex64"):
        json_tensors.write_predict({"y": tensor}, True)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (np.float32, 0.2, "0.2"), (np.float32, 1 / 3, "0.333333343"), (np.float32, 9_000_000, "9e+06"),
        (np.float32, 3e-5, "3e-05"), (np.float32, -0.0, "-0.0"), (np.float32, 42, "42.0"),
        (np.float32, 3.4028235e38, "3.40282347e+38"), (np.float32, np.nan, "NaN"), (np.float32, -np.inf, "-Infinity"),
        (np.float64, 0.1, "0.1"), (np.float64, 1 / 3, "0.33333333333333331"), (np.float64, np.inf, "Infinity"),
        (np.float16, 0.1, "0.0999755859"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_tensorflow_serving_gives_them(kind: Any, value: float, text: str) -> None:
    assert write(False, y=kind(value)) == f'{{\n    "outputs": {text}\n}}'


# --------------------------------------------------------------------------------------------------- both ways

FLOAT_TYPES = ("float16", "float32", "float64", "bfloat16")
SHAPES = arrays_of.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


def values_of(kind: str) -> st.SearchStrategy[Any]:
    if kind == "string":
        return arrays_of.arrays(object, SHAPES, elements=st.binary(max_size=8))
    if kind == "bfloat16":
        return values_of("float32").map(lambda array: proto.to_array(proto.to_tensor(array, "bfloat16")))
    return arrays_of.arrays(kind, SHAPES)


@pytest.mark.parametrize("kind", sorted(proto.BY_NAME))
@settings(deadline=None)
@given(data=st.data(), by_row=st.booleans())
def test_an_array_written_and_read_back_is_the_same(kind: str, data: st.DataObject, by_row: bool) -> None:
    array = data.draw(values_of(kind))
    if by_row and not len(array):
        array = np.zeros((1, *array.shape[1:]), array.dtype) if kind != "string" else np.array([b""], object)
    tensor = proto.to_tensor(array, kind)
    answer = json_tensors.write_predict({"x_bytes" if kind == "string" else "x": tensor}, by_row)
    body = answer.replace(b'"predictions"', b'"instances"', 1).replace(b'"outputs"', b'"inputs"', 1)
    found = read(body, x=kind)[0]["x"]
    # An empty list tells nothing of the axes within.
    assert found.size == array.size and (not array.size or found.shape == array.shape)
    if kind in FLOAT_TYPES:
        np.testing.assert_array_equal(found.ravel(), array.ravel())
    else:
        assert found.ravel().tolist() == array.ravel().tolist()
