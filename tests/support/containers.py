"""Drive a real Docker engine: images, docker-compose, and a copy of what git tracks, which is what a fresh clone has.

    folder = clone(tmp_path)
    stand_in(folder)                                     # tensorflow/serving, where it cannot be had
    image = build("model", folder)                       # image-model.dockerfile → loupe-model:test-1234
    with up(folder, "replicas", MODEL_NAME="tires") as compose:         # deploy/compose/replicas.yaml over the base
        compose.wait_healthy("model", "gateway")
        assert compose.smoke().returncode == 0
    assert compose.leftovers() == ""

Images are tagged with this process's number: several runs may share an engine, and nobody's own images are replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.servers import ROOT, free_port, until

TAG = f"test-{os.getpid()}"
SERVING = "tensorflow/serving:2.20.0"
STAND_IN = "tests/support/serving-stand-in.dockerfile"
COMPOSE = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
UP_SECONDS = 900


def docker(*arguments: str, cwd: Path = ROOT, timeout: float = 600) -> str:
    done = subprocess.run(["docker", *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"docker {arguments[0]}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def inspect(container: str) -> Any:
    """Return all that Docker knows of a container."""
    return json.loads(docker("container", "inspect", container))[0]


def clone(folder: Path) -> Path:
    """Copy what git tracks, as it stands here, committed or not."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(lambda name: (ROOT / name).exists(), listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def build(name: str, folder: Path, *arguments: str, timeout: float = 1800) -> str:
    """Build image-NAME.dockerfile in the folder, and return the image's name."""
    image = f"loupe-{name}:{TAG}"
    docker("build", "-f", f"image-{name}.dockerfile", "-t", image, *arguments, ".", cwd=folder, timeout=timeout)
    return image


def can_be_had(image: str) -> bool:
    """Return True if the real image is here or can be pulled. A stand-in that was made earlier is none: it is made
    again, from today's files."""
    with suppress(AssertionError):
        if '"loupe.stand-in":"true"' not in docker("image", "inspect", image, "--format", "{{json .Config.Labels}}"):
            return True
    with suppress(AssertionError, subprocess.TimeoutExpired):
        docker("pull", "--quiet", image, timeout=300)
        return True
    return False


def stand_in(folder: Path) -> None:
    """Give tensorflow/serving's name to a stand-in, where the real image cannot be had."""
    if not can_be_had(SERVING):
        embedded = build("embedded", folder)
        docker("build", "-f", STAND_IN, "--build-arg", f"EMBEDDED={embedded}", "-t", SERVING, ".", cwd=folder)


@dataclass
class Compose:
    """A project of docker-compose: the base file, and overlays of deploy/compose by their names."""

    folder: Path  # with docker-compose.yaml
    overlays: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    @property
    def project(self) -> str:
        return f"loupe-{TAG}-{self.port}"

    def __call__(self, *arguments: str, timeout: float = UP_SECONDS) -> str:
        files = ["docker-compose.yaml", *(f"deploy/compose/{name}.yaml" for name in self.overlays)]
        command = [*COMPOSE, "-p", self.project, *(word for file in files for word in ("-f", file)), *arguments]
        environment = {**os.environ, "PORT": str(self.port), "IMAGE_TAG": TAG, **self.environment}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-2000:]}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers, of those that have ended, too."""
        labels = (f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}")
        return docker("ps", "--all", "--quiet", *(f"--filter=label={label}" for label in labels)).split()

    def inspect(self, service: str) -> Any:
        """Return all that Docker knows of a service's only container."""
        (container,) = self.containers(service)
        return inspect(container)

    def wait_healthy(self, *services: str, patience: float = 90) -> None:
        """Wait until each container of the services is healthy."""
        names = " and ".join(services)
        until(lambda: all(self._health(name) == {"healthy"} for name in services), f"{names} to be healthy", patience)

    def _health(self, service: str) -> set[str]:
        return {inspect(container)["State"]["Health"]["Status"] for container in self.containers(service)}

    def smoke(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run test.py, through the published port."""
        return smoke(self.port, *arguments, timeout=timeout)

    def leftovers(self) -> str:
        """Return the containers, networks and volumes that are left of the project."""
        label = f"--filter=label=com.docker.compose.project={self.project}"
        kinds = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
        return "".join(docker(*kind, "--quiet", label) for kind in kinds)


def smoke(port: int, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "test.py", "--url", f"http://localhost:{port}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@contextmanager
def up(folder: Path, *overlays: str, **environment: str) -> Iterator[Compose]:
    """Start a project, whose images are built already; remove it with its volumes, and print what it logged."""
    compose = Compose(folder, overlays, environment)
    try:
        compose("up", "--detach", "--no-build")
        yield compose
    finally:
        print(compose("logs", "--no-color"))
        compose("down", "--volumes", "--timeout", "5")
