"""For tests that need a Docker engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.containers import TAG, build, clone, docker, stand_in

BUILT = ("embedded", "model", "gateway", "all-in-one")


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone that nobody changes."""
    return clone(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def images(checkout: Path) -> Iterator[dict[str, str]]:
    """Each image by its short name, built from its dockerfile unchanged."""
    try:
        stand_in(checkout)
        yield {name: build(name, checkout) for name in BUILT}
    finally:
        for name in BUILT:
            with suppress(AssertionError):  # it was not built
                docker("image", "rm", f"loupe-{name}:{TAG}")
