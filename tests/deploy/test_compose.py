"""docker-compose.yaml with a real engine, on a copy of what git tracks, as on a fresh clone.

    make test-containers          # needs docker and docker-compose, and an engine (DOCKER_HOST)

Where tensorflow/serving can be pulled it is used; elsewhere a stand-in takes its name.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import Compose, clone, docker, up
from tests.support.servers import ROOT, until

pytestmark = pytest.mark.containers


@pytest.fixture(scope="module")
def compose(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    with up(clone(tmp_path_factory.mktemp("clone"))) as compose:
        compose.wait_healthy("model", "gateway")
        yield compose


def test_the_smoke_check_passes(compose: Compose) -> None:
    done = compose.smoke()
    assert done.returncode == 0, done.stderr
    assert "cracked-1.jpg" in done.stdout


def test_only_the_gateways_port_is_published(compose: Compose) -> None:
    assert not any(compose.inspect("model")["NetworkSettings"]["Ports"].values())
    gateway = compose.inspect("gateway")["NetworkSettings"]["Ports"]
    assert [port for port, where in gateway.items() if where] == ["9696/tcp"]


def test_the_model_servers_network_is_internal_and_the_gateways_other_one_leads_out(compose: Compose) -> None:
    """Or no URL could be fetched. This machine stands for the world; whether packets leave it is not tested."""
    networks = {name: compose.inspect(name)["NetworkSettings"]["Networks"] for name in ("model", "gateway")}
    front, model = (f"{compose.project}_{name}" for name in ("front", "model"))
    assert {name: set(joined) for name, joined in networks.items()} == {"model": {model}, "gateway": {front, model}}
    internal = docker("network", "inspect", front, model, "--format", "{{.Internal}}")
    assert internal.split() == ["false", "true"]
    address = networks["gateway"][front]["Gateway"]
    with socket.create_server((address, 0)) as world:
        compose("exec", "-T", "gateway", "bash", "-c", f"</dev/tcp/{address}/{world.getsockname()[1]}")


def test_nobody_can_write_but_to_tmp_nor_gain_rights(compose: Compose) -> None:
    for service in ("model", "gateway"):
        container = compose.inspect(service)
        assert container["Config"]["User"] == "10001"
        assert container["HostConfig"]["ReadonlyRootfs"]
        assert container["HostConfig"]["CapDrop"] == ["ALL"]
        assert not [mount for mount in container["Mounts"] if mount["RW"] and mount["Destination"] != "/feedback"]
        attempt = "for folder in / /app /etc /models /tmp; do touch $folder/x && echo $folder; done; true"
        assert compose("exec", "-T", service, "sh", "-c", attempt).split() == ["/tmp"]


def test_processors_and_memory_are_limited_and_the_model_server_has_as_many_threads(compose: Compose) -> None:
    for service, memory in (("model", 6 << 30), ("gateway", 2 << 30)):
        limits = compose.inspect(service)["HostConfig"]
        assert (limits["NanoCpus"], limits["Memory"]) == (2_000_000_000, memory)
        assert limits["RestartPolicy"]["Name"] == "unless-stopped"
    assert "--tensorflow_intra_op_parallelism=2" in compose.inspect("model")["Config"]["Cmd"]


def test_a_new_version_is_served_without_a_restart_and_rolled_back(compose: Compose) -> None:
    """As docs/export.md tells it: convert.py publishes by renaming, and --rollback takes the newest away."""
    containers = [compose.containers(service) for service in ("model", "gateway")]
    home = compose.folder / "models" / "tires"
    shutil.copytree(home / "1", home / ".part-test")
    (home / ".part-test").rename(home / "2")
    until(lambda: "version 2" in compose.smoke().stdout, "version 2", patience=15)
    # Back to the first.
    command = [sys.executable, "convert.py", "--rollback", "tires"]
    done = subprocess.run(command, cwd=compose.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    until(lambda: "version 1" in compose.smoke().stdout, "version 1", patience=15)
    # Nothing was started anew.
    assert [compose.containers(service) for service in ("model", "gateway")] == containers
    assert [compose.inspect(service)["RestartCount"] for service in ("model", "gateway")] == [0, 0]


def test_the_model_server_may_die_and_is_started_again(compose: Compose) -> None:
    """Killed from within, as by the system when memory is short: then the engine starts it again by itself."""
    before = compose.inspect("model")["State"]["StartedAt"]
    with suppress(AssertionError):  # the container ends before the command does
        compose("exec", "-T", "model", "bash", "-c", "kill -9 -1")
    until(lambda: compose.inspect("model")["State"]["StartedAt"] != before, "the engine to start it again", patience=15)
    until(lambda: compose.smoke().returncode == 0, "an answer", patience=30)


def test_while_there_is_no_model_server_the_gateway_says_so(compose: Compose) -> None:
    docker("kill", compose.containers("model")[0])
    until(lambda: "503" in compose.smoke().stderr, "the gateway to say so", patience=15)
    compose("start", "model")
    until(lambda: compose.smoke().returncode == 0, "an answer", patience=30)


def test_it_stops_without_being_killed_and_down_leaves_nothing(compose: Compose) -> None:
    started = time.monotonic()
    compose("stop")
    assert time.monotonic() - started < 25  # the gateway drains for 5 s, after which the model server is stopped
    assert compose.inspect("gateway")["State"]["ExitCode"] == 0
    assert compose.inspect("model")["State"]["ExitCode"] != 137
    compose("down", "--volumes")
    assert compose.leftovers() == ""


def test_corrections_are_kept_in_a_volume(images: dict[str, str], tmp_path: Path) -> None:
    """It outlives the container, whose root is read-only, and belongs to the gateway's user."""
    picture = (ROOT / "data" / "samples" / "cracked-1.jpg").read_bytes()
    with up(clone(tmp_path), LOUPE_FEEDBACK_DIR="/feedback") as compose:
        compose.wait_healthy("gateway")
        assert correct(compose.port, picture)["kept"] is True
        compose("up", "--detach", "--no-build", "--no-deps", "--force-recreate", "gateway")
        compose.wait_healthy("gateway")
        assert correct(compose.port, picture)["kept"] is False  # it is there already
        waiting = compose("exec", "-T", "gateway", "ls", "/feedback/waiting/normal").split()
        assert sorted(Path(name).suffix for name in waiting) == [".jpg", ".json"]
    assert compose.leftovers() == ""


def correct(port: int, picture: bytes) -> Any:
    """Say that a picture is `normal`, and return the gateway's answer."""
    url = f"http://localhost:{port}/feedback?label=normal"
    with urllib.request.urlopen(
        urllib.request.Request(url, picture, {"Content-Type": "image/jpeg"}), timeout=30
    ) as answer:
        return json.load(answer)
