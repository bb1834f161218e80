"""For every test."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.gateways import Gateway
from tests.support.servers import ROOT, ModelServer, model_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background: so would our
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children, and Ctrl-C could not be tried on them

# OpenVINO reports each import to its makers unless its telemetry cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--grpc", help="host:port of the server that test_conformance.py asks, instead of our own")
    parser.addoption("--rest", default="localhost:8501", help="its REST address")
    parser.addoption("--cluster", help="a context of your kubeconfig, whose cluster test_kubernetes.py asks as well")


LONG = ("training", "export", "modelserver")  # folders whose files take longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: begun last, one of them would keep a single process busy while the others have nothing left."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture(scope="session")
def sample_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the committed sample model alone, whatever else was trained beside it."""
    folder = tmp_path_factory.mktemp("sample") / "models"
    shutil.copytree(ROOT / "models" / "tires" / "1", folder / "tires" / "1")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """With a network of a few numbers, for tests that leave it as it is; what does more to it has its own."""
    from tests.support import models  # TensorFlow: seconds that not every run should cost

    folder = tmp_path_factory.mktemp("models")
    models.write(folder / "tires" / "1", seed=1)
    with model_server(folder, "tires") as running:
        yield running


@pytest.fixture(scope="session")
def fortress(sample_models: Path) -> Iterator[Gateway]:
    """For those who attack it one by one: each finds it as it was."""
    from tests.support.hostile import defended

    with defended(sample_models, LOUPE_THREADS="4") as running:
        yield running


@pytest.fixture(scope="session")
def chromium_path() -> str:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed; Debian: apt install chromium")
    return path


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # five seconds are too few on a busy machine

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, headless=True, args=flags)
        yield browser
        browser.close()
