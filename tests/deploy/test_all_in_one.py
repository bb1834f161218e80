"""image-all-in-one.dockerfile: gateway and model server in one container of 512 MB.

make test-containers
"""

from __future__ import annotations

import http.client
import io
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.support.containers import docker, inspect, smoke
from tests.support.servers import ROOT, free_port, until

pytestmark = pytest.mark.containers

LIMIT = 512 << 20
STAT = ("memory.stat", "memory/memory.stat")  # in either version of Linux's control groups
KILLS = ("memory.events", "memory/memory.oom_control")


@dataclass
class Host:
    """A host of one container, with 512 MB and no swap, which says the port in PORT."""

    container: str
    port: int

    def read(self, *names: str) -> str:
        """Read whichever of these files of the control group there is."""
        return docker("exec", self.container, "sh", "-c", " || ".join(f"cat /sys/fs/cgroup/{name}" for name in names))

    def used(self) -> int:
        """Return the bytes that the processes hold.

        The group's own peak counts the files that they read as well. How many those are depends on
        what the machine had in memory before.
        """
        found = re.search(r"^(?:anon|total_rss) (\d+)$", self.read(*STAT), re.MULTILINE)
        assert found
        return int(found[1])

    def kills(self) -> int:
        """Return how many processes were killed for want of memory."""
        found = re.search(r"^oom_kill (\d+)$", self.read(*KILLS), re.MULTILINE)
        assert found
        return int(found[1])


@contextmanager
def host(image: str, models: Path, name: str) -> Iterator[Host]:
    port = free_port()
    container = docker(
        "run", "--detach", "--read-only", "--tmpfs", "/tmp", "--memory", str(LIMIT), "--memory-swap", str(LIMIT),
        "-e", f"PORT={port}", "-e", f"MODEL_NAME={name}", "-v", f"{models}:/app/models:ro",
        "-p", f"127.0.0.1:{port}:{port}", image,
    ).strip()  # fmt: skip
    try:
        until(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy", "it to be healthy")
        yield Host(container, port)
    finally:
        subprocess.run(["docker", "logs", "--tail", "20", container])
        docker("rm", "--force", "--volumes", container)


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with MobileNetV2 at 224 pixels, its weights random, exported as training does."""
    from loupe.training.network.backbones import build_trunk, with_head
    from tests.support.networks import export, finished_run, lively

    folder = tmp_path_factory.mktemp("mobilenet")
    model = lively(with_head(build_trunk("mobilenetv2", 224, 224), classes=3, head=0, dropout=0))
    run = finished_run(folder / "run", model, familiar=True, name="mobilenet", height=224, width=224)
    export(run, folder / "models")
    return folder / "models"


def test_a_thousand_pictures_in_512_mb(images: dict[str, str], mobilenet: Path) -> None:
    with host(images["all-in-one"], mobilenet, "mobilenet") as running:
        done = smoke(running.port, "--load", "1000", timeout=300)
        print(f"{done.stdout}\nheld: {running.used() / 1e6:.0f} MB")
        assert "1,000 of 1,000 answered" in done.stdout, done.stderr
        assert running.kills() == 0
        assert running.used() < 320_000_000
        state = inspect(running.container)["State"]
        assert (state["Running"], state["OOMKilled"]) == (True, False)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_largest_pictures_fit_in_too(images: dict[str, str], mobilenet: Path, mode: str) -> None:
    with host(images["all-in-one"], mobilenet, "mobilenet") as running:
        picture = io.BytesIO()
        Image.new(mode, (6300, 6300), "teal").save(picture, "PNG")  # 39.7 megapixels: 160 MB while it is decoded
        for _ in range(4):
            connection = http.client.HTTPConnection("localhost", running.port, timeout=60)
            connection.request("POST", "/predict", picture.getvalue(), {"Content-Type": "image/png"})
            assert connection.getresponse().status == 200
            connection.close()
        print(f"held: {running.used() / 1e6:.0f} MB")
        assert running.kills() == 0


def test_it_serves_the_sample_by_itself_and_a_signal_stops_both(images: dict[str, str]) -> None:
    with host(images["all-in-one"], ROOT / "models", "tires") as running:
        assert smoke(running.port).returncode == 0
        started = time.monotonic()
        docker("stop", "--time", "30", running.container)
        assert time.monotonic() - started < 15
        assert (
            inspect(running.container)["State"]["ExitCode"] == 130
        )  # as serve.py ends after a signal: not killed, 137
        logs = subprocess.run(["docker", "logs", running.container], capture_output=True, text=True)
        assert "stopping; calls in flight end first" in logs.stderr
