"""Open gRPC's channels to the model server, and look its names up.

channel = open_channel("ipv4:10.0.0.7:8500")
Names([("model", 8500)]).look_up()              # {"ipv4:10.0.0.7:8500", "ipv4:10.0.0.8:8500"}
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Collection
from typing import Any

import grpc

_log = logging.getLogger(__name__)

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # a model server is not asked through a proxy that the environment names
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # 120 s by default: too long after a restart
    ("grpc.min_reconnect_backoff_ms", 1000),  # to connect; callers wait 20 s for the first connection by default
    ("grpc.keepalive_time_ms", 310_000),  # TensorFlow Serving disconnects clients that ping more than once in 5 minutes
    ("grpc.keepalive_timeout_ms", 10_000),  # to notice that the server vanished; also sets the kernel's TCP timeout
    ("grpc.per_rpc_retry_buffer_size", 1 << 26),  # a call that never left is sent again by gRPC; 256 KiB by default
    # The channel has one address only. Unlike the default policy, this one connects again before it is asked to.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
]


def open_channel(address: str) -> Any:
    return grpc.insecure_channel(address, options=_OPTIONS)


class Names:
    """Hosts and ports. One that is unknown just now keeps the addresses that it had."""

    def __init__(self, servers: Collection[tuple[str, int]]) -> None:
        self._servers = servers
        self._found: dict[tuple[str, int], set[str]] = {}  # the addresses of each, as it was last found
        self._unknown: set[tuple[str, int]] = set()

    def look_up(self) -> set[str]:
        """Return the addresses of all. That a host gets unknown is logged once, until it is found again."""
        for server in self._servers:
            try:
                self._found[server] = _look_up(*server)
                self._unknown.discard(server)
            except OSError as error:
                if server not in self._unknown:
                    _log.warning("The host %r in TF_SERVING_HOST is not found: %s", server[0], error)
                self._unknown.add(server)
        return set().union(*self._found.values())


def _look_up(host: str, port: int) -> set[str]:
    """Return all addresses of a host, as gRPC writes them."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"no valid name: {error}") from error
    return {
        f"ipv6:[{address[0]}]:{port}" if family == socket.AF_INET6 else f"ipv4:{address[0]}:{port}"
        for family, _, _, _, address in entries
    }
