"""Count and time calls, and write them for Prometheus under TensorFlow Serving's names.

    metrics = PrometheusMetrics()
    with metrics.call("tires", "Predict", "GRPC"): ...
    metrics.page()                                        # bytes

Latencies are in microseconds, as there. Counters are of the type `untyped`: the library would add `_total` to the names
of its own. Importing it takes a tenth of a second, so this module is only imported where metrics are wanted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, Metric, disable_created_metrics, generate_latest
from prometheus_client.registry import Collector

from loupe.engines.refused import Refused
from loupe.modelserver.metrics import Metrics

BUCKETS = [10 * 1.8**power for power in range(33)]  # µs; the last is of 20 minutes
EXAMPLES = [2**power for power in range(15)]


class PrometheusMetrics(Metrics):
    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = _Counter(
            ":tensorflow:serving:request_count", "The total number of requests.", ("model_name", "status")
        )
        self._loads = _Counter(
            ":tensorflow:cc:saved_model:load_attempt_count",
            "The number of times a SavedModel was attempted to be loaded.",
            ("model_path", "status"),
        )
        self._load_microseconds = _Counter(
            ":tensorflow:cc:saved_model:load_latency", "Latency in microseconds of SavedModels loaded.", ("model_path",)
        )
        for counter in (self._requests, self._loads, self._load_microseconds):
            self._registry.register(counter)
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Distribution of wall time (in microseconds) for Tensorflow Serving request.",
            ("model_name", "API", "entrypoint"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._runtime = Histogram(
            ":tensorflow:serving:runtime_latency",
            "Distribution of wall time (in microseconds) for Tensorflow runtime.",
            ("model_name", "API", "runtime"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._examples = Histogram(
            ":tensorflow:serving:request_example_counts",
            "The number of tensorflow.Examples per request.",
            ("model",),
            buckets=EXAMPLES,
            registry=self._registry,
        )

    @contextmanager
    def call(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Count and time a call of a model that is served; others' names would be as many as callers think of."""
        started, status = time.perf_counter(), "OK"
        try:
            yield
        except Refused as error:
            status = error.code.name
            raise
        except BaseException:
            status = "INTERNAL"
            raise
        finally:
            microseconds = (time.perf_counter() - started) * 1e6
            self._requests.add(1, model, status)
            self._latency.labels(model, api, entrypoint).observe(microseconds)

    @contextmanager
    def computing(self, model: str, api: str, engine: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._runtime.labels(model, api, engine).observe((time.perf_counter() - started) * 1e6)

    def examples(self, model: str, count: int) -> None:
        self._examples.labels(model).observe(count)

    def load_ended(self, folder: Path, *, loaded: bool, seconds: float) -> None:
        self._loads.add(1, str(folder), "success" if loaded else "fail")
        if loaded:
            self._load_microseconds.add(int(seconds * 1e6), str(folder))

    def page(self) -> bytes:
        return generate_latest(self._registry)


class _Counter(Collector):
    """A counter whose name is its own: prometheus_client's end in `_total`."""

    def __init__(self, name: str, help_text: str, labels: tuple[str, ...]) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._values: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def add(self, amount: int, *labels: str) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + amount

    def collect(self) -> Iterator[Metric]:
        metric = Metric(self._name, self._help, "unknown")
        with self._lock:
            values = list(self._values.items())
        for labels, value in values:
            metric.add_sample(self._name, dict(zip(self._labels, labels, strict=True)), value)
        yield metric
