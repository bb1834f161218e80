"""For those who attack the gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateways import Gateway
from tests.support.hostile import unharmed


@pytest.fixture
def here(fortress: Gateway) -> Iterator[Gateway]:
    """Each test finds it unharmed, and leaves it so."""
    with unharmed(fortress):
        yield fortress
