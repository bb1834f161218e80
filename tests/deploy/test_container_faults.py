"""Test faults across containers under load: model servers and gateways killed, stopped, replaced, added, removed.

Callers ask all the time meanwhile. Each answer is the right label or a documented error with Retry-After; none is wrong
and none is lost. What each fault cost is printed (`pytest -rP`).
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.containers import TAG, Compose, clone, docker, inspect, up
from tests.support.gateways import Gateway
from tests.support.servers import ROOT, until
from tests.support.stand_ins import all_stand_ins
from tests.support.traffic import Seen, Truth, traffic

SAMPLE = (ROOT / "data" / "samples" / "cracked-1.jpg").read_bytes()
CALLERS = 6
NEXT = f"{TAG}-next"  # a release
BEFORE, AFTER = 3.0, 5.0  # seconds of load around the fault
pytestmark = pytest.mark.containers


def entrance(compose: Compose) -> Gateway:
    return Gateway(None, compose.port, None)  # type: ignore[arg-type]


def truth_of(compose: Compose) -> Truth:
    """The scores that version 1 gives, while all is well."""
    answer = entrance(compose).post("/predict", SAMPLE, "image/jpeg").json()
    assert (answer["label"], answer["model"]["version"]) == ("cracked", 1)
    return {1: answer["scores"]}


@contextmanager
def load(compose: Compose, name: str) -> Iterator[Seen]:
    """Callers without a pause, before, during and after what happens inside. In the end all is well again."""
    with traffic(entrance(compose), truth_of(compose), CALLERS, SAMPLE) as seen:
        time.sleep(BEFORE)
        yield seen
        ended = time.monotonic()
        time.sleep(AFTER)
    seen.settle(name)
    assert len(seen.of("answered", after=ended)) > CALLERS, "the service did not come back"
    assert seen.count("unheard") == 0


def stays_well(seen: Seen) -> None:
    assert seen.count("refused") == 0, seen.codes()


def crash(container: str) -> None:
    """Kill all its processes but the first, which ends with them. So the engine sees a crash, and no order to stop."""
    subprocess.run(["docker", "exec", container, "bash", "-c", "kill -9 -1"], capture_output=True, timeout=60)


def restarted(container: str, count: int) -> bool:
    known = inspect(container)
    return bool(known["RestartCount"] > count and known["State"]["Health"]["Status"] == "healthy")


# ------------------------------------------------------------------------------------- one model server, one gateway


@pytest.fixture(scope="module")
def alone(checkout: Path, images: dict[str, str]) -> Iterator[Compose]:
    assert images
    with up(checkout) as compose:
        compose.wait_healthy("model", "gateway")
        yield compose
    assert compose.leftovers() == ""


def test_a_model_server_that_crashes_comes_back_by_itself(alone: Compose) -> None:
    (model,) = alone.containers("model")
    count = inspect(model)["RestartCount"]
    with load(alone, "the model server crashes") as seen:
        crash(model)
        until(lambda: restarted(model, count), "the engine to start it again")
    assert set(seen.codes()) <= {"model_unavailable", "busy"}


def test_a_model_server_that_is_killed_is_started_again(alone: Compose) -> None:
    with load(alone, "the model server is killed, and started") as seen:
        docker("kill", *alone.containers("model"))
        until(lambda: seen.count("refused") > 0, "the callers to notice")
        time.sleep(2)
        alone("start", "model")
        alone.wait_healthy("model")
    assert set(seen.codes()) <= {"model_unavailable", "busy"}


def test_a_model_server_that_is_stopped_is_started_again(alone: Compose) -> None:
    with load(alone, "the model server is stopped, and started") as seen:
        alone("stop", "model")
        until(lambda: seen.count("refused") > 0, "the callers to notice")
        alone("start", "model")
        alone.wait_healthy("model")
    assert set(seen.codes()) <= {"model_unavailable", "busy"}


def test_a_model_server_is_replaced(alone: Compose) -> None:
    before = alone.containers("model")
    with load(alone, "the model server is replaced") as seen:
        alone("up", "--detach", "--no-build", "--no-deps", "--force-recreate", "model")
        alone.wait_healthy("model")
    assert not set(before) & set(alone.containers("model"))
    assert set(seen.codes()) <= {"model_unavailable", "busy"}


# ------------------------------------------------------------------------- three model servers, two gateways, nginx


@pytest.fixture(scope="module")
def replicas(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """All callers here have one address: nginx's limit for one is lifted. test_overlays.py tests it."""
    assert images
    all_stand_ins()
    here = clone(tmp_path_factory.mktemp("replicas"))
    conf = here / "deploy" / "compose" / "nginx.conf"
    text, changed = re.subn(r"rate=\d+r/s", "rate=100000r/s", conf.read_text())
    assert changed == 1
    conf.write_text(text.replace("burst=100 ", "burst=100000 "))
    with up(here, "replicas") as compose:
        compose.wait_healthy("model", "gateways", "nginx")
        yield compose
    assert compose.leftovers() == ""
    with suppress(AssertionError):  # the release was not made
        docker("image", "rm", f"loupe-gateway:{NEXT}")


