"""Several models in one server: the configuration file, version policies, labels, and reloading, as processes of their
own, asked by the official client."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, model_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from loupe import proto
from tests.support import models
from tests.support.servers import ModelServer, model_server, until

IMAGES = np.full((1, models.SIDE, models.SIDE, 3), 128, np.uint8)
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
ANY_LABEL = "--allow_version_labels_for_unavailable_models"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of three versions each, to be served from here or copied."""
    made = tmp_path_factory.mktemp("shelf")
    for seed, (name, number) in enumerate((name, number) for name in ("cars", "tires") for number in (1, 2, 3)):
        models.write(made / name / str(number), seed=seed)
    return made


def entry(name: str, base: Path, more: str = "") -> str:
    return f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more} }}'


def configuration(*entries: str) -> str:
    return f"model_config_list {{ {' '.join(entries)} }}"


def label(name: str, version: int) -> str:
    return f'version_labels {{ key: "{name}" value: {version} }}'


class Client:
    def __init__(self, server: ModelServer) -> None:
        self.channel = grpc.insecure_channel(f"localhost:{server.port}")
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def version(self, name: str, number: int | None = None, label: str = "") -> int:
        """Return the version that answers."""
        request = proto.predict_request(name, {"image": IMAGES}, version=number)
        request.model_spec.version_label = label
        answered: int = proto.call(self.channel, proto.PREDICT)(request, timeout=60).model_spec.version.value
        return answered

    def states(self, name: str, label: str = "") -> list[tuple[int, str]]:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": name})
        request.model_spec.version_label = label
        listed = self.models.GetModelStatus(request, timeout=60).model_version_status
        return [(version.version, proto.STATES[version.state]) for version in listed]

    def reload(self, text: str, timeout: float = 60) -> Any:
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
        request = model_management_pb2.ReloadConfigRequest(config=config)
        return self.models.HandleReloadConfigRequest(request, timeout=timeout)


def refusal(call: Any, *arguments: Any, **more: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more)
    return caught.value.code(), caught.value.details()


@pytest.fixture(scope="module")
def two(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """Two models of two versions and a label each."""
    file = tmp_path_factory.mktemp("config") / "models.config"
    file.write_text(
        configuration(
            entry("tires", shelf / "tires", f"model_version_policy {{ all {{}} }} {label('stable', 2)}"),
            entry(
                "cars",
                shelf / "cars",
                f"model_version_policy {{ specific {{ versions: 1 versions: 2 }} }} {label('stable', 1)}",
            ),
        )
    )
    with model_server(shelf, "unused", f"--model_config_file={file}", ANY_LABEL) as running:
        yield running


# ---------------------------------------------------------------------------------------------------------- the file


def test_the_newest_version_a_number_and_a_label_are_answered_of_each_model(two: ModelServer) -> None:
    client = Client(two)
    all_three = [(3, "AVAILABLE"), (2, "AVAILABLE"), (1, "AVAILABLE")]
    until(lambda: client.states("tires") + client.states("cars") == all_three + all_three[1:], "every version")
    assert [client.version("tires"), client.version("cars")] == [3, 2]
    assert [client.version("tires", number) for number in (1, 2, 3)] == [1, 2, 3]
    assert client.version("tires", label="stable") == 2
    assert client.version("cars", label="stable") == 1
    assert client.states("cars") == [(2, "AVAILABLE"), (1, "AVAILABLE")]
    assert client.states("cars", "stable") == [(1, "AVAILABLE")]


def test_what_is_not_served_is_refused_in_tensorflow_servings_words(two: ModelServer) -> None:
    client = Client(two)
    assert refusal(client.version, "cars", 3) == (NOT_FOUND, "Servable not found for request: Specific(cars, 3)")
    assert refusal(client.version, "bikes") == (NOT_FOUND, "Servable not found for request: Latest(bikes)")
    assert refusal(client.version, "cars", label="canary") == (
        INVALID,
        "Unrecognized servable version label: canary",
    )
    assert refusal(client.states, "bikes") == (NOT_FOUND, "Could not find any versions of model bikes")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model_config_list { config { nam", "is no ModelServerConfig in protobuf's text format: 1:"),
        ("", "has no model_config_list, the models to serve"),
        (configuration(entry("a", Path("x"))), "Expected model a to have an absolute path or URI; got base_path()=x"),
        (configuration(entry("a", Path("x")), entry("a", Path("y"))), "Illegal to list model a multiple times"),
        (
            configuration('config { name: "a" base_path: "/x" }'),
            "Illegal setting neither ModelServerConfig::model_type",
        ),
        (
            configuration('config { name: "a" base_path: "/x" model_platform: "caffe" }'),
            "Model a requests unsupported platform caffe",
        ),
        (
            configuration(entry("tires", Path("/x"), label("stable", 2))),
            "Request to assign label to version 2 of model tires, which is not currently available for inference",
        ),
    ],
)
def test_a_file_that_cannot_be_used_ends_the_server_with_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "models.config").write_text(text)
    with model_server(tmp_path, "x", f"--model_config_file={tmp_path / 'models.config'}", ready=False) as server:
        assert server.process.wait(60) == 2
        (line,) = server.stderr().splitlines()
    assert reason in line


