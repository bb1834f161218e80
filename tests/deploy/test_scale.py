"""How the service grows with its model servers: a short form of `make bench-scale`, held to loosely what that shows."""

from __future__ import annotations

import pytest

from benchmarks.scale import Case, measure

SERVICE = 0.2  # seconds that a model server takes for a picture
SECONDS = 5.0  # that each case is watched
LEAST = 0.75  # of what the servers can; 0.9 and more where nothing else runs


@pytest.mark.timing
@pytest.mark.parametrize("part", ["linear", "slow", "dead"])
def test_eight_servers_are_used_whole_even_if_one_is_slow_or_dead(part: str) -> None:
    case = Case(part, 8, SERVICE)
    row = measure(case, SECONDS)
    print(
        f"\n{part}: {row.rate:.1f} of {case.linear:.1f} pictures a second; shares of the equal ones {row.least:.0f}",
        end="",
    )
    print(f" to {row.most:.0f} %; the machine was busy for {row.busy:.0%}")
    assert row.rate >= LEAST * case.linear
    assert row.failed == 0


@pytest.mark.timing
def test_one_gateway_can_have_as_many_calls_in_flight_as_it_has_threads() -> None:
    """The first limit: 8 threads are answered by 8 servers of 16, whatever these could do."""
    case = Case("threads", 16, SERVICE, gateways=1, threads=8)
    row = measure(case, SECONDS)
    assert LEAST * 8 / SERVICE <= row.rate <= 1.05 * 8 / SERVICE
