"""The whole service on this machine, without Docker: the model server, and the gateway with its page in front of it.

    python serve.py            # the model `tires` on http://localhost:9696
    python serve.py --port 8080 --model-name cars

`make up` ends here, and so does image-all-in-one.dockerfile. Ctrl-C (or SIGTERM) stops both; if either ends by itself,
so does the other. The gateway's other settings come from the environment, as README lists them; hosts that run one
container may set PORT in place of LOUPE_PORT.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from loupe import feedback
from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.gateway.access import keys
from loupe.gateway.door.ports import check_ports
from loupe.gateway.settings import Settings

ROOT = Path(__file__).resolve().parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed
START_SECONDS = 90  # a large model on a slow disk
NOTICE_SECONDS = 1.5  # of waiting, before a line says what for
SPARE_CALLS = 16  # for cards, probes, and whoever asks the model server besides
MOST_CALLS = 4096  # that the model server may be told
STOP_SECONDS = 4  # for an idle process to end by itself before it is killed
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without proxies that the environment names


def main() -> int:
    # Check everything that can be checked before anything starts.
    arguments = _arguments()
    if not find_spec("grpc"):
        raise ModuleNotFoundError(name="grpc")
    models = arguments.models.resolve()
    _check_model(models / arguments.model_name, arguments.model_name)
    environment = {**os.environ, "LOUPE_PORT": arguments.port, "MODEL_NAME": arguments.model_name}
    environment["LOUPE_LOG_FORMAT"] = os.environ.get("LOUPE_LOG_FORMAT") or "text"
    settings = Settings.from_environment(environment, checks={"api_keys": keys.check, "feedback_dir": feedback.check})
    if settings.feedback_dir:
        environment["LOUPE_FEEDBACK_DIR"] = settings.feedback_dir  # the gateway is started in another folder
    check_ports(settings, instead="choose another: make PORT=8080 up")
    # Start the model server, then the gateway.
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    running: list[subprocess.Popen[str]] = []
    try:
        server = _start_model_server(arguments, models, settings)
        running.append(server)
        environment["TF_SERVING_HOST"] = f"127.0.0.1:{_port_when_ready(server)}"
        gateway = _start([sys.executable, "gateway.py"], env=environment)
        running.append(gateway)
        _wait_until_ready(settings, running)
        print(
            f"\n  {arguments.model_name} is served on http://localhost:{settings.port}   (Ctrl-C ends it)\n", flush=True
        )
        # Wait for a signal, or for one of them to end.
        return _watch(running)
    finally:
        _stop(running, settings.grace)


def _arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    port = os.environ.get("LOUPE_PORT") or os.environ.get("PORT") or "9696"  # PORT: what hosts of one container set
    parser.add_argument("--port", metavar="N", default=port, help="of the page and the API (9696)")
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        default=os.environ.get("MODEL_NAME") or "tires",
        help="which folder of the models folder to serve (tires)",
    )
    parser.add_argument(
        "--models", type=Path, metavar="DIR", default=ROOT / "models", help="the models folder (models)"
    )
    parser.add_argument("--grpc-port", type=int, metavar="N", default=0, help="of the model server (any free one)")
    parser.add_argument(
        "--engine", default="auto", choices=("auto", "openvino", "tensorflow"), help="what runs the model (auto)"
    )
    return parser.read()


def _check_model(folder: Path, name: str) -> None:
    if not folder.is_dir():
        others = (
            sorted(entry.name for entry in folder.parent.iterdir() if entry.is_dir()) if folder.parent.is_dir() else []
        )
        hint = f"there are: {', '.join(others)}" if others else "`python train.py` makes one"
        raise UserError(f"There is no model {name!r} in {folder.parent}; {hint}.")
    if not any(entry.name.isdecimal() for entry in folder.iterdir()):
        raise UserError(f"{folder} holds no version (a folder named 1, 2, …); `python train.py` publishes one.")


def _start_model_server(arguments: argparse.Namespace, models: Path, settings: Settings) -> subprocess.Popen[str]:
    name = arguments.model_name
    calls = settings.workers * min(settings.threads + settings.fetches, settings.model_calls)
    command = [
        sys.executable,
        "-m",
        "loupe.modelserver",
        "--address=127.0.0.1",  # it answers everybody who can reach it
        f"--port={arguments.grpc_port}",
        f"--model_name={name}",
        f"--model_base_path={models / name}",
        f"--engine={arguments.engine}",
        "--max_num_load_retries=0",  # a broken model fails at once
        f"--grpc_max_threads={min(calls + SPARE_CALLS, MOST_CALLS)}",  # as many as the gateway asks at a time
    ]
    return _start(command, stdout=subprocess.PIPE)


def _start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process in a group of its own, so that Ctrl-C reaches only this process, which stops the others in
    order."""
    return subprocess.Popen(command, cwd=ROOT, text=True, process_group=0, preexec_fn=_end_with_parent, **options)


