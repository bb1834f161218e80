"""The faults of a service's life, each caused for real while callers ask: what they see, counted.

Run with -s for the counts. Not here: a disk that is full while a model is published (test_publish.py), and
how much is tried again (test_retries.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from loupe.images.api import decode
from tests.export.test_publish import UNSHARE, mounting
from tests.support import models
from tests.support.backends import backend
from tests.support.gateways import Gateway, gateway, running
from tests.support.pace import seconds
from tests.support.servers import PATIENCE, ROOT, ModelServer, free_port, model_server, until
from tests.support.traffic import PICTURE, Seen, Truth, traffic

BACK_SECONDS = 2.0  # within which a model server that is there again is asked again
MARGIN = 0.5  # of a busy machine
SIDES = {"first": 32, "second": 32, "large": 48}
ALIKE = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished models, each with labels of its own, to be copied from."""
    made = tmp_path_factory.mktemp("shelf")
    for seed, (name, side) in enumerate(SIDES.items(), 1):
        labels = [f"{name} {label}" for label in models.LABELS]
        text = models.card(labels=labels, input={"height": side, "width": side})
        models.write(made / name, seed=seed, side=side, text=text)
    return made


@pytest.fixture(scope="module")
def answers(shelf: Path) -> dict[str, dict[str, float]]:
    """What each says of the picture, as TensorFlow itself finds it."""
    found = {}
    for name, side in SIDES.items():
        model = tf.saved_model.load(str(shelf / name))
        pixels = tf.constant(decode(PICTURE, side, side)[None])
        (row,) = np.asarray(model.signatures["serving_default"](image=pixels)["probabilities"])
        found[name] = {f"{name} {label}": float(score) for label, score in zip(models.LABELS, row, strict=True)}
    return found


