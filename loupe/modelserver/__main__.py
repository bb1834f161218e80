"""A model server that takes TensorFlow Serving's flags and answers as it does.

    python -m loupe.modelserver --port=8500 --rest_api_port=8501 --model_name=tires --model_base_path=models/tires

The base path holds numbered folders, each a SavedModel; the newest is served, and a newer one as soon as it is there.
`--model_config_file` serves several models, as TensorFlow Serving does. Only this machine is listened to, unless
`--address=0.0.0.0` says otherwise: whoever reaches the ports may ask, and may have other folders served.
Ports stay closed until each model has loaded; then one line on stdout says which. SIGTERM and Ctrl-C let calls in
flight end first, for 10 s at most (TensorFlow Serving cuts them off); a second signal does not wait.
Exit status: 0 after a signal, 2 with one line on stderr for a flag, a port or a model that cannot be used.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import FrameType

from loupe.engines import machine
from loupe.engines.choose import chooser
from loupe.engines.engine import Opener, Options
from loupe.engines.refused import Refused, say
from loupe.errors import UserError
from loupe.modelserver import config, flags, warmup
from loupe.modelserver.answers import Answers
from loupe.modelserver.batching import batched
from loupe.modelserver.config import Batching, ServedModel
from loupe.modelserver.metrics import Metrics
from loupe.modelserver.models import Models
from loupe.modelserver.service import Service

STOP_DELAY = 10.0  # seconds
LABELS_FLAG = "--allow_version_labels_for_unavailable_models"


class Stop:
    """The wish to stop: `asked` is set by SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked.is_set():
            os._exit(130)
        self.asked.set()


def main(arguments: list[str]) -> None:
    if "--help" in arguments or "--version" in arguments:
        print(usage() if "--help" in arguments else "Loupe's model server, compatible with TensorFlow Serving 2.20")
        return
    serve(flags.parse(arguments, os.environ))


def serve(settings: flags.Flags) -> None:
    # Check the ports and the configuration before a model is loaded.
    stop = Stop()
    for name in ("port", "rest_api_port"):
        check_port(settings.address, getattr(settings, name), name)
    served, batching, monitoring_path = _configuration(settings)
    # Choose the engine, and load the first versions.
    metrics, page = _metrics(monitoring_path)
    is_starting = threading.Event()
    is_starting.set()
    models = Models(settings, _opener(settings, batching, is_starting.is_set), metrics)
    try:
        models.start(served)
    except Refused as error:  # a label of a version that cannot be loaded yet
        raise UserError(f"{error}; at the start a label needs {LABELS_FLAG}") from error
    hopeless = models.wait_until_settled(stop.asked.is_set)
    is_starting.clear()
    if stop.asked.is_set():
        return
    if hopeless:
        raise UserError(hopeless)
    # Open the ports.
    answers = Answers(models, metrics, as_content=settings.enable_serialization_as_tensor_content)
    service = Service(answers, settings)
    if service.health:
        models.after_each_poll(service.health.update)
    http = None
    if settings.rest_api_port:
        from loupe.modelserver.rest import app  # only where it is wanted: a server should start quickly

        http = app.start(answers, settings, monitoring_path, page)
    rest_note = f" (REST {settings.rest_api_port})" if http else ""
    print(f"loupe.modelserver: serving {_names(models)} on port {service.port}{rest_note}", flush=True)
    # Serve until a signal comes, then let calls in flight end.
    stop.asked.wait()
    say("stopping; calls in flight end first")
    stopped = service.stop(STOP_DELAY)
    if http:
        http.stop(STOP_DELAY)
    stopped.wait()


def _configuration(settings: flags.Flags) -> tuple[list[ServedModel], Batching | None, str | None]:
    """Return the models, the batching if it is wanted, and the address of the metrics if they are."""
    if settings.model_config_file:
        served = config.read_models(Path(settings.model_config_file))
    else:
        served = [ServedModel(settings.model_name, Path(settings.model_base_path))]
    batching = None
    if settings.enable_batching:
        file = settings.batching_parameters_file
        batching = config.read_batching(Path(file)) if file else Batching()
    file = settings.monitoring_config_file
    return served, batching, config.read_monitoring(Path(file)) if file else None


def _opener(settings: flags.Flags, batching: Batching | None, is_urgent: Callable[[], bool]) -> Opener:
    streams = settings.tensorflow_inter_op_parallelism or settings.tensorflow_session_parallelism
    threads = settings.tensorflow_intra_op_parallelism or settings.tensorflow_session_parallelism
    # Left alone, the engines count the processors, and not the share of them that a container has.
    if not threads and machine.share() < machine.processors():
        threads = machine.share()
    open_engine = chooser(settings.engine, Options(threads, streams, settings.mixed_precision))
    if batching:
        open_engine = batched(open_engine, batching)
    return warmup.replaying(open_engine, is_urgent) if settings.enable_model_warmup else open_engine


def _metrics(path: str | None) -> tuple[Metrics, Callable[[], bytes] | None]:
    """Return where calls are counted, and the function that writes the page of metrics."""
    if not path:
        return Metrics(), None
    from loupe.modelserver.prometheus import PrometheusMetrics

    metrics = PrometheusMetrics()
    return metrics, metrics.page


def _names(models: Models) -> str:
    """Name what is served: `tires version 3 with openvino`."""
    return ", ".join(
        f"{name} version {version.number} with {version.engine.name}"
        for name, version in models.serving().items()
        if version and version.engine
    )


def check_port(address: str, port: int, flag: str) -> None:
    """Refuse a port that is taken, before a model is loaded for nothing."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            if getattr(error, "errno", None) not in (errno.EADDRINUSE, errno.EACCES):
                raise UserError(f"--address={address} is no address of this machine: {reason}") from error
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
