"""The life of the server: check ports and configuration, load the first versions, serve until a signal comes.

    serve(flags.parse(["--model_name=tires", "--model_base_path=models/tires"]))       # returns after SIGTERM or SIGINT

UserError, before anything is loaded, if a port is taken or a file of the configuration cannot be used.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable
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
