"""How gunicorn runs the gateway; read by `gunicorn gateway:app` from the folder it is started in."""

import os
import sys

from loupe.errors import UserError
from loupe.gateway.settings import Settings

os.environ.pop("SCRIPT_NAME", None)  # of whatever started this, not a prefix of our addresses
try:
    _settings = Settings.from_environment(os.environ)
except UserError as error:
    sys.exit(f"gateway: {error}")

bind = f"[{_settings.host}]:{_settings.port}" if ":" in _settings.host else f"{_settings.host}:{_settings.port}"
workers = _settings.workers
worker_class = "loupe.gateway.worker.Worker"
threads = _settings.threads
timeout = 60  # seconds without a sign of life from a worker before it is replaced
graceful_timeout = 30 + int(_settings.drain)  # for requests in flight when asked to stop
keepalive = 5
forwarder_headers = ""  # no header moves this service to another path
control_socket_disable = True  # it would lie in the home folder, one for all gateways of a user
accesslog = "-"
access_log_format = "%(t)s %(r)s %(s)s %(M)s ms"
