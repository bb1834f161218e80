"""A model server that takes TensorFlow Serving's flags and answers as it does.

    python -m loupe.modelserver --port=8500 --rest_api_port=8501 --model_name=tires --model_base_path=models/tires

The base path holds numbered folders, each a SavedModel; the newest is served, and a newer one as soon as it is there.
Ports stay closed until the first has loaded; then one line on stdout says which. SIGTERM and Ctrl-C let calls in flight
end first, for 10 s at most (TensorFlow Serving cuts them off); a second signal does not wait.
Exit status: 0 after a signal, 2 with one line on stderr for a flag, a port or a model that cannot be used.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from dataclasses import fields
from types import FrameType

from loupe.engines.choose import chooser
from loupe.engines.engine import Options
from loupe.engines.refused import say
from loupe.errors import UserError
from loupe.modelserver import flags, rest, service, warmup
from loupe.modelserver.answers import Answers
from loupe.modelserver.versions import Versions

STOP_DELAY = 10.0  # seconds


class Stop:
    """Events for stopping: `asked` is set by SIGTERM or SIGINT, `woken` by them and by the end of the first load."""

    def __init__(self) -> None:
        self.asked, self.woken = threading.Event(), threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked.is_set():
            os._exit(130)
        self.asked.set()
        self.woken.set()


def main(arguments: list[str]) -> None:
    if "--help" in arguments or "--version" in arguments:
        print(usage() if "--help" in arguments else "Loupe's model server, compatible with TensorFlow Serving 2.20")
        return
    serve(flags.parse(arguments))


def serve(settings: flags.Flags) -> None:
    # Check the ports before a model is loaded.
    stop = Stop()
    for name in ("port", "rest_api_port"):
        check_port(settings.address, getattr(settings, name), name)
    # Choose the engine, and load the first version.
    streams = settings.tensorflow_inter_op_parallelism or settings.tensorflow_session_parallelism
    threads = settings.tensorflow_intra_op_parallelism or settings.tensorflow_session_parallelism
    options = Options(threads, streams, settings.mixed_precision)
    open_engine = chooser(settings.engine, options)
    if settings.enable_model_warmup:
        open_engine = warmup.replaying(open_engine)
    versions = Versions(settings, open_engine, settled=stop.woken.set)
    versions.start()
    stop.woken.wait()
    if stop.asked.is_set():
        return
    if not (serving := versions.serving):
        raise UserError(versions.hopeless or "nothing to serve")
    # Open the ports.
    answers = Answers(versions, as_content=settings.enable_serialization_as_tensor_content)
    server, port = service.start(answers, settings)
    http = rest.start(answers, settings)
    rest_note = f" (REST {settings.rest_api_port})" if http else ""
    assert serving.engine
    print(
        f"loupe.modelserver: serving {versions.name} version {serving.number} with {serving.engine.name} "
        f"on port {port}{rest_note}",
        flush=True,
    )
    # Serve until a signal comes, then let calls in flight end.
    stop.asked.wait()
    say("stopping; calls in flight end first")
    stopped = server.stop(STOP_DELAY)
    if http:
        http.stop(STOP_DELAY)
    stopped.wait()


def check_port(address: str, port: int, flag: str) -> None:
    """Refuse a port that is taken, before a model is loaded for nothing."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"port {port} of {address} is taken: {reason}; choose another with --{flag}") from error


def usage() -> str:
    lines = "\n".join(f"  --{field.name}={field.default}" for field in fields(flags.Flags))
    return f"{__doc__}\nFlags and defaults:\n{lines}"


if __name__ == "__main__":
    status = 0
    try:
        main(sys.argv[1:])
    except UserError as problem:
        say(str(problem))
        status = 2
    sys.stdout.flush()
    # Not sys.exit: it would wait for threads that hold an unfinished call or load.
    os._exit(status)
