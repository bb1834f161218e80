"""Several model servers: who is asked, who is passed over, and how new ones are found.

Each answer names the replica that gave it (tests/support/replicas.py). The name server is a file: what it lists is what
getaddrinfo finds, in a gateway that is otherwise the real one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loupe.gateway.model.replicas import LOOK_UP_SECONDS, WATCH_SECONDS
from tests.support.crowd import PICTURE, Crowd, crowding
from tests.support.gateways import Gateway, gateway, running
from tests.support.replicas import MISFIT, Replica, replicas, side, target
from tests.support.servers import PATIENCE, ROOT, free_port, until

SECONDS = 0.03  # that a replica takes for a picture
FOUND_SECONDS = 10  # within which an address that is new in the name is used


def more(seen: Crowd, count: int) -> None:
    before = seen.count()
    until(lambda: seen.count() >= before + count, f"{count} more answers")


def shares(seen: Crowd, servers: list[Replica], since: dict[str, int] | None = None) -> list[int]:
    return [seen.answered[server.label] - (since or {}).get(server.label, 0) for server in servers]


def test_equal_ones_get_equal_shares() -> None:
    with replicas(4, SECONDS) as servers, gateway(target(servers)) as here:
        with crowding([here], callers=8) as seen:
            until(lambda: min(shares(seen, servers)) > 2, "answers of all")
            before = dict(seen.answered)
            more(seen, 400)
        counts = shares(seen, servers, before)
        assert seen.failed.total() == 0
        assert max(counts) - min(counts) <= 0.1 * sum(counts) / len(counts), counts


def test_one_caller_asks_all_in_turn() -> None:
    """Nothing is in flight when it asks, so all are alike."""
    with replicas(3, 0) as servers, gateway(target(servers)) as here:
        with crowding([here], callers=1) as seen:
            until(lambda: min(shares(seen, servers)) > 2, "answers of all")
            before = dict(seen.answered)
            more(seen, 90)
        counts = shares(seen, servers, before)
        assert max(counts) - min(counts) <= 0.1 * sum(counts) / len(counts), counts


def test_a_slow_one_gets_fewer_and_holds_the_others_up_by_nothing() -> None:
    port = free_port()
    with replicas(3, SECONDS, port) as quick, replicas(1, 8 * SECONDS, port, first=3) as slow:
        with gateway(target([*quick, *slow])) as here, crowding([here], callers=8) as seen:
            more(seen, 300)
        assert seen.failed.total() == 0
        counts, (few,) = shares(seen, quick), shares(seen, slow)
        assert 0 < few < 0.35 * min(counts), (counts, few)
        assert max(counts) - min(counts) <= 0.1 * sum(counts) / len(counts), counts


def test_a_killed_one_costs_no_answer_and_is_asked_again_when_it_is_back() -> None:
    port = free_port()
    with replicas(2, SECONDS, port) as lasting, gateway(f"{target(lasting)},127.0.0.4:{port}") as here:
        with crowding([here], callers=6) as seen:
            for _ in range(2):
                with replicas(1, SECONDS, port, first=2) as (mortal,):
                    before = seen.answered[mortal.label]
                    until(lambda: seen.answered[mortal.label] > before + 20, "its answers")  # noqa: B023
                    mortal.kill()
                    more(seen, 100)
        assert seen.failed.total() == 0, seen.failed


def test_one_that_was_never_there_costs_no_answer() -> None:
    with replicas(2, SECONDS) as servers, gateway(f"127.0.0.9:{free_port()},{target(servers)}") as here:
        with crowding([here], callers=4) as seen:
            more(seen, 100)
        assert seen.failed.total() == 0, seen.failed


@pytest.mark.parametrize(
    "code", ["RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "INTERNAL", "UNKNOWN", "DATA_LOSS", "NOT_FOUND"]
)
def test_one_that_fails_every_call_at_once_costs_no_answer(code: str) -> None:
    """It never has a call in flight, and it does answer probes. Were it asked much, the tries would be used up."""
    port = free_port()
    with replicas(3, SECONDS, port) as well, replicas(1, 0, port, first=3, fails=code) as failing:
        with gateway(target([*well, *failing])) as here, crowding([here], callers=8) as seen:
            until(lambda: min(shares(seen, well)) > 2, "answers of all that are well")
            at_the_start = seen.failed.total()  # before the first probes all are asked, and nobody is known to be well
            more(seen, 400)
        assert at_the_start <= 8, seen.failed
        assert seen.failed.total() == at_the_start, seen.failed


def test_one_that_refuses_every_call_at_once_does_not_draw_them_to_it() -> None:
    """That may be the callers' fault, so it is not passed over; but others are asked before it."""
    port, callers = free_port(), 8
    with replicas(3, SECONDS, port) as well, replicas(1, 0, port, first=3, fails="INVALID_ARGUMENT") as refusing:
        with gateway(target([*well, *refusing])) as here, crowding([here], callers) as seen:
            started = time.monotonic()
            more(seen, 400)
            rounds = 2 + (time.monotonic() - started) / WATCH_SECONDS
        print(f"\n{seen.failed.total()} of {seen.count()} refused in {rounds:.0f} rounds")
        assert 0 < seen.failed.total() <= callers / len(well) * rounds, seen.failed


