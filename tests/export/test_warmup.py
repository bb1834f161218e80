"""Warm-up requests: the file as TensorFlow reads it, and what the model server does with it before it serves."""

from __future__ import annotations

import os
import re
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from loupe import proto, tfrecord
from loupe.card import Card
from loupe.engines import savedmodel
from loupe.engines.choose import chooser
from loupe.engines.engine import Engine, Options
from loupe.engines.refused import Refused
from loupe.export.graph import warmup
from loupe.export.graph.savedmodel import loaded
from loupe.modelserver import warmup as replayed
from loupe.modelserver.warmup import MAX_BATCH, MAX_RECORDS, replaying
from tests.support import models
from tests.support.servers import ModelServer, model_server, until

CARD = Card(name="tires", labels=tuple(models.LABELS), height=models.SIDE, width=models.SIDE)
INVALID, LOST = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = models.write(tmp_path_factory.mktemp("warmed") / "tires" / "1")
    warmup.write(folder, CARD)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model whose warm-up file a test writes."""
    return models.write(tmp_path / "tires" / "1")


def logs(folder: Path) -> list[Any]:
    """Read the requests with TensorFlow and the official class."""
    records = tf.data.TFRecordDataset(str(folder / warmup.REQUESTS)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


# ------------------------------------------------------------------------------------------------------------ the file


def test_tensorflow_reads_a_predict_request_for_each_batch_size(warmed: Path) -> None:
    assert (warmed / warmup.REQUESTS).stat().st_size < 1000
    requests = logs(warmed)
    assert [log.WhichOneof("log_type") for log in requests] == ["predict_log"] * 4
    for log, batch in zip(requests, (1, 2, 4, 8), strict=True):
        request = log.predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == ("tires", "serving_default")
        image = tf.make_ndarray(request.inputs["image"])
        assert (image.shape, image.dtype, np.unique(image).tolist()) == ((batch, 32, 32, 3), np.uint8, [128])
        parsed = tf.io.parse_tensor(request.inputs["image"].SerializeToString(), tf.uint8)  # by TensorFlow's own C++
        assert np.array_equal(parsed, image)


def test_pictures_too_large_to_be_spread_from_one_value_are_left_out(warmed: Path, tmp_path: Path) -> None:
    warmup.write(tmp_path, Card(name="big", labels=("a", "b"), height=1024, width=1024))
    sizes = [log.predict_log.request.inputs["image"].tensor_shape.dim[0].size for log in logs(tmp_path)]
    assert sizes == [1, 2, 4]
    for record in tfrecord.read(tmp_path / warmup.REQUESTS):
        proto.to_array(proto.PredictionLog.FromString(record).predict_log.request.inputs["image"])


def test_every_request_is_answered_in_a_tf1_session_and_through_the_official_client(warmed: Path) -> None:
    requests = [log.predict_log.request for log in logs(warmed)]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        tf.compat.v1.saved_model.loader.load(session, ["serve"], str(warmed))
        for request in requests:
            image = tf.make_ndarray(request.inputs["image"])
            assert session.run("probabilities:0", {"image:0": image}).shape == (len(image), 3)
    with model_server(warmed.parent.parent, "tires") as server:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"localhost:{server.port}"))
        answers = [stub.Predict(request, timeout=60) for request in requests]
        assert [tf.make_ndarray(answer.outputs["probabilities"]).shape for answer in answers] == [
            (batch, 3) for batch in (1, 2, 4, 8)
        ]


# ------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("sizes", [[], [0], [1], [3, 0, 5], [70_000], [tfrecord.CHUNK - 1, tfrecord.CHUNK + 5]])
def test_records_are_read_and_written_as_tensorflow_does(tmp_path: Path, sizes: list[int]) -> None:
    wanted = [np.random.default_rng(size).bytes(size) for size in sizes]
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for record in wanted:
            writer.write(record)
    tfrecord.write(tmp_path / "ours", wanted)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert list(tfrecord.read(tmp_path / "theirs")) == wanted


def test_a_file_cut_off_or_with_any_byte_changed_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tfrecord.write(path, [b"first", b"second"])
    whole = path.read_bytes()
    first = 16 + len(b"first")
    for length in set(range(1, len(whole))) - {first}:
        path.write_bytes(whole[:length])
        with pytest.raises(tfrecord.Damaged):
            list(tfrecord.read(path))
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        with pytest.raises(tfrecord.Damaged):
            list(tfrecord.read(path))


@pytest.mark.parametrize("length", [1 << 62, tfrecord.MAX_RECORD + 1, tfrecord.MAX_RECORD])
def test_a_length_that_lies_takes_no_memory(tmp_path: Path, length: int) -> None:
    path = tmp_path / "file"
    header = length.to_bytes(8, "little")
    path.write_bytes(header + tfrecord._checksum(header))
    os.truncate(path, 12 + tfrecord.MAX_RECORD)  # sparse
    tracemalloc.start()
    with pytest.raises(tfrecord.Damaged):
        list(tfrecord.read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


# -------------------------------------------------------------------------------------------------- in the model server


def predict(**fields: Any) -> bytes:
    """A record of a Predict request for one grey picture, changed."""
    shape = fields.pop("shape", [1, 32, 32, 3])
    name, dtype = fields.pop("alias", "image"), fields.pop("dtype", tf.uint8.as_datatype_enum)
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "tires"
    request.model_spec.signature_name = fields.pop("signature", "serving_default")
    request.inputs[name].dtype = dtype
    request.inputs[name].int_val.append(7)
    for size in shape:
        request.inputs[name].tensor_shape.dim.add(size=size)
    assert not fields
    data: bytes = log.SerializeToString()
    return data


def classify() -> bytes:
    log = prediction_log_pb2.ClassifyLog(request=classification_pb2.ClassificationRequest())
    data: bytes = prediction_log_pb2.PredictionLog(classify_log=log).SerializeToString()
    return data


FAULTS = {
    "another shape": ([predict(shape=[1, 16, 16, 3])], INVALID, "must have the shape"),
    "the second record": ([predict(), predict(alias="picture")], INVALID, "record 2: input tensor alias not found"),
    "another type": ([predict(dtype=tf.float32.as_datatype_enum)], INVALID, "Expects arg[0] to be uint8"),
    "a shape that lies": ([predict(shape=[1 << 40, 32, 32, 3])], INVALID, "tensor parsing error: image"),
    "no such signature": ([predict(signature="nope")], grpc.StatusCode.FAILED_PRECONDITION, "nope"),
    "no PredictionLog": ([b"\xff junk"], INVALID, "Failed to parse warmup record"),
    "too many": ([classify()] * (MAX_RECORDS + 1), INVALID, "exceeds the maximum (1000)"),
}


def load(folder: Path) -> Engine:
    return replaying(chooser("openvino", Options()))(savedmodel.read(folder))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_that_fails_fails_the_load(bare: Path, fault: str) -> None:
    records, code, words = FAULTS[fault]
    tfrecord.write(bare / warmup.REQUESTS, records)
    with pytest.raises(Refused) as refused:
        load(bare)
    assert refused.value.code == code
    assert words in str(refused.value)


def test_a_damaged_file_fails_the_load_and_a_pipe_is_not_waited_for(bare: Path) -> None:
    path = bare / warmup.REQUESTS
    tfrecord.write(path, [predict()])
    for content in (path.read_bytes()[:-1], b"not records"):
        path.write_bytes(content)
        with pytest.raises(Refused, match="verify your warmup data is in TFRecord format") as refused:
            load(bare)
        assert refused.value.code == LOST
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Refused, match="no file"):
        load(bare)


def test_no_file_an_empty_file_and_records_of_other_calls_are_fine(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bare / warmup.REQUESTS
    assert load(bare).name == "openvino"
    for records in ([], [predict(), classify()]):
        tfrecord.write(path, records)
        assert load(bare).name == "openvino"
    assert "record 2, is no Predict request: passed over" in capsys.readouterr().err


def test_the_tensorflow_engine_replays_it_too(bare: Path) -> None:
    open_engine = replaying(chooser("tensorflow", Options()))
    warmup.write(bare, CARD)
    open_engine(savedmodel.read(bare)).close()
    tfrecord.write(bare / warmup.REQUESTS, [predict(shape=[0, 32, 32])])
    with pytest.raises(Refused, match="must have the shape"):
        open_engine(savedmodel.read(bare))


def states(server: ModelServer) -> list[tuple[int, int, int]]:
    call = proto.call(grpc.insecure_channel(f"localhost:{server.port}"), proto.GET_MODEL_STATUS)
    listed = call(proto.GetModelStatusRequest(model_spec=proto.model_spec("tires")), timeout=60)
    return [(v.version, v.state, v.status.error_code) for v in listed.model_version_status]


def test_the_old_version_keeps_serving_until_the_requests_are_mended(bare: Path) -> None:
    broken = models.write(bare.parent / ".2", seed=2)
    tfrecord.write(broken / warmup.REQUESTS, [predict(shape=[1, 16, 16, 3])])
    with model_server(bare.parent.parent, "tires") as server:
        broken.rename(bare.parent / "2")
        failed = [(2, proto.END, INVALID.value[0]), (1, proto.AVAILABLE, 0)]
        until(lambda: states(server) == failed, "version 2 to be refused")
        warmup.write(bare.parent / "2", CARD)
        until(lambda: states(server)[0] == (2, proto.AVAILABLE, 0), "version 2")


def test_a_batch_of_more_than_256_is_passed_over_with_a_line(bare: Path) -> None:
    batches = (MAX_BATCH, MAX_BATCH + 1, 5461)
    with model_server(bare.parent.parent, "tires") as server:
        _publish_next(bare, [predict(shape=[batch, 32, 32, 3]) for batch in batches])
        until(lambda: states(server)[0] == (2, proto.AVAILABLE, 0), "version 2")
        lines = [line for line in server.stderr().splitlines() if "passed over" in line]
        assert [line.partition("requests, ")[2] for line in lines] == [
            "record 2, is a batch of 257, more than 256: passed over",
            "record 3, is a batch of 5461, more than 256: passed over",
        ]


def _publish_next(version: Path, records: list[bytes]) -> None:
    """Publish the version again under the next number, with these warm-up requests."""
    part = version.parent / ".2"
    shutil.copytree(version, part)
    (part / "assets.extra").mkdir(exist_ok=True)
    tfrecord.write(part / warmup.REQUESTS, records)
    part.rename(version.parent / "2")


def test_at_the_start_few_requests_are_run_and_all_are_read(tmp_path: Path) -> None:
    """Callers wait for the first version, and nobody is served meanwhile."""
    folder = models.write_slow(tmp_path / "slow" / "1")
    slow_requests(folder, 2_000)
    with model_server(tmp_path, "slow") as server:  # a thousand requests would take minutes
        assert server.stderr().count("\n") == 1, server.stderr()
    with (folder / warmup.REQUESTS).open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 5)
    with model_server(tmp_path, "slow", "--max_num_load_retries=0", ready=False) as server:
        assert server.process.wait(60) == 2
        assert "Please verify your warmup data is in TFRecord format." in server.stderr()


def test_an_answer_that_differs_from_the_recorded_one_is_said(bare: Path) -> None:
    warmup.write(bare, CARD, [1, 2])
    records = []
    with loaded(bare) as ask:
        warmup.record(bare, ask)
    for number, data in enumerate(tfrecord.read(bare / warmup.REQUESTS)):
        log = proto.PredictionLog.FromString(data)
        assert sorted(log.predict_log.response.outputs) == ["heatmap", "probabilities"]
        if number:
            changed = 1 - proto.to_array(log.predict_log.response.outputs["probabilities"])
            log.predict_log.response.outputs["probabilities"].CopyFrom(proto.to_tensor(changed))
        records.append(log.SerializeToString())
    tfrecord.write(bare / warmup.REQUESTS, records)
    with model_server(bare.parent.parent, "tires") as server:
        (line,) = [line for line in server.stderr().splitlines() if "differs" in line]
    assert re.search(r"record 2: probabilities differs by 0\.\d+ from what was recorded", line)


def slow_requests(folder: Path, turns: float) -> None:
    """Write as many requests as are read; each takes some milliseconds for a hundred turns."""
    log = proto.PredictionLog()
    log.predict_log.request.CopyFrom(proto.predict_request("slow", {"turns": np.array([[turns]], np.float32)}))
    (folder / "assets.extra").mkdir()
    tfrecord.write(folder / warmup.REQUESTS, [log.SerializeToString()] * MAX_RECORDS)


def test_what_is_left_when_warming_up_has_taken_long_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replayed, "SECONDS", 1.0)
    slow_requests(models.write_slow(tmp_path / "slow" / "1"), 500)
    started = time.monotonic()
    assert load(tmp_path / "slow" / "1").name == "openvino"
    assert time.monotonic() - started < 60
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warming up has taken 1 s" in line]
    assert line.endswith("and what follows is passed over")


@pytest.mark.slow
def test_a_file_that_would_take_minutes_delays_a_version_by_half_a_minute(tmp_path: Path) -> None:
    folder = models.write_slow(tmp_path / "slow" / "1")
    slow_requests(folder, 2_000)
    with model_server(tmp_path, "slow") as server:
        _publish_next(folder, list(tfrecord.read(folder / warmup.REQUESTS)))
        until(lambda: "warming up has taken 30 s" in server.stderr(), "the line that says so", 90)


@pytest.mark.parametrize(("flag", "served"), [("--enable_model_warmup=false", True), ("--enable_model_warmup", False)])
def test_the_flag_turns_it_off(bare: Path, flag: str, served: bool) -> None:
    tfrecord.write(bare / warmup.REQUESTS, [predict(alias="picture")])
    with model_server(bare.parent.parent, "tires", flag, "--max_num_load_retries=0", ready=served) as server:
        if served:
            assert states(server) == [(1, proto.AVAILABLE, 0)]
        else:
            assert server.process.wait(60) == 2
            assert "record 1: input tensor alias not found in signature: picture" in server.stderr()
