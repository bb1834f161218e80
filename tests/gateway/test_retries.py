"""What is tried again, and how much of it: a broken call once, with a budget, and a refused one for as long as it has
time; and readiness, which wants a picture computed and bears a blip."""

from __future__ import annotations

import threading
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
from tests.support.servers import until

PICTURE = encoded()
TIMEOUT = 3  # seconds for the model to answer
BUDGET = 20  # tries beyond the first that a model server in trouble gets, however many ask
TRYABLE = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]


class Trouble:
    """Which predictions fail, and how."""

    def __init__(self) -> None:
        self.code, self.text = grpc.StatusCode.UNAVAILABLE, "as the test says"
        self.fails: Callable[[int], bool] = lambda call: False

    def __call__(self, call: int, context: Any) -> None:
        if self.fails(call):
            context.abort(self.code, self.text)


@pytest.fixture
def trouble() -> Trouble:
    return Trouble()


@pytest.fixture
def behind(trouble: Trouble) -> Iterator[Backend]:
    with backend(trouble) as running:
        yield running


@pytest.fixture
def here(behind: Backend) -> Iterator[Gateway]:
    with gateway(f"localhost:{behind.port}", LOUPE_MODEL_TIMEOUT=str(TIMEOUT)) as running:
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


def test_a_call_that_is_refused_is_sent_again_until_it_is_taken(
    here: Gateway, behind: Backend, trouble: Trouble
) -> None:
    trouble.code, trouble.fails = grpc.StatusCode.RESOURCE_EXHAUSTED, lambda call: call <= 8
    assert here.post("/predict", PICTURE).status == 200
    assert len(behind.remaining) == 9


def test_a_model_server_that_refuses_everything_is_asked_seldom_and_callers_are_told_at_the_end_of_their_time(
    here: Gateway, behind: Backend, trouble: Trouble
) -> None:
    trouble.code, trouble.fails = grpc.StatusCode.RESOURCE_EXHAUSTED, lambda call: True
    callers, started = 8, time.monotonic()
    with ThreadPoolExecutor(callers) as pool:
        answers = list(pool.map(lambda _: here.post("/predict", PICTURE), range(callers)))
    assert time.monotonic() - started > TIMEOUT
    assert {(answer.status, answer.json()["code"]) for answer in answers} == {(503, "model_unavailable")}
    assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
    print(f"\n{len(behind.remaining)} tries")
    # Up to 8, 6, 5, 4, 3 and 2 at a time, until it is known that none fits; then one after each of up to 27 pauses.
    assert len(behind.remaining) <= 28 + 27, "together, in pauses that grow"
    trouble.fails = lambda call: False
    assert here.post("/predict", PICTURE).status == 200


def test_a_call_that_is_refused_ends_with_its_callers_time(here: Gateway, trouble: Trouble) -> None:
    trouble.code, trouble.fails = grpc.StatusCode.RESOURCE_EXHAUSTED, lambda call: True
    started = time.monotonic()
    answer = here.post("/predict", PICTURE, **{"X-Request-Timeout": "1"})
    assert (answer.status, answer.json()["code"]) == (504, "out_of_time")
    assert 0.9 < time.monotonic() - started < TIMEOUT


def test_pictures_that_are_too_many_for_its_memory_are_not_sent_again(
    here: Gateway, behind: Backend, trouble: Trouble
) -> None:
    trouble.code, trouble.fails = grpc.StatusCode.RESOURCE_EXHAUSTED, lambda call: True
    trouble.text = "OOM when allocating tensor with shape[32,299,299,3]"
    answer = here.post("/predict", PICTURE)
    assert (answer.status, answer.json()["code"]) == (503, "model_unavailable")
    assert "send fewer" in answer.json()["detail"]
    assert len(behind.remaining) == 1


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
        self.served, self.tried = 7, 0
        self.computes: Callable[[], None] = lambda: None
        self.failing_since: float | None = None
        self.readiness = Readiness(
            self.ask, self.try_out, lambda: self.heard, lambda: self.failing_since, clock=lambda: self.now
        )

    def ask(self) -> tuple[int, Card]:
        if self.problem:
            raise self.problem
        self.heard = self.now
        return self.served, Card.from_json(models.card().encode())

    def try_out(self) -> tuple[int, Card]:
        self.tried += 1
        self.computes()
        return self.ask()

    def is_ready(self, after: float = 0.0) -> bool:
        self.now += after
        try:
            return self.readiness.version() == self.served
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


def test_it_is_ready_once_the_model_has_computed_a_picture_and_each_version_is_tried_once() -> None:
    model = Model()
    assert [model.is_ready(after=1) for _ in range(5)] == [True] * 5
    assert model.tried == 1
    model.served = 8
    assert [model.is_ready(after=1) for _ in range(5)] == [True] * 5
    assert model.tried == 2


def test_a_model_that_cannot_compute_is_not_ready_until_it_can() -> None:
    model = Model()

    def cannot() -> None:
        raise ModelUnfit("it cannot compute")

    assert model.is_ready()
    model.served, model.computes = 8, cannot
    with pytest.raises(ModelUnfit, match="cannot compute"):
        model.readiness.version()
    assert not model.is_ready(after=1)
    model.computes = lambda: None
    assert model.is_ready(after=1)


def test_a_first_picture_that_takes_long_is_waited_for_and_what_was_ready_stays_so() -> None:
    model, done = Model(), threading.Event()

    def slow() -> None:
        assert done.wait(60)

    # At the start.
    model.computes = slow
    with pytest.raises(ModelUnavailable, match="first picture"):
        model.readiness.version()
    assert model.tried == 1
    assert not model.is_ready(after=60)
    assert model.tried == 1, "one trial at a time"
    done.set()
    until(model.is_ready, "ready")
    # Then of the next version.
    done.clear()
    model.served = 8
    assert [model.readiness.version() for _ in range(3)] == [7] * 3
    done.set()
    until(model.is_ready, "the next version")
    assert model.tried == 2


def test_a_picture_that_takes_longer_than_any_request_may_makes_it_not_ready() -> None:
    model = Model()

    def too_slow() -> None:
        raise ModelTooSlow("no answer in time")

    assert model.is_ready()
    model.served, model.computes = 8, too_slow
    with pytest.raises(ModelTooSlow):
        model.readiness.version()


def test_a_model_that_gives_its_card_and_fails_all_predictions_is_tried_again() -> None:
    model = Model()

    def fails() -> None:
        raise ModelUnfit("INTERNAL")

    assert model.is_ready() and model.tried == 1
    model.failing_since, model.computes = model.now, fails
    assert model.is_ready(after=2), "a short failure does not show"
    assert not model.is_ready(after=2) and model.tried == 2
    assert not model.is_ready() and model.tried == 3
    model.computes = lambda: None
    assert model.is_ready()


@pytest.mark.timing
def test_probes_that_wait_for_a_model_that_hangs_do_not_pile_up() -> None:
    def hangs() -> tuple[int, Card]:
        time.sleep(1)
        raise ModelTooSlow("hangs")

    readiness = Readiness(hangs, hangs, lambda: 0.0, lambda: None)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(readiness.version)
        time.sleep(0.1)
        started = time.monotonic()
        others = [pool.submit(readiness.version) for _ in range(3)]
        assert all(isinstance(other.exception(), ModelUnavailable) for other in others)
        assert time.monotonic() - started < seconds(0.3)
        assert isinstance(first.exception(), ModelTooSlow)