ASK_FOR_A_VERSION = """
import sys
import time

import grpc

from loupe import proto
from loupe.gateway.model.replicas import Replicas, Route

servers = [(host, int(port)) for host, _, port in (each.partition(":") for each in sys.argv[1:])]
several = Replicas(servers, proto.GetModelStatusRequest(model_spec=proto.model_spec("tires")))


def ask(version, route):
    request = proto.PredictRequest(model_spec=proto.model_spec("tires", version, "describe"))
    try:
        several.call(lambda replica, timeout: replica.stubs["Predict"](request, timeout), time.monotonic() + 9, route)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND
    return route.replica


for _ in range(2 * len(servers)):
    ask(None, Route())  # all of them answer
route = Route()
first = ask(9, route)
print([ask(version, route) is first for version in (9, None)], len({ask(None, Route()) for _ in range(9)}))
"""


def test_a_version_that_is_gone_tells_nothing_against_the_one_that_had_it() -> None:
    """It was replaced between two questions of one request. What else the request asks is still asked there."""
    with replicas(2, 0) as servers:
        command = [sys.executable, "-c", ASK_FOR_A_VERSION, *(server.address for server in servers)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout == "[True, True] 2\n", done.stderr


@pytest.mark.parametrize("state", ["LOADING", "END", "UNKNOWN"])
def test_one_that_answers_probes_and_has_no_version_ready_is_passed_over(state: str) -> None:
    port, metrics_port = free_port(), free_port()
    with replicas(2, SECONDS, port) as ready, replicas(1, 0, port, first=2, state=state) as other:
        settings = {"LOUPE_METRICS_PORT": str(metrics_port)}
        with gateway(target([*ready, *other]), **settings) as here, crowding([here], callers=4) as seen:
            at = Gateway(here.process, metrics_port, here.log)
            until(lambda: counted(at) == {"answering": 2, "away": 1}, "it to be counted as away")
            before, ends = seen.failed.total(), time.monotonic() + 3 * WATCH_SECONDS
            more(seen, 100)
            until(lambda: time.monotonic() > ends, "some rounds of probes")
            assert counted(at) == {"answering": 2, "away": 1}
        assert seen.failed.total() == before, seen.failed


def test_a_silent_one_holds_what_it_has_and_nobody_else() -> None:
    callers = 6
    with replicas(3, SECONDS) as servers, gateway(target(servers), LOUPE_MODEL_TIMEOUT="4") as here:
        silent = servers[0]
        with crowding([here], callers) as seen:
            more(seen, 60)
            silent.stop()
            until(lambda: seen.failed.total(), "its calls to be given up")
            more(seen, 100)
            held, since = seen.failed.total(), dict(seen.answered)
            time.sleep(5)  # longer than the model may take: whoever had asked it since would show
            assert seen.failed.total() == held, "no more than it had"
            assert held <= callers / len(servers) + 1, seen.failed
            assert shares(seen, servers, since)[0] == 0
            silent.go_on()
            until(lambda: shares(seen, servers, since)[0] > 10, "its answers")
        assert set(seen.failed) == {"model_too_slow"}


def test_while_versions_change_each_answer_is_of_the_version_it_was_prepared_for() -> None:
    """Half of the replicas serve the next version, which wants larger pictures, for as long as the change takes."""
    assert side(1) != side(2)
    port = free_port()
    with replicas(2, SECONDS, port) as old, replicas(2, SECONDS, port, first=2, version=2) as new:
        with gateway(target([*old, *new])) as here, crowding([here], callers=6) as seen:
            more(seen, 300)
        assert seen.failed.total() == 0, seen.failed
        assert not seen.answered[MISFIT]
        assert min(shares(seen, [*old, *new])) > 20


@pytest.mark.parametrize("form", ["{0},{1}", "ipv4:{0},{1}", "dns:///{0}, {1}"])
def test_a_list_may_be_written_in_these_ways(form: str) -> None:
    with (
        replicas(2, 0) as servers,
        gateway(form.format(*(server.address for server in servers))) as here,
        crowding([here], 1) as seen,
    ):
        until(lambda: min(shares(seen, servers)) > 2, "answers of both")


# ------------------------------------------------------------------------------------------------- one name for all

NAMED = """
import socket
from pathlib import Path

found = socket.getaddrinfo


def look_up(host, *rest, **named):
    if not host.endswith(".test"):
        return found(host, *rest, **named)
    addresses = Path({folder!r}, host).read_text().split()
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    if addresses == ["fault"]:
        raise MemoryError("no room for a name")
    return [entry for address in addresses for entry in found(address, *rest, **named)]


socket.getaddrinfo = look_up
from gateway import app
"""


class Name:
    """What a host of the domain .test means."""

    def __init__(self, folder: Path, host: str = "models.test") -> None:
        self.file = folder / host
        self.set([])
        (folder / "named.py").write_text(NAMED.format(folder=str(folder)))

    def set(self, servers: list[Replica]) -> None:
        new = self.file.with_name("new")
        new.write_text(" ".join(server.address.partition(":")[0] for server in servers))
        new.replace(self.file)


@pytest.fixture
def name(tmp_path: Path) -> Name:
    return Name(tmp_path)


@contextmanager
def named_gateway(name: Name, model_port: int, **settings: str) -> Iterator[Gateway]:
    port = free_port()
    own = {"TF_SERVING_HOST": f"models.test:{model_port}", "LOUPE_PORT": str(port), **settings}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "named:app"]
    environment = {**os.environ, **own, "PYTHONPATH": str(name.file.parent)}
    with running(command, ROOT, environment, port) as here:
        yield here


