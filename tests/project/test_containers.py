"""Test both images and docker-compose with a real engine, on a copy of what git tracks, as on a fresh clone.

    make test-containers          # needs docker and docker-compose, and an engine (DOCKER_HOST)

Where tensorflow/serving can be pulled it is used; elsewhere a stand-in takes its name (serving-stand-in.dockerfile).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import ROOT, free_port, until

SERVING = "tensorflow/serving:2.20.0"
PROJECT = f"loupe-test-{os.getpid()}"
pytestmark = pytest.mark.containers


def docker(*arguments: str, timeout: float = 600) -> str:
    done = subprocess.run(["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def image_is_ours_to_make() -> bool:
    """The real image is left alone; a stand-in made earlier is made again from today's code."""
    with suppress(AssertionError):
        return '"loupe.stand-in":"true"' in docker("image", "inspect", SERVING, "--format", "{{json .Config.Labels}}")
    with suppress(AssertionError, subprocess.TimeoutExpired):
        docker("pull", "--quiet", SERVING, timeout=300)
        return False
    return True


@dataclass
class Compose:
    folder: Path
    port: int

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["docker-compose", "-p", PROJECT, *arguments],
            cwd=self.folder, env={**os.environ, "PORT": str(self.port)}, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def inspect(self, service: str) -> Any:
        return json.loads(docker("inspect", self("ps", "-q", service).strip()))[0]

    def smoke(self) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "test.py", "--url", f"http://localhost:{self.port}"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    if image_is_ours_to_make():
        docker("build", "-f", "tests/support/serving-stand-in.dockerfile", "-t", SERVING, ".")
    folder = tmp_path_factory.mktemp("clone")
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    here = Compose(folder, free_port())
    try:
        here("up", "--build", "--detach")
        yield here
        print(here("logs", "--no-color"))
    finally:
        here("down", "--volumes", "--timeout", "5")


def test_it_comes_up_healthy_and_the_smoke_check_passes(compose: Compose) -> None:
    for service in ("model", "gateway"):
        until(lambda name=service: compose.inspect(name)["State"]["Health"]["Status"] == "healthy", service)  # type: ignore[misc]
    done = compose.smoke()
    assert done.returncode == 0, done.stderr
    assert "cracked-1.jpg" in done.stdout


def test_only_the_gateways_port_is_published_and_the_gateway_is_nobody_special(compose: Compose) -> None:
    assert not any(compose.inspect("model")["NetworkSettings"]["Ports"].values())
    gateway = compose.inspect("gateway")
    assert [port for port, where in gateway["NetworkSettings"]["Ports"].items() if where] == ["9696/tcp"]
    assert gateway["Config"]["User"] not in ("", "0", "root")
    assert gateway["HostConfig"]["ReadonlyRootfs"]
    installed = compose("exec", "-T", "gateway", "pip", "list")
    assert "tensorflow" not in installed
    assert "openvino" not in installed


def test_what_is_trained_here_is_served_without_a_rebuild(compose: Compose) -> None:
    home = compose.folder / "models" / "tires"
    shutil.copytree(home / "1", home / ".part-test")
    (home / ".part-test").rename(home / "2")
    until(lambda: "version 2" in compose.smoke().stdout, "version 2", patience=15)


def test_the_model_server_may_die_and_come_back(compose: Compose) -> None:
    docker("kill", compose.inspect("model")["Id"])
    until(lambda: "503" in compose.smoke().stderr, "the gateway to say so", patience=15)
    compose("start", "model")
    until(lambda: compose.smoke().returncode == 0, "an answer", patience=30)


def test_it_stops_without_being_killed(compose: Compose) -> None:
    started = time.monotonic()
    compose("stop", "--timeout", "60")
    assert time.monotonic() - started < 20
    assert compose.inspect("gateway")["State"]["ExitCode"] == 0
