"""How gunicorn runs the gateway; read by `gunicorn gateway:app` from the folder it is started in."""

import atexit
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gunicorn.glogging import Logger

from loupe.errors import UserError
from loupe.gateway.access import keys
from loupe.gateway.door.ports import check_ports
from loupe.gateway.observe import logs, metrics, tracing
from loupe.gateway.settings import Settings

os.environ.pop("SCRIPT_NAME", None)  # of whatever started this, not a prefix of our addresses
try:
    _settings = Settings.from_environment(os.environ, check_keys=keys.check)
except UserError as error:
    sys.exit(f"gateway: {error}")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core writes past every log, in a form of its own


def _address(port: int) -> str:
    return f"[{_settings.host}]:{port}" if ":" in _settings.host else f"{_settings.host}:{port}"


def _share_metrics() -> None:
    """A folder for the numbers of all workers, before one of them imports prometheus_client; read again on SIGHUP."""
    mine = f"loupe-metrics-{os.getpid()}-"
    if Path(os.environ.get(metrics.FOLDER, "")).name.startswith(mine):
        return
    folder = os.environ[metrics.FOLDER] = tempfile.mkdtemp(prefix=mine)
    atexit.register(_remove, folder, os.getpid())


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a worker
        shutil.rmtree(folder, ignore_errors=True)


os.environ.pop("prometheus_multiproc_dir", None)  # its old name
if _settings.metrics_port:
    _share_metrics()
else:
    os.environ.pop(metrics.FOLDER, None)

bind = [_address(port) for port in (_settings.port, _settings.metrics_port) if port]
workers = _settings.workers
worker_class = "loupe.gateway.door.worker.Worker"
threads = _settings.threads
timeout = 60  # seconds without a sign of life from a worker before it is replaced
graceful_timeout = math.ceil(_settings.grace)  # for requests in flight when asked to stop
keepalive = 5
forwarder_headers = ""  # no header moves this service to another path
control_socket_disable = True  # it would lie in the home folder, one for all gateways of a user


class _Logger(Logger):  # type: ignore[misc]
    """Requests are logged by the gateway itself, which knows more of them; gunicorn's own lines in the same form."""

    def __init__(self, cfg: Any) -> None:
        """Made once, when gunicorn knows where it will listen and before its first line; this file is read again on
        SIGHUP, when the ports are taken by ourselves."""
        if cfg.bind == bind:  # there is --bind, too
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


def child_exit(server: Any, worker: Any) -> None:
    """What a worker held goes with it, however it ended; what it counted stays."""
    if _settings.metrics_port:
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def worker_exit(server: Any, worker: Any) -> None:
    tracing.stop()
