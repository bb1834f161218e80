"""What is tried again, and how much of it: one layer, gRPC's, with a budget; and readiness, which bears a blip."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from loupe.card import Card
from loupe.errors import ModelError, ModelTooSlow, ModelUnavailable, ModelUnfit
from loupe.gateway.model.readiness import FAILING_SECONDS, Readiness
from tests.support import models
from tests.support.backends import Backend, backend
from tests.support.gateways import Gateway, gateway
from tests.support.pace import seconds
from tests.support.pictures import encoded

PICTURE = encoded()
BUDGET = 20  # tries beyond the first that a model server in trouble gets, however many ask
TRYABLE = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]


class Trouble:
    """Which predictions fail, and how."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.UNAVAILABLE
        self.fails: Callable[[int], bool] = lambda call: False

    def __call__(self, call: int, context: Any) -> None:
        if self.fails(call):
            context.abort(self.code, "as the test says")


@pytest.fixture
def trouble() -> Trouble:
    return Trouble()


@pytest.fixture
def behind(trouble: Trouble) -> Iterator[Backend]:
    with backend(trouble) as running:
        yield running


@pytest.fixture
def here(behind: Backend) -> Iterator[Gateway]:
    with gateway(f"localhost:{behind.port}", LOUPE_MODEL_TIMEOUT="5") as running:
        yield running


@pytest.mark.parametrize("code", TRYABLE)
def test_a_lone_failure_is_tried_again_and_no_caller_sees_it(
    here: Gateway, behind: Backend, trouble: Trouble, code: grpc.StatusCode
) -> None:
    trouble.code, trouble.fails = code, lambda call: call == 1
    started = time.monotonic()
    assert here.post("/predict", PICTURE).status == 200
    assert time.monotonic() - started > 0.05, "backed off before it was tried again"
    assert len(behind.remaining) == 2


@pytest.mark.parametrize("code", TRYABLE)
def test_one_request_is_tried_twice_and_no_more(
    here: Gateway, behind: Backend, trouble: Trouble, code: grpc.StatusCode
) -> None:
    trouble.code, trouble.fails = code, lambda call: True
    answer = here.post("/predict", PICTURE)
    assert (answer.status, answer.json()["code"]) == (503, "model_unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert len(behind.remaining) == 2


@pytest.mark.parametrize("code", TRYABLE)
def test_a_model_server_in_trouble_gets_no_storm_of_tries(
    here: Gateway, behind: Backend, trouble: Trouble, code: grpc.StatusCode
) -> None:
    trouble.code, trouble.fails = code, lambda call: True
    sent = 200
    with ThreadPoolExecutor(8) as pool:
        counts = Counter(pool.map(lambda _: here.post("/predict", PICTURE).status, range(sent)))
    print(f"\n{code.name}: {sent} requests, {len(behind.remaining)} tries, answers {dict(counts)}")
    assert counts == {503: sent}
    assert sent <= len(behind.remaining) <= sent + BUDGET
    trouble.fails = lambda call: False
    assert here.post("/predict", PICTURE).status == 200


def test_failures_now_and_then_are_mended_however_long_it_goes_on(
    here: Gateway, behind: Backend, trouble: Trouble
) -> None:
    """More of them than the budget, but each success gives back some of it."""
    trouble.fails = lambda call: call % 8 == 0
    counts = Counter(here.post("/predict", PICTURE).status for _ in range(120))
    assert counts == {200: 120}
    assert len(behind.remaining) == 120 + len(behind.remaining) // 8


def test_what_trying_again_does_not_mend_is_asked_once(here: Gateway, behind: Backend, trouble: Trouble) -> None:
    trouble.fails = lambda call: True
    statuses = {"DEADLINE_EXCEEDED": 504, "INTERNAL": 502, "INVALID_ARGUMENT": 502, "UNIMPLEMENTED": 502}
    for asked, (name, status) in enumerate(statuses.items(), 1):
        trouble.code = grpc.StatusCode[name]
        assert here.post("/predict", PICTURE).status == status
        assert len(behind.remaining) == asked


@pytest.mark.timing
def test_tries_stay_within_the_callers_time(here: Gateway, behind: Backend, trouble: Trouble) -> None:
    def fails(call: int) -> bool:
        time.sleep(0.3)
        return True

    trouble.fails = fails
    started = time.monotonic()
    answer = here.post("/predict", PICTURE, **{"X-Request-Timeout": "1"})
    assert time.monotonic() - started < seconds(1.5)
    assert (answer.status, answer.json()["code"]) in ((504, "out_of_time"), (503, "model_unavailable"))
    assert len(behind.remaining) <= 2


# --------------------------------------------------------------------------------------------------- readiness


class Model:
    """What a probe finds, and the time it finds it at."""

    def __init__(self) -> None:
        self.now, self.heard = 100.0, -1.0
        self.problem: ModelError | None = None
        self.readiness = Readiness(self.ask, lambda: self.heard, clock=lambda: self.now)

    def ask(self) -> tuple[int, Card]:
        if self.problem:
            raise self.problem
        self.heard = self.now
        return 7, Card.from_json(models.card().encode())

    def is_ready(self, after: float = 0.0) -> bool:
        self.now += after
        try:
            return self.readiness.version() == 7
        except ModelError:
            return False


def test_at_the_start_it_is_not_ready_before_the_first_answer() -> None:
    model = Model()
    model.problem = ModelUnavailable("gone")
    assert not model.is_ready()
    model.problem = None
    assert model.is_ready(after=0.1)


@pytest.mark.parametrize("kind", [ModelUnavailable, ModelTooSlow])
def test_a_blip_is_borne_and_a_model_that_is_gone_shows(kind: Callable[[str], ModelError]) -> None:
    model = Model()
    assert model.is_ready()
    model.problem = kind("gone")
    assert [model.is_ready(after=0.9) for _ in range(5)] == [True] * 4 + [False], "3 s from the first failure"
    model.problem = None
    assert model.is_ready(after=0.1), "one answer is enough"
    model.problem = kind("gone")
    assert model.is_ready(after=60), "a single failure, however long after the last answer"


def test_while_callers_are_answered_a_probe_that_fails_changes_nothing() -> None:
    """As when the model server has more to do than it can."""
    model = Model()
    assert model.is_ready()
    model.problem = ModelUnavailable("at its limit")
    for _ in range(10):
        model.heard = model.now
        assert model.is_ready(after=FAILING_SECONDS - 0.1)
    assert not model.is_ready(after=FAILING_SECONDS)


def test_a_model_that_does_not_fit_is_not_waited_for() -> None:
    model = Model()
    assert model.is_ready()
    model.problem = ModelUnfit("its card cannot be read")
    assert not model.is_ready()
    with pytest.raises(ModelUnfit):
        model.readiness.version()
    model.problem = ModelUnavailable("gone")
    assert not model.is_ready(), "and being away makes it no better"


@pytest.mark.timing
def test_probes_that_wait_for_a_model_that_hangs_do_not_pile_up() -> None:
    def hangs() -> tuple[int, Card]:
        time.sleep(1)
        raise ModelTooSlow("hangs")

    readiness = Readiness(hangs, lambda: 0.0)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(readiness.version)
        time.sleep(0.1)
        started = time.monotonic()
        others = [pool.submit(readiness.version) for _ in range(3)]
        assert all(isinstance(other.exception(), ModelUnavailable) for other in others)
        assert time.monotonic() - started < seconds(0.3)
        assert isinstance(first.exception(), ModelTooSlow)
