"""Prometheus metrics of a gateway with two workers, read over their own port; a gRPC server stands in as the model."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loupe.card import Card
from loupe.gateway.access.keys import digest_of
from loupe.gateway.observe.drift import MAX_LABELS, WINDOW, Windows, psi
from tests.support import models
from tests.support.backends import backend
from tests.support.gateways import Answer, Gateway, gateway, internet
from tests.support.pictures import encoded
from tests.support.servers import ROOT, free_port, model_server, until

PICTURE = encoded()
TRAINED = {"cracked": 327, "normal": 376, "worn": 297}
CARD = models.card(certain_at=0.9, training={"images": TRAINED})
Series = dict[str, float]


def series(text: str) -> Series:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    assert len(values) == len(lines), "a series is given twice"
    return values


def ask_port(port: int, method: str, path: str) -> Answer:
    return Gateway(None, port, None).ask(method, path, None, {})  # type: ignore[arg-type]


def scrape(port: int) -> Series:
    answer = ask_port(port, "GET", "/metrics")
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return series(answer.body.decode())


@pytest.fixture(scope="module")
def slow() -> Iterator[threading.Event]:
    """An event: while it is clear, the model does not answer."""
    event = threading.Event()
    event.set()
    yield event
    event.set()


@pytest.fixture(scope="module")
def target(slow: threading.Event) -> Iterator[str]:
    with backend(lambda _, context: slow.wait(60), CARD) as behind:
        yield f"localhost:{behind.port}"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def max_wait() -> str:
    return "60"


@pytest.fixture
def here(target: str, port: int, max_wait: str, tmp_path: Path) -> Iterator[Gateway]:
    (tmp_path / "tmp").mkdir()
    with gateway(
        target, LOUPE_METRICS_PORT=str(port), LOUPE_WORKERS="2", LOUPE_THREADS="2", LOUPE_MAX_WAIT=max_wait,
        LOUPE_READ_TIMEOUT="2", TMPDIR=str(tmp_path / "tmp"),
    ) as running:  # fmt: skip
        yield running


def post(here: Gateway, _: int = 0) -> int:
    return here.post("/predict", PICTURE, "image/jpeg").status


def answering(here: Gateway) -> set[str]:
    """Return the processes that have logged a request."""
    return set(re.findall(r'"process": (\d+), "trace_id"', here.log.read_text()))


def test_what_two_workers_counted_sums_to_what_was_sent_whichever_is_asked(here: Gateway, port: int) -> None:
    # Requests of many kinds, answered by both workers.
    sent = 0
    with ThreadPoolExecutor(4) as pool:
        while sent < 60 or (answering(here) != {str(worker) for worker in here.workers()} and sent < 6000):
            assert set(pool.map(lambda n: post(here, n), range(60))) == {200}
            sent += 60  # on a busy machine one worker may take all of the first
    assert here.post_files("/predict", PICTURE, PICTURE, PICTURE).status == 200
    assert [here.post("/predict", b"no picture", "image/jpeg").status for _ in range(5)] == [422] * 5
    assert [here.get("/predict").status for _ in range(4)] == [405] * 4
    paths = ['/a"b', "/x%0Ay", "/%C3%BCnbekannt", "/metrics", "/samples/none.jpg"]
    assert [here.get(path).status for path in paths] == [404] * 5
    assert answering(here) == {str(worker) for worker in here.workers()}
    # Each scrape goes to either worker, and shows the same sums.
    for _ in range(8):
        metrics = scrape(port)
        requests = {name: value for name, value in metrics.items() if name.startswith("loupe_requests_total")}
        requests.pop('loupe_requests_total{endpoint="/healthz",status="200"}')
        assert requests == {
            'loupe_requests_total{endpoint="/predict",status="200"}': sent + 1,
            'loupe_requests_total{endpoint="/predict",status="422"}': 5,
            'loupe_requests_total{endpoint="/predict",status="405"}': 4,
            'loupe_requests_total{endpoint="other",status="404"}': 4,
            'loupe_requests_total{endpoint="/samples",status="404"}': 1,
        }
        assert {name: value for name, value in metrics.items() if name.startswith("loupe_errors_total")} == {
            'loupe_errors_total{code="broken_image"}': 5,
            'loupe_errors_total{code="method_not_allowed"}': 4,
            'loupe_errors_total{code="not_found"}': 5,
        }
        assert metrics["loupe_pictures_total"] == sent + 8
        assert metrics['loupe_predictions_total{label="cracked",version="1"}'] == sent + 3
        assert metrics['loupe_uncertain_total{reason="below_threshold"}'] == sent + 3
        assert metrics["loupe_confidence_ratio_count"] == metrics['loupe_confidence_ratio_bucket{le="0.4"}'] == sent + 3
        assert metrics['loupe_confidence_ratio_bucket{le="0.3"}'] == 0
        assert metrics['loupe_stage_duration_seconds_count{stage="model"}'] == sent + 1
        assert metrics['loupe_stage_duration_seconds_count{stage="whole"}'] == sent + 10
        assert metrics["loupe_model_version"] == 1
        assert (metrics["loupe_requests_in_flight"], metrics["loupe_expected_wait_seconds"]) == (0, 0)
        assert (metrics["loupe_body_memory_bytes"], metrics["loupe_body_memory_limit_bytes"]) == (0, 2 << 28)


def test_the_drift_of_all_workers_is_the_index_computed_by_hand(here: Gateway, port: int) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: here.post_files("/predict", *[PICTURE] * 9).status, range(11))) == [200] * 11
        assert not [name for name in scrape(port) if name.startswith("loupe_drift_psi")], "99 are too few"
        assert list(pool.map(lambda _: here.post_files("/predict", *[PICTURE] * 9).status, range(9))) == [200] * 9
    metrics = scrape(port)
    assert metrics['loupe_drift_window_predictions{label="cracked",version="1"}'] == 180
    assert metrics['loupe_drift_training_images{label="normal",version="1"}'] == 376
    # All were cracked: (1 − .327) ln(1 / .327), and with .0001 for none (.0001 − e) ln(.0001 / e) for the other two.
    assert metrics['loupe_drift_psi{version="1"}'] == pytest.approx(0.752277 + 3.094538 + 2.374109, abs=1e-4)


def test_a_killed_worker_takes_nothing_back_and_leaves_nothing_in_flight(
    here: Gateway, port: int, slow: threading.Event
) -> None:
    assert [post(here) for _ in range(20)] == [200] * 20
    # Kill both workers while they answer.
    before = scrape(port)
    slow.clear()
    with ThreadPoolExecutor(4) as pool:

        def lost(_: int) -> None:
            with suppress(OSError, Exception):
                post(here)

        waiting = [pool.submit(lost, n) for n in range(4)]
        until(lambda: scrape(port)["loupe_requests_in_flight"] == 4, "four in flight")
        killed = here.workers()
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        slow.set()
        for call in waiting:
            call.result()
    until(lambda: len(here.workers()) == 2 and not set(here.workers()) & set(killed), "two new workers")
    until(lambda: scrape(port)["loupe_body_memory_limit_bytes"] == 2 << 28, "both to answer")
    # Counters stay, gauges are gone.
    after = scrape(port)
    assert after["loupe_requests_in_flight"] == 0
    for name, value in before.items():
        if "_total" in name or "_count" in name or "_bucket" in name:
            assert after[name] >= value, name
    assert after['loupe_requests_total{endpoint="/predict",status="200"}'] == 20
    assert not [name for name in after if name.startswith("loupe_drift_window")], "its window went with it"
    assert post(here) == 200
    assert scrape(port)['loupe_requests_total{endpoint="/predict",status="200"}'] == 21


@pytest.mark.parametrize("max_wait", ["0.05"])
def test_what_the_front_refuses_is_counted_and_metrics_are_answered_while_all_is_busy(
    here: Gateway, port: int, slow: threading.Event
) -> None:
    def send(data: bytes, *, end: bool = False) -> bytes:
        with socket.create_connection(("127.0.0.1", here.port), timeout=60) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            return connection.recv(65536)

    # Requests that get no thread.
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
    assert b" 413 " in send(head + b"Content-Length: 99999999\r\n\r\n")
    assert b" 431 " in send(b"GET /" + b"x" * 70_000)
    assert b" 400 " in send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert b" 400 " in send(head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n")
    assert b" 400 " in send(head + b"Content-Length: 9\r\n\r\n123", end=True)
    assert b" 408 " in send(head + b"Content-Length: 9\r\n\r\n123")
    waiting: list[Future[int]] = []

    def one_more() -> float:
        waiting.append(pool.submit(post, here))  # the system chooses the worker: one more, until both are full
        return scrape(port)["loupe_requests_in_flight"]

    # Fill both workers, and scrape meanwhile.
    slow.clear()
    with ThreadPoolExecutor(24) as pool:
        try:
            until(lambda: one_more() == 4, "both workers to be full")
            waiting += [pool.submit(post, here) for _ in range(8)]
            until(lambda: sum(not call.done() for call in waiting) == 4, "all but four to be refused")
            assert scrape(port)["loupe_expected_wait_seconds"] > 0
            asked = time.monotonic()
            metrics = scrape(port)
            assert time.monotonic() - asked < 30, "it waits for nobody"
        finally:
            slow.set()
        busy = len(waiting) - 4
        assert Counter(call.result() for call in waiting) == {200: 4, 503: busy}
    # All of it is counted.
    assert metrics["loupe_requests_in_flight"] == 4
    assert metrics['loupe_requests_total{endpoint="/predict",status="503"}'] == busy
    codes = {name.split('"')[1]: value for name, value in scrape(port).items() if name.startswith("loupe_errors_total")}
    assert codes == {"too_large": 1, "head_too_large": 1, "bad_request": 3, "request_timeout": 1, "busy": busy}
    metrics = scrape(port)
    assert metrics['loupe_requests_total{endpoint="/predict",status="400"}'] == 2
    assert metrics['loupe_stage_duration_seconds_count{stage="whole"}'] == 4, (
        "what got no thread says nothing of how long an answer takes"
    )
    assert not [name for name in metrics if 'stage="arriving"' in name]


def test_stages_that_failed_took_their_time_too(target: str, port: int) -> None:
    def silent(path: str, write: Callable[[bytes], None]) -> None:
        time.sleep(5)

    with (
        internet(silent) as origin,
        gateway(target, LOUPE_METRICS_PORT=str(port), LOUPE_FETCH_TIMEOUT="1", LOUPE_FETCH_ALLOW="127.0.0.1") as here,
    ):
        failed = here.post_json("/predict", {"url": f"http://127.0.0.1:{origin}/a.jpg"})
        assert (failed.status, failed.json()["code"]) == (422, "fetch_failed")
        assert here.post("/predict", b"no picture", "image/jpeg").status == 422
        metrics = {name.removeprefix("loupe_stage_duration_seconds"): value for name, value in scrape(port).items()}
        assert metrics['_count{stage="fetch"}'] == 2 and 0.9 < metrics['_sum{stage="fetch"}'] < 100
        assert metrics['_count{stage="decode"}'] == 1
        assert '_count{stage="model"}' not in metrics
        lines = [json.loads(line) for line in here.log.read_text().splitlines()]
        first, second = (line["ms"] for line in lines if line["message"] == "request")
        assert 900 < first["fetch"] <= first["whole"] and "decode" not in first
        assert {"wait", "fetch", "decode", "whole"} <= set(second)


def test_seconds_are_seconds_and_each_stage_is_its_own(port: int) -> None:
    with (
        backend(lambda *_: time.sleep(0.2), CARD) as behind,
        gateway(f"localhost:{behind.port}", LOUPE_METRICS_PORT=str(port)) as here,
    ):
        assert post(here) == 200
        metrics = scrape(port)
    sums = {
        name: metrics[f'loupe_stage_duration_seconds_sum{{stage="{name}"}}']
        for name in ("wait", "fetch", "decode", "model", "card", "whole")
    }
    assert 0.2 <= sums["model"] < 100
    assert sums["model"] <= sums["whole"] < 100
    assert sum(sums[name] for name in ("wait", "fetch", "decode", "model", "card")) <= sums["whole"] + 0.001
    assert all(sums[name] > 0 for name in sums)
    assert metrics["loupe_confidence_ratio_sum"] == pytest.approx(1 / 3)


def test_familiarity_and_confidence_are_what_the_model_said(port: int, tmp_path: Path) -> None:
    models.write(tmp_path / "tires" / "1", text=models.card(unfamiliar_below=0.5), familiarity=True)
    grey = [encoded(Image.new("RGB", (40, 40), (level,) * 3), "PNG") for level in (51, 153, 204)]  # 0.2, 0.6 and 0.8
    with (
        model_server(tmp_path, "tires") as server,
        gateway(f"localhost:{server.port}", LOUPE_METRICS_PORT=str(port)) as here,
    ):
        predictions = here.post_files("/predict", *grey).json()["predictions"]
        metrics = scrape(port)
    assert [prediction["reason"] for prediction in predictions] == ["unfamiliar", None, None]
    assert metrics["loupe_familiarity_ratio_count"] == 3
    assert metrics["loupe_familiarity_ratio_sum"] == pytest.approx(0.2 + 0.6 + 0.8, abs=1e-4)
    assert metrics["loupe_confidence_ratio_sum"] == pytest.approx(
        sum(prediction["confidence"] for prediction in predictions), abs=1e-4
    )
    assert metrics['loupe_uncertain_total{reason="unfamiliar"}'] == 1


def test_what_the_page_is_made_of_has_a_name_of_its_own(here: Gateway, port: int) -> None:
    pages = here.get("/").body + here.get("/docs").body
    files = set(re.findall(r'(?:href|src)="(/[^"]+\.(?:css|js|svg))"', pages.decode()))
    assert len(files) >= 3
    assert {here.get(file).status for file in files} == {200}
    metrics = scrape(port)
    assert metrics['loupe_requests_total{endpoint="/page",status="200"}'] == len(files)
    assert not [name for name in metrics if 'endpoint="other"' in name]


def test_each_port_answers_its_own_and_no_other(here: Gateway, port: int) -> None:
    answer = here.get("/metrics")
    assert answer.status == 404 and answer.json()["code"] == "not_found"
    assert ask_port(port, "GET", "/healthz").status == 200
    assert ask_port(port, "HEAD", "/metrics").status == 200
    for path in ("/", "/predict", "/model", "/readyz", "/docs", "/static/page.css", "/metrics/"):
        answer = ask_port(port, "GET", path)
        assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json"), path
    assert [ask_port(port, method, "/metrics").status for method in ("POST", "DELETE", "OPTIONS")] == [405] * 3
    assert sum(value for name, value in scrape(port).items() if name.startswith("loupe_requests_total")) >= 1
    assert not [name for name in scrape(port) if 'endpoint="/metrics"' in name]


def test_metrics_need_no_key_and_the_log_names_whose_it_was(target: str, port: int, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"carla:{digest_of('the-key')}\n")
    with gateway(target, LOUPE_METRICS_PORT=str(port), LOUPE_API_KEYS=str(tmp_path / "keys")) as here:
        assert post(here) == 401
        assert here.post("/predict", PICTURE, "image/jpeg", **{"X-API-Key": "the-key"}).status == 200
        metrics = scrape(port)
        until(lambda: '"key": "carla"' in here.log.read_text(), "the request's line")
        assert "the-key" not in here.log.read_text()
    assert metrics['loupe_requests_total{endpoint="/predict",status="401"}'] == 1
    assert metrics['loupe_errors_total{code="unauthorized"}'] == 1


def test_told_to_stop_it_closes_this_port_too_and_leaves_no_files(here: Gateway, port: int, tmp_path: Path) -> None:
    assert len(list((tmp_path / "tmp").glob("loupe-metrics-*/*.db"))) >= 4
    here.process.terminate()
    assert here.process.wait(60) == 0
    for closed in (port, here.port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", closed))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_files_that_were_removed_are_made_again_and_counting_begins_anew(
    here: Gateway, port: int, tmp_path: Path
) -> None:
    """Hostile input 47."""
    assert [post(here) for _ in range(5)] == [200] * 5
    [folder] = (tmp_path / "tmp").iterdir()
    shutil.rmtree(folder)
    assert post(here) == 200
    assert here.get("/model", Accept="text/html").status == 200
    until(lambda: scrape(port).get("loupe_body_memory_limit_bytes") == 2 << 28, "both workers to notice")
    before = scrape(port)['loupe_requests_total{endpoint="/predict",status="200"}']
    assert before <= 1
    assert [post(here) for _ in range(5)] == [200] * 5
    assert scrape(port)['loupe_requests_total{endpoint="/predict",status="200"}'] == before + 5
    # One of the files.
    next(folder.glob("gauge_livesum_*.db")).unlink()
    until(lambda: scrape(port).get("loupe_body_memory_limit_bytes") == 2 << 28, "its worker to notice")
    assert post(here) == 200
    assert "Traceback" not in here.log.read_text()


@pytest.mark.parametrize("trap", [False, True])
def test_files_that_cannot_be_made_again_cost_no_answer_and_come_when_they_can(
    here: Gateway, port: int, tmp_path: Path, trap: bool
) -> None:
    """Hostile input 47, where something stands in the folder's place."""
    [folder] = (tmp_path / "tmp").iterdir()
    shutil.rmtree(folder)
    if trap:
        folder.symlink_to(tmp_path)
    else:
        folder.write_bytes(b"")
    for _ in range(3):
        answer = ask_port(port, "GET", "/metrics")
        assert (answer.status, answer.json()["code"]) == (500, "internal_error")
        assert "see the log" in answer.json()["detail"]
    assert [post(here) for _ in range(20)] == [200] * 20
    assert here.get("/model", Accept="text/html").status == 200
    assert list(tmp_path.glob("*.db")) == []
    warnings = [line for line in here.log.read_text().splitlines() if "counts nothing" in line]
    assert 1 <= len(warnings) <= 2, "once a worker"
    folder.unlink()
    until(lambda: ask_port(port, "GET", "/metrics").status == 200, "the folder to be made")
    until(lambda: scrape(port).get("loupe_body_memory_limit_bytes") == 2 << 28, "both workers to notice")
    until(lambda: post(here) == 200 and scrape(port)["loupe_pictures_total"] > 0, "it to count")