def test_one_that_is_added_is_used_and_one_that_is_removed_loses_nothing(name: Name) -> None:
    port = free_port()
    slow = 0.5  # so that something is in flight when it is removed
    with replicas(3, slow, port) as servers, replicas(1, SECONDS, port, first=3) as (added,):
        name.set(servers)
        with named_gateway(name, port) as here, crowding([here], callers=8) as seen:
            until(lambda: min(shares(seen, servers)) > 0, "answers of all three")
            # One more.
            name.set([*servers, added])
            began = time.monotonic()
            until(lambda: seen.answered[added.label], "an answer of the fourth", FOUND_SECONDS)
            print(f"\nused {time.monotonic() - began:.1f} s after it was in the name")
            # One less, while it computes.
            name.set([*servers[1:], added])
            until(lambda: connections(servers[0]) < connections(servers[1]), "its connection to be closed")
            more(seen, 20)  # its last answers have come by then
            before = seen.answered[servers[0].label]
            more(seen, 50)
            assert seen.answered[servers[0].label] == before, "it is not asked any more"
        assert seen.failed.total() == 0, seen.failed


def test_names_are_looked_up_on_after_a_fault_that_nobody_expects(name: Name) -> None:
    with replicas(2, 0) as servers:
        name.set(servers[:1])
        with named_gateway(name, int(servers[0].address.partition(":")[2])) as here, crowding([here], 1) as seen:
            until(lambda: seen.answered[servers[0].label], "an answer")
            name.file.write_text("fault")
            until(lambda: "no room for a name" in here.log.read_text(), "the fault", LOOK_UP_SECONDS + 5)
            name.set(servers)
            until(lambda: seen.answered[servers[1].label], "an answer of the second", FOUND_SECONDS)
        assert seen.failed.total() == 0, seen.failed


