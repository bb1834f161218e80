"""Calls and versions that are meant to break the model server, or to occupy it: what they cost, and what they get."""

from __future__ import annotations

import gc
import random
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loupe import proto
from loupe.engines.refused import Refused
from loupe.engines.savedmodel import SUMS
from loupe.export.graph.savedmodel import write_checksum
from loupe.modelserver import flags
from loupe.modelserver.config import ServedModel
from loupe.modelserver.metrics import Metrics
from loupe.modelserver.versions import Versions
from tests.modelserver.test_fuzz import cpu_seconds
from tests.support import models
from tests.support.servers import ModelServer, model_server, until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PICTURE = np.full((1, models.SIDE, models.SIDE, 3), 128, np.uint8)
SIDE = 224  # of the committed sample, whose memory is measured


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    models.write(made / "tires" / "1")
    return made


@pytest.fixture(scope="module")
def small(home: Path) -> Iterator[ModelServer]:
    with model_server(home, "tires") as running:
        yield running


def predictor(server: ModelServer) -> Any:
    channel = grpc.insecure_channel(f"localhost:{server.port}", [("grpc.max_receive_message_length", -1)])
    return proto.call(channel, proto.PREDICT)


def private_mb(server: ModelServer) -> float:
    lines = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def test_a_tensor_of_sixty_thousand_dimensions_costs_next_to_nothing(small: ModelServer) -> None:
    """Hostile input 48: it took 14 seconds, in integers of 450 KB."""
    request = proto.predict_request("tires", {})
    tensor = request.inputs["image"]
    tensor.dtype = proto.BY_NAME["uint8"].number
    for _ in range(60_000):
        tensor.tensor_shape.dim.add(size=1 << 62)
    before = cpu_seconds(small)
    with pytest.raises(grpc.RpcError) as caught:
        predictor(small)(request, timeout=60)
    assert (caught.value.code(), caught.value.details()) == (INVALID, "tensor parsing error: image")
    assert cpu_seconds(small) - before < 1


@pytest.mark.parametrize("sizes", [[1 << 62] * 4, [-1, 32, 32, 3], [0, 32, 32, 3, 1 << 40], [1 << 40, 32, 32, 3]])
def test_a_shape_is_judged_before_its_values_are_made(small: ModelServer, sizes: list[int]) -> None:
    """Hostile input 48: a few bytes may declare any shape."""
    request = proto.predict_request("tires", {})
    tensor = request.inputs["image"]
    tensor.dtype = proto.BY_NAME["uint8"].number
    tensor.int_val.append(1)
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    with pytest.raises(grpc.RpcError) as caught:
        predictor(small)(request, timeout=60)
    assert caught.value.code() is INVALID


def test_a_batch_of_a_thousand_pictures_is_computed_in_bounded_memory_that_is_given_back(sample_models: Path) -> None:
    """Hostile input 49: 2,000 pictures took 4 GB, and kept them."""
    pixels = np.random.default_rng(0).integers(0, 256, (1000, SIDE, SIDE, 3), np.uint8)  # 150 MB
    with model_server(sample_models, "tires") as server:
        predict = predictor(server)
        first = proto.to_array(
            predict(proto.predict_request("tires", {"image": pixels[:1]}), timeout=60).outputs["probabilities"]
        )
        at_rest = private_mb(server)
        answer = proto.to_array(
            predict(proto.predict_request("tires", {"image": pixels}), timeout=300).outputs["probabilities"]
        )
        np.testing.assert_allclose(answer[:1], first, atol=1e-5)
        assert len(answer) == len(pixels)
        until(lambda: private_mb(server) < at_rest + 200, "the memory to be given back", 30)
        peak = _peak_mb(server)
    assert peak < at_rest + 900, (at_rest, peak)


