"""Start a model server as a process of its own, on free ports.

    with model_server(models, "tires") as server:
        grpc.insecure_channel(f"localhost:{server.port}")

`models / name` is the model's base path; more flags follow the name. `ready=False` does not wait for the ports: for a
server that is meant to wait or to fail. Whatever happens, the process is gone at the end.
"""

from __future__ import annotations

import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"serving \S+ version (\d+) with (\w+)(?:, .*)? on port (\d+)(?: \(REST (\d+)\))?")
PATIENCE = 60  # seconds; TensorFlow starts slowly on a busy machine


@dataclass
class ModelServer:
    process: subprocess.Popen[bytes]
    folder: Path
    port: int = 0
    rest_port: int = 0
    engine: str = ""

    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def wait_ready(self) -> None:
        until(lambda: READY.search(self.stdout()) or self.process.poll() is not None, "the model server")
        found = READY.search(self.stdout())
        assert found, f"the model server ended with {self.process.returncode}: {self.stderr()}"
        self.engine, self.port, self.rest_port = found[2], int(found[3]), int(found[4] or 0)

    def stop(self, patience: float = PATIENCE) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(patience)


@contextmanager
def model_server(
    models: Path, name: str, *flags: str, engine: str = "openvino", ready: bool = True
) -> Iterator[ModelServer]:
    command = [
        sys.executable, "-m", "loupe.modelserver", "--port=0", f"--rest_api_port={free_port()}",
        f"--model_name={name}", f"--model_base_path={models / name}", f"--engine={engine}", *flags,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)
        server = ModelServer(process, folder)
        try:
            if ready:
                server.wait_ready()
            yield server
        finally:
            process.kill()
            process.wait(PATIENCE)


def free_port() -> int:
    """Return a port that nobody has. It is none of those that the system gives to who asks for any: one of these might
    be given to another test's server before this one's has started."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)  # no seed of a test makes two of them agree
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def until(happened: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait, bounded, until it happened."""
    limit = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < limit, f"waited {patience} s for {what}"
        time.sleep(0.02)


@contextmanager
def meanwhile(do: Callable[[], object], threads: int = 1) -> Iterator[None]:
    """So many threads do it again and again."""
    ends = threading.Event()

    def go_on() -> None:
        while not ends.is_set():
            do()

    running = [threading.Thread(target=go_on) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        ends.set()
        for thread in running:
            thread.join()
