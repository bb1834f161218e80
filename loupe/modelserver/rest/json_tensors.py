"""Read requests from JSON and write answers as JSON, in TensorFlow Serving's forms, numbers and messages.

    request, by_row = json_tensors.read_predict(body, spec, answers.signature_inputs)
    json_tensors.write_predict(answers.predict(request).outputs, by_row)

What cannot be read is Refused. Big regular lists of numbers are converted at once by numpy; what does not fit goes
value by value, which finds TensorFlow Serving's error. Differences on purpose: half, bfloat16 and uint16 are read and
written as well; float64 is read exactly, not just to the last digit but one; a message quotes 1,000 characters of a
JSON value at most; JSON nested more than about a thousand levels deep, of more than a million lists or four million
values, and text that is not UTF-8, are refused. Of a name given twice in one object the last value counts, there the
first.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import rapidjson
from grpc import StatusCode

from loupe import proto
from loupe.engines.refused import Refused, invalid

Array = np.ndarray[Any, Any]

MAX_QUOTED = 1000  # characters
MAX_RANK = 64  # numpy's
MAX_LISTS, MAX_VALUES = 1 << 20, 1 << 22  # of a request: eleven pictures of 299×299 pixels
CLOCK_EVERY = 1 << 14  # values between two looks at the clock
NATIVE = (
    rapidjson.NM_NATIVE | rapidjson.NM_NAN
)  # as TensorFlow Serving: quick, and doubles may be off in the last digit
EXACT = rapidjson.NM_NAN
PARSE_ERROR = re.compile(r"Parse error at offset (\d+): (.*)", re.DOTALL)
BOM = b"\xef\xbb\xbf"
INT32, UINT32 = (-(1 << 31), (1 << 31) - 1), (0, (1 << 32) - 1)
INT64, UINT64 = (-(1 << 63), (1 << 63) - 1), (0, (1 << 64) - 1)
# What a JSON number must lie within. Narrow types are checked as int32 and then wrap, as they do there.
INT_RANGES = {
    "int32": INT32, "int16": INT32, "int8": INT32, "uint8": INT32, "uint16": INT32,
    "int64": INT64, "uint32": UINT32, "uint64": UINT64,
}  # fmt: skip
# Bits of the significand, and the largest number that is not infinite in the type. TensorFlow Serving refuses what only
# rounds to float32's largest, which it writes so itself.
FLOATS = {
    "float32": (24, float.fromhex("0x1.fffffefffffffp127")),
    "float64": (53, float(np.finfo(np.float64).max)),
    "float16": (11, float(np.finfo(np.float16).max)),
    "bfloat16": (8, float.fromhex("0x1.fep127")),
}
OTHER_TYPES = {8: "complex64", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 18: "complex128"}
JSON_TYPES = {
    dict: "Object", list: "Array", str: "String", int: "Number", float: "Number",
    type(None): "Null",
}  # fmt: skip
INDENT = "    "


# ------------------------------------------------------------------------------------------------------- requests


def read_predict(
    body: bytes | bytearray,
    spec: Any,
    signature_inputs: Callable[[Any], Mapping[str, Any]],
    deadline: float = math.inf,
) -> tuple[Any, bool]:
    """Return the PredictRequest, and whether it came row by row ("instances") and is answered so. `signature_inputs`
    gives the TensorInfo of each input of a ModelSpec's signature."""
    # Find the signature.
    document = _document(body)
    spec.signature_name = _signature_name(document)
    infos = signature_inputs(spec)
    if not infos:
        raise invalid(f"Failed to get input map for signature: {spec.signature_name or 'DEFAULT'}")
    types = {name: infos[name].dtype for name in sorted(infos)}
    if proto.BY_NAME["float64"].number in types.values():
        document = _loads(body, EXACT)
    # Read the tensors.
    by_row = _is_by_row(document)
    reader = _Reader(types, deadline)
    arrays = reader.instances(document["instances"]) if by_row else reader.inputs(document["inputs"])
    request = proto.PredictRequest(model_spec=spec)
    for name, array in arrays.items():
        request.inputs[name].CopyFrom(proto.to_tensor(array, proto.BY_NUMBER[types[name]].name))
    return request, by_row


