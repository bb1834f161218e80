"""Count requests and predictions for Prometheus. Each worker answers /metrics with the sum over all workers.

    metrics.start(body_memory)    # in the worker, after the fork; does nothing unless FOLDER is in the environment
    metrics.record(entry)         # of a request that ended
    metrics.in_hand(3, wait=0.2, body_bytes=90_000)
    metrics.dropped_lines(1)
    metrics.decode_memory(160_000_000, limit=640_000_000)
    metrics.scrape()              # bytes for Prometheus
    metrics.recent(version)       # the labels given lately, and those of training

Each worker writes its numbers to files in one folder, which gunicorn.conf.py makes (prometheus_client's multiprocess
mode). When a worker ends its counters stay; its gauges (requests in flight, its window of predictions) go with it.
Files that were removed are made again with the next request or scrape; all counts then begin at 0, which Prometheus
takes for a restart. Where metrics are off a worker still knows its own last predictions.
No text from a caller becomes a Prometheus label, and at most MAX_LABELS labels of a card do.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from loupe.errors import InternalError
from loupe.gateway.observe.drift import Windows, psi
from loupe.gateway.observe.metric_files import MetricFiles, check_folder
from loupe.gateway.observe.record import Entry

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATHS = ("/", "/predict", "/model", "/feedback", "/healthz", "/readyz", "/openapi.json", "/docs")
PREFIXES = ("/samples/", "/page/")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
WINDOW, TRAINING = "loupe_drift_window_predictions", "loupe_drift_training_images"

CHECK_SECONDS = 1.0  # between two looks whether the files are still there

_log = logging.getLogger(__name__)
_keeper: _Keeper | None = None  # None: metrics are off
_metrics: _Metrics | None = None  # None: nothing is counted, or not now
_own = Windows(lambda *_: None, lambda *_: None)  # this worker's last predictions, where metrics are off
_own_lock = threading.Lock()


class Recent(NamedTuple):
    window: dict[str, float]  # label → of the last predictions
    trained: dict[str, float]  # label → training pictures
    all_workers: bool  # False: of this worker alone


def start(body_memory: int) -> None:
    """Start counting in this worker, which gathers `body_memory` bytes of bodies at a time."""
    global _keeper
    if os.environ.get(FOLDER):
        _keeper = _Keeper(Path(os.environ[FOLDER]), body_memory)
        _keeper.check()


def record(entry: Entry) -> None:
    if not entry.counted:
        return
    if _keeper:
        _keeper.check()
    if metrics := _metrics:
        metrics.record(entry)
    elif entry.version is not None and entry.card is not None:
        with _own_lock:
            _own.add(entry.version, entry.card, [given.label for given in entry.predictions])


def recent(version: int) -> Recent:
    """Return the labels that this version gave lately: to all workers where metrics are on, else to this one."""
    if not _metrics:
        with _own_lock:
            return Recent(*_own.of(version), all_workers=False)
    from prometheus_client.multiprocess import MultiProcessCollector

    try:
        check_folder(Path(os.environ[FOLDER]))
        files: Any = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        counts = _drift_counts({metric.name: metric for metric in files.collect()}).get(str(version), {})
    except (OSError, ValueError):  # they are being removed
        counts = {}
    return Recent(counts.get(WINDOW, {}), counts.get(TRAINING, {}), all_workers=True)


def in_hand(requests: int, wait: float, body_bytes: int) -> None:
    """Set how many requests have a thread or wait for one, what the next would wait, and what their bodies take."""
    if metrics := _metrics:
        metrics.in_flight.set(requests)
        metrics.wait.set(wait)
        metrics.body_bytes.set(body_bytes)


def decode_memory(taken: int, limit: int) -> None:
    if metrics := _metrics:
        metrics.decode_memory.set(taken)
        metrics.decode_limit.set(limit)


def replicas(answering: int, away: int) -> None:
    if metrics := _metrics:
        metrics.replicas_answering.set(answering)
        metrics.replicas_away.set(away)


def dropped_lines(count: int) -> None:
    if metrics := _metrics:
        metrics.dropped_lines.inc(count)


def model_calls(in_flight: int, limit: int) -> None:
    if metrics := _metrics:
        metrics.calls_in_flight.set(in_flight)
        metrics.calls_limit.set(limit)


def endpoint_of(path: str) -> str:
    if path in PATHS:
        return path
    return next((prefix.rstrip("/") for prefix in PREFIXES if path.startswith(prefix)), "other")


def scrape() -> bytes:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    if _keeper:
        _keeper.check(at_once=True)
    registry = CollectorRegistry()
    try:
        check_folder(Path(os.environ[FOLDER]))
        registry.register(_SummedCollector(MultiProcessCollector(None)))  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    except (OSError, ValueError) as error:
        raise InternalError("The files of the metrics are gone; ask again, and see the log if it stays so.") from error


class _Keeper:
    """Begins to count, and begins anew when this worker's files are gone."""

    def __init__(self, folder: Path, body_memory: int) -> None:
        self._files = MetricFiles(folder)
        self._body_memory = body_memory
        self._lock = threading.Lock()
        self._checked_at = -CHECK_SECONDS
        self._made: _Metrics | None = None
        self._is_warned = False

    def check(self, at_once: bool = False) -> None:
        """Make the files if they are not there. Threads that come meanwhile do not wait."""
        is_due = at_once or time.monotonic() >= self._checked_at + CHECK_SECONDS
        if not is_due or not self._lock.acquire(blocking=False):
            return
        try:
            self._checked_at = time.monotonic()
            if not _metrics or not self._files.are_there():
                self._begin()
        finally:
            self._lock.release()

    def _begin(self) -> None:
        global _metrics
        _metrics = None  # nobody counts until all files are open
        try:
            self._files.make()
            if self._made:
                _log.warning("The files of the metrics were removed; this worker counts from 0 again.")
            self._made = self._made or _Metrics()
            self._made.begin(self._body_memory)
        except OSError as error:
            if not self._is_warned:
                _log.warning("This worker counts nothing until its files can be made: %s.", error.strerror)
            self._is_warned = True
            return
        _metrics, self._is_warned = self._made, False


