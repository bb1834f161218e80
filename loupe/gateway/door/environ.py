"""A request as WSGI has it, from what ASGI says of it.

environ = to_environ(scope, body, Proxies(["127.0.0.1"]))
"""

from __future__ import annotations

import io
import ipaddress
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

LEFT_OUT = (b"content-length", b"transfer-encoding", b"expect")  # all of the body is there


class Proxies:
    """The proxies whose word is taken that their callers came by https: gunicorn's forwarded_allow_ips."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._all = "*" in addresses
        self._networks = [ipaddress.ip_network(address) for address in addresses if address != "*"]

    def __contains__(self, address: str) -> bool:
        if self._all or not address:  # no address: it came by a socket of this machine
            return True
        found = ipaddress.ip_address(address)
        found = getattr(found, "ipv4_mapped", None) or found
        return any(found in network for network in self._networks)


def to_environ(scope: dict[str, Any], body: bytes, proxies: Proxies) -> dict[str, Any]:
    """Return the environment of PEP 3333. `body` is the whole body, however it was sent."""
    server, client = scope["server"] or ("localhost", None), scope["client"] or ("", 0)
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1] or 80),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        if b"_" in name or name in LEFT_OUT:
            continue  # X_Real_IP would be read as X-Real-IP, which a proxy may vouch for
        key = name.decode("latin-1").upper().replace("-", "_")
        key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    if "HTTP_X_FORWARDED_PROTO" in environ and client[0] in proxies:
        environ["wsgi.url_scheme"] = "https" if environ["HTTP_X_FORWARDED_PROTO"] == "https" else "http"
    return environ
