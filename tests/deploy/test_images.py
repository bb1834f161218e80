"""The images that serve, built from their dockerfiles unchanged: how large, as whom, and what each of them promises.

make test-containers
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loupe import proto
from tests.support.containers import TAG, docker, inspect
from tests.support.servers import ROOT, free_port, until

pytestmark = pytest.mark.containers

BASE = "python:3.11-slim"
MB = 1_000_000
LARGEST = {"gateway": 120, "embedded": 280, "all-in-one": 280}  # MB above the base image
MONITORING = ("--monitoring_config_file=/etc/loupe/monitoring.txt",)
SAMPLE = ROOT / "models" / "tires" / "1"


def image(name: str) -> Any:
    return json.loads(docker("image", "inspect", name))[0]


@contextmanager
def running(name: str, *options: str, arguments: tuple[str, ...] = ()) -> Iterator[str]:
    """A container with a read-only root."""
    container = docker("run", "--detach", "--read-only", "--tmpfs", "/tmp", *options, name, *arguments).strip()
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container)


def health(container: str) -> str:
    return str(inspect(container)["State"]["Health"]["Status"])


def test_every_image_runs_as_nobody_in_exec_form_with_a_health_check(images: dict[str, str]) -> None:
    for name in images.values():
        config = image(name)["Config"]
        assert config["User"] == "10001", name
        assert "/bin/sh" not in [*(config["Entrypoint"] or ()), *(config["Cmd"] or ())], name
        assert config["Healthcheck"]["Test"][0] == "CMD", name
        assert "curl" not in " ".join(config["Healthcheck"]["Test"]), name


@pytest.mark.parametrize("name", LARGEST)
def test_images_are_small(images: dict[str, str], name: str) -> None:
    above = (image(images[name])["Size"] - image(BASE)["Size"]) / MB
    print(f"{name}: {above:.0f} MB above {BASE}")
    assert above < LARGEST[name]


@pytest.mark.parametrize("name", LARGEST)
def test_nothing_that_builds_or_installs_is_added_to_the_base(images: dict[str, str], name: str) -> None:
    tools = "for tool in gcc cc make rustc pipenv virtualenv; do command -v $tool; done; true"
    assert docker("run", "--rm", "--entrypoint", "sh", images[name], "-c", tools) == ""
    listed = docker("run", "--rm", "--entrypoint", "sh", images[name], "-c", "ls /opt/loupe/lib/python3*/site-packages")
    packages = set(listed.split())
    assert not packages & {"pip", "pipenv", "virtualenv", "setuptools", "tensorflow", "keras"}
    assert ("openvino" in packages) is (name != "gateway")


def test_the_gateway_drains_for_five_seconds(images: dict[str, str]) -> None:
    assert "LOUPE_DRAIN=5" in image(images["gateway"])["Config"]["Env"]


def test_the_gateway_can_be_built_with_opentelemetry(checkout: Path, images: dict[str, str]) -> None:
    name = f"loupe-gateway:{TAG}-tracing"
    docker("build", "-f", "image-gateway.dockerfile", "--build-arg", "MORE=tracing", "-t", name, ".", cwd=checkout)
    try:
        modules = "import opentelemetry.sdk.trace, opentelemetry.exporter.otlp.proto.grpc.trace_exporter, flask"
        docker("run", "--rm", name, "python", "-c", modules)
    finally:
        docker("image", "rm", name)


def test_a_gateway_that_cannot_keep_corrections_says_so(images: dict[str, str]) -> None:
    """Its root is read-only: they need a volume."""
    with running(images["gateway"], "-e", "LOUPE_FEEDBACK_DIR=/feedback") as container:
        until(lambda: inspect(container)["State"]["Status"] == "exited", "the gateway to end")
        assert inspect(container)["State"]["ExitCode"] == 1
        said = subprocess.run(["docker", "logs", container], capture_output=True, text=True).stderr
    assert "LOUPE_FEEDBACK_DIR: nothing can be written to /feedback" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["model", "embedded"])
@pytest.mark.parametrize(
    "flags",
    [(), ("--enable_batching", "--batching_parameters_file=/etc/loupe/batching.txt", *MONITORING)],
    ids=["its-own-flags", "batching"],
)
def test_a_model_server_serves_what_is_baked_in_and_tells_its_metrics(
    images: dict[str, str], name: str, flags: tuple[str, ...]
) -> None:
    port = free_port()
    with running(images[name], "--init", "-p", f"127.0.0.1:{port}:8501", arguments=flags) as container:
        until(lambda: health(container) == "healthy", "the model server to be healthy")
        assert available(port, "tires") == [1]
        assert b"tensorflow:serving" in get(port, "/monitoring/prometheus/metrics")


def test_the_embedded_server_keeps_to_the_contract_of_tensorflow_servings_image(
    images: dict[str, str], tmp_path: Path
) -> None:
    """MODEL_NAME below /models, gRPC on 8500 and REST on 8501, more flags behind; its health is the model's."""
    port, grpc_port = free_port(), free_port()
    home = tmp_path / "models" / "cars"
    home.mkdir(parents=True)
    options = [
        "-e", "MODEL_NAME=cars", "-v", f"{home.parent}:/models:ro",
        "-p", f"127.0.0.1:{port}:8501", "-p", f"127.0.0.1:{grpc_port}:8500",
    ]  # fmt: skip
    with running(images["embedded"], *options, arguments=("--file_system_poll_wait_seconds=1",)) as container:
        # Without a version it waits, and is not healthy.
        until(lambda: inspect(container)["State"]["Health"]["Log"], "the first look at its health", patience=30)
        assert health(container) != "healthy"
        # The first version is served as soon as it is there, and so is the next.
        for number in (1, 2):
            shutil.copytree(SAMPLE, home / ".part-test")
            (home / ".part-test").rename(home / str(number))
            until(lambda: health(container) == "healthy", "it to be healthy")
            until(lambda number=number: available(port, "cars") == [number], f"version {number}")  # type: ignore[misc]
        with grpc.insecure_channel(f"localhost:{grpc_port}") as channel:
            request = proto.predict_request("cars", {"image": np.zeros((1, 224, 224, 3), np.uint8)})
            assert proto.call(channel, proto.PREDICT)(request, timeout=10).model_spec.version.value == 2
        # It hears the signal.
        started = time.monotonic()
        docker("stop", "--time", "30", container)
        assert time.monotonic() - started < 15
        assert inspect(container)["State"]["ExitCode"] == 0


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://localhost:{port}{path}", timeout=10) as answer:
        return bytes(answer.read())


def available(port: int, name: str) -> list[int]:
    """Return the versions that a model server serves, as its REST side says."""
    versions = json.loads(get(port, f"/v1/models/{name}"))["model_version_status"]
    return [int(version["version"]) for version in versions if version["state"] == "AVAILABLE"]