class _Metrics:
    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        # Nobody reads this registry: scrapes read the files. Gauges tell how to sum up over workers.
        options: dict[str, Any] = {"registry": CollectorRegistry()}
        latest_options: dict[str, Any] = {**options, "multiprocess_mode": "livemostrecent"}
        sum_options: dict[str, Any] = {**options, "multiprocess_mode": "livesum"}
        most_options: dict[str, Any] = {**options, "multiprocess_mode": "livemax"}
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
        self.wait = Gauge(
            "loupe_expected_wait_seconds", "That who came now would wait for a thread, with the busiest worker",
            **most_options,
        )  # fmt: skip
        self.body_bytes = Gauge("loupe_body_memory_bytes", "Of bodies that arrive, wait or are in hand", **sum_options)
        self.body_limit = Gauge("loupe_body_memory_limit_bytes", "So many may be there", **sum_options)
        self.decode_memory = Gauge(
            "loupe_decode_memory_bytes", "What the pictures take that are decoded now, as they were weighed",
            **sum_options,
        )  # fmt: skip
        self.decode_limit = Gauge(
            "loupe_decode_memory_limit_bytes", "So much they may take; more pictures wait", **sum_options
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
        replicas = Gauge(
            "loupe_model_replicas", "Addresses of the model server: answering, or away and passed over", ["state"],
            **latest_options,
        )  # fmt: skip
        self.replicas_answering, self.replicas_away = replicas.labels("answering"), replicas.labels("away")
        self.dropped_lines = Counter(
            "loupe_log_lines_dropped_total", "Lines that the log did not take, since nobody read it", **options
        )
        self.calls_in_flight = Gauge(
            "loupe_model_calls_in_flight", "Predictions that model servers compute just now", **sum_options
        )
        self.calls_limit = Gauge(
            "loupe_model_calls_limit", "So many of them may be in flight, as servers were found to take", **sum_options,
        )  # fmt: skip
        # Drift: the labels given lately, and those of training.
        self._window = Gauge(
            WINDOW, "Of each worker's last predictions of a version, how many had this label", ["label", "version"],
            **sum_options,
        )  # fmt: skip
        self._training = Gauge(
            TRAINING, "Pictures of this label that the version was trained with, as its card says",
            ["label", "version"], **latest_options,
        )  # fmt: skip

    def begin(self, body_memory: int) -> None:
        """Begin to count in new files. What is set once only is set here; the windows set theirs again when needed."""
        self.body_limit.set(body_memory)
        self.windows = Windows(
            lambda label, version, count: self._labelled(self._window, label, version).set(count),
            lambda label, version, count: self._labelled(self._training, label, version).set(count),
        )

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