def _is_by_row(document: dict[str, Any]) -> bool:
    if "instances" not in document:
        if "inputs" not in document:
            raise invalid("Missing 'inputs' or 'instances' key")
        return False
    if "inputs" in document:
        raise _misformed(
            document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        )
    if type(document["instances"]) is not list:
        raise _misformed(document, "Excepting 'instances' to be an list/array")
    if not document["instances"]:
        raise _misformed(document, "No values in 'instances' array")
    return True


def read_examples(body: bytes | bytearray, request: Any) -> None:
    """Fill a ClassificationRequest or RegressionRequest from JSON's "examples", and its "context" if it has one."""
    document = _document(body)
    request.model_spec.signature_name = _signature_name(document)
    target = request.input.example_list
    if "context" in document:
        target = request.input.example_list_with_context
        _fill_example(target.context, document["context"])
    if "examples" not in document:
        raise _misformed(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if type(examples) is not list:
        raise _misformed(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _misformed(document, "'examples' value is an empty array")
    for value in examples:
        _fill_example(target.examples.add(), value)


def _fill_example(example: Any, value: Any) -> None:
    example.SetInParent()
    if type(value) is not dict:
        raise invalid(f"Example must be JSON object but got JSON {_json_type(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        kind = ""
        for element in content if type(content) is list else [content]:
            kind = _add_to_feature(feature, name, kind, element)


def _add_to_feature(feature: Any, name: str, kind: str, value: Any) -> str:
    """Add one value, and return what kind of list the feature is now."""
    # Tell what the value is.
    if type(value) is dict and _is_base64(value):
        value = _decode_base64(value)
    new_kind = {str: "bytes", bytes: "bytes", float: "float", int: "int64", bool: "int64"}.get(type(value))
    if new_kind is None:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {_json_type(value)}")
    if kind and kind != new_kind:
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {kind}")
    # Add it.
    if new_kind == "bytes":
        feature.bytes_list.value.append(value.encode() if type(value) is str else value)
    elif new_kind == "float":
        _refuse_lossy(value, "float32")
        feature.float_list.value.append(value)
    elif value > INT64[1]:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    else:
        feature.int64_list.value.append(int(value))
    return new_kind


# -------------------------------------------------------------------------------------------------------- parsing


def _document(body: bytes | bytearray) -> dict[str, Any]:
    document = _loads(body, NATIVE)
    if type(document) is not dict:
        raise _misformed(document, "Is not object")
    return document


def _loads(body: bytes | bytearray, number_mode: int) -> Any:
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    # While it is parsed nothing else of this process runs, and a list of nothing costs as much as one of numbers.
    if body.count(b"[") + body.count(b"{") > MAX_LISTS or body.count(b",") > MAX_VALUES:
        raise invalid(
            f"The request's JSON has more than {MAX_LISTS} lists or {MAX_VALUES} values; send fewer, or use gRPC"
        )
    skipped = len(BOM) if body.startswith(BOM) else 0
    try:
        return rapidjson.loads(bytes(body[skipped:]) if skipped else body, number_mode=number_mode)
    except RecursionError as error:
        raise invalid("JSON Parse error: The document is nested too deeply.") from error
    except UnicodeDecodeError as error:
        offset = error.start + skipped
        raise invalid(f"JSON Parse error: Invalid encoding in string. at offset: {offset}") from error
    except rapidjson.JSONDecodeError as error:
        found = PARSE_ERROR.fullmatch(str(error))
        text = f"{found[2]} at offset: {int(found[1]) + skipped}" if found else str(error)
        raise invalid(f"JSON Parse error: {text}") from error


def _signature_name(document: dict[str, Any]) -> str:
    name = document.get("signature_name", "")
    if type(name) is not str:
        raise _misformed(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def _is_base64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and type(value.get("b64")) is str


def _decode_base64(value: dict[str, Any]) -> bytes:
    """Decode {"b64": …}. The padding may be left out, and blanks are skipped."""
    if not _is_base64(value):
        raise _misformed(value, "not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    bare = text.rstrip("=")
    padding = "=" * (-len(bare) % 4)
    if text != bare and text != bare + padding:
        raise invalid("Unable to base64 decode")
    try:
        return base64.b64decode(bare + padding, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


# -------------------------------------------------------------------------------------------------------- tensors


class _Reader:
    """Read tensors of these names and element types. Past the deadline a long list is given up."""

    def __init__(self, types: dict[str, int], deadline: float) -> None:
        self.types, self.deadline = types, deadline
        self.first = next(iter(types))

    def inputs(self, value: Any) -> dict[str, Array]:
        """Read "inputs": each tensor as a whole."""
        if type(value) is not dict or _is_base64(value):
            if len(self.types) > 1:
                raise invalid(
                    "inputs is a plain value/list, but expecting an object as multiple "
                    "input tensors required as per tensorinfo_map"
                )
            return {self.first: self._whole(self.first, value)}
        arrays = {}
        for name in self.types:
            if name not in value:
                raise invalid(f"Missing named input: {name} in 'inputs' object.")
            arrays[name] = self._whole(name, value[name])
        return arrays

    def instances(self, rows: list[Any]) -> dict[str, Array]:
        """Read "instances": a list with one element for each row of the batch, an object where inputs are named."""
        if type(rows[0]) is not dict and len(self.types) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map"
            )
        if not _is_named(rows[0]):
            array = _at_once(rows, self.types[self.first])
            return self._plain_rows(rows) if array is None else {self.first: array}
        # Each row is an object: take one column for each name.
        names = self.types.keys()
        if not all(_is_named(row) and row.keys() == names for row in rows):
            return self._named_rows(rows)
        arrays = {name: _at_once([row[name] for row in rows], number) for name, number in self.types.items()}
        whole = {name: array for name, array in arrays.items() if array is not None}
        return whole if len(whole) == len(arrays) else self._named_rows(rows)

    def _whole(self, name: str, value: Any) -> Array:
        number = self.types[name]
        array = _at_once(value, number)
        if array is None:
            shape = _shape(value)
            values: list[Any] = []
            self._fill(value, 0, shape, number, values)
            array = _array(values, number).reshape(shape)
        return array

    def _plain_rows(self, rows: list[Any]) -> dict[str, Array]:
        column = _Column()
        for position, row in enumerate(rows):
            if _is_named(row):
                raise invalid(f"Expecting value/list but got object at item {position} of input list")
            try:
                self._add_row(column, self.first, row)
            except Refused as error:
                raise invalid(
                    f"Failed to process element: {position} of 'instances' list. Error: {_status(error)}"
                ) from error
        return {self.first: column.array(len(rows), self.types[self.first])}

    def _named_rows(self, rows: list[Any]) -> dict[str, Array]:
        columns = {name: _Column() for name in self.types}
        for position, row in enumerate(rows):
            # Read what the row names, then check that it names all.
            if not _is_named(row):
                raise invalid(f"Expecting object but got list at item {position} of input list")
            for name, value in row.items():
                try:
                    if name not in columns:
                        raise invalid(f"JSON object: does not have named input: {name}")
                    self._add_row(columns[name], name, value)
                except Refused as error:
                    raise invalid(
                        f"Failed to process element: {position} key: {name} of 'instances' list. "
                        f"Error: {_status(error)}"
                    ) from error
            if row.keys() != columns.keys():
                raise invalid(
                    f"Failed to process element: {position} of 'instances' list. JSON object: {_quoted(row)} "
                    f"keys must be equal to: {','.join(columns)}"
                )
        return {name: column.array(len(rows), self.types[name]) for name, column in columns.items()}

    def _add_row(self, column: _Column, name: str, value: Any) -> None:
        shape, before = _shape(value), len(column.values)
        self._fill(value, 0, shape, self.types[name], column.values)
        size = len(column.values) - before
        if column.shape is None:
            column.shape, column.size = shape, size
        elif column.size != size:
            raise invalid(f"Expecting tensor size: {column.size} but got: {size}")
        elif column.shape != shape:
            expected, got = (",".join(map(str, sizes)) for sizes in (column.shape, shape))
            raise invalid(f"Expecting shape [{expected}] but got: [{got}]")

    def _fill(self, value: Any, level: int, shape: tuple[int, ...], number: int, values: list[Any]) -> None:
        """Append the values of a nested list, each checked. Raises Refused where TensorFlow Serving refuses."""
        if type(value) is not list:
            if level != len(shape):
                raise invalid(
                    f"JSON Value: {_quoted(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {len(shape)}"
                )
            if not len(values) % CLOCK_EVERY and time.monotonic() > self.deadline:
                raise Refused(StatusCode.DEADLINE_EXCEEDED, "Timed out reading the request's JSON")
            values.append(_value(value, number))
            return
        if level >= len(shape):
            raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        if len(value) != shape[level]:
            raise invalid(
                f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
            )
        for element in value:
            self._fill(element, level + 1, shape, number, values)


class _Column:
    """The values of one input, collected row by row, and the shape that the first row has."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.shape: tuple[int, ...] | None = None
        self.size = 0

    def array(self, rows: int, number: int) -> Array:
        return _array(self.values, number).reshape((rows, *(self.shape or ())))


def _is_named(row: Any) -> bool:
    return type(row) is dict and not _is_base64(row)


def _shape(value: Any) -> tuple[int, ...]:
    """Return the shape as the first elements have it."""
    sizes = []
    while type(value) is list:
        sizes.append(len(value))
        if len(sizes) >= MAX_RANK:
            raise invalid(f"a tensor has less than {MAX_RANK} dimensions")
        value = value[0] if value else None
    return tuple(sizes)


def _at_once(value: Any, number: int) -> Array | None:
    """Return the array of a regular nested list of plain values, or None where values must be looked at one by one."""
    # Flatten.
    shape = _shape(value)
    flat = value if shape else [value]
    for size in shape[1:]:
        if not set(map(type, flat)) <= {list} or not set(map(len, flat)) <= {size}:
            return None
        flat = list(chain.from_iterable(flat))
    # Check the types of the values, then their range.
    kinds, name = set(map(type, flat)), _name(number)
    if name in FLOATS and kinds <= {int, float}:
        floats = np.array(flat, np.float64)
        largest = np.abs(floats[np.isfinite(floats)]).max(initial=0)
        bits, limit = FLOATS[name]
        if largest > limit or (int in kinds and largest > (1 << bits) - 1):
            return None
    elif name in INT_RANGES and kinds <= {int}:
        low, high = INT_RANGES[name]
        if flat and not (low <= min(flat) and max(flat) <= high):
            return None
    elif (name, kinds) not in (("bool", {bool}), ("string", {str})):
        return None
    return _array([text.encode() for text in flat] if name == "string" else flat, number).reshape(shape)


def _array(values: list[Any], number: int) -> Array:
    """Return checked values as an array of one dimension; bfloat16 as float32."""
    name = _name(number)
    if name == "string":
        array = np.empty(len(values), object)
        array[:] = values
        return array
    if name in INT_RANGES:
        wide = np.array(values, np.uint64 if name == "uint64" else np.int64)
        return wide.astype(proto.BY_NUMBER[number].numpy)
    if name == "bool":
        return np.array(values, bool)
    if name in FLOATS:
        return np.array(values, np.float64).astype(np.float32 if name == "bfloat16" else proto.BY_NUMBER[number].numpy)
    raise Refused(StatusCode.UNIMPLEMENTED, f"Conversion of JSON to type: {name}")


def _value(value: Any, number: int) -> Any:
    """Return one value as _array takes it. Raises Refused if it is not of the type."""
    name = _name(number)
    # Objects are base64, or wrong.
    if type(value) is dict:
        if name == "string":
            return _decode_base64(value)
        raise _mistyped(value, name)
    # Other values have their own type in JSON.
    if name in FLOATS:
        if type(value) not in (int, float):
            raise _mistyped(value, name)
        _refuse_lossy(value, name)
    elif name in INT_RANGES:
        low, high = INT_RANGES[name]
        if type(value) is not int or not low <= value <= high:
            raise _mistyped(value, name)
    elif name == "string":
        if type(value) is not str:
            raise _mistyped(value, name)
        return value.encode()
    elif name == "bool":
        if type(value) is not bool:
            raise _mistyped(value, name)
    else:
        raise Refused(StatusCode.UNIMPLEMENTED, f"Conversion of JSON Value: {_quoted(value)} to type: {_tf_name(name)}")
    return value


def _refuse_lossy(value: float, name: str) -> None:
    """Refuse whole numbers beyond those that the type has all of, and other numbers beyond its range."""
    bits, limit = FLOATS[name]
    whole = type(value) is int and INT64[0] <= value <= UINT64[1]  # larger ones count as decimals there
    limit = (1 << bits) - 1 if whole else limit
    if math.isfinite(value) and abs(value) > limit:
        raise invalid(f"Cannot convert JSON value: {_quoted(value)} to {_tf_name(name)} without loss of precision.")


def _name(number: int) -> str:
    dtype = proto.BY_NUMBER.get(number)
    return dtype.name if dtype else OTHER_TYPES.get(number, f"dtype {number}")


def _tf_name(name: str) -> str:
    return proto.BY_NAME[name].tensorflow_name if name in proto.BY_NAME else name


# --------------------------------------------------------------------------------------------------------- errors


def _mistyped(value: Any, name: str) -> Refused:
    return invalid(f"JSON Value: {_quoted(value)} Type: {_json_type(value)} is not of expected type: {_tf_name(name)}")


def _misformed(value: Any, text: str) -> Refused:
    return invalid(f"JSON Value: {_quoted(value)} {text}")


def _json_type(value: Any) -> str:
    return str(value) if type(value) is bool else JSON_TYPES[type(value)]


def _status(error: Refused) -> str:
    return f"{error.code.name}: {error}"


def _quoted(value: Any) -> str:
    """Return the JSON of a value for a message, its first 1,000 characters."""
    if type(value) is float:
        is_narrow = abs(value) <= float(np.finfo(np.float32).max)
        return _decimals(np.array([value], np.float32 if is_narrow else np.float64))[0]
    pieces, length = [], 0
    for piece in _pretty(value, ""):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_QUOTED:
            return "".join(pieces)[:MAX_QUOTED] + "..."
    return "".join(pieces)


def _pretty(value: Any, margin: str) -> Iterator[str]:
    """Yield the pieces of JSON on many lines. Nothing is looked at before it is asked for."""
    if type(value) not in (dict, list):
        yield _string(value[: MAX_QUOTED + 1]) if type(value) is str else json.dumps(value)
        return
    opening, closing = "{}" if type(value) is dict else "[]"
    yield opening
    inner = margin + INDENT
    for position, element in enumerate(value):
        yield f"{',' if position else ''}\n{inner}"
        if type(value) is dict:
            yield f"{_string(element[: MAX_QUOTED + 1])}: "
            element = value[element]
        yield from _pretty(element, inner)
    yield f"\n{margin}{closing}" if value else closing


# -------------------------------------------------------------------------------------------------------- answers


def write_predict(outputs: Mapping[str, Any], by_row: bool) -> bytes:
    """Return the JSON of a PredictResponse's outputs: {"predictions": […]} by row, else {"outputs": …}."""
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    names = sorted(outputs)
    # One output stands alone, several stand in an object.
    if not by_row:
        texts = [(name, _whole_text(name, outputs[name], 1 if len(names) == 1 else 2)) for name in names]
        text = texts[0][1] if len(texts) == 1 else _object(texts, 1)
        return _object([("outputs", text)], 0).encode("utf-8", "surrogateescape")
    size = _batch_size(outputs, names)
    columns = [_row_texts(name, outputs[name], 2 if len(names) == 1 else 3) for name in names]
    if len(names) == 1:
        return _rows("predictions", columns[0])
    margin = f"\n{INDENT * 2}"
    rows = [
        _object([(name, column[row]) for name, column in zip(names, columns, strict=True)], 2) for row in range(size)
    ]
    text = "[" + ",".join(margin + row for row in rows) + (f"\n{INDENT}]" if rows else "]")
    return _object([("predictions", text)], 0).encode("utf-8", "surrogateescape")


def write_classifications(result: Any) -> bytes:
    """Return {"results": [[["label", 0.5], …], …]} for a ClassificationResult."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for entry in result.classifications:
        scores = _decimals(np.array([found.score for found in entry.classes], np.float32))
        pairs = [f"[{_string(found.label)}, {score}]" for found, score in zip(entry.classes, scores, strict=True)]
        rows.append(f"[{', '.join(pairs)}]")
    return _rows("results", rows)


def write_regressions(result: Any) -> bytes:
    """Return {"results": [1.0, …]} for a RegressionResult."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    values = _decimals(np.array([entry.value for entry in result.regressions], np.float32))
    return _object([("results", f"[{', '.join(values)}]")], 0).encode()


def write_error(text: str) -> bytes:
    return _object([("error", _string(text))], 0).encode("utf-8", "surrogateescape")


def _batch_size(outputs: Mapping[str, Any], names: list[str]) -> int:
    size = -1
    for name in names:
        dims = outputs[name].tensor_shape.dim
        if not dims:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size not in (-1, dims[0].size):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {dims[0].size} expecting: {size}")
        size = dims[0].size
    return size


def _rows(key: str, rows: Sequence[str]) -> bytes:
    """Lay out rows as TensorFlow Serving does: all on one line, the end of their list on the next."""
    text = "[" + ", ".join(rows) + (f"\n{INDENT}]" if rows else "]")
    return _object([(key, text)], 0).encode("utf-8", "surrogateescape")


def _object(members: Sequence[tuple[str, str]], level: int) -> str:
    margin = INDENT * level
    lines = ",\n".join(f"{margin}{INDENT}{_string(name)}: {text}" for name, text in members)
    return f"{{\n{lines}\n{margin}}}"


def _row_texts(name: str, tensor: Any, level: int) -> list[str]:
    array = _array_of(tensor)
    return _nested(_texts(name, tensor.dtype, array, level + array.ndim - 1), array.shape, keep=1)


def _whole_text(name: str, tensor: Any, level: int) -> str:
    array = _array_of(tensor)
    return _nested(_texts(name, tensor.dtype, array, level + array.ndim), array.shape, level)[0]


def _array_of(tensor: Any) -> Array:
    if tensor.dtype not in proto.BY_NUMBER:
        raise invalid(f"Failed to write JSON value for tensor type: {_name(tensor.dtype)}")
    return proto.to_array(tensor)


def _nested(texts: list[str], shape: Sequence[int], level: int | None = None, *, keep: int = 0) -> list[str]:
    """Join the texts of values into lists, the innermost first, but for the first `keep` axes: on one line, or with
    `level` one element a line."""
    for axis in reversed(range(keep, len(shape))):
        size, count = shape[axis], math.prod(shape[:axis])
        if not size:
            texts = ["[]"] * count
            continue
        start, between, end = "[", ", ", "]"
        if level is not None:
            margin = f"\n{INDENT * (level + axis)}"
            start, between, end = f"[{margin}{INDENT}", f",{margin}{INDENT}", f"{margin}]"
        texts = [f"{start}{between.join(texts[n * size : (n + 1) * size])}{end}" for n in range(count)]
    return texts


def _texts(name: str, number: int, array: Array, level: int) -> list[str]:
    """Return the JSON of each value."""
    flat = array.ravel()
    dtype = _name(number)
    if dtype == "string" and name.endswith("_bytes"):
        return [_object([("b64", f'"{base64.b64encode(item).decode()}"')], level) for item in flat]
    if dtype == "string":
        return [_string(item.decode("utf-8", "surrogateescape")) for item in flat]
    if dtype == "bool":
        return ["true" if item else "false" for item in flat.tolist()]
    if dtype in FLOATS:
        return _decimals(flat if dtype == "float64" else flat.astype(np.float32))
    return list(map(str, flat.tolist()))


def _decimals(values: Array) -> list[str]:
    """Return numbers with six digits, or as many as the type needs where six would not give the same number."""
    # Six digits.
    numbers, digits = values.tolist(), 9 if values.dtype == np.float32 else 17
    texts = [f"{number:g}" for number in numbers]
    # More, where they do not suffice.
    with np.errstate(over="ignore"):
        same = np.array([float(text) for text in texts], np.float64).astype(values.dtype) == values
    for position in np.flatnonzero(~same):
        texts[position] = f"{numbers[position]:.{digits}g}"
    # Whole numbers get a fraction.
    whole = [text if "." in text or "e" in text else text + ".0" for text in texts]
    for position in np.flatnonzero(~np.isfinite(values)):
        number = numbers[position]
        whole[position] = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return whole


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
