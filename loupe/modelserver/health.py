"""Answer the standard health service: SERVING while a model has a version that is loaded.

    health = Health(grpc_server)
    health.update(models.serving())      # after each look at the models' folders
    health.stop()                        # from now on NOT_SERVING

Names: a model's, or TensorFlow Serving's two services and "" for all models together that have once been loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from loupe import proto

STATUS = health_pb2.HealthCheckResponse


class Health:
    def __init__(self, server: Any) -> None:
        self._servicer = health.HealthServicer()
        self._lock = threading.Lock()
        self._last: dict[str, int] = {}
        self._seen: set[str] = set()  # models that have been loaded once
        self._set({"": STATUS.NOT_SERVING})
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def update(self, serving: Mapping[str, object]) -> None:
        """Take over which models have a version; of a model that is no longer there, none serves."""
        with self._lock:
            self._update(serving)

    def _update(self, serving: Mapping[str, object]) -> None:
        states = dict.fromkeys(self._last, STATUS.NOT_SERVING)
        for name, version in serving.items():
            states[name] = STATUS.SERVING if version else STATUS.NOT_SERVING
        # A model that has never been loaded, perhaps by a slip in the configuration, takes the others' callers nothing.
        self._seen.update(name for name, version in serving.items() if version)
        known = [version for name, version in serving.items() if name in self._seen]
        whole = STATUS.SERVING if known and all(known) else STATUS.NOT_SERVING
        for name in ("", *{method.service for method in proto.METHODS.values()}):
            states[name] = whole
        self._set(states)

    def stop(self) -> None:
        self._servicer.enter_graceful_shutdown()

    def _set(self, states: dict[str, int]) -> None:
        for name, status in states.items():
            if self._last.get(name) != status:
                self._servicer.set(name, status)
        self._last = states
