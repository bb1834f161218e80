"""Test `serve.py`, in which `make up` ends, and `test.py`, which checks whether it works, as a person runs them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gateways import Answer, Gateway, internet
from tests.support.pace import seconds
from tests.support.pictures import encoded
from tests.support.servers import ROOT, free_port, until

Asked = Future[Answer]


@contextmanager
def served(models: Path, log: Path, **settings: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "serve.py", "--port", str(port), "--models", str(models)],
            cwd=ROOT, env={**os.environ, **settings}, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or "is served on" in log.read_text(), "serve.py")
        assert process.poll() is None, log.read_text()
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def smoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "test.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [number for child in children for number in (int(child), *descendants(int(child)))]


def test_the_sample_is_served_and_the_smoke_check_agrees(tmp_path: Path, sample_models: Path) -> None:
    with served(sample_models, tmp_path / "log") as (port, process):
        done = smoke("--url", f"http://localhost:{port}")
        assert done.returncode == 0, done.stderr
        assert re.search(r"cracked-1.jpg +cracked +\d+\.\d%", done.stdout)
        assert re.search(r"normal-1.jpg +normal +\d+\.\d%", done.stdout)

        (tmp_path / "bad.jpg").write_bytes(encoded()[:300])
        done = smoke("--url", f"http://localhost:{port}", str(tmp_path / "bad.jpg"))
        assert done.returncode == 1
        assert "422" in done.stderr
        assert "damaged" in done.stderr, "what the gateway says of a bad picture"

        running = descendants(process.pid)
        assert len(running) >= 3, "the model server, gunicorn and its worker"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert not [child for child in running if Path(f"/proc/{child}").exists()]


def test_proxies_that_the_environment_names_are_not_used(
    tmp_path: Path, sample_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hostile inputs 45; the gateway in tests/gateway/test_fetch.py."""
    nobody = f"http://127.0.0.1:{free_port()}"
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, nobody)
        monkeypatch.setenv(name.upper(), nobody)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with served(sample_models, tmp_path / "log") as (port, _):
        done = smoke("--url", f"http://localhost:{port}")
        assert done.returncode == 0, done.stderr


def test_a_url_from_an_allowed_origin_is_answered(tmp_path: Path, sample_models: Path) -> None:
    data = (ROOT / "data" / "samples" / "cracked-1.jpg").read_bytes()

    def site(path: str, write: object) -> None:
        assert callable(write)
        write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)

    with (
        internet(site) as origin,
        served(sample_models, tmp_path / "log", LOUPE_FETCH_ALLOW="127.0.0.0/8") as (port, _),
    ):
        done = smoke("--url", f"http://localhost:{port}", f"http://127.0.0.1:{origin}/tire.jpg")
        assert done.returncode == 0, done.stderr
        assert " cracked " in done.stdout


def test_a_new_version_is_served_without_a_restart(tmp_path: Path, sample_models: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(sample_models / "tires" / "1", models / "tires" / "1")
    with served(models, tmp_path / "log") as (port, _):
        assert "version 1" in smoke("--url", f"http://localhost:{port}").stdout
        shutil.copytree(sample_models / "tires" / "1", models / "tires" / ".part")
        (models / "tires" / ".part").rename(models / "tires" / "2")
        until(lambda: "version 2" in smoke("--url", f"http://localhost:{port}").stdout, "version 2")


@contextmanager
def asked_for_something_slow(models: Path, log: Path, pause: float) -> Iterator[tuple[subprocess.Popen[bytes], Asked]]:
    """Ask for a picture whose server takes `pause` seconds; the model is asked after that."""
    data = (ROOT / "data" / "samples" / "cracked-1.jpg").read_bytes()
    begun = threading.Event()

    def site(path: str, write: object) -> None:
        assert callable(write)
        begun.set()
        time.sleep(pause)
        write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)

    with (
        internet(site) as origin,
        served(models, log, LOUPE_FETCH_ALLOW="127.0.0.0/8") as (port, process),
        ThreadPoolExecutor() as pool,
    ):
        here = Gateway(process, port, log)
        asked = pool.submit(here.post_json, "/predict", {"url": f"http://127.0.0.1:{origin}/tire.jpg"})
        assert begun.wait(60)
        yield process, asked


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_what_is_in_hand_when_it_is_told_to_stop_is_answered(
    tmp_path: Path, sample_models: Path, number: signal.Signals
) -> None:
    with asked_for_something_slow(sample_models, tmp_path / "log", 2.5) as (process, asked):
        running = descendants(process.pid)
        process.send_signal(number)
        answer = asked.result(60)
        assert (answer.status, answer.json()["label"]) == (200, "cracked")
        assert process.wait(60) == 130
        assert not [child for child in running if Path(f"/proc/{child}").exists()]
        assert "Ctrl-C once more" in (tmp_path / "log").read_text()


