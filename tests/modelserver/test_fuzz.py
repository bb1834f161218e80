"""Damaged and made-up requests, over gRPC and REST, at both engines: the server lives, names no error UNKNOWN or its
own, and spends little on any of them.

    LOUPE_FUZZ_SECONDS=600 python -m pytest -m slow tests/modelserver/test_fuzz.py

"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loupe import proto
from tests.support import models
from tests.support.servers import ModelServer, model_server

SECONDS = float(os.environ.get("LOUPE_FUZZ_SECONDS", "60"))  # for each engine and way
CPU_SECONDS = 2.0  # that one request may cost
BAD_CODES = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
# INTERNAL is the answer to bytes that are no message at all, as gRPC itself gives it.
NO_MESSAGE = "the request is no "
SIZES = (0, 1, 2, 3, 31, 32, 33, 255, 1 << 15, 1 << 31, (1 << 62) - 1, (1 << 63) - 1, -1, -(1 << 63))
TEXTS = ("", "half", "tires", "image", "x", "serving_default", "describe", "stable", "\0", "ä" * 300, "%s%n", "../..")

Random = random.Random


@pytest.fixture(scope="module", params=["openvino", "tensorflow"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("fuzz")
    flags = (f"--model_config_file={models.write_conformance(folder)}", "--grpc_max_threads=8",
             "--allow_version_labels_for_unavailable_models")  # fmt: skip
    with model_server(folder, "half", *flags, engine=request.param) as running:
        yield running


def cpu_seconds(server: ModelServer) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def for_a_while(server: ModelServer, attack: Callable[[Random], object]) -> int:
    """Attack again and again, each time by another seed. Each must be cheap."""
    end, seed = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        seed += 1
        before = cpu_seconds(server)
        sent = attack(Random(seed))
        spent = cpu_seconds(server) - before
        assert spent < CPU_SECONDS, f"seed {seed} cost {spent:.1f} s: {sent!r}"[:2000]
        assert server.process.poll() is None, f"seed {seed} ended the server: {sent!r}"[:2000]
    return seed


# ------------------------------------------------------------------------------------------------------- made up


def message(rng: Random, message_class: Any, depth: int = 0) -> Any:
    """Return a message whose fields are set by chance, to values that are often on a border."""
    made = message_class()
    for field in made.DESCRIPTOR.fields:
        if rng.random() < (0.35 if depth else 0.1) or depth > 6:
            continue
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            value_field = field.message_type.fields_by_name["value"]
            for _ in range(rng.choice((1, 1, 2))):
                key = rng.choice(TEXTS)
                if value_field.message_type:
                    target = getattr(made, field.name)[key]
                    target.CopyFrom(message(rng, type(target), depth + 1))
                else:
                    getattr(made, field.name)[key] = rng.choice(SIZES[:8])
        elif field.message_type is not None:
            if field.is_repeated:
                for _ in range(rng.choice((0, 1, 1, 4))):
                    element = getattr(made, field.name).add()
                    element.CopyFrom(message(rng, type(element), depth + 1))
            else:
                getattr(made, field.name).CopyFrom(message(rng, type(getattr(made, field.name)), depth + 1))
        elif field.is_repeated:
            getattr(made, field.name).extend(scalar(rng, field) for _ in range(rng.choice((0, 1, 3, 50))))
        else:
            setattr(made, field.name, scalar(rng, field))
    return made


def scalar(rng: Random, field: Any) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        text = rng.choice(TEXTS)
        return text.encode() * rng.choice((1, 1, 100)) if field.type == field.TYPE_BYTES else text
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    if field.name == "dtype":
        return rng.choice((0, 1, 1, 4, 4, 7, 14, 19, 99))
    low, high = {
        field.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1), field.CPPTYPE_UINT32: (0, (1 << 32) - 1),
        field.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    }.get(kind, (-(1 << 63), (1 << 63) - 1))  # fmt: skip
    return min(max(rng.choice(SIZES), low), high)


def damaged(rng: Random, data: bytes) -> bytes:
    """Return the bytes with some changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[place : place + rng.randrange(16)]
            case 2:
                changed[place:place] = changed[place : place + rng.randrange(64)]
            case 3:
                changed[place:place] = rng.choice((b"\xff" * 9 + b"\x01", b"\x80" * 10, b"\x0a\xff\xff\xff\xff\x0f"))
    return bytes(changed)


