"""For every test."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

# OpenVINO reports each import to its makers unless its telemetry cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


@pytest.fixture(scope="session")
def sample_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the committed sample model alone, whatever else was trained beside it."""
    folder = tmp_path_factory.mktemp("sample") / "models"
    shutil.copytree(ROOT / "models" / "tires" / "1", folder / "tires" / "1")
    return folder
