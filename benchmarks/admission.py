"""Measure how a gateway meets the limit of a model server, which computes eight calls at a time and refuses the ninth.

    python benchmarks/admission.py            # three minutes; make bench-admission
    python benchmarks/admission.py --only closed --workers 2 --callers 32

A model server of a fixed service time (tests/support/replicas.py: 0.1 s and no processor, so it can give 80 a second),
and a real gateway under gunicorn.

    closed      8, 16, 32 and 64 callers that ask again as soon as they are answered, a thousand requests in all, with
                the gateway's defaults
    open        three times more than the model server can give, whatever becomes of it, for ten seconds. None may wait
                longer than a second

"p99/fair" compares the p99 with what each caller would wait if all waited equally long, callers ÷ rate. Callers keep
their connections, and the system deals these out to the workers: "split" tells how many answers each worker gave, and
"limits" how many calls each was found to have room for in the end.
"""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loupe.cli import Parser, run_script
from loupe.errors import UserError
from tests.support.crowd import PICTURE, crowding
from tests.support.gateways import Gateway, gateway
from tests.support.replicas import replicas, target
from tests.support.servers import free_port, until

PARTS = ("closed", "open")
THREADS, SECONDS = 8, 0.1
CAPACITY = THREADS / SECONDS
OPEN_SECONDS, OVERLOAD = 10, 3
SENDERS = 400  # at most so many requests of the open loop are in hand at a time: what waits for a second, and more


@dataclass(frozen=True)
class Worker:
    """What one worker's metrics say."""

    answered: int
    limit: int


def main() -> None:
    # The arguments.
    parser = Parser(__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma separated (all)")
    parser.add_argument("--workers", default="1,2", help="numbers of workers, comma separated (1,2)")
    parser.add_argument("--callers", default="8,16,32,64", help="of the closed loop, comma separated (8,16,32,64)")
    parser.add_argument("--requests", type=int, default=1000, help="of each row of the closed loop (1000)")
    arguments = parser.read()
    parts = arguments.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"--only {unknown.pop()} is no part; there are {', '.join(PARTS)}.")
    workers = [int(word) for word in arguments.workers.split(",")]
    # The rows.
    peaks = dict.fromkeys(workers, CAPACITY)
    if "closed" in parts:
        print("closed   workers  callers  answered  a second     p50    p99  p99/fair   split        limits")
        for count in workers:
            callers = [int(word) for word in arguments.callers.split(",")]
            peaks[count] = max(closed(count, each, arguments.requests) for each in callers)
    if "open" in parts:
        print("open     workers   offered  answered  of peak  refused: p50    p99  other")
        for count in workers:
            opened(count, peaks[count])


@contextmanager
def serving(workers: int, **settings: str) -> Iterator[tuple[Gateway, Path]]:
    """Yield a gateway that is ready, in all of its workers, and the folder of its metrics."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        replicas(1, SECONDS, threads=THREADS) as servers,
        gateway(
            target(servers), LOUPE_WORKERS=str(workers), LOUPE_METRICS_PORT=str(free_port()), TMPDIR=scratch, **settings
        ) as here,
    ):
        until(lambda: len(here.workers()) == workers, "all workers")
        until(lambda: here.get("/readyz").status == 200, "the gateway to be ready")
        (folder,) = Path(scratch).glob("loupe-metrics-*")
        until(lambda: all(any(folder.glob(f"*_{pid}.db")) for pid in here.workers()), "each worker to begin")
        time.sleep(2)  # it loads the app, and listens
        yield here, folder


def closed(workers: int, callers: int, requests: int) -> float:
    with serving(workers) as (here, folder):
        started = time.monotonic()
        with crowding([here], callers) as seen:
            until(lambda: seen.count() + seen.failed.total() >= requests, f"{requests} requests", 120)
            with seen.lock:
                answered, failed, took = seen.count(), seen.failed.total(), sorted(seen.waited)
            rate = answered / (time.monotonic() - started)
            found = per_worker(here, folder)
    p50, p99 = statistics.median(took), took[len(took) * 99 // 100]
    print(
        f"{'':8} {workers:7} {callers:8} {answered / (answered + failed):9.1%} {rate:9.1f} {p50:7.3f}"
        f" {p99:6.3f} {p99 * rate / callers:9.2f}   {listed([each.answered for each in found]):12}"
        f" {listed([each.limit for each in found])}",
        flush=True,
    )
    return rate


def opened(workers: int, peak: float) -> None:
    with serving(workers, LOUPE_MAX_WAIT="1") as (here, _):
        offered = round(OVERLOAD * CAPACITY * OPEN_SECONDS)
        answers: list[tuple[str, float]] = []
        numbers, started = itertools.count(), time.monotonic()
        connections = threading.local()

        def send(_: int) -> None:
            while (number := next(numbers)) < offered:
                time.sleep(max(0.0, started + number / OVERLOAD / CAPACITY - time.monotonic()))
                answers.append(ask(here, connections))

        with ThreadPoolExecutor(SENDERS) as pool:
            list(pool.map(send, range(SENDERS)))
        lasted = time.monotonic() - started
    codes = Counter(code for code, _ in answers)
    refused = sorted(seconds for code, seconds in answers if code == "busy") or [0.0]
    print(
        f"{'':8} {workers:7} {offered / lasted:9.1f} {codes['answered'] / lasted:9.1f}"
        f" {codes['answered'] / lasted / peak:8.0%} {statistics.median(refused):13.3f}"
        f" {refused[len(refused) * 99 // 100]:6.3f}  {codes.total() - codes['answered'] - codes['busy']}",
        flush=True,
    )


def ask(here: Gateway, connections: threading.local) -> tuple[str, float]:
    """Return `answered` or the problem's code, and the seconds that it took. Each thread has a connection."""
    if not hasattr(connections, "own"):
        connections.own = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
    began = time.monotonic()
    try:
        connections.own.request("POST", "/predict", PICTURE, {"Content-Type": "image/jpeg"})
        response = connections.own.getresponse()
        body = json.loads(response.read())
    except (OSError, http.client.HTTPException) as error:
        connections.own.close()
        return repr(error), time.monotonic() - began
    return "answered" if response.status == 200 else str(body["code"]), time.monotonic() - began


def per_worker(here: Gateway, folder: Path) -> list[Worker]:
    from prometheus_client.multiprocess import MultiProcessCollector

    collector: Any = MultiProcessCollector
    found = []
    for pid in here.workers():
        samples = [
            sample
            for metric in collector.merge([str(file) for file in folder.glob(f"*_{pid}.db")])
            for sample in metric.samples
        ]
        answered = sum(
            sample.value
            for sample in samples
            if sample.name == "loupe_requests_total" and sample.labels["endpoint"] == "/predict"
        )
        limit = sum(sample.value for sample in samples if sample.name == "loupe_model_calls_limit")
        found.append(Worker(int(answered), int(limit)))
    return found


def listed(numbers: list[int]) -> str:
    return " + ".join(map(str, numbers))


if __name__ == "__main__":
    run_script(main)