def valid_requests() -> list[tuple[proto.Method, bytes]]:
    half = proto.predict_request("half", {"x": np.array([1, 2], np.float32)})
    tires = proto.predict_request("tires", {"image": np.zeros((1, models.SIDE, models.SIDE, 3), np.uint8)})
    example = proto.Example()
    example.features.feature["x"].float_list.value.append(1)
    classify = proto.ClassificationRequest(model_spec=proto.model_spec("half", None, "classify_x_to_y"))
    classify.input.example_list.examples.append(example)
    metadata = proto.GetModelMetadataRequest(model_spec=proto.model_spec("half"), metadata_field=["signature_def"])
    pairs = [
        ("Predict", half), ("Predict", tires), ("Classify", classify), ("GetModelMetadata", metadata),
        ("GetModelStatus", proto.GetModelStatusRequest(model_spec=proto.model_spec("half"))),
    ]  # fmt: skip
    return [(proto.METHODS[name], request.SerializeToString()) for name, request in pairs]


# ---------------------------------------------------------------------------------------------------------- gRPC

# A reload is left out: made-up ones would take the models away. test_models.py has what is wrong with those.
METHODS = [method for name, method in proto.METHODS.items() if name != "HandleReloadConfigRequest"]


@pytest.mark.slow
def test_no_message_breaks_or_occupies_the_server(server: ModelServer) -> None:
    channel = grpc.insecure_channel(f"localhost:{server.port}")
    valid = valid_requests()

    def attack(rng: Random) -> tuple[str, bytes]:
        if rng.random() < 0.5:
            method = rng.choice(METHODS)
            data = message(rng, method.request).SerializeToString()
        else:
            method, data = rng.choice(valid)
            data = damaged(rng, data)
        try:
            channel.unary_unary(method.path)(data, timeout=30)
        except grpc.RpcError as error:
            is_no_message = str(error.details()).startswith(NO_MESSAGE)
            assert is_no_message or error.code() not in BAD_CODES, (method.path, data[:2000], error.details())
        return method.path, data

    tries = for_a_while(server, attack)
    predict = proto.call(channel, proto.PREDICT)
    answer = predict(proto.predict_request("half", {"x": np.array([1], np.float32)}), timeout=30)
    assert proto.to_array(answer.outputs["y"]).tolist() == [2.5]
    print(f"{server.engine}: {tries} messages")


# ---------------------------------------------------------------------------------------------------------- REST

PATHS = ("/v1/models/half:predict", "/v1/models/tires:predict", "/v1/models/half:classify", "/v1/models/half:regress")
LEAVES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 1.5, 1e308, 1e-400, float("nan"), float("inf"), 1 << 31, 1 << 63, 1 << 64, "", "x", "ä\0",
    {"b64": "AAAA"}, {"b64": "*"}, {"b64": 1}, [], {},
)  # fmt: skip


def value(rng: Random, depth: int = 0) -> Any:
    if depth > 4 or rng.random() < 0.3:
        return rng.choice(LEAVES)
    if rng.random() < 0.6:
        one = value(rng, depth + 1)
        return [one if rng.random() < 0.8 else value(rng, depth + 1) for _ in range(rng.choice((1, 2, 3, 32)))]
    return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(3))}


def document(rng: Random) -> bytes:
    keys = ("instances", "inputs", "signature_name", "examples", "context", "x")
    made = {rng.choice(keys): value(rng) for _ in range(rng.randrange(1, 4))}
    if rng.random() < 0.3:
        made["signature_name"] = rng.choice(("serving_default", "classify_x_to_y", "regress_x_to_y", "describe"))
    text = json.dumps(made).encode()
    match rng.randrange(8):
        case 0:
            return damaged(rng, text)
        case 1:
            return b"[" * rng.choice((10, 10_000, 1_000_000))
        case 2:
            return b'{"instances": [' + b"1," * rng.choice((10, 100_000)) + b"1]}"
        case 3:
            return b'{"instances": ' + b'{"x":' * rng.choice((5, 5_000)) + text
    return text


@pytest.mark.slow
def test_no_json_breaks_or_occupies_the_server(server: ModelServer) -> None:
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=30)

    def attack(rng: Random) -> tuple[str, bytes]:
        path, body = rng.choice(PATHS), document(rng)
        connection.request("POST", path, body)
        response = connection.getresponse()
        answer = response.read()
        assert response.status in (200, 400, 404, 501), (path, body[:2000], response.status, answer)
        if response.status != http.HTTPStatus.OK:
            assert "error" in json.loads(answer)
        return path, body

    tries = for_a_while(server, attack)
    connection.request("POST", PATHS[0], '{"instances": [1.0]}')
    assert json.loads(connection.getresponse().read()) == {"predictions": [2.5]}
    print(f"{server.engine}: {tries} documents")
