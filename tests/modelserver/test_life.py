"""The model server's life: versions that come, go and break, signals, ports and flags, as processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf

from loupe import proto
from loupe.errors import UserError
from loupe.modelserver import flags
from tests.support import models
from tests.support.pace import seconds
from tests.support.servers import ROOT, ModelServer, free_port, model_server, until

# What the server itself does is the same with either engine; TensorFlow takes seconds to start.
ENGINES = ["openvino", pytest.param("tensorflow", marks=pytest.mark.slow)]
IMAGES = np.random.default_rng(0).integers(0, 256, (1, models.SIDE, models.SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished models, to be copied from."""
    made = tmp_path_factory.mktemp("shelf")
    for seed in (1, 2):
        models.write(made / str(seed), seed=seed)
    models.write_slow(made / "slow")
    return made


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def publish(model: Path, folder: Path) -> None:
    """Publish by a rename, as Loupe does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, folder.parent / f".{folder.name}")
    (folder.parent / f".{folder.name}").rename(folder)


def predictor(server: ModelServer) -> Any:
    return proto.call(grpc.insecure_channel(f"localhost:{server.port}"), proto.PREDICT)


def ask(predict: Callable[..., Any]) -> tuple[int, bytes]:
    answer = predict(proto.predict_request("tires", {"image": IMAGES}), timeout=60)
    return answer.model_spec.version.value, proto.to_array(answer.outputs["probabilities"]).tobytes()


def states(server: ModelServer) -> list[tuple[int, str, int]]:
    """Version, state and error code, as listed."""
    call = proto.call(grpc.insecure_channel(f"localhost:{server.port}"), proto.GET_MODEL_STATUS)
    listed = call(proto.GetModelStatusRequest(model_spec=proto.model_spec("tires")), timeout=60)
    return [(v.version, proto.STATES[v.state], v.status.error_code) for v in listed.model_version_status]


# ------------------------------------------------------------------------------------------------------- versions


def test_a_version_whose_card_is_still_being_copied_waits_for_it(tmp_path: Path, shelf: Path) -> None:
    publish(shelf / "1", tmp_path / "tires" / "1")
    with model_server(tmp_path, "tires") as server:
        predict = predictor(server)
        shutil.copytree(shelf / "2", tmp_path / "tires" / "2", ignore=shutil.ignore_patterns("assets.extra"))
        until(lambda: "version 2 of tires does not load" in server.stderr(), "version 2 to be refused")
        assert ask(predict)[0] == 1
        shutil.copytree(shelf / "2" / "assets.extra", tmp_path / "tires" / "2" / "assets.extra")
        until(lambda: ask(predict)[0] == 2, "version 2")


def test_a_new_version_is_swapped_in_under_load_without_a_failed_call(shelf: Path, tmp_path: Path, engine: str) -> None:
    publish(shelf / "1", tmp_path / "tires" / "1")
    with model_server(tmp_path, "tires", engine=engine) as server:
        seen: list[tuple[int, bytes] | Exception] = []
        done = threading.Event()
        threads = [threading.Thread(target=keep_asking, args=[predictor(server), seen, done]) for _ in range(2)]
        for thread in threads:
            thread.start()
        publish(shelf / "2", tmp_path / "tires" / "2")
        until(lambda: states(server) == [(2, "AVAILABLE", 0), (1, "END", 0)], "version 2")
        time.sleep(0.2)
        done.set()
        for thread in threads:
            thread.join(60)
        assert [answer for answer in seen if isinstance(answer, Exception)] == []
        answers = {answer for answer in seen if not isinstance(answer, Exception)}
        assert sorted(version for version, _ in answers) == [1, 2]  # each version has one answer, and it is its own
        assert len({answer for _, answer in answers}) == 2


def keep_asking(predict: Callable[..., Any], seen: list[Any], done: threading.Event) -> None:
    while not done.is_set():
        try:
            seen.append(ask(predict))
        except grpc.RpcError as error:
            seen.append(error)


def test_a_corrupt_new_version_leaves_the_old_one_and_is_tried_again_once_mended(
    shelf: Path, tmp_path: Path, engine: str
) -> None:
    publish(shelf / "1", tmp_path / "tires" / "6")
    with model_server(tmp_path, "tires", engine=engine) as server:
        broken = tmp_path / "tires" / "7"
        broken.mkdir()
        (broken / "saved_model.pb").write_bytes(b"\xff junk")
        until(lambda: (7, "END", grpc.StatusCode.DATA_LOSS.value[0]) in states(server), "version 7 to fail")
        assert states(server)[1] == (6, "AVAILABLE", 0)
        assert ask(predictor(server))[0] == 6
        (line,) = [line for line in server.stderr().splitlines() if "does not load" in line]
        assert line.startswith("loupe.modelserver: version 7 of tires does not load: Can't parse ")
        assert line.endswith("; version 6 stays")
        shutil.copytree(shelf / "2", broken, dirs_exist_ok=True)
        until(lambda: ask(predictor(server))[0] == 7, "version 7")


@pytest.mark.slow
def test_a_graph_that_is_cut_short_leaves_the_old_one(shelf: Path, tmp_path: Path, engine: str) -> None:
    publish(shelf / "1", tmp_path / "tires" / "6")
    with model_server(tmp_path, "tires", engine=engine) as server:
        half = tmp_path / "tires" / "7"
        half.mkdir()
        whole = (shelf / "2" / "saved_model.pb").read_bytes()
        (half / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
        until(lambda: states(server)[0][:2] == (7, "END"), "version 7 to fail")
        assert ask(predictor(server))[0] == 6


def test_deleting_the_newest_falls_back_and_deleting_all_keeps_serving(shelf: Path, tmp_path: Path) -> None:
    base = tmp_path / "tires"
    publish(shelf / "1", base / "1")
    publish(shelf / "2", base / "2")
    (base / "notes").mkdir()
    with model_server(tmp_path, "tires") as server:
        predict = predictor(server)
        assert ask(predict)[0] == 2
        shutil.rmtree(base / "2")
        until(lambda: states(server) == [(2, "END", 0), (1, "AVAILABLE", 0)], "version 1")
        shutil.rmtree(base)
        until(lambda: "version 1 of tires stays" in server.stderr(), "the base path's end")
        assert ask(predict)[0] == 1


def test_at_the_start_an_older_version_is_served_where_the_newest_does_not_load(shelf: Path, tmp_path: Path) -> None:
    publish(shelf / "1", tmp_path / "tires" / "1")
    (tmp_path / "tires" / "2").mkdir()
    with model_server(tmp_path, "tires") as server:
        assert ask(predictor(server))[0] == 1
        assert "version 2 of tires does not load" in server.stderr()
        assert "trying version 1" in server.stderr()


def test_an_empty_folder_is_waited_for_with_ports_closed_and_sigterm_ends_it(shelf: Path, tmp_path: Path) -> None:
    with model_server(tmp_path, "tires", f"--port={free_port()}", ready=False) as server:
        until(lambda: "is no folder" in server.stderr(), "the line that says so")
        assert server.stop() == 0
        assert len(server.stderr().splitlines()) == 1
        assert server.stdout() == ""
    (tmp_path / "tires").mkdir()
    with model_server(tmp_path, "tires", ready=False) as server:
        until(lambda: "holds no version" in server.stderr(), "the line that says so")
        publish(shelf / "1", tmp_path / "tires" / "1")
        server.wait_ready()
        assert ask(predictor(server))[0] == 1


def test_a_model_that_never_loads_ends_the_server_with_one_reason(tmp_path: Path, engine: str) -> None:
    (tmp_path / "tires" / "7").mkdir(parents=True)
    retries = ("--max_num_load_retries=1", "--load_retry_interval_micros=1000")
    with model_server(tmp_path, "tires", *retries, engine=engine, ready=False) as server:
        assert server.process.wait(60) == 2
        lines = server.stderr().splitlines()
    assert [line.rpartition("; ")[2] for line in lines[:2]] == ["trying again in 0 s", "giving up"]
    assert "no version of tires under" in lines[-1]
    assert "Could not find SavedModel" in lines[-1]
    assert "Traceback" not in "".join(lines)


# -------------------------------------------------------------------------------------------- signals and threads


def in_flight(server: ModelServer) -> tuple[Any, int]:
    """A call that the server has begun to compute, for it spends CPU time, and its turns. It takes about three seconds
    on any machine: a server that is told to stop cuts it off after ten."""
    predict, trial = predictor(server), 200
    predict(turns_request(1), timeout=60)
    started = time.monotonic()
    predict(turns_request(trial), timeout=60)
    turns = max(trial, round(3 * trial / (time.monotonic() - started)))
    spent = cpu_seconds(server)
    call = predict.future(turns_request(turns), timeout=60)
    until(lambda: cpu_seconds(server) > spent + 0.2, "the server to compute")
    assert not call.done()
    return call, turns


def turns_request(turns: int) -> Any:
    return proto.predict_request("slow", {"turns": np.array([[turns]], np.float32)})


def cpu_seconds(server: ModelServer) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def slow(shelf: Path, tmp_path: Path, engine: str) -> Iterator[ModelServer]:
    publish(shelf / "slow", tmp_path / "slow" / "1")
    with model_server(tmp_path, "slow", "--grpc_max_threads=1", engine=engine) as server:
        yield server


def test_sigterm_lets_a_call_in_flight_end(slow: ModelServer) -> None:
    call, turns = in_flight(slow)
    slow.process.terminate()
    until(lambda: "stopping" in slow.stderr(), "the signal to arrive")
    assert not call.done()
    assert proto.to_array(call.result().outputs["done"])[0, 0] == pytest.approx(turns, abs=1)
    assert slow.process.wait(60) == 0


def test_a_call_beyond_the_threads_is_resource_exhausted(slow: ModelServer) -> None:
    call, _ = in_flight(slow)
    with pytest.raises(grpc.RpcError) as caught:
        predictor(slow)(turns_request(0), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    call.result()


def test_as_many_callers_as_threads_are_all_answered(shelf: Path, tmp_path: Path, engine: str) -> None:
    """Each asks again as soon as it has its answer."""
    publish(shelf / "slow", tmp_path / "slow" / "1")
    nothing = turns_request(0)
    with (
        model_server(tmp_path, "slow", "--grpc_max_threads=4", engine=engine) as server,
        ThreadPoolExecutor(4) as callers,
    ):
        predict = predictor(server)
        assert len(list(callers.map(lambda _: predict(nothing, timeout=60), range(1000)))) == 1000


@pytest.mark.timing
def test_idle_it_ends_at_once_on_sigterm_and_on_ctrl_c(shelf: Path, tmp_path: Path) -> None:
    publish(shelf / "1", tmp_path / "tires" / "1")
    for number in (signal.SIGTERM, signal.SIGINT):
        with model_server(tmp_path, "tires") as server:
            server.process.send_signal(number)
            assert server.process.wait(seconds(5)) == 0


# ------------------------------------------------------------------------------------------------ ports and flags


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loupe.modelserver", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port=0", f"--{flag}={port}", f"--model_base_path={tmp_path}")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"loupe.modelserver: port {port} of 127.0.0.1 is taken: ")
    assert line.endswith(f"choose another with --{flag}")


def test_a_wrong_command_line_is_one_line_and_status_2() -> None:
    done = run("--prot=1", "--port=x", "--ssl_config_file=ssl", "--engine=torch", "--batching_parameters_file=b")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    for words in (
        "unknown flag --prot; the nearest is --port", "--port is a whole number, not 'x'",
        "--ssl_config_file is not read here", "--model_base_path is missing", "without --enable_batching",
        "--engine is one of auto,",
    ):  # fmt: skip
        assert words in done.stderr


def test_flags_are_read_in_every_form_that_tensorflow_serving_takes(capsys: pytest.CaptureFixture[str]) -> None:
    parsed = flags.parse([
        "--port=1", "--rest_api_port", "2", "--prefer_tflite_model", "--num_tflite_pools=2",
        "--num_load_threads", "3", "--enable_grpc_healthcheck_service", "--enable_profiler=false",
        "--enable_serialization_as_tensor_content=false",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=20000,grpc.x=y", "--model_base_path=m",
    ])  # fmt: skip
    assert (parsed.port, parsed.rest_api_port, parsed.model_name) == (1, 2, "default")
    assert parsed.enable_grpc_healthcheck_service
    assert not parsed.enable_serialization_as_tensor_content
    assert parsed.channel_arguments == [("grpc.max_connection_age_ms", 20000), ("grpc.x", "y")]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [
        "--prefer_tflite_model",
        "--num_tflite_pools",
        "--num_load_threads",
    ]
    assert all(line.endswith("has no effect here") for line in lines)
    with pytest.raises(UserError, match="--model_name needs a value"):
        flags.parse(["--model_base_path=m", "--model_name"])


@pytest.mark.parametrize(
    "flag",
    [
        "--tensorflow_intra_op_parallelism=-1", "--tensorflow_intra_op_parallelism=99999999999",
        "--file_system_poll_wait_seconds=99999999999", "--load_retry_interval_micros=-1", "--address=", "--model_name=",
        "--saved_model_tags=", "--grpc_channel_arguments=grpc.max_receive_message_length=99999999999999999999",
        "--grpc_channel_arguments==5",
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused_at_the_start(flag: str) -> None:
    """Some ended in a traceback once the model had loaded, some in a server that nobody could reach."""
    with pytest.raises(UserError, match=flag.partition("=")[0]):
        flags.parse(["--model_base_path=m", flag])


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({}, [], ("tires", "/models/tires", 8501)),
        ({"MODEL_NAME": ""}, [], ("model", "/models/model", 8501)),
        ({}, ["--model_name=cars", "--rest_api_port=80"], ("cars", "/models/cars", 80)),
        ({}, ["--model_base_path=here"], ("default", "here", 0)),
    ],
)
def test_the_environment_of_tensorflow_servings_image_says_what_no_flag_says(
    environment: dict[str, str], arguments: list[str], expected: tuple[str, str, int]
) -> None:
    image = {"MODEL_NAME": "tires", "MODEL_BASE_PATH": "/models", **environment}
    parsed = flags.parse(arguments, image)
    assert (parsed.model_name, parsed.model_base_path, parsed.rest_api_port) == expected


def test_old_connections_are_closed_where_the_flag_says_so(shelf: Path, tmp_path: Path) -> None:
    publish(shelf / "1", tmp_path / "tires" / "1")
    age = "--grpc_channel_arguments=grpc.max_connection_age_ms=200,grpc.max_connection_age_grace_ms=100"
    with model_server(tmp_path, "tires", age) as server:
        channel = grpc.insecure_channel(f"localhost:{server.port}")
        seen: list[grpc.ChannelConnectivity] = []
        channel.subscribe(seen.append)
        ask(proto.call(channel, proto.PREDICT))
        until(lambda: grpc.ChannelConnectivity.IDLE in seen[2:], "the connection to be closed")


# -------------------------------------------------------------------------------------------------------- engines


def test_an_openvino_server_holds_no_tensorflow_and_writes_nothing_at_home(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing openvino would report home and leave a client id in ~/intel, were its telemetry not kept out."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    publish(shelf / "1", tmp_path / "tires" / "1")
    with model_server(tmp_path, "tires", engine="auto") as server:
        ask(predictor(server))
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert server.engine == "openvino"
        assert "libopenvino" in mapped
        assert "libtensorflow" not in mapped and "-packages/tensorflow/" not in mapped
    assert list(home.iterdir()) == []
    code = "import sys, loupe.engines.openvino_engine; print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "None", done.stderr


def test_what_openvino_would_compute_in_32_bits_is_tensorflows(tmp_path: Path) -> None:
    """3,000,000,000 came out as a negative number."""
    models.write_scalar(tmp_path / "double" / "1", tf.int64)
    with model_server(tmp_path, "double", "--max_num_load_retries=0", ready=False) as server:
        assert server.process.wait(60) == 2
        assert "x is int64, which openvino computes in 32 bits; --engine=tensorflow does not" in server.stderr()
    with model_server(tmp_path, "double", engine="auto") as server:
        request = proto.predict_request("double", {"x": np.array(3_000_000_000)})
        assert proto.to_array(predictor(server)(request, timeout=60).outputs["y"]).item() == 6_000_000_000


@pytest.mark.slow
def test_auto_takes_tensorflow_for_what_openvino_cannot_load(tmp_path: Path) -> None:
    models.write_text_length(tmp_path / "text" / "1")
    with model_server(tmp_path, "text", engine="auto") as server:
        assert server.engine == "tensorflow"
        assert "openvino does not take" in server.stderr()
        request = proto.predict_request("text", {"text": [b"tire"]})
        assert proto.to_array(predictor(server)(request, timeout=60).outputs["length"]).tolist() == [4]
