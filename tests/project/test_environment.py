"""tools/environment.py, on a copy of it beside a folder of its own; what it downloads is seen by `make` itself."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support.servers import ROOT

NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}  # no package can be had


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "environment.py", tmp_path / "tools")
    for name in ("Pipfile", "Pipfile.lock", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def set_up(project: Path, *categories: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, "-B", "tools/environment.py", *categories]
    environment = {**os.environ, **NO_INDEX}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)


def announced(project: Path, *categories: str) -> str:
    """Its first line, and no more of it: making a .venv takes seconds."""
    command = [sys.executable, "-B", "tools/environment.py", *categories]
    with subprocess.Popen(
        command, cwd=project, env={**os.environ, **NO_INDEX}, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        os.killpg(process.pid, signal.SIGKILL)
    return line


def stamp(project: Path, **entries: object) -> None:
    lock = subprocess.run(["sha256sum", "Pipfile.lock"], cwd=project, capture_output=True, text=True).stdout.split()[0]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (project / ".venv").mkdir(exist_ok=True)
    (project / ".venv" / "loupe.json").write_text(
        json.dumps({"python": version, "lock": lock, "categories": ["packages"], **entries})
    )


def test_what_is_installed_already_costs_nothing(project: Path) -> None:
    stamp(project)
    done = set_up(project, "packages")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("entries", [{"lock": "another"}, {"python": "3.9"}, {"categories": []}])
def test_another_lock_file_python_or_category_is_installed_anew(project: Path, entries: dict[str, object]) -> None:
    stamp(project, **entries)
    assert "about 40 MB to download" in announced(project, "packages")


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="TensorFlow has no CUDA here")
def test_tensorflow_is_counted_once_though_the_gpu_packages_bring_it_in_too(project: Path) -> None:
    assert "about 3590 MB to download" in announced(project, "packages", "training", "gpu")


def test_the_weights_of_a_backbone_are_a_category_of_their_own(project: Path) -> None:
    assert "about 57 MB to download" in announced(project, "packages", "efficientnetlite0")


@pytest.mark.slow
def test_without_a_network_the_last_line_says_so_and_nothing_is_believed_to_be_installed(project: Path) -> None:
    done = set_up(project, "packages")
    assert done.returncode == 2
    assert "Is there a network" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (project / ".venv" / "loupe.json").exists()


def test_a_half_made_venv_is_made_again_even_by_its_own_python(project: Path) -> None:
    """The Makefile takes the .venv's Python where there is one; it once removed the ground it stood on."""
    venv.create(project / ".venv", symlinks=True)
    done = set_up(project, "packages", python=str(project / ".venv" / "bin" / "python"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Is there a network" in done.stderr.splitlines()[-1], "it came as far as asking for pipenv"
    assert not (project / ".venv" / "loupe.json").exists()


def test_an_unknown_category_is_refused(project: Path) -> None:
    done = set_up(project, "pakages")
    assert done.returncode == 2
    assert "packages, client, modelserver, training, export, dev-packages" in done.stderr


def test_make_says_when_there_is_no_such_python(project: Path) -> None:
    done = subprocess.run(["make", "PYTHON=python3.99", "up"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 2
    assert "python3.99 does not run" in done.stderr
