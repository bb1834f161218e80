"""image-training.dockerfile: it holds what train.py needs, and what it writes belongs to who called it.

pytest tests/project/test_training_image.py -m "not containers"      # what can be told without an engine
make test-containers
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loupe.card import Card
from loupe.training.recipes import RECIPES
from tests.project.test_containers import docker
from tests.support import problems
from tests.support.servers import ROOT

DOCKERFILE = ROOT / "image-training.dockerfile"
IMAGE = f"loupe-training-test-{os.getpid()}"


def test_pipenv_is_the_same_in_the_training_image_as_in_the_makefile() -> None:
    pinned = re.search(r'PIPENV = "(.+)"', (ROOT / "tools" / "environment.py").read_text())
    assert pinned
    assert f"pipenv=={pinned[1]} " in DOCKERFILE.read_text()


@pytest.mark.slow  # those of containers build the image itself
def test_the_training_image_gets_every_module_that_training_imports(tmp_path: Path) -> None:
    """Copy what the dockerfile copies, and import it there."""
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    for line in DOCKERFILE.read_text().splitlines():
        if line.startswith("COPY") and "Pipfile" not in line:
            *sources, target = line.split()[1:]
            for source in [path.relative_to(ROOT) for name in sources for path in sorted(ROOT.glob(name))]:
                assert f"!{source}" in sent or f"!{source.parts[0]}" in sent, f"{source} is not sent to the engine"
                folder = tmp_path / target if (ROOT / source).is_file() else (tmp_path / target).parent
                folder.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", ROOT / source, folder], check=True)
    for wing in ("training", "export"):
        assert (tmp_path / "loupe" / wing).is_dir()
    modules = [
        ".".join(path.relative_to(tmp_path).with_suffix("").parts) for path in sorted(tmp_path.glob("loupe/**/*.py"))
    ]
    code = f"import train, convert, data.tires, data.fetch, {', '.join(modules)}"
    command = [sys.executable, "-c", code.replace(".__init__", "")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    docker("build", "-f", "image-training.dockerfile", "-t", IMAGE, ".", timeout=1800)
    yield IMAGE
    docker("image", "rm", IMAGE)


@pytest.mark.containers
def test_the_training_image_trains_and_what_it_writes_is_the_callers(image: str, tmp_path: Path) -> None:
    problem = problems.tires(tmp_path)
    user = os.getuid() or 1234
    for name in ("runs", "models"):
        (tmp_path / name).mkdir()
        if not os.getuid():
            os.chown(tmp_path / name, user, user)
    said = docker(
        "run", "--rm", "--init", "--user", f"{user}:{user}", "-v", f"{problem.data}:/app/photos:ro",
        "-v", f"{tmp_path}/runs:/app/runs", "-v", f"{tmp_path}/models:/app/models",
        image, "photos", "--backbone", "cnn", "--size", "32", "--epochs", "1",
    )  # fmt: skip
    assert "published" in said
    written = [path for name in ("runs", "models") for path in (tmp_path / name).rglob("*")]
    assert written
    assert {path.stat().st_uid for path in written} == {user}
    assert Card.read(tmp_path / "runs" / "photos" / "card.json").labels == problem.labels


@pytest.mark.containers
def test_the_sample_needs_no_mount_and_no_root(image: str) -> None:
    """It is drawn and looked at; training it is another test's."""
    assert docker("run", "--rm", "--entrypoint", "id", image, "-u").strip() != "0"
    assert "2 classes" in docker("run", "--rm", "--init", image, "--check")


@pytest.mark.containers
def test_the_training_image_knows_every_flag_and_recipe(image: str) -> None:
    assert "--recipe" in docker("run", "--rm", image, "--help")
    assert docker("run", "--rm", "--entrypoint", "ls", image, "recipes").split() == sorted(
        path.name for path in RECIPES.glob("*")
    )