@pytest.mark.timing
def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, sample_models: Path) -> None:
    with asked_for_something_slow(sample_models, tmp_path / "log", 6) as (process, asked):
        running = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(seconds(1.5)) == 130
        ended = lambda: not [child for child in running if Path(f"/proc/{child}").exists()]  # noqa: E731
        until(ended, "the rest to end", seconds(2))
        assert "Traceback" not in (tmp_path / "log").read_text()
        assert asked.exception(60) is not None


@pytest.mark.parametrize("program", ["loupe.modelserver", "gunicorn"])
def test_when_one_part_dies_the_other_is_stopped_and_it_says_so(
    tmp_path: Path, sample_models: Path, program: str
) -> None:
    log = tmp_path / "log"
    with served(sample_models, log) as (_, process):
        running = descendants(process.pid)
        for child in running:
            if program in Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "):
                os.kill(child, signal.SIGKILL)
        assert process.wait(60) == 2
        until(lambda: not [child for child in running if Path(f"/proc/{child}").exists()], "the rest to end")
    assert "ended by itself" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_closed_terminal_or_a_kill_leaves_nothing_running(
    tmp_path: Path, sample_models: Path, number: signal.Signals
) -> None:
    with served(sample_models, tmp_path / "log") as (_, process):
        running = descendants(process.pid)
        process.send_signal(number)
        process.wait(60)
        until(lambda: not [child for child in running if Path(f"/proc/{child}").exists()], "the rest to end")


def refusal(*flags: str) -> str:
    done = subprocess.run([sys.executable, "serve.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_taken_port_is_said_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refusal("--port", str(taken.getsockname()[1]))
    assert said.count("\n") == 1
    assert "make PORT=8080 up" in said


def test_it_listens_on_port_unless_loupe_port_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts of one container set PORT. The port is taken, so that it is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [str(server.getsockname()[1]) for server in (taken, other)]
        monkeypatch.delenv("LOUPE_PORT", raising=False)
        monkeypatch.setenv("PORT", ports[0])
        assert ports[0] in refusal()
        monkeypatch.setenv("LOUPE_PORT", ports[1])
        assert ports[1] in refusal()


def test_a_model_that_is_not_there_or_has_no_version_is_said(tmp_path: Path, sample_models: Path) -> None:
    assert "there are: tires" in refusal("--models", str(sample_models), "--model-name", "nope")
    (tmp_path / "empty").mkdir()
    assert "holds no version" in refusal("--models", str(tmp_path), "--model-name", "empty")
    assert "train.py" in refusal("--models", str(tmp_path / "none"))


def test_a_broken_model_is_said_and_ends_it(tmp_path: Path) -> None:
    broken = tmp_path / "tires" / "1"
    broken.mkdir(parents=True)
    (broken / "saved_model.pb").write_bytes(b"this is no model")
    said = refusal("--models", str(tmp_path), "--port", str(free_port()))
    assert "version 1" in said
    assert said.count("\n") <= 3


def test_the_smoke_check_fails_with_a_reason(tmp_path: Path) -> None:
    nobody = f"http://localhost:{free_port()}"
    done = smoke("--url", nobody)
    assert done.returncode == 1
    assert "make up" in done.stderr
    not_there = smoke("--url", nobody, "no-such.jpg")
    assert (not_there.returncode, "cannot be read" in not_there.stderr) == (1, True)

    wrong = b'{"label": "normal", "confidence": 0.9, "model": {"name": "x", "version": 1}}'

    def site(path: str, write: object) -> None:
        assert callable(write)
        write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(wrong)}\r\n\r\n".encode() + wrong)

    with internet(site) as port:
        done = smoke("--url", f"http://127.0.0.1:{port}")
        assert done.returncode == 1
        assert "it should be cracked" in done.stderr