def _peak_mb(server: ModelServer) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.parametrize("more", [(), ("--enable_batching",)])
@pytest.mark.parametrize("engine", ["openvino", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_callers_without_a_deadline_wait_for_their_turn(home: Path, engine: str, more: tuple[str, ...]) -> None:
    """For them gRPC counts 2^63 seconds, which no lock takes."""
    with model_server(home, "tires", "--grpc_max_threads=32", *more, engine=engine) as server:
        predict = predictor(server)
        calls = [predict.future(proto.predict_request("tires", {"image": PICTURE})) for _ in range(200)]
        refused = [error for call in calls if (error := call.exception(60))]
        assert len(calls) - len(refused) >= 32, "whichever of them came first"
        assert {error.code() for error in refused} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_more_cards_than_anybody_needs_are_refused(small: ModelServer) -> None:
    """A request of 60 bytes asked for two million, which took 2 GB."""
    request = proto.predict_request("tires", {}, signature="describe")
    tensor = request.inputs["request"]
    tensor.dtype = proto.STRING
    tensor.tensor_shape.dim.add(size=2_000_000)
    with pytest.raises(grpc.RpcError) as caught:
        predictor(small)(request, timeout=60)
    assert (caught.value.code(), caught.value.details()) == (INVALID, "at most 1024 cards are given at once")


def test_half_a_call_holds_nobody_up(small: ModelServer) -> None:
    """Each holds a thread until its message comes, so there are more threads than calls."""
    channel = grpc.insecure_channel(f"localhost:{small.port}")
    ends = threading.Event()

    def nothing_yet() -> Iterator[bytes]:
        ends.wait(60)
        yield b""

    halves = [
        channel.stream_unary(proto.PREDICT.path, request_serializer=lambda data: data).future(nothing_yet(), timeout=60)
        for _ in range(8)
    ]
    answer = predictor(small)(proto.predict_request("tires", {"image": PICTURE}), timeout=10)
    assert answer.model_spec.version.value == 1
    ends.set()
    assert all(half.exception(60) for half in halves)


def test_a_version_that_failed_keeps_no_engine_in_memory() -> None:
    """Its error had a traceback, and that every object of the failed load."""

    class Engine:
        name, precision, at_once = "weighty", "float32", 1

    alive: list[Any] = []

    def open_engine(model: Any) -> Any:
        engine = Engine()
        alive.append(weakref.ref(engine))
        raise Refused(INVALID, "does not load")

    with tempfile.TemporaryDirectory() as folder:
        models.write(Path(folder) / "1")
        settings = flags.Flags(model_base_path=folder)
        served = ServedModel("tires", Path(folder))
        versions = Versions(served, settings, open_engine, Metrics(), threading.Condition())
        versions.poll()
        ((_, _, error),) = versions.states()
    assert str(error) == "does not load"
    gc.collect()
    assert [reference() for reference in alive] == [None]


def test_a_request_larger_than_allowed_is_refused(small: ModelServer) -> None:
    """Hostile input 49: unless the flag says otherwise."""
    request = proto.predict_request("tires", {"image": np.zeros((90_000, models.SIDE, models.SIDE, 3), np.uint8)})
    with pytest.raises(grpc.RpcError) as caught:
        predictor(small)(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# Hostile input 50 is in test_rest.py.


def test_a_graph_with_thirty_other_bytes_is_not_served(home: Path, tmp_path: Path) -> None:
    """Hostile input 51: the bytes of its weights load as well as any others."""
    base = tmp_path / "tires"
    shutil.copytree(home / "tires" / "1", base / "1")
    with model_server(tmp_path, "tires") as server:
        damaged = base / ".2"
        shutil.copytree(home / "tires" / "1", damaged)
        write_checksum(damaged)
        data = bytearray((damaged / "saved_model.pb").read_bytes())
        rng = random.Random(0)
        for _ in range(30):
            data[rng.randrange(len(data))] ^= 0xFF
        (damaged / "saved_model.pb").write_bytes(data)
        damaged.rename(base / "2")
        until(lambda: "version 2 of tires does not load" in server.stderr(), "version 2 to be refused")
        assert f"is not as it was exported: its checksum is not the one in {SUMS}" in server.stderr()
        answer = predictor(server)(proto.predict_request("tires", {"image": PICTURE}), timeout=60)
        assert answer.model_spec.version.value == 1
        # Mended, it is served.
        shutil.copy(home / "tires" / "1" / "saved_model.pb", base / "2")
        until(lambda: "version 2 of tires loaded" in server.stderr(), "version 2")
