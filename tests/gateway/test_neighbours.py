"""What workers tell each other of their load, over real processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap

import pytest

from loupe.gateway.neighbours import Load, beyond_share, burden

TWO = """
    import os, signal, time
    from loupe.gateway import neighbours

    assert neighbours.surplus() is None, "nothing is shared yet"
    neighbours.share(8)
    heard, told = os.pipe()
    other = os.fork()
    if not other:
        while True:
            neighbours.tell_in_hand(25, 5)
            neighbours.tell_calls(2, 6)
            os.write(told, b".")
            time.sleep(0.1)
    os.read(heard, 1)
    neighbours.tell_in_hand(10, 0)
    neighbours.tell_calls(6, 4)
    print(neighbours.surplus())
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    time.sleep(neighbours.FRESH_SECONDS + 0.1)
    print(neighbours.surplus())
"""


def test_a_worker_hears_what_another_tells_and_forgets_one_that_was_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO)], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(6 - 8 * 10 / 40), "None"]


@pytest.mark.parametrize(
    ("mine", "others", "surplus"),
    [
        ((10, 4, 6), [(10, 4, 6)], 0),
        ((10, 5, 5), [(10, 3, 7)], 1),
        ((10, 3, 7), [(10, 5, 5)], -1),
        ((7, 4, 3), [(25, 4, 21)], 2.25),
        ((7, 4, 3), [(25, 4, 0)], None),  # its requests are busy with something else
        ((9, 4, 5), [(9, 1, 8), (9, 1, 8)], 2),
        ((0, 0, 0), [(25, 8, 17)], 0),
        ((5, 2, 3), [], None),
    ],
)
def test_a_share_of_the_calls_is_the_share_of_the_requests(
    mine: tuple[int, int, int], others: list[tuple[int, int, int]], surplus: float | None
) -> None:
    assert beyond_share(Load(*mine), [Load(*other) for other in others]) == pytest.approx(surplus)


def test_the_least_burdened_is_waited_for_least_and_among_equals_has_the_fewest_connections() -> None:
    loads = {
        "free": Load(uploads=7, fetches=8, connections=300, asking=15),
        "free, with more connections": Load(connections=301),
        "free but for fetches": Load(fetches=8, fetch_wait=1, asking=15, connections=7),
        "full": Load(uploads=8, asking=8, connections=8),
        "full of those who left": Load(uploads=8, connections=9),
        "about to be full": Load(asking=8, connections=10),
        "busy": Load(uploads=9, wait=1, asking=9, connections=9),
        "busier": Load(uploads=9, wait=2, connections=1),
        "takes none": Load(connections=math.inf),
    }
    assert sorted(loads, key=lambda name: burden(loads[name], threads=8)) == list(loads)
