"""image-training.dockerfile: it holds what train.py needs, and what it writes belongs to who called it.

make test-containers
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loupe.card import Card
from loupe.training.recipes import RECIPES
from tests.support import problems
from tests.support.containers import build, docker

pytestmark = pytest.mark.containers


@pytest.fixture(scope="module")
def image(checkout: Path) -> Iterator[str]:
    name = build("training", checkout)
    yield name
    docker("image", "rm", name)


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
        image, "photos", "--backbone", "cnn", "--size", "32", "--epochs", "1", "--publish-anyway",
    )  # fmt: skip
    assert "published" in said
    written = [path for name in ("runs", "models") for path in (tmp_path / name).rglob("*")]
    assert written
    assert {path.stat().st_uid for path in written} == {user}
    assert Card.read(tmp_path / "runs" / "photos" / "card.json").labels == problem.labels


def test_the_sample_needs_no_mount_and_no_root(image: str) -> None:
    """It is drawn and looked at; training it is another test's."""
    assert docker("run", "--rm", "--entrypoint", "id", image, "-u").strip() != "0"
    assert "2 classes" in docker("run", "--rm", "--init", image, "--check")


def test_the_training_image_knows_every_flag_and_recipe(image: str) -> None:
    assert "--recipe" in docker("run", "--rm", image, "--help")
    assert docker("run", "--rm", "--entrypoint", "ls", image, "recipes").split() == sorted(
        path.name for path in RECIPES.glob("*")
    )