def test_a_changed_file_is_read_again(shelf: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(configuration(entry("tires", shelf / "tires")))
    flags = (f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1")
    with model_server(tmp_path, "x", *flags) as server:
        client = Client(server)
        assert client.version("tires") == 3
        file.write_text("half a fi")
        until(lambda: "the configuration stays as it was" in server.stderr(), "the broken file to be read")
        assert client.version("tires") == 3
        file.write_text(configuration(entry("cars", shelf / "cars")))
        until(lambda: client.states("tires") == [(3, "END")], "tires to be unloaded")
        until(lambda: _answers(client, "cars"), "cars")
        assert refusal(client.version, "tires")[0] is NOT_FOUND


def _answers(client: Client, name: str) -> bool:
    try:
        return bool(client.version(name))
    except grpc.RpcError:
        return False


# ---------------------------------------------------------------------------------------------------------- policies


def test_the_newest_versions_are_kept_as_many_as_the_policy_says(shelf: Path, tmp_path: Path) -> None:
    for number in ("1", "2"):
        shutil.copytree(shelf / "tires" / number, tmp_path / "tires" / number)
    file = tmp_path / "models.config"
    file.write_text(
        configuration(entry("tires", tmp_path / "tires", "model_version_policy { latest { num_versions: 2 } }"))
    )
    with model_server(tmp_path, "x", f"--model_config_file={file}") as server:
        client = Client(server)
        until(lambda: client.states("tires") == [(2, "AVAILABLE"), (1, "AVAILABLE")], "both versions")
        shutil.copytree(shelf / "tires" / "3", tmp_path / "tires" / ".3")
        (tmp_path / "tires" / ".3").rename(tmp_path / "tires" / "3")
        until(lambda: client.states("tires") == [(3, "AVAILABLE"), (2, "AVAILABLE"), (1, "END")], "version 3")
        assert [client.version("tires"), client.version("tires", 2)] == [3, 2]


# -------------------------------------------------------------------------------------------------------- reloading


@pytest.fixture
def server(shelf: Path) -> Iterator[ModelServer]:
    with model_server(shelf, "tires", "--enable_grpc_healthcheck_service") as running:
        yield running


def test_a_reload_serves_other_models_once_it_has_returned(server: ModelServer, shelf: Path) -> None:
    client = Client(server)
    answer = client.reload(configuration(entry("tires", shelf / "tires"), entry("cars", shelf / "cars")))
    assert answer.status.error_code == 0
    assert [client.version("tires"), client.version("cars")] == [3, 3]
    client.reload(configuration(entry("cars", shelf / "cars")))
    until(lambda: client.states("tires") == [(3, "END")], "tires to be unloaded")
    assert refusal(client.version, "tires") == (NOT_FOUND, "Servable not found for request: Latest(tires)")
    client.reload(configuration(entry("tires", shelf / "tires"), entry("cars", shelf / "cars")))
    assert client.version("tires") == 3


def test_labels_are_moved_between_versions_that_are_loaded(server: ModelServer, shelf: Path) -> None:
    client = Client(server)
    both = "model_version_policy { specific { versions: 2 versions: 3 } }"
    client.reload(configuration(entry("tires", shelf / "tires", both)))
    until(lambda: client.states("tires")[:2] == [(3, "AVAILABLE"), (2, "AVAILABLE")], "version 2")
    for number in (2, 3):
        client.reload(configuration(entry("tires", shelf / "tires", both + label("stable", number))))
        assert client.version("tires", label="stable") == number
    for number in (1, 9):
        text = configuration(entry("tires", shelf / "tires", both + label("stable", number)))
        assert refusal(client.reload, text) == (
            PRECONDITION,
            f"Request to assign label to version {number} of model tires, which is not currently available for "
            "inference",
        )
    assert client.version("tires", label="stable") == 3  # a refused reload changes nothing


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("", INVALID, "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
         "currently supported"),
        (configuration(entry("a", Path("x")), entry("a", Path("y"))), INVALID,
         "Illegal to list model a multiple times in config list"),
        (configuration('config { name: "a" base_path: "/x" }'), INVALID, "Illegal setting neither "
         "ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."),
    ],
)  # fmt: skip
def test_a_reload_that_cannot_be_used_changes_nothing(
    server: ModelServer, text: str, status: grpc.StatusCode, reason: str
) -> None:
    client = Client(server)
    assert refusal(client.reload, text) == (status, reason)
    assert client.version("tires") == 3