def calls(compose: Compose) -> dict[str, int]:
    """How many calls each model server answered, as it says itself. A gateway's container asks: it reaches them."""
    counts = {}
    for container in compose.containers("model"):
        (network,) = inspect(container)["NetworkSettings"]["Networks"].values()
        url = f"http://{network['IPAddress']}:8501/monitoring/prometheus/metrics"
        code = f"import urllib.request as r; print(r.urlopen('{url}', timeout=5).read().decode())"
        page = docker("exec", compose.containers("gateways")[0], "python", "-c", code)
        found = re.findall(r'^:tensorflow:serving:request_count\{.*status="OK".*\} (\d+)', page, re.MULTILINE)
        counts[container] = sum(map(int, found))
    return counts


def asked(compose: Compose, seconds: float) -> dict[str, int]:
    before = calls(compose)
    time.sleep(seconds)
    after = calls(compose)
    return {container: count - before.get(container, 0) for container, count in after.items()}


def test_calls_are_spread_evenly_over_three(replicas: Compose) -> None:
    with load(replicas, "three model servers, nothing happens") as seen:
        time.sleep(5)
        counts = list(asked(replicas, 40).values())
    stays_well(seen)
    mean = sum(counts) / len(counts)
    print(f"calls of each in 40 s: {counts}, {max(abs(count / mean - 1) for count in counts):.1%} from even at most")
    assert len(counts) == 3 and mean > 200
    assert all(abs(count - mean) < 0.1 * mean for count in counts), counts


def test_a_fourth_model_server_is_used_within_35_seconds_and_can_be_taken_away(replicas: Compose) -> None:
    before = set(replicas.containers("model"))
    scale = ("up", "--detach", "--no-build", "--no-deps", "--no-recreate", "--scale")
    # One more.
    with load(replicas, "a fourth model server comes") as seen:
        replicas(*scale, "model=4", "model")
        replicas.wait_healthy("model")
        started = time.monotonic()
        (fourth,) = set(replicas.containers("model")) - before
        until(lambda: calls(replicas)[fourth] > 0, "it to be asked", patience=35)
        print(f"the fourth is asked {time.monotonic() - started:.1f} s after it was healthy")
        time.sleep(25)  # each gateway has looked its name up again
        counts = asked(replicas, 10)
    print(f"calls of each in 10 s: {counts}")
    assert counts[fourth] > 0.1 * sum(counts.values()), counts
    stays_well(seen)
    # One less.
    with load(replicas, "the fourth model server goes") as seen:
        replicas(*scale, "model=3", "model")
    assert len(replicas.containers("model")) == 3
    stays_well(seen)


def test_one_of_three_model_servers_is_killed(replicas: Compose) -> None:
    one = replicas.containers("model")[0]
    with load(replicas, "one of three model servers is killed") as seen:
        docker("kill", one)
        time.sleep(5)
        docker("start", one)
        replicas.wait_healthy("model")
    stays_well(seen)


def test_one_of_two_gateways_is_killed(replicas: Compose) -> None:
    """What it had in hand is answered 503: nginx sends nothing a second time."""
    one, kills = replicas.containers("gateways")[0], 5
    with load(replicas, f"one of two gateways is killed, {kills} times") as seen:
        for _ in range(kills):
            docker("kill", one)
            time.sleep(2)
            docker("start", one)
            replicas.wait_healthy("gateways")
            time.sleep(1)
    print(f"answered 503: {seen.count('refused')}")
    assert set(seen.codes()) <= {"no_gateway"}
    assert seen.count("refused") <= kills * CALLERS


def test_one_of_two_gateways_is_stopped(replicas: Compose) -> None:
    one = replicas.containers("gateways")[0]
    with load(replicas, "one of two gateways is stopped") as seen:
        docker("stop", "-t", "40", one)
        assert inspect(one)["State"]["ExitCode"] == 0
        time.sleep(3)
        docker("start", one)
        replicas.wait_healthy("gateways")
    stays_well(seen)


def test_both_gateways_are_replaced_by_the_next_release_and_nothing_is_dropped(replicas: Compose) -> None:
    """New ones first, beside the old ones; then the old ones are told to stop."""
    old = replicas.containers("gateways")
    docker("tag", f"loupe-gateway:{TAG}", f"loupe-gateway:{NEXT}")
    replicas.environment["IMAGE_TAG"] = NEXT
    scale = ("up", "--detach", "--no-build", "--no-deps", "--no-recreate", "--scale")
    with load(replicas, "both gateways are replaced") as seen:
        replicas(*scale, "gateways=4", "gateways")
        replicas.wait_healthy("gateways")
        docker("stop", "-t", "40", *old)
        docker("rm", *old)
        replicas(*scale, "gateways=2", "gateways")
    new = replicas.containers("gateways")
    assert len(new) == 2 and not set(new) & set(old)
    assert {inspect(container)["Config"]["Image"] for container in new} == {f"loupe-gateway:{NEXT}"}
    stays_well(seen)