class Home:
    """A models folder, and what is true of the versions in it."""

    def __init__(self, folder: Path, shelf: Path, answers: dict[str, dict[str, float]]) -> None:
        self.folder, self._shelf, self._answers = folder, shelf, answers
        self.truth: Truth = {}

    def publish(self, name: str, number: int) -> Path:
        """By rename, as Loupe publishes."""
        self.truth[number] = self._answers[name]
        version = self.folder / "tires" / str(number)
        version.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self._shelf / name, version.parent / f".{number}")
        return (version.parent / f".{number}").rename(version)

    def part(self, name: str, number: int) -> Path:
        """Half of its graph, under its own name: a copy that somebody makes by hand, or that broke off."""
        half = self.folder / "tires" / str(number)
        half.mkdir()
        graph = (self._shelf / name / "saved_model.pb").read_bytes()
        (half / "saved_model.pb").write_bytes(graph[: len(graph) // 2])
        return half


@pytest.fixture
def home(tmp_path: Path, shelf: Path, answers: dict[str, dict[str, float]]) -> Home:
    made = Home(tmp_path / "models", shelf, answers)
    made.publish("first", 1)
    return made


@pytest.fixture
def server(home: Home) -> Iterator[ModelServer]:
    with model_server(home.folder, "tires") as behind:
        yield behind


@pytest.fixture
def here(server: ModelServer) -> Iterator[Gateway]:
    with gateway(f"localhost:{server.port}") as front:
        yield front


def some_more(seen: Seen, kind: str = "answered", count: int = 20, patience: float = PATIENCE) -> None:
    before = seen.count(kind)
    until(lambda: seen.count(kind) >= before + count, f"{count} more {kind}", patience)


def has_come(seen: Seen, version: int) -> bool:
    return version in seen.versions()


def is_ready(here: Gateway) -> bool:
    return here.get("/readyz").status == 200


# ------------------------------------------------------------------------------------- the model server is away


def test_down_when_the_gateway_starts(home: Home) -> None:
    port = free_port()
    with gateway(f"localhost:{port}") as here, traffic(here, home.truth) as seen:
        assert here.get("/healthz").status == 200
        assert here.get("/readyz").status == 503
        some_more(seen, "refused")
        with model_server(home.folder, "tires", f"--port={port}"):
            until(lambda: seen.count("answered"), "an answer")
            assert is_ready(here)
            some_more(seen)
    seen.settle("down at the start")
    assert set(seen.codes()) == {"model_unavailable"}


def kill_under_load(home: Home, kills: int) -> Seen:
    port = free_port()
    with gateway(f"localhost:{port}") as here, traffic(here, home.truth) as seen:
        for kill in range(kills + 1):
            with model_server(home.folder, "tires", f"--port={port}") as server:
                some_more(seen, count=1, patience=seconds(BACK_SECONDS + MARGIN))
                some_more(seen)
                if kill == kills:
                    break
                server.process.send_signal(signal.SIGSTOP)
                time.sleep(0.2)  # so that something is in flight for sure
                server.process.kill()
                killed = time.monotonic()
                some_more(seen, "refused", 40)
                assert here.get("/healthz").status == 200
            gone = seen.of("refused", killed)
            assert max(reply.seconds for reply in gone) < seconds(1), "while the model is gone answers come at once"
    return seen


@pytest.mark.timing
def test_killed_mid_request_and_started_again(home: Home) -> None:
    seen = kill_under_load(home, 1)
    seen.settle("killed mid-request")
    assert set(seen.codes()) == {"model_unavailable"}


@pytest.mark.slow
def test_killed_ten_times(home: Home) -> None:
    kill_under_load(home, 10).settle("killed ten times")


def test_gone_it_is_not_ready_within_seconds_and_a_blip_does_not_show(home: Home) -> None:
    port = free_port()
    with gateway(f"localhost:{port}") as here:
        with model_server(home.folder, "tires", f"--port={port}"):
            until(lambda: is_ready(here), "ready")
        gone = time.monotonic()
        states = []
        while time.monotonic() < gone + 1:
            states.append(is_ready(here))
            time.sleep(0.1)
        assert all(states), "a blip"
        until(lambda: not is_ready(here), "not ready")
        assert here.get("/healthz").status == 200
        with model_server(home.folder, "tires", f"--port={port}"):
            until(lambda: is_ready(here), "ready again")


@pytest.mark.timing
def test_an_address_that_swallows_everything_holds_nobody_up() -> None:
    """A full queue of connections: the kernel drops what knocks, as a firewall does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        knocking = [socket.socket() for _ in range(4)]
        for one in knocking:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        with gateway(f"127.0.0.1:{listener.getsockname()[1]}") as here:
            started = time.monotonic()
            assert here.post("/predict", PICTURE).status == 503
            assert time.monotonic() - started < seconds(3), "a connection is given up after a second"
            with traffic(here, {}) as seen:
                time.sleep(1.2)
            seen.settle("unreachable")
            took = [reply.seconds for reply in seen.of("refused")]
            assert statistics.median(took) < seconds(0.3)
            assert max(took) < seconds(1 + MARGIN)
        for one in knocking:
            one.close()


@pytest.mark.timing
def test_it_hangs_and_goes_on(home: Home, server: ModelServer) -> None:
    with (
        gateway(f"localhost:{server.port}", LOUPE_MODEL_TIMEOUT="1") as here,
        traffic(here, home.truth, callers=3) as seen,
    ):
        some_more(seen)
        assert is_ready(here)
        server.process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        time.sleep(0.1)
        assert is_ready(here), "one probe that fails is not the end"
        until(lambda: seen.count("refused") >= 3, "the first refusals", seconds(3))
        assert here.get("/healthz").status == 200
        server.process.send_signal(signal.SIGCONT)
        back = time.monotonic()
        until(lambda: seen.of("answered", back), "an answer", seconds(BACK_SECONDS))
        some_more(seen)
    seen.settle("hangs")
    assert set(seen.codes()) == {"model_too_slow"}
    assert all(0.9 < reply.seconds < seconds(1 + MARGIN) for reply in seen.of("refused", stopped))


@pytest.mark.timing
def test_slower_than_the_budget(home: Home) -> None:
    """Each is told so in time; the model server knows of the deadline, and none is tried again."""
    text = models.card(labels=list(ALIKE))
    with (
        backend(lambda call, context: time.sleep(1 if call > 10 else 0), text, threads=64) as behind,
        gateway(f"localhost:{behind.port}", LOUPE_MODEL_TIMEOUT="0.5") as here,
    ):
        with traffic(here, {1: ALIKE}, callers=4) as seen:
            some_more(seen, "refused", 12)
        seen.settle("slow")
        assert set(seen.codes()) == {"model_too_slow"}
        assert all(0.45 < reply.seconds < seconds(0.5 + MARGIN) for reply in seen.of("refused"))
        assert len(behind.remaining) == len(seen.replies)
        assert all(0 < left < 0.55 for left in behind.remaining)


def test_told_to_stop_it_drains_and_is_found_again(home: Home) -> None:
    port = free_port()
    with gateway(f"localhost:{port}") as here, traffic(here, home.truth) as seen:
        with model_server(home.folder, "tires", f"--port={port}") as server:
            some_more(seen)
            assert server.stop() == 0
        some_more(seen, "refused")
        with model_server(home.folder, "tires", f"--port={port}"):
            there = time.monotonic()
            until(lambda: seen.of("answered", there), "an answer")
            some_more(seen)
    seen.settle("model server told to stop, and restarted")
    assert set(seen.codes()) == {"model_unavailable"}


def test_all_its_threads_are_taken(home: Home) -> None:
    with (
        model_server(home.folder, "tires", "--grpc_max_threads=1") as server,
        gateway(f"localhost:{server.port}") as here,
    ):
        with traffic(here, home.truth, callers=8) as seen:
            some_more(seen, count=200)
        seen.settle("thread pool exhausted")
        assert set(seen.codes()) <= {"model_unavailable"}
        assert here.post("/predict", PICTURE).status == 200


# --------------------------------------------------------------------------------------------- versions come and go


def test_a_new_version(home: Home, here: Gateway) -> None:
    with traffic(here, home.truth) as seen:
        some_more(seen)
        home.publish("second", 2)
        until(lambda: 2 in seen.versions(), "version 2")
        some_more(seen)
    seen.settle("new version")
    assert (seen.versions(), seen.count("refused")) == ({1, 2}, 0)


def test_a_new_version_with_another_input_size(home: Home, here: Gateway) -> None:
    with traffic(here, home.truth) as seen:
        some_more(seen)
        large = home.publish("large", 2)
        until(lambda: 2 in seen.versions(), "version 2")
        some_more(seen)
        large.rename(home.folder / "gone")  # and back
        since = time.monotonic()
        until(lambda: any(reply.detail == 1 for reply in seen.of("answered", since + 0.5)), "version 1 again")
        some_more(seen)
    seen.settle("new version of another size, and back")
    assert (seen.versions(), seen.count("refused")) == ({1, 2}, 0)


@pytest.mark.slow
def test_ten_versions_of_changing_size(home: Home, here: Gateway) -> None:
    with traffic(here, home.truth) as seen:
        for number in range(2, 12):
            home.publish(list(SIDES)[number % 3], number)
            until(partial(has_come, seen, number), f"version {number}")
    seen.settle("ten new versions")
    assert seen.count("refused") == 0


def test_a_new_version_that_is_half_copied_and_one_that_is_junk(home: Home, server: ModelServer, here: Gateway) -> None:
    with traffic(here, home.truth) as seen:
        some_more(seen)
        half = home.part("second", 2)
        until(lambda: "version 2 of tires does not load" in server.stderr(), "version 2 to be refused")
        some_more(seen)
        junk = home.folder / "tires" / "3"
        junk.mkdir()
        (junk / "saved_model.pb").write_bytes(b"\xff junk")
        until(lambda: "version 3 of tires does not load" in server.stderr(), "version 3 to be refused")
        some_more(seen)
        assert seen.versions() == {1}
        assert is_ready(here)
        shutil.rmtree(half)
        home.publish("second", 4)
        until(lambda: 4 in seen.versions(), "version 4")
    seen.settle("corrupt and half-copied versions")
    assert (seen.versions(), seen.count("refused")) == ({1, 4}, 0)


# --------------------------------------------------------------------------------------------- callers, and the gateway


@pytest.mark.timing
def test_ten_times_more_than_it_can(home: Home, server: ModelServer) -> None:
    room = {"LOUPE_THREADS": "1", "LOUPE_MAX_WAIT": "0.02"}
    with gateway(f"localhost:{server.port}", **room) as here:
        probes = []
        with traffic(here, home.truth, callers=20) as seen:
            while seen.count("answered") < 100:
                started = time.monotonic()
                assert here.get("/healthz").status == 200
                assert is_ready(here)
                probes.append(time.monotonic() - started)
                time.sleep(0.1)
        seen.settle("10 x load")
    assert set(seen.codes()) == {"busy"}
    assert seen.count("refused") > seen.count("answered")
    refused, took = ([reply.seconds for reply in seen.of(kind)] for kind in ("refused", "answered"))
    print(f"refusals took {statistics.median(refused):.3f} s in the median; probes {max(probes):.3f} s at most")
    assert statistics.median(refused) < seconds(0.1)
    assert statistics.quantiles(took, n=100)[98] < seconds(1)
    assert max(probes) < seconds(1)


def test_callers_go_away(home: Home) -> None:
    """Each leaves before its answer: some politely, some with a reset, some in the midst of sending."""
    head = b"POST /predict HTTP/1.1\r\nHost: h\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(PICTURE)
    text = models.card(labels=list(ALIKE))
    with (
        backend(lambda call, context: time.sleep(0.05), text) as behind,
        gateway(f"localhost:{behind.port}", LOUPE_THREADS="4") as here,
    ):
        assert here.post("/predict", PICTURE).status == 200
        before = open_files(here)
        with traffic(here, {1: ALIKE}, callers=2) as seen:
            for left in range(200):
                with socket.create_connection(("127.0.0.1", here.port)) as caller:
                    whole = head + PICTURE
                    caller.sendall(whole[: len(whole) // 2] if left % 3 == 0 else whole)
                    if left % 3 == 1:
                        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                time.sleep(0.005)
            some_more(seen)
        seen.settle("200 callers go away")
        with ThreadPoolExecutor(4) as pool:
            started = time.monotonic()
            assert set(pool.map(lambda _: here.post("/predict", PICTURE).status, range(4))) == {200}
            assert time.monotonic() - started < 30, "every thread is free again"
        until(lambda: open_files(here) <= before, "their connections to be closed")


def open_files(here: Gateway) -> int:
    return sum(1 for _ in Path(f"/proc/{here.workers()[0]}/fd").iterdir())


def test_the_gateway_is_told_to_stop(home: Home, server: ModelServer) -> None:
    with gateway(f"localhost:{server.port}", LOUPE_DRAIN="2") as here, traffic(here, home.truth) as seen:
        some_more(seen)
        here.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        until(lambda: here.get("/readyz").status == 503, "not ready")
        assert here.process.wait(PATIENCE) == 0
        time.sleep(0.1)
    seen.settle("gateway told to stop")
    assert seen.of("answered", told), "it goes on while it drains"
    assert seen.count("unheard"), "then nobody is listened to"


def test_a_worker_crashes(home: Home, server: ModelServer) -> None:
    """As when a decoder does. What it had in hand is lost with it; all others are served, and it is replaced."""
    callers = 4
    with gateway(f"localhost:{server.port}", LOUPE_WORKERS="2") as here:
        until(lambda: len(here.workers()) == 2, "two workers")
        with traffic(here, home.truth, callers) as seen:
            some_more(seen, count=60)
            before = here.workers()
            os.kill(before[0], signal.SIGSEGV)
            killed = time.monotonic()
            some_more(seen, count=60)
            until(lambda: len(here.workers()) == 2 and before[0] not in here.workers(), "another worker")
            some_more(seen, count=60)
        seen.settle("a worker crashes", may_lose=callers)
        assert all(killed <= reply.received_at < killed + 10 for reply in seen.of("lost"))
        assert before[1] in here.workers()


def test_nobody_can_write_its_log(home: Home, server: ModelServer) -> None:
    with writing_nowhere(server, "sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh") as here:
        with traffic(here, home.truth) as seen:
            some_more(seen, count=100)
            assert here.post("/predict", b"no picture").status == 422
            assert here.get("/nothing").status == 404
        seen.settle("log on a full disk")
        assert seen.count("refused") == 0


def test_its_disk_fills_up(tmp_path: Path, home: Home, server: ModelServer) -> None:
    """What it writes its temporary files on, with its metrics: a disk of its own that somebody fills."""
    if not mounting():
        pytest.skip("no file system can be mounted here")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    settings = {"TMPDIR": str(disk), "LOUPE_METRICS_PORT": str(free_port()), "LOUPE_WORKERS": "2"}
    with writing_nowhere(server, *UNSHARE, "sh", "-c", mount, str(disk), **settings) as here:
        until(lambda: len(here.workers()) == 2, "two workers")
        before = here.workers()
        with traffic(here, home.truth) as seen:
            some_more(seen)
            fill(Path(f"/proc/{here.process.pid}/root{disk}/filler"))
            some_more(seen, count=200)
            assert here.post_files("/predict", PICTURE + bytes(5_000_000)).status == 200
            home.publish("second", 2)
            until(lambda: 2 in seen.versions(), "version 2")
            for _ in range(10):  # numbers that were not counted before, in both workers
                assert here.post("/predict", b"no picture").status == 422
                assert here.post("/predict?top=x", PICTURE).status == 400
                assert here.post("/predict", "<x/>", "text/xml").status == 415
                assert [here.get(path).status for path in ("/nothing", "/predict", "/model", "/")] == [
                    404,
                    405,
                    200,
                    200,
                ]
        seen.settle("its disk fills up")
        assert seen.count("refused") == 0
        assert here.workers() == before


@contextmanager
def writing_nowhere(server: ModelServer, *prefix: str, **settings: str) -> Iterator[Gateway]:
    """A gateway started by way of another command."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")}
    own = {"TF_SERVING_HOST": f"localhost:{server.port}", "MODEL_NAME": "tires", "LOUPE_PORT": str(port)}
    command = [*prefix, sys.executable, "-m", "gunicorn", "gateway:app"]
    with running(command, ROOT, inherited | own | settings, port) as here:
        yield here


def fill(file: Path) -> None:
    with file.open("wb", 0) as filler, suppress(OSError):
        while filler.write(bytes(4096)) == 4096:
            pass
    assert shutil.disk_usage(file.parent).free == 0