def test_a_reload_with_a_model_that_does_not_load_says_so_and_keeps_the_others(
    server: ModelServer, shelf: Path, tmp_path: Path
) -> None:
    client = Client(server)
    (tmp_path / "broken" / "1").mkdir(parents=True)
    text = configuration(entry("tires", shelf / "tires"), entry("broken", tmp_path / "broken"))
    status, reason = refusal(client.reload, text)
    assert status is grpc.StatusCode.UNKNOWN
    assert reason.startswith(
        "1 model(s) did not become available: {{{name: broken version: 1} due to error: Could not find SavedModel .pb"
    )
    assert client.version("tires") == 3


def test_a_model_that_comes_back_is_loaded_anew_whatever_failed_before(
    server: ModelServer, shelf: Path, tmp_path: Path
) -> None:
    client = Client(server)
    shutil.copytree(shelf / "cars" / "1", tmp_path / "cars" / "1")
    (tmp_path / "cars" / "2").mkdir()
    tires, cars = entry("tires", shelf / "tires"), entry("cars", tmp_path / "cars")
    client.reload(configuration(tires, cars))
    assert client.version("cars") == 1
    client.reload(configuration(tires))
    assert refusal(client.version, "cars")[0] is NOT_FOUND  # at once, not when the folder is looked at
    (tmp_path / "cars" / "2").rmdir()
    client.reload(configuration(tires, cars))
    assert client.version("cars") == 1
    # With another folder it is that folder's version, though the number is the same.
    client.reload(configuration(tires))
    shutil.copytree(shelf / "tires" / "2", tmp_path / "other" / "1")
    client.reload(configuration(tires, entry("cars", tmp_path / "other")))
    request = proto.predict_request("cars", {"image": IMAGES})
    answers = [proto.call(client.channel, proto.PREDICT)(request, timeout=60)]
    request = proto.predict_request("tires", {"image": IMAGES})
    client.reload(configuration(entry("tires", shelf / "tires", "model_version_policy { specific { versions: 2 } }")))
    until(lambda: client.states("tires")[:2] == [(3, "END"), (2, "AVAILABLE")], "version 2")
    answers.append(proto.call(client.channel, proto.PREDICT)(request, timeout=60))
    assert answers[0].outputs["probabilities"] == answers[1].outputs["probabilities"]


def test_a_model_of_an_empty_name_cannot_be_asked_for(server: ModelServer, shelf: Path) -> None:
    """TensorFlow Serving takes an empty name as well, which nobody can ask for."""
    client = Client(server)
    client.reload(configuration(entry("", shelf / "tires")))
    until(lambda: client.states("tires") == [(3, "END")], "tires to be unloaded")
    assert refusal(client.version, "")[1] == "ModelSpec has no name specified."


# --------------------------------------------------------------------------------------------- health and reflection


def test_health_follows_the_models(server: ModelServer, shelf: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(f"localhost:{server.port}"))

    def health(name: str) -> str:
        status = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60).status
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))

    assert [health(name) for name in ("", "tires", "tensorflow.serving.PredictionService")] == ["SERVING"] * 3
    assert refusal(health, "nope")[0] is NOT_FOUND
    watched = stub.Watch(health_pb2.HealthCheckRequest(service="tires"), timeout=60)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
    Client(server).reload(configuration(entry("cars", shelf / "cars")))
    assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert [health(name) for name in ("", "tires", "cars")] == ["SERVING", "NOT_SERVING", "SERVING"]
    watched.cancel()


def test_reflection_tells_the_services_and_their_messages(server: ModelServer) -> None:
    from google.protobuf import descriptor_pb2
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    stub = reflection_pb2_grpc.ServerReflectionStub(grpc.insecure_channel(f"localhost:{server.port}"))

    def ask(**question: str) -> Any:
        (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=60)
        return answer

    listed = {service.name for service in ask(list_services="").list_services_response.service}
    assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"} <= listed
    answer = ask(file_containing_symbol="tensorflow.serving.PredictionService")
    file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
    (predict,) = [method for method in file.service[0].method if method.name == "Predict"]
    assert predict.input_type == ".tensorflow.serving.PredictRequest"
    assert "PredictRequest" in {message.name for message in file.message_type}
