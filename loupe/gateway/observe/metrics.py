"""Count requests and predictions for Prometheus. Each worker answers /metrics with the sum over all workers.

    metrics.start(limit=24)       # in the worker, after the fork; does nothing unless FOLDER is in the environment
    metrics.record(entry)         # of a request that ended
    metrics.in_flight(3)
    metrics.scrape()              # bytes for Prometheus
    metrics.recent(version)       # the labels given lately, and those of training

Each worker writes its numbers to files in one folder, which gunicorn.conf.py makes (prometheus_client's multiprocess
mode). When a worker ends its counters stay; its gauges (requests in flight, its window of predictions) go with it.
Where metrics are off a worker still knows its own last predictions.
No text from a caller becomes a Prometheus label, and at most MAX_LABELS labels of a card do.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

from loupe.gateway.observe.drift import Windows, psi
from loupe.gateway.observe.record import Entry

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATHS = ("/", "/predict", "/model", "/feedback", "/healthz", "/readyz", "/openapi.json", "/docs")
PREFIXES = ("/samples/", "/page/")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
WINDOW, TRAINING = "loupe_drift_window_predictions", "loupe_drift_training_images"

# The files that prometheus_client writes for one process, and the size of each.
FILE_TYPES = ("counter", "histogram", "gauge_livesum", "gauge_livemostrecent")
FILE_SIZE = 1 << 18  # bytes, enough for more than a thousand time series

_log = logging.getLogger(__name__)
_metrics: _Metrics | None = None
_own = Windows(lambda *_: None, lambda *_: None)  # this worker's last predictions, where metrics are off
_own_lock = threading.Lock()


class Recent(NamedTuple):
    window: dict[str, float]  # label → of the last predictions
    trained: dict[str, float]  # label → training pictures
    all_workers: bool  # False: of this worker alone


def start(limit: int) -> None:
    """Start counting in this worker, which takes `limit` requests at a time."""
    global _metrics
    if not os.environ.get(FOLDER):
        return
    own = [Path(os.environ[FOLDER]) / f"{file_type}_{os.getpid()}.db" for file_type in FILE_TYPES]
    try:
        _reserve_disk(own)
    except OSError as error:
        for file in own:  # an incomplete file would break every scrape
            file.unlink(missing_ok=True)
        _log.warning("This worker counts nothing: %s for its numbers.", error.strerror)
        return
    _metrics = _Metrics(limit)


def _reserve_disk(files: list[Path]) -> None:
    """Reserve disk space for the files, which are mapped into memory: on a full disk a write would end in SIGBUS."""
    for path in files:
        with path.open("wb") as file:
            file.write(bytes(FILE_SIZE))


def record(entry: Entry) -> None:
    if not entry.counted:
        return
    if _metrics:
        _metrics.record(entry)
    elif entry.version is not None and entry.card is not None:
        with _own_lock:
            _own.add(entry.version, entry.card, [given.label for given in entry.predictions])


def recent(version: int) -> Recent:
    """Return the labels that this version gave lately: to all workers where metrics are on, else to this one."""
    if not _metrics:
        with _own_lock:
            return Recent(*_own.of(version), all_workers=False)
    from prometheus_client.multiprocess import MultiProcessCollector

    files: Any = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
    counts = _drift_counts({metric.name: metric for metric in files.collect()}).get(str(version), {})
    return Recent(counts.get(WINDOW, {}), counts.get(TRAINING, {}), all_workers=True)


def in_flight(count: int) -> None:
    if _metrics:
        _metrics.in_flight.set(count)


def endpoint_of(path: str) -> str:
    if path in PATHS:
        return path
    return next((prefix.rstrip("/") for prefix in PREFIXES if path.startswith(prefix)), "other")


def scrape() -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    registry.register(_SummedCollector(MultiProcessCollector(None)))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class _Metrics:
    def __init__(self, limit: int) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        # Nobody reads this registry: scrapes read the files. Gauges tell how to sum up over workers.
        options: dict[str, Any] = {"registry": CollectorRegistry()}
        latest_options: dict[str, Any] = {**options, "multiprocess_mode": "livemostrecent"}
        sum_options: dict[str, Any] = {**options, "multiprocess_mode": "livesum"}
        self._children: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()
        # Requests.
        self.requests = Counter(
            "loupe_requests_total", "Requests answered, those refused at the door included",
            ["endpoint", "status"], **options,
        )  # fmt: skip
        self.errors = Counter(
            "loupe_errors_total", "Requests answered with a problem, by its code", ["code"], **options
        )
        self.in_flight = Gauge(
            "loupe_requests_in_flight", "Requests with a thread or waiting for one, probes left out", **sum_options
        )
        self.limit = Gauge(
            "loupe_requests_in_flight_limit", "So many may be in flight; more are refused", **sum_options
        )
        self.seconds = Histogram(
            "loupe_stage_duration_seconds",
            "Of requests to /predict that got a thread: wait, fetch (or reading a body), decode, model, card, whole",
            ["stage"], buckets=SECONDS, **options,
        )  # fmt: skip
        # Pictures and predictions.
        self.pictures = Counter("loupe_pictures_total", "Pictures that requests brought", **options)
        self.predictions = Counter(
            "loupe_predictions_total", "Pictures that were given a label, by label and model version",
            ["label", "version"], **options,
        )  # fmt: skip
        self.uncertain = Counter(
            "loupe_uncertain_total", "Predictions marked uncertain, by the reason given", ["reason"], **options
        )
        self.confidence = Histogram(
            "loupe_confidence_ratio", "How sure the model was of its label, 0 to 1", buckets=SHARES, **options
        )
        self.familiarity = Histogram(
            "loupe_familiarity_ratio", "How much like the training pictures a picture was, 0 to 1",
            buckets=SHARES, **options,
        )  # fmt: skip
        self.version = Gauge("loupe_model_version", "Version of the model that answered last", **latest_options)
        # Drift: the labels given lately, and those of training.
        window = Gauge(
            WINDOW, "Of each worker's last predictions of a version, how many had this label", ["label", "version"],
            **sum_options,
        )  # fmt: skip
        training = Gauge(
            TRAINING, "Pictures of this label that the version was trained with, as its card says",
            ["label", "version"], **latest_options,
        )  # fmt: skip
        self.windows = Windows(
            lambda label, version, count: self._labelled(window, label, version).set(count),
            lambda label, version, count: self._labelled(training, label, version).set(count),
        )
        # Gauges begin with a value, so that they show from the first scrape.
        self.limit.set(limit)
        self.in_flight.set(0)

    def _labelled(self, metric: Any, *labels: str) -> Any:
        key = (metric, *labels)
        labelled = self._children.get(key)
        if labelled is None:
            labelled = self._children[key] = metric.labels(*labels)
        return labelled

    def record(self, entry: Entry) -> None:
        # The request.
        self._labelled(self.requests, entry.endpoint, str(entry.status)).inc()
        if entry.code:
            self._labelled(self.errors, entry.code).inc()
        if entry.endpoint == "/predict" and entry.has_thread:
            for stage in entry.stages:
                self._labelled(self.seconds, stage.name).observe(stage.seconds)
        if entry.pictures:
            self.pictures.inc(entry.pictures)
        # Its predictions, if a model answered.
        if entry.version is None or entry.card is None:
            return
        self.version.set(entry.version)
        with self._lock:
            counted = self.windows.add(entry.version, entry.card, [given.label for given in entry.predictions])
        for (label, version), prediction in zip(counted, entry.predictions, strict=True):
            self._labelled(self.predictions, label, version).inc()
            self.confidence.observe(prediction.confidence)
            if prediction.familiarity is not None:
                self.familiarity.observe(prediction.familiarity)
            if prediction.reason:
                self._labelled(self.uncertain, prediction.reason).inc()


class _SummedCollector:
    """A collector of the sums over all workers' files, and of the drift that follows from them."""

    def __init__(self, files: Any) -> None:
        self._files = files

    def collect(self) -> Any:
        from prometheus_client.core import GaugeMetricFamily

        # The sums, and from them the counts.
        metrics = {metric.name: metric for metric in self._files.collect()}
        counts = _drift_counts(metrics)
        yield from (metrics[name] for name in sorted(metrics))
        # The drift of each version.
        drift = GaugeMetricFamily(
            "loupe_drift_psi",
            "Population stability index of the labels given lately against those trained with: above 0.2 they differ",
            labels=["version"],
        )
        for version, by_gauge in sorted(counts.items()):
            value = psi(by_gauge.get(WINDOW, {}), by_gauge.get(TRAINING, {}))
            if value is not None:
                drift.add_metric([version], value)
        yield drift


def _drift_counts(metrics: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the counts by version, gauge and label. Samples of what is gone since are taken out of the metrics."""
    counts: dict[str, dict[str, dict[str, float]]] = {}
    for name in (WINDOW, TRAINING):
        if metric := metrics.get(name):
            metric.samples = [sample for sample in metric.samples if sample.value]
            for sample in metric.samples:
                by_label = counts.setdefault(sample.labels["version"], {}).setdefault(name, {})
                by_label[sample.labels["label"]] = sample.value
    return counts
