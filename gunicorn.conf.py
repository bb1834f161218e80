"""gunicorn's configuration for the gateway. `gunicorn gateway:app` reads it from the folder it is started in."""

import atexit
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import gunicorn

# At SIGUSR2 `python -m gunicorn` starts itself by its file: from that file's folder `import http` would be gunicorn's.
sys.path[:] = [path for path in sys.path if Path(path) != Path(gunicorn.__file__).parent]

from gunicorn.glogging import Logger

from loupe import feedback
from loupe.errors import UserError
from loupe.gateway import neighbours
from loupe.gateway.access import keys
from loupe.gateway.door.ports import check_ports
from loupe.gateway.observe import logs, metrics
from loupe.gateway.settings import RETIRED, Settings

os.environ.pop("SCRIPT_NAME", None)  # set by the starting shell script, but gunicorn takes it for a prefix of our paths
try:
    _settings = Settings.from_environment(os.environ, checks={"api_keys": keys.check, "feedback_dir": feedback.check})
except UserError as error:
    sys.exit(f"gateway: {error}")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core writes to stderr directly, in its own format


def _address(port: int) -> str:
    return f"[{_settings.host}]:{port}" if ":" in _settings.host else f"{_settings.host}:{port}"


def _share_metrics() -> None:
    """Make the folder for the metrics of all workers, before prometheus_client is imported. On SIGHUP it is kept."""
    mine = f"loupe-metrics-{os.getpid()}-"
    if Path(os.environ.get(metrics.FOLDER, "")).name.startswith(mine):
        return
    folder = os.environ[metrics.FOLDER] = tempfile.mkdtemp(prefix=mine)
    atexit.register(_remove, folder, os.getpid())


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a worker
        shutil.rmtree(folder, ignore_errors=True)


os.environ.pop("prometheus_multiproc_dir", None)  # the variable's old name
if _settings.metrics_port:
    _share_metrics()
else:
    os.environ.pop(metrics.FOLDER, None)

neighbours.share(_settings.threads)

bind = [_address(port) for port in (_settings.port, _settings.metrics_port) if port]
workers = _settings.workers
worker_class = "loupe.gateway.door.worker.Worker"
threads = _settings.threads
timeout = 60  # seconds after which a worker that shows no sign of life is replaced
graceful_timeout = math.ceil(_settings.grace)  # seconds for requests still being answered after SIGTERM
keepalive = 75  # longer than the 60 s of load balancers, which answer 502 where a connection ends in their hands
forwarder_headers = ""  # no request header may move this service to another path
control_socket_disable = True  # it would be in the home folder, shared by all gateways of a user


class _Logger(Logger):  # type: ignore[misc]
    """A logger that writes gunicorn's lines in the gateway's format. Requests are logged by the gateway itself."""

    def __init__(self, cfg: Any) -> None:
        """Check the ports first. This runs once, before gunicorn listens.

        This file itself is read again on SIGHUP, when the ports are taken by the gateway's own workers.
        """
        if cfg.bind == bind:  # unless --bind says otherwise
            try:
                check_ports(_settings)
            except UserError as error:
                sys.exit(f"gateway: {error}")
        super().__init__(cfg)

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        logs.start(_settings.log_format)

    def access(self, *_: Any) -> None:
        pass


logger_class = _Logger


def on_starting(server: Any) -> None:
    for name, reason in RETIRED.items():
        if name in os.environ:
            server.log.warning("%s has no effect: %s.", name, reason)


def child_exit(server: Any, worker: Any) -> None:
    """Remove the gauges of a worker that ended. Its counters stay."""
    if _settings.metrics_port:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
