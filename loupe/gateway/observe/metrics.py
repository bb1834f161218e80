"""Prometheus metrics, summed over all workers whichever of them is asked.

    metrics.start(limit=24)       # in the worker, after the fork; does nothing unless FOLDER is in the environment
    metrics.record(entry)         # of a request that ended
    metrics.in_flight(3)
    metrics.scrape()              # bytes for Prometheus

Each worker writes its numbers to files in one folder, which gunicorn.conf.py makes (prometheus_client's multiprocess
mode). What a worker counted stays when it ends; what it held (in flight, its window of predictions) goes with it.
No text of a caller becomes a label, and of a card no more than MOST_LABELS labels do.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from loupe.gateway.observe.drift import Windows, psi
from loupe.gateway.observe.record import Entry

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
KIND = "text/plain; version=0.0.4; charset=utf-8"
PATHS = ("/", "/predict", "/model", "/healthz", "/readyz", "/openapi.json", "/docs")
PREFIXES = ("/samples/", "/page/")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
WINDOW, TRAINING = "loupe_drift_window_predictions", "loupe_drift_training_images"

KINDS = ("counter", "histogram", "gauge_livesum", "gauge_livemostrecent")  # prometheus_client's files of one process
ROOM = 1 << 18  # bytes of each: more than a thousand time series

_log = logging.getLogger(__name__)
_metrics: _Metrics | None = None


def start(limit: int) -> None:
    """`limit`: requests that this worker takes at a time."""
    global _metrics
    if not os.environ.get(FOLDER):
        return
    own = [Path(os.environ[FOLDER]) / f"{kind}_{os.getpid()}.db" for kind in KINDS]
    try:
        _reserve(own)
    except OSError as error:
        for file in own:  # half of one would break every scrape
            file.unlink(missing_ok=True)
        _log.warning("This worker counts nothing: %s for its numbers.", error.strerror)
        return
    _metrics = _Metrics(limit)


def _reserve(files: list[Path]) -> None:
    """Room on the disk for this worker's numbers, before they are mapped: a page that finds none later is a SIGBUS."""
    for path in files:
        with path.open("wb") as file:
            file.write(bytes(ROOM))


def record(entry: Entry) -> None:
    if _metrics and entry.counted:
        _metrics.record(entry)


def in_flight(count: int) -> None:
    if _metrics:
        _metrics.in_flight.set(count)


def endpoint(path: str) -> str:
    if path in PATHS:
        return path
    return next((prefix.rstrip("/") for prefix in PREFIXES if path.startswith(prefix)), "other")


def scrape() -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    registry.register(_Summed(MultiProcessCollector(None)))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class _Metrics:
    def __init__(self, limit: int) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        own: dict[str, Any] = {"registry": CollectorRegistry()}  # never asked: the files are
        last: dict[str, Any] = {**own, "multiprocess_mode": "livemostrecent"}
        summed: dict[str, Any] = {**own, "multiprocess_mode": "livesum"}
        self._children: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()
        self.requests = Counter(
            "loupe_requests_total", "Requests answered, those refused at the door included",
            ["endpoint", "status"], **own,
        )  # fmt: skip
        self.errors = Counter("loupe_errors_total", "Requests answered with a problem, by its code", ["code"], **own)
        self.in_flight = Gauge(
            "loupe_requests_in_flight", "Requests with a thread or waiting for one, probes left out", **summed
        )
        self.limit = Gauge("loupe_requests_in_flight_limit", "So many may be in flight; more are refused", **summed)
        self.seconds = Histogram(
            "loupe_stage_duration_seconds",
            "Of requests to /predict that got a thread: wait, fetch (or reading a body), decode, model, card, whole",
            ["stage"], buckets=SECONDS, **own,
        )  # fmt: skip
        self.pictures = Counter("loupe_pictures_total", "Pictures that requests brought", **own)
        self.predictions = Counter(
            "loupe_predictions_total", "Pictures that were given a label, by label and model version",
            ["label", "version"], **own,
        )  # fmt: skip
        self.uncertain = Counter(
            "loupe_uncertain_total", "Predictions marked uncertain, by the reason given", ["reason"], **own
        )
        self.confidence = Histogram(
            "loupe_confidence_ratio", "How sure the model was of its label, 0 to 1", buckets=SHARES, **own
        )
        self.familiarity = Histogram(
            "loupe_familiarity_ratio", "How much like the training pictures a picture was, 0 to 1",
            buckets=SHARES, **own,
        )  # fmt: skip
        self.version = Gauge("loupe_model_version", "Version of the model that answered last", **last)
        window = Gauge(
            WINDOW, "Of each worker's last predictions of a version, how many had this label", ["label", "version"],
            **summed,
        )  # fmt: skip
        training = Gauge(
            TRAINING, "Pictures of this label that the version was trained with, as its card says",
            ["label", "version"], **last,
        )  # fmt: skip
        self.windows = Windows(
            lambda label, version, count: self._child(window, label, version).set(count),
            lambda label, version, count: self._child(training, label, version).set(count),
        )
        self.limit.set(limit)
        self.in_flight.set(0)

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return found

    def record(self, entry: Entry) -> None:
        self._child(self.requests, entry.endpoint, str(entry.status)).inc()
        if entry.code:
            self._child(self.errors, entry.code).inc()
        if entry.endpoint == "/predict" and entry.arrived:
            for stage in entry.stages:
                self._child(self.seconds, stage.name).observe(stage.seconds)
        if entry.pictures:
            self.pictures.inc(entry.pictures)
        if entry.version is None or entry.card is None:
            return
        self.version.set(entry.version)
        with self._lock:
            told = self.windows.add(entry.version, entry.card, [one.label for one in entry.predictions])
        for (label, version), prediction in zip(told, entry.predictions, strict=True):
            self._child(self.predictions, label, version).inc()
            self.confidence.observe(prediction.confidence)
            if prediction.familiarity is not None:
                self.familiarity.observe(prediction.familiarity)
            if prediction.reason:
                self._child(self.uncertain, prediction.reason).inc()


class _Summed:
    """What the workers' files say together, and the drift that follows from it."""

    def __init__(self, files: Any) -> None:
        self._files = files

    def collect(self) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        found = {metric.name: metric for metric in self._files.collect()}
        counts: dict[str, dict[str, dict[str, float]]] = {}
        for name in (WINDOW, TRAINING):
            if metric := found.get(name):
                metric.samples = [sample for sample in metric.samples if sample.value]  # 0: no longer there
                for sample in metric.samples:
                    by_label = counts.setdefault(sample.labels["version"], {}).setdefault(name, {})
                    by_label[sample.labels["label"]] = sample.value
        yield from (found[name] for name in sorted(found))
        drift = GaugeMetricFamily(
            "loupe_drift_psi",
            "Population stability index of the labels given lately against those trained with: above 0.2 they differ",
            labels=["version"],
        )
        for version, both in sorted(counts.items()):
            value = psi(both.get(WINDOW, {}), both.get(TRAINING, {}))
            if value is not None:
                drift.add_metric([version], value)
        yield drift
