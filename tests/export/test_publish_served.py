"""Publishing before a real server, killed at random moments and taken back: its answers are always whole and right."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import openvino
import pytest

from loupe import proto
from loupe.export.publish import model_folder
from loupe.export.publish.publication import publication, rollback, versions
from tests.support import models
from tests.support.networks import finished_run
from tests.support.publishing import child, names
from tests.support.servers import ROOT, ModelServer, model_server, until

SEEDS = (1, 2, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (1, models.SIDE, models.SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one model for each seed; its card names the seed."""
    made = tmp_path_factory.mktemp("prepared")
    for seed in SEEDS:
        models.write(made / str(seed), seed=seed, text=models.card(training={"seed": seed}))
    return made


@pytest.fixture(scope="module")
def right(prepared: Path) -> dict[int, Any]:
    """Return the answer of each model."""
    answer_of = {}
    for seed in SEEDS:
        compiled = openvino.compile_model(prepared / str(seed), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        answer_of[seed] = compiled(IMAGES)["probabilities"]
    assert all(np.abs(answer_of[1] - answer_of[seed]).max() > 1e-2 for seed in SEEDS[1:])
    return answer_of


def publish_seed(models_at: Path, prepared: Path, seed: int) -> Path:
    with publication(models_at, "toy") as staging:
        shutil.copytree(prepared / str(seed), staging.folder)
        return staging.publish()


def ask(server: ModelServer) -> tuple[int, Any]:
    channel = grpc.insecure_channel(f"localhost:{server.port}")
    answer = proto.call(channel, proto.PREDICT)(proto.predict_request("toy", {"image": IMAGES}), timeout=60)
    return answer.model_spec.version.value, proto.to_array(answer.outputs["probabilities"])


def test_a_server_falls_back_and_the_next_publication_has_a_new_number(
    tmp_path: Path, prepared: Path, right: dict[int, Any]
) -> None:
    publish_seed(tmp_path, prepared, 1)
    with model_server(tmp_path, "toy") as server:
        publish_seed(tmp_path, prepared, 2)
        until(lambda: ask(server)[0] == 2, "version 2")
        assert rollback(tmp_path, "toy")[:2] == (2, 1)
        until(lambda: ask(server)[0] == 1, "version 1 again")
        assert np.abs(ask(server)[1] - right[1]).max() < 1e-5
        assert publish_seed(tmp_path, prepared, 3).name == "3"
        until(lambda: ask(server)[0] == 3, "version 3")
        (tmp_path / "toy" / ".withdrawn-2").rename(tmp_path / "toy" / "4")  # the withdrawn one, as a newer one
        until(lambda: ask(server)[0] == 4, "version 4")
        assert np.abs(ask(server)[1] - right[2]).max() < 1e-5


class Watch:
    """Look at the folder every millisecond or so: each version is complete, its number above all seen before."""

    def __init__(self, home: Path, prepared: Path) -> None:
        self.home = home
        self.wrong: set[str] = set()
        self.seen: dict[int, int] = {}  # number → inode
        self.whole = {
            str(seed): {
                path.relative_to(prepared / str(seed)): path.read_bytes() for path in files(prepared / str(seed))
            }
            for seed in SEEDS
        }

    def look(self) -> None:
        for number, entry in model_folder.entries(self.home):
            try:
                inode = entry.stat().st_ino
                content = {path.relative_to(entry): path.read_bytes() for path in files(entry)}
                unchanged = entry.stat().st_ino == inode
            except FileNotFoundError:
                unchanged = False
            if not unchanged:
                continue  # moved aside meanwhile: this was no version any more
            if content not in self.whole.values():
                self.wrong.add(f"{number} is half a version: {sorted(map(str, content))}")
            if number not in self.seen and number <= max(self.seen, default=0):
                self.wrong.add(f"{number} appears after {max(self.seen)}")
            if self.seen.setdefault(number, inode) != inode:
                self.wrong.add(f"{number} was used twice")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class Client:
    """Ask without end, and compare each answer with the card of the version that gave it."""

    def __init__(self, server: ModelServer, right: dict[int, Any]) -> None:
        channel = grpc.insecure_channel(f"localhost:{server.port}")
        self.predict, self.right = proto.call(channel, proto.PREDICT), right
        self.answered: dict[int, int] = {}  # version → seed
        self.wrong: set[str] = set()

    def look(self) -> None:
        answer = self.predict(proto.predict_request("toy", {"image": IMAGES}), timeout=60)
        version, scores = answer.model_spec.version.value, proto.to_array(answer.outputs["probabilities"])
        seeds = [seed for seed in SEEDS if np.abs(scores - self.right[seed]).max() < 1e-5]
        if len(seeds) != 1 or self.answered.setdefault(version, seeds[0]) != seeds[0]:
            self.wrong.add(f"version {version} answers {scores}")
            return
        request = proto.predict_request("toy", {"request": ["x"]}, signature="describe", version=version)
        try:
            card = proto.to_array(self.predict(request, timeout=60).outputs["card"])[0]
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:  # replaced in between
                self.wrong.add(f"version {version}: {error}")
            return
        if f'"seed": {seeds[0]}'.encode() not in card:
            self.wrong.add(f"version {version} answers as {seeds[0]} and says {card!r}")


@contextmanager
def looking(*looks: Callable[[], None]) -> Iterator[None]:
    done = threading.Event()
    faults: list[BaseException] = []

    # Call each of them without end, in a thread.
    def keep(look: Callable[[], None]) -> None:
        try:
            while not done.wait(0.001):
                look()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=keep, args=[look]) for look in looks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert not faults, faults