def test_a_hangup_reads_the_settings_again_and_keeps_the_counts(here: Gateway, port: int) -> None:
    assert post(here) == 200
    before = here.workers()
    here.process.send_signal(signal.SIGHUP)
    until(lambda: len(here.workers()) == 2 and not set(here.workers()) & set(before), "two new workers")
    until(lambda: scrape(port)["loupe_body_memory_limit_bytes"] == 2 << 28, "both to answer")
    assert post(here) == 200
    assert scrape(port)['loupe_requests_total{endpoint="/predict",status="200"}'] == 2


def test_a_port_that_is_taken_is_said_in_one_line_at_start(tmp_path: Path) -> None:
    with ExitStack() as stack:
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        environment = {"LOUPE_PORT": str(free_port()), "LOUPE_METRICS_PORT": str(taken), "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "gunicorn", "gateway:app"],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode != 0 and done.stderr.count("\n") == 1
    assert f"Port {taken} of LOUPE_METRICS_PORT cannot be used (Address already in use)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_port_for_them_there_are_none(target: str, tmp_path: Path) -> None:
    with gateway(target, TMPDIR=str(tmp_path), PROMETHEUS_MULTIPROC_DIR="/nowhere") as here:
        assert post(here) == 200
        assert here.get("/metrics").status == 404
        assert not list(tmp_path.glob("loupe-metrics-*"))
        maps = Path(f"/proc/{here.workers()[0]}/maps").read_text()
    assert "counter_" not in maps


# ------------------------------------------------------------------------------------------------------------ drift


def test_the_index_is_none_for_too_few_and_known_for_a_shift() -> None:
    assert psi({"a": 50, "b": 49}, {"a": 75, "b": 25}) is None
    assert psi({"a": 100}, {}) is None
    assert psi({"a": 75, "b": 25}, {"a": 300, "b": 100}) == pytest.approx(0)
    assert psi({"a": 50, "b": 50}, {"a": 75, "b": 25}) == pytest.approx(0.25 * math.log(1.5) + 0.25 * math.log(2))


def empty_windows(count: int, **entries: Any) -> tuple[Windows, dict[Any, float], dict[Any, float], Card]:
    window: dict[Any, float] = {}
    training: dict[Any, float] = {}
    windows = Windows(
        lambda label, version, count: window.__setitem__((label, version), count),
        lambda label, version, count: training.__setitem__((label, version), count),
    )
    return windows, window, training, Card("many", tuple(f"{n:03}" for n in range(count)), 32, 32, **entries)


def test_the_window_forgets_what_is_older_than_its_length() -> None:
    windows, window, _, card = empty_windows(2)
    windows.add(1, card, ["000"] * WINDOW)
    windows.add(1, card, ["001"] * 10)
    assert window == {("000", "1"): WINDOW - 10, ("001", "1"): 10}


def test_a_card_of_many_labels_makes_few_series_and_counts_that_are_none_are_left_out() -> None:
    counts = {f"{n:03}": 1 for n in range(500)} | {"000": -1, "001": "many", "002": math.nan, "stranger": 5}
    windows, window, training, card = empty_windows(500, training={"images": counts})
    labels = [f"{n:03}" for n in range(500)]
    counted = windows.add(1, card, labels)
    assert len(window) == len(set(counted)) == MAX_LABELS + 1
    assert window["other", "1"] == training["other", "1"] == 400
    assert sum(training.values()) == 497


def test_versions_that_come_and_go_leave_no_window_behind() -> None:
    windows, window, _, card = empty_windows(2)
    for version in range(90):
        windows.add(version, card, ["000"])
    assert sum(window.values()) == 3
    for version in range(300):
        windows.add(version, card, ["000"])
    assert len({version for _, version in window}) == 101
