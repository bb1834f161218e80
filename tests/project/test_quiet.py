"""No line of TensorFlow's own in any command: each is run as people run it, and what it writes is looked through."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT, free_port, until
from tests.training.test_training import SMALL, paint

# As its C++ code, absl and XLA begin their lines, and what they speak of.
THEIRS = re.compile(r"(?m)^[IWEF]\d{4} |absl|AVX|oneDNN|tensorflow/core|(?i:cuda|xla|mlir)")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}


def ran(script: str, *arguments: str | Path, cwd: Path) -> str:
    """Run a script and return what it writes on both streams."""
    command: list[str | Path] = [sys.executable, ROOT / script, *arguments]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("quiet") / "photos", 16).parent


@pytest.fixture(scope="module")
def training(home: Path) -> str:
    return ran("train.py", "photos", *SMALL, cwd=home)


def test_training_and_publishing_say_nothing_of_tensorflow(training: str) -> None:
    assert "published          models/photos/1" in training
    assert not THEIRS.search(training)


def test_converting_says_nothing_of_tensorflow(home: Path, training: str) -> None:
    said = ran("convert.py", "runs/photos", "--models", "others", cwd=home)
    assert "published          others/photos/1" in said
    assert not THEIRS.search(said)


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
def test_predicting_says_nothing_of_tensorflow(home: Path, training: str, engine: str) -> None:
    said = ran("predict.py", "photos/red/000.png", "--model", "models/photos", "--engine", engine, cwd=home)
    assert said.rstrip().endswith("photos/red/000.png") and len(said.splitlines()) == 1


@pytest.mark.parametrize("engine", [pytest.param("openvino", marks=pytest.mark.slow), "tensorflow"])
def test_serving_says_nothing_of_tensorflow(home: Path, training: str, engine: str) -> None:
    log, flags = home / engine, ("--model-name", "photos", "--engine", engine, "--port", str(free_port()))
    with log.open("w") as file:
        command: list[str | Path] = [sys.executable, ROOT / "serve.py", "--models", home / "models", *flags]
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)
    try:
        until(lambda: "Ctrl-C ends it" in log.read_text() or process.poll() is not None, "the service")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert f"with {engine}" in log.read_text()
    assert not THEIRS.search(log.read_text())
