"""Whether the gateway's ports are free, said in one line before anything is started.

check_ports(settings)             # UserError naming the setting that is wrong

gunicorn itself would try for seconds, and say it in many lines.
"""

from __future__ import annotations

import errno
import os
import socket

from loupe.errors import UserError
from loupe.gateway.settings import Settings


def check_ports(settings: Settings, instead: str = "choose another") -> None:
    """`instead`: what to do about LOUPE_PORT."""
    if _are_handed_on():
        return
    _check(settings.host, settings.port, "LOUPE_PORT", instead)
    if settings.metrics_port:
        _check(settings.host, settings.metrics_port, "LOUPE_METRICS_PORT", "choose another")


def _are_handed_on() -> bool:
    """The sockets are there already: from another gunicorn (SIGUSR2), or from systemd."""
    return "GUNICORN_FD" in os.environ or os.environ.get("LISTEN_PID") == str(os.getpid())


def _check(host: str, port: int, name: str, instead: str) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:  # a name that is none breaks in its encoding
        if isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(f"Port {port} of {name} cannot be used ({error.strerror}); {instead}.") from error
        raise UserError(f"LOUPE_HOST is {host!r}, which is no address of this machine; try 127.0.0.1.") from error
