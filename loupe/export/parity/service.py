"""Run the whole service for the parity gate: serve.py on a free port, with the version to be published.

    answers = service(folder, card, bodies, advance)   # bodies: the pictures' own bytes, posted to /predict

`folder` is <models>/<name>/<number>. Settings of the gateway in the caller's environment do not reach it. It ends with
the gate. Should this process be killed outright, the system ends it (on Linux).
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from loupe.card import Card
from loupe.export.parity.tolerance import AT_ONCE, Advance, Answers, Array, Fault, Skipped

ROOT = Path(__file__).resolve().parents[3]
NEEDED = ("flask", "gunicorn", "grpc")
READY_SECONDS = 200.0  # serve.py itself waits up to 90 s for each of its two processes
ANSWER_SECONDS = 120.0
STOP_SECONDS = 15.0
LAST_LINES = 3  # of its log that are shown where it fails

# Runs its other arguments as a program that ends with its parent. A preexec_fn would not do: once TensorFlow has
# started threads, Python must not run between fork and exec.
LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

Body = Callable[[], bytes]


def service(folder: Path, card: Card, bodies: Sequence[Body], advance: Advance) -> Answers:
    missing = [name for name in NEEDED if not find_spec(name)]
    if missing:
        raise Skipped(f"{missing[0]} is not installed")
    with (
        served(folder) as port,
        closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)) as connection,
    ):
        # Compare the card.
        served_card = _ask(connection, "GET", "/model")
        if {key: served_card.get(key) for key in card.to_dict()} != card.to_dict():
            raise Fault("tells another card than the model's at /model")
        # Post the first picture alone, with its heat map.
        first = _ask(
            connection, "POST", f"/predict?heatmap={int(card.heatmap)}", bodies[0](), "application/octet-stream"
        )
        _check_heatmap(first, card)
        scores = [_scores(first, card)]
        advance(1)
        # Post the others in forms of several files.
        began = time.perf_counter()
        for start in range(1, len(bodies), AT_ONCE):
            files = [body() for body in bodies[start : start + AT_ONCE]]
            boundary = uuid.uuid4().hex
            answer = _ask(
                connection, "POST", "/predict", _form(files, boundary), f"multipart/form-data; boundary={boundary}"
            )
            scores += [_scores(prediction, card) for prediction in answer.get("predictions", [answer])]
            advance(len(files))
        ms = (time.perf_counter() - began) * 1e3 / max(1, len(bodies) - 1)
    return Answers(np.array(scores, np.float32), ms=ms)


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """Start serve.py, wait until it is ready, yield its port, and stop it."""
    # Start it on a free port.
    models, name = folder.resolve().parent.parent, folder.parent.name  # absolute, since serve.py runs in another folder
    with tempfile.TemporaryFile() as log:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port: int = listener.getsockname()[1]
        serve = [str(ROOT / "serve.py"), "--models", str(models), "--model-name", name, "--port", str(port)]
        command = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *serve]
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
        )
        # Let the caller use it, and stop it in any case.
        try:
            _wait_until_ready(process, port, log)
            try:
                yield port
            except (OSError, http.client.HTTPException) as error:
                raise Fault(f"does not answer ({error or type(error).__name__}): {_last_lines(log)}") from error
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()  # its own children end with it
                process.wait()


def _environment() -> dict[str, str]:
    """Return the caller's environment without settings that would change the service; pictures of any size are
    allowed."""
    others = ("MODEL_NAME", "TF_SERVING_HOST", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "SCRIPT_NAME")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in others and not name.startswith("LOUPE_") and not name.lower().endswith("_proxy")
    }
    return {**kept, "LOUPE_MAX_BYTES": str(1 << 31), "LOUPE_MODEL_TIMEOUT": f"{ANSWER_SECONDS:.0f}"}


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Fault(f"ended before it was ready: {_last_lines(log)}")
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return
            except (OSError, http.client.HTTPException):
                pass
        time.sleep(0.05)
    raise Fault(f"was not ready after {READY_SECONDS:.0f} s: {_last_lines(log)}")


def _last_lines(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-LAST_LINES:]) or "it said nothing"


def _ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, content_type: str = ""
) -> Any:
    connection.request(method, path, body, {"Content-Type": content_type} if content_type else {})
    response = connection.getresponse()
    content = response.read()
    try:
        answer = json.loads(content)
    except ValueError as error:
        raise Fault(f"answers {method} {path} with {response.status} and no JSON") from error
    if response.status != http.HTTPStatus.OK:
        raise Fault(f"answers {method} {path} with {response.status}: {answer.get('detail', answer)}")
    return answer


def _form(files: Sequence[bytes], boundary: str) -> bytes:
    head = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\n\r\n' % boundary.encode()
    return b"".join(head + file + b"\r\n" for file in files) + b"--%s--\r\n" % boundary.encode()


def _scores(answer: dict[str, Any], card: Card) -> list[float]:
    """Return the scores in the order of the model's labels."""
    if "error" in answer:
        raise Fault(f"refuses a picture: {answer['error'].get('detail')}")
    scores = answer["scores"]
    if set(scores) != set(card.labels):
        raise Fault(f"gives scores for {', '.join(sorted(scores))}, not for {', '.join(sorted(card.labels))}")
    return [scores[label] for label in card.labels]


def _check_heatmap(answer: dict[str, Any], card: Card) -> None:
    if not card.heatmap:
        return
    _, _, text = answer.get("heatmap", "").partition("base64,")
    try:
        size = Image.open(io.BytesIO(base64.b64decode(text))).size
    except (OSError, ValueError) as error:
        raise Fault("gives no heat map that is a picture") from error
    if size != (card.width, card.height):
        raise Fault(f"gives a heat map of {size[0]}×{size[1]}, not {card.width}×{card.height}")


def encoded(pixels: Array) -> bytes:
    """Return a picture file that decodes to exactly these pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
