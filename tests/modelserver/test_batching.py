"""Batches: calls that wait together are computed together, each gets its own rows, and one that is bad fails alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loupe import proto
from loupe.engines.engine import Engine
from loupe.engines.refused import Refused, invalid
from loupe.engines.savedmodel import Array, SavedModel
from loupe.errors import UserError
from loupe.modelserver import config
from loupe.modelserver.batching import BatchedEngine, batched
from loupe.modelserver.config import Batching
from tests.support import models
from tests.support.servers import model_server, until

MODEL = SavedModel(Path("unused"), ("serve",), {}, None)


class Doubling:
    """An engine that doubles its input, once it is let; it notes how many rows came together."""

    name, precision, at_once = "doubling", "float32", 1

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.let = threading.Event()

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float | None = None
    ) -> dict[str, Array]:
        x = inputs["x"]
        self.batches.append(len(x))
        self.let.wait(60)
        if (x < 0).any():
            raise invalid("negative")
        if outputs == ["scalar"]:
            return {"scalar": np.float32(1)}  # type: ignore[dict-item]
        return {"y": x * 2}

    def run_examples(self, *_: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


Start = Callable[..., "Future[dict[str, Array]]"]


@pytest.fixture
def engine() -> Doubling:
    return Doubling()


def starter(engine: Engine, batching: Batching, pool: ThreadPoolExecutor) -> tuple[Any, Start]:
    """Return the engine that batches, and a function that starts a call in a thread and returns once it waits."""
    inside = batched(lambda _: engine, batching)(MODEL)
    assert isinstance(inside, BatchedEngine)

    def start(*values: float, outputs: Sequence[str] = ("y",), deadline: float | None = None, side: int = 1) -> Any:
        x = np.repeat(np.array(values, np.float32)[:, None], side, axis=1)
        return pool.submit(inside.run, "serving_default", {"x": x}, list(outputs), deadline)

    return inside, start


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def queued(inside: Any, count: int) -> None:
    until(lambda: len(inside._waiting) == count, f"{count} calls to wait")


def computed_now(engine: Doubling, start: Start) -> Future[dict[str, Array]]:
    """Start the first call, and return once the engine computes it: what comes then has to wait."""
    first = start(1)
    until(lambda: len(engine.batches) == 1, "the first call to be computed")
    return first


def test_a_single_call_is_computed_at_once(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    engine.let.set()
    inside, start = starter(engine, Batching(), pool)
    assert start(1, 2).result(60)["y"].tolist() == [[2], [4]]
    inside.close()
    assert engine.batches == [2]


def test_what_waits_together_is_computed_together_and_split_again(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    inside, start = starter(engine, Batching(max_batch_size=8), pool)
    first = computed_now(engine, start)
    others = [start(*range(n, 2 * n)) for n in (1, 2, 3)]
    queued(inside, 3)
    engine.let.set()
    assert first.result(60)["y"].tolist() == [[2]]
    for n, other in zip((1, 2, 3), others, strict=True):
        assert other.result(60)["y"].ravel().tolist() == [2 * value for value in range(n, 2 * n)]
    inside.close()
    assert engine.batches == [1, 6]


def test_a_batch_is_never_larger_than_allowed(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    inside, start = starter(engine, Batching(max_batch_size=4), pool)
    futures = [computed_now(engine, start)]
    for _ in range(5):
        futures.append(start(1, 2, 3))
    queued(inside, 5)
    engine.let.set()
    assert [len(future.result(60)["y"]) for future in futures] == [1, 3, 3, 3, 3, 3]
    inside.close()
    assert max(engine.batches) <= 4


def test_a_bad_call_fails_alone(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    inside, start = starter(engine, Batching(), pool)
    computed_now(engine, start)
    good, bad, other_shape = start(3), start(-1), start(4, side=2)
    queued(inside, 3)
    engine.let.set()
    assert good.result(60)["y"].tolist() == [[6]]
    assert other_shape.result(60)["y"].tolist() == [[8, 8]]
    with pytest.raises(Refused, match="negative"):
        bad.result(60)
    inside.close()


def test_a_full_queue_is_unavailable_in_tensorflow_servings_words(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    inside, start = starter(engine, Batching(max_batch_size=2, max_enqueued_batches=2), pool)
    futures = [computed_now(engine, start)]
    futures += [start(1), start(1, 2)]
    queued(inside, 2)
    with pytest.raises(Refused) as full:
        start(1, 2).result(60)
    assert full.value.code is grpc.StatusCode.UNAVAILABLE
    assert str(full.value) == (
        "The batch scheduling queue to which this task was submitted is full; task size is 2 but scheduling capacity "
        "is only 1 (num_enqueued_batches=2, max_enqueued_batches=2, open_batch_size=1, max_execution_batch_size=2)"
    )
    with pytest.raises(Refused, match="Task size 3 is larger than maximum input batch size 2"):
        start(1, 2, 3).result(60)
    engine.let.set()
    assert [len(future.result(60)["y"]) for future in futures] == [1, 1, 2]
    inside.close()


def test_a_call_whose_deadline_is_over_is_not_computed(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    inside, start = starter(engine, Batching(), pool)
    first = computed_now(engine, start)
    late = start(2, deadline=time.monotonic() + 0.2)
    with pytest.raises(Refused) as caught:
        late.result(60)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    engine.let.set()
    first.result(60)
    inside.close()
    assert engine.batches == [1]


def test_a_late_call_behind_others_of_its_kind_is_refused_alone(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    """Calls were compared by their arrays, and the thread that computes batches died of it."""
    inside, start = starter(engine, Batching(max_batch_size=1), pool)
    first = computed_now(engine, start)
    second = start(2)
    queued(inside, 1)
    late = start(3, deadline=time.monotonic() + 0.2)
    with pytest.raises(Refused) as caught:
        late.result(60)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    engine.let.set()
    assert first.result(60)["y"].tolist() == [[2]]
    assert second.result(60)["y"].tolist() == [[4]]
    assert start(5).result(60)["y"].tolist() == [[10]]
    inside.close()


def test_a_batch_waits_for_more_only_so_long_and_not_beyond_a_deadline(
    engine: Doubling, pool: ThreadPoolExecutor
) -> None:
    engine.let.set()
    inside, start = starter(engine, Batching(max_batch_size=2, batch_timeout_micros=60_000_000), pool)
    pair = [start(1), start(2)]  # full at once
    assert [future.result(30)["y"].tolist() for future in pair] == [[[2]], [[4]]]
    with pytest.raises(Refused) as caught:  # nobody else comes
        start(1, deadline=time.monotonic() + 0.3).result(30)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    inside.close()


@pytest.mark.parametrize("allowed", [(), (4, 8)])
def test_a_call_of_no_rows_is_answered_beside_others(
    engine: Doubling, pool: ThreadPoolExecutor, allowed: tuple[int, ...]
) -> None:
    """The thread that computes batches died of it: there were fewer answers than calls."""
    inside, start = starter(engine, Batching(max_batch_size=8, allowed_batch_sizes=allowed), pool)
    first = computed_now(engine, start)
    for values in ((2, 3), (), ()):
        start(*values)
    queued(inside, 3)
    nothing = pool.submit(inside.run, "serving_default", {"x": np.zeros((0, 1), np.float32)}, ["y"])
    queued(inside, 4)
    engine.let.set()
    assert first.result(60)["y"].tolist() == [[2]]
    assert nothing.result(60)["y"].shape == (0, 1)
    assert start().result(60)["y"].shape == (0, 1)
    assert start(5).result(60)["y"].tolist() == [[10]]
    inside.close()


def test_a_batch_is_filled_up_to_an_allowed_size(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    engine.let.set()
    inside, start = starter(engine, Batching(max_batch_size=8, allowed_batch_sizes=(4, 8)), pool)
    assert start(1, 2, 3).result(60)["y"].tolist() == [[2], [4], [6]]
    inside.close()
    assert engine.batches == [4]


def test_inputs_and_outputs_without_rows_are_refused(engine: Doubling, pool: ThreadPoolExecutor) -> None:
    engine.let.set()
    inside, start = starter(engine, Batching(), pool)
    with pytest.raises(Refused, match="Batched output tensor has 0 dimensions"):
        start(1, outputs=["scalar"]).result(60)
    with pytest.raises(Refused, match="input tensors must have at least one dimension"):
        inside.run("serving_default", {"x": np.array(1, np.float32)}, ["y"])
    with pytest.raises(Refused, match="input tensors must have equal 0th-dimension size"):
        inside.run("serving_default", {"x": np.zeros((1, 1)), "z": np.zeros((2, 1))}, ["y"])
    inside.close()


# --------------------------------------------------------------------------------------------------- parameters' file


def test_the_parameters_file_is_tensorflow_servings(tmp_path: Path) -> None:
    file = tmp_path / "batching"
    file.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 5000 } num_batch_threads { value: 2 }\n"
        'max_enqueued_batches { value: 3 } allowed_batch_sizes: [2, 8] thread_pool_name { value: "x" }'
    )
    assert config.read_batching(file) == Batching(8, 5000, 3, 2, (2, 8))
    file.write_text("")
    assert config.read_batching(file) == Batching()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_batch_sise { value: 8 }", "is no BatchingParameters in protobuf's text format: 1:1"),
        ("max_batch_size { value: 0 }", "max_batch_size must be at least 1, not 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must not be negative"),
        ("allowed_batch_sizes: [4, 2]", "each larger than the one before"),
        ("allowed_batch_sizes: [2, 4]", "the last of allowed_batch_sizes must be max_batch_size, 1000"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "batching").write_text(text)
    with pytest.raises(UserError, match=reason):
        config.read_batching(tmp_path / "batching")
    with pytest.raises(UserError, match="cannot be read"):
        config.read_batching(tmp_path / "nothing")


# --------------------------------------------------------------------------------------------------------- a server


@pytest.mark.parametrize("engine_name", ["openvino", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_many_callers_of_a_server_that_batches_each_get_the_answer_they_get_alone(
    tmp_path: Path, engine_name: str
) -> None:
    models.write(tmp_path / "tires" / "1")
    (tmp_path / "batching").write_text("max_batch_size { value: 4 } max_enqueued_batches { value: 100 }")
    flags = ("--enable_batching", f"--batching_parameters_file={tmp_path / 'batching'}", "--grpc_max_threads=16")
    pictures = np.random.default_rng(0).integers(0, 256, (12, 1, models.SIDE, models.SIDE, 3), np.uint8)
    with model_server(tmp_path, "tires", *flags, engine=engine_name) as server, ThreadPoolExecutor(12) as callers:
        predict = proto.call(grpc.insecure_channel(f"localhost:{server.port}"), proto.PREDICT)

        def ask(picture: Array) -> Array:
            answer = predict(proto.predict_request("tires", {"image": picture}), timeout=60)
            return proto.to_array(answer.outputs["probabilities"])

        alone = [ask(picture) for picture in pictures]
        for _ in range(5):
            together = list(callers.map(ask, pictures))
            np.testing.assert_allclose(together, alone, atol=1e-5)
        with pytest.raises(grpc.RpcError) as caught:
            ask(np.zeros((5, models.SIDE, models.SIDE, 3), np.uint8))
    assert caught.value.details() == "Task size 5 is larger than maximum input batch size 4"