def _end_with_parent() -> None:
    """Have the system send SIGTERM to the child if this process is killed outright (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _port_when_ready(server: subprocess.Popen[str]) -> int:
    """Return the model server's port from the line that it prints once it answers."""
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], START_SECONDS)
    line = server.stdout.readline() if ready else ""
    match = re.search(r" on port (\d+)", line)
    if match:
        print(line.rstrip(), flush=True)
        return int(match[1])
    if not ready:
        raise UserError(f"The model server was not ready after {START_SECONDS} s; see what it says above.")
    raise UserError("The model server ended before it was ready; the line above says why.")


def _wait_until_ready(settings: Settings, running: list[subprocess.Popen[str]]) -> None:
    # Find the gateway's address.
    host = "localhost" if settings.host in ("0.0.0.0", "::") else settings.host
    address = f"http://[{host}]" if ":" in host else f"http://{host}"
    # Ask until it is ready, or cannot become ready.
    last = ""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in running):
            raise UserError("The service ended before it was ready; the lines above say why.")
        try:
            with DIRECT.open(f"{address}:{settings.port}/readyz", timeout=5):
                return
        except urllib.error.HTTPError as error:
            last = _detail(error)
            if error.code == 502:  # the gateway cannot use the model, and waiting does not change that
                raise UserError(last) from error
        except OSError:
            pass
        time.sleep(0.1)
    raise UserError(f"The gateway was not ready after {START_SECONDS} s. It last said: {last or 'nothing'}")


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


def _watch(running: list[subprocess.Popen[str]]) -> int:
    received = _collect_signals()
    while all(process.poll() is None for process in running):
        if received:
            raise KeyboardInterrupt
        time.sleep(0.1)
    ended = next(process for process in running if process.poll() is not None)
    program = "model server" if ended is running[0] else "gateway"
    raise UserError(f"The {program} ended by itself (status {ended.returncode}); the rest is stopped. Start it again.")


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore_signals()  # closing a terminal sends several signals
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _collect_signals(*numbers: signal.Signals) -> list[int]:
    """Return a list that signals are added to as they come. An exception raised by a handler could hit a Popen while it
    holds its lock: that would stay locked, and waiting for the process would never end."""
    received: list[int] = []
    for number in numbers or SIGNALS:
        signal.signal(number, lambda number, frame: received.append(number))
    return received


def _stop(running: list[subprocess.Popen[str]], grace: float) -> None:
    """Stop the gateway first: to answer the requests in hand it needs the model server. Ctrl-C ends the wait."""
    _ignore_signals()
    received = _collect_signals(signal.SIGINT)
    for process in reversed(running):
        _stop_process(process, STOP_SECONDS if process is running[0] else grace + STOP_SECONDS, received)
    _ignore_signals()
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(process.pid, 0)


def _stop_process(process: subprocess.Popen[str], timeout: float, received: list[int]) -> None:
    started, announced = time.monotonic(), False
    process.terminate()
    while process.poll() is None and not received and time.monotonic() - started < timeout:
        if not announced and time.monotonic() - started > NOTICE_SECONDS:
            announced = True
            print("  Answering what is in hand. Ctrl-C once more ends it at once.", file=sys.stderr, flush=True)
        time.sleep(0.05)


if __name__ == "__main__":
    run_script(main)