# Publishes without end, keeping two and taking some back, with a pause before and after whatever the disk is told.
RESTLESS = """
    prepared = Path(sys.argv[2])
    def paused(function):
        def call(*arguments, **options):
            time.sleep(random.expovariate(1000))
            found = function(*arguments, **options)
            time.sleep(random.expovariate(1000))
            return found
        return call
    for name in ("fsync", "rename", "unlink", "rmdir", "mkdir", "write"):
        setattr(os, name, paused(getattr(os, name)))
    while True:
        with publication(models, "toy") as part:
            shutil.copytree(prepared / random.choice("123"), part.folder)
            part.publish(keep=random.choice([2, 2, None]))
        if random.random() < 0.3 and len(versions(home)) > 1:
            rollback(models, "toy")
        print("published", flush=True)
"""


@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_moment_no_half_version_is_served_and_no_number_used_twice(
    tmp_path: Path, prepared: Path, right: dict[int, Any], times: int
) -> None:
    # Kill a process that publishes and rolls back, again and again.
    home = tmp_path / "toy"
    publish_seed(tmp_path, prepared, 1)
    watch, seldom = Watch(home, prepared), random.Random(times)
    with model_server(tmp_path, "toy") as server:
        client = Client(server, right)
        with looking(watch.look, client.look):
            for _ in range(times):
                process = subprocess.Popen(child(RESTLESS, tmp_path, prepared), cwd=ROOT, stdout=subprocess.PIPE)
                assert process.stdout
                process.stdout.readline()
                time.sleep(seldom.uniform(0, 0.6))
                process.send_signal(signal.SIGKILL)
                process.communicate(timeout=60)
            last = int(publish_seed(tmp_path, prepared, 2).name)
            until(lambda: last in client.answered, "the last version to be served")
    # All that was seen and served was right.
    assert (watch.wrong, client.wrong) == (set(), set())
    assert last > 1, "and more, where they got as far as that before they were killed"
    assert len(client.answered) > min(times, 5) / 2, "the server has followed"
    assert all(name.isdigit() or name.startswith(".withdrawn-") for name in names(home)), "nothing else is left behind"


def _writing(home: Path, process: subprocess.Popen[bytes]) -> bool:
    return bool(list(home.glob(".part-*/*/*"))) or process.poll() is not None


@pytest.mark.slow
def test_convert_killed_at_any_moment_leaves_no_half_version(tmp_path: Path) -> None:
    from loupe.export.graph.savedmodel import loaded

    folder, home = finished_run(tmp_path / "run"), tmp_path / "models" / "toy"
    command = [sys.executable, "convert.py", str(folder), "--models", str(tmp_path / "models"), "--no-parity"]
    image = np.zeros((1, 48, 64, 3), np.uint8)
    seldom = random.Random(1)
    for _ in range(8):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(partial(_writing, home, process), "it to begin writing")
        time.sleep(seldom.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for number in versions(home):
            with loaded(home / str(number)) as answer:
                assert answer("serving_default", {"image": image})["probabilities"].shape == (1, 3)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert names(home) == sorted(map(str, versions(home))), "nothing else is left behind"