def connections(server: Replica) -> int:
    files = Path(f"/proc/{server.pid}/fd").iterdir()
    return sum(str(file.readlink()).startswith("socket:") for file in files)


def test_a_name_that_is_unknown_is_waited_for_and_one_that_gets_lost_is_remembered(name: Name) -> None:
    metrics_port = free_port()
    with replicas(2, 0) as servers:
        port = int(servers[0].address.partition(":")[2])
        with named_gateway(name, port, LOUPE_METRICS_PORT=str(metrics_port)) as here:
            answer = here.post("/predict", PICTURE)
            assert (answer.status, answer.json()["code"]) == (503, "model_unavailable")
            assert "The host 'models.test' in TF_SERVING_HOST is not found" in here.log.read_text()
            name.set(servers)
            until(lambda: here.post("/predict", PICTURE).status == 200, "an answer", FOUND_SECONDS)
            at = Gateway(here.process, metrics_port, here.log)
            until(lambda: counted(at) == {"answering": 2, "away": 0}, "both to be counted")
            name.set([])
            time.sleep(LOOK_UP_SECONDS + 1)
            assert {here.post("/predict", PICTURE).status for _ in range(10)} == {200}
            servers[0].kill()
            assert {here.post("/predict", PICTURE).status for _ in range(10)} == {200}
            until(lambda: counted(at) == {"answering": 1, "away": 1}, "one to be counted as away")


def test_one_of_two_names_that_is_unknown_keeps_what_it_had_and_nothing_of_the_other(name: Name) -> None:
    port = free_port()
    other = Name(name.file.parent, "others.test")
    missed = "The host 'others.test' in TF_SERVING_HOST is not found"
    with replicas(3, SECONDS, port) as (first, second, third):
        name.set([first, second])
        both = f"models.test:{port},others.test:{port}"
        with named_gateway(name, port, TF_SERVING_HOST=both) as here, crowding([here], callers=3) as seen:
            until(lambda: min(shares(seen, [first, second])) > 2, "answers of both")
            # One name loses an address while the other was never known.
            name.set([second])
            until(lambda: connections(first) < connections(second), "its connection to be closed", FOUND_SECONDS)
            # The other is found, lost, and remembered.
            other.set([third])
            until(lambda: seen.answered[third.label], "an answer of the third", FOUND_SECONDS)
            assert here.log.read_text().count(missed) == 1
            other.set([])
            until(lambda: here.log.read_text().count(missed) == 2, "the second warning", FOUND_SECONDS)
            before = seen.answered[third.label]
            more(seen, 50)
            assert seen.answered[third.label] > before
        assert seen.failed.total() == 0, seen.failed


def counted(at: Gateway) -> dict[str, float]:
    lines = re.findall(r'^loupe_model_replicas{.*?state="(\w+)".*?} (\S+)$', at.get("/metrics").body.decode(), re.M)
    return {state: float(value) for state, value in lines}
