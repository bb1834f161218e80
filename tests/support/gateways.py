"""Start a gateway under gunicorn, and a fake internet for it to fetch from; both real processes or real sockets.

with gateway(f"localhost:{server.port}") as here:
    here.post("/predict", data, "image/jpeg")
with internet(answer) as port: ...            # answer(path, write): one function is every site there is
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from tests.support.servers import PATIENCE, ROOT, free_port, until


@dataclass
class Answer:
    status: int
    headers: Message  # whose names may be asked for in any case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Gateway:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any, kind: str | None = None, **headers: str) -> Answer:
        if kind:
            headers["Content-Type"] = kind
        return self.ask("POST", path, body, headers)

    def post_json(self, path: str, value: Any) -> Answer:
        return self.post(path, json.dumps(value), "application/json")

    def post_files(self, path: str, *files: bytes, **texts: str) -> Answer:
        return self.post(path, *form(*files, **texts))

    def ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def workers(self) -> list[int]:
        """The process ids of gunicorn's workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(child) for child in children.split()]


def form(*files: bytes, **texts: str) -> tuple[bytes, str]:
    """Return a form and its content type."""
    edge = uuid.uuid4().hex
    parts = [f'name="file{n}"; filename="../../{n}.jpg"\r\n\r\n'.encode() + file for n, file in enumerate(files)]
    parts += [f'name="{name}"\r\n\r\n{text}'.encode() for name, text in texts.items()]
    body = b"".join(f"--{edge}\r\nContent-Disposition: form-data; ".encode() + part + b"\r\n" for part in parts)
    return body + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


def connect(here: Gateway, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", here.port), timeout=60)
    connection.sendall(data)
    return connection


@contextmanager
def gateway(target: str, model: str = "tires", **settings: str) -> Iterator[Gateway]:
    port = int(settings.get("LOUPE_PORT") or free_port())
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")}
    environment = {
        **inherited, "TF_SERVING_HOST": target, "MODEL_NAME": model, "LOUPE_PORT": str(port), **settings
    }  # fmt: skip
    with running([sys.executable, "-m", "gunicorn", "gateway:app"], ROOT, environment, port) as here:
        yield here


@contextmanager
def running(command: list[str], folder: Path, environment: dict[str, str], port: int) -> Iterator[Gateway]:
    """Whatever answers /healthz at that port, and is gone at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)
        here = Gateway(process, port, log)
        try:
            until(lambda: _alive(here), "the gateway")
            yield here
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait(PATIENCE)


def _alive(here: Gateway) -> bool:
    assert here.process.poll() is None, here.log.read_text()
    with suppress(OSError):
        return here.get("/healthz").status == 200
    return False


@contextmanager
def internet(site: Callable[[str, Callable[[bytes], None]], None]) -> Iterator[int]:
    """Every connection's request path and a write function go to `site`; the connection closes when it returns."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            path = connection.recv(65536).split(b" ")[1].decode()
            site(path, connection.sendall)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
