"""X-Request-Timeout: how long one request may take, as its caller says; fetching, decoding, the model and the queue."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.backends import Backend, backend
from tests.support.gateways import Answer, Gateway, gateway, internet
from tests.support.pace import seconds
from tests.support.pictures import encoded

PICTURE = encoded()
MODEL_SECONDS, FETCH_SECONDS = 1.5, 1.5  # the settings
SLOW = 6.0  # how long the backend takes where told to
ROUNDED = 0.05  # up, by gRPC, in the deadline that it writes on a call
LATE = 0.5  # what an answer may be late by, on a busy machine


@pytest.fixture(scope="module")
def patience() -> dict[str, float]:
    return {"model": 0.0}


@pytest.fixture(scope="module")
def behind(patience: dict[str, float]) -> Iterator[Backend]:
    def behave(_: int, context: Any) -> None:
        limit = time.monotonic() + patience["model"]
        while time.monotonic() < limit and context.is_active():
            time.sleep(0.01)

    with backend(behave) as running:
        yield running


@pytest.fixture(scope="module")
def here(behind: Backend) -> Iterator[Gateway]:
    settings = {"LOUPE_MODEL_TIMEOUT": str(MODEL_SECONDS), "LOUPE_FETCH_TIMEOUT": str(FETCH_SECONDS)}
    more = {"LOUPE_FETCH_ALLOW": "127.0.0.1", "LOUPE_THREADS": "1"}
    with gateway(f"localhost:{behind.port}", **settings, **more) as running:
        yield running


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """/2 gives the picture after two seconds."""

    def site(path: str, write: Any) -> None:
        time.sleep(float(path[1:]))
        write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE)

    with internet(site) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def quick(patience: dict[str, float], here: Gateway) -> Iterator[None]:
    yield
    patience["model"] = 0.0
    assert here.post("/predict", PICTURE).status == 200  # and waits for what the last one left behind


def asked(here: Gateway, body: Any, limit: str | None, kind: str | None = None) -> tuple[Answer, float]:
    started = time.monotonic()
    answer = here.post("/predict", body, kind, **({"X-Request-Timeout": limit} if limit else {}))
    return answer, time.monotonic() - started


def urls(*addresses: str) -> str:
    return json.dumps({"urls": addresses} if len(addresses) > 1 else {"url": addresses[0]})


@pytest.mark.parametrize("text", ["1", "2.5", ".5", "3.", "0.75", "999999999", "007"])
def test_enough_time_changes_nothing(here: Gateway, text: str) -> None:
    assert asked(here, PICTURE, text)[0].status == 200


@pytest.mark.parametrize(
    "text",
    ["0", "0.0", "-1", "nan", "inf", "Infinity", "1e3", "1,5", "1, 2", "2s", "+1", ".", "x", "1_0", "\xb2", "9" * 99],
)
def test_what_is_no_number_of_seconds_is_a_bad_request_that_says_so(here: Gateway, text: str) -> None:
    answer, _ = asked(here, PICTURE, text)
    assert (answer.status, answer.json()["code"]) == (400, "bad_request")
    assert "X-Request-Timeout" in answer.json()["detail"]


def test_an_empty_one_is_a_bad_request_too(here: Gateway) -> None:
    assert here.post("/predict", PICTURE, **{"X-Request-Timeout": ""}).status == 400


@pytest.mark.timing
def test_a_slow_model_is_waited_for_no_longer_than_the_caller_does_and_is_told_so(
    here: Gateway, behind: Backend, patience: dict[str, float]
) -> None:
    patience["model"] = SLOW
    before = len(behind.remaining)
    answer, took = asked(here, PICTURE, "0.8")
    assert (answer.status, answer.json()["code"]) == (504, "out_of_time")
    assert 0.7 < took < seconds(0.8 + LATE)
    (left,) = behind.remaining[before:]
    assert 0.3 < left <= 0.8 + ROUNDED, "the deadline travels with the call, and it is not tried again"


@pytest.mark.timing
def test_it_can_only_shorten_what_the_settings_allow(
    here: Gateway, behind: Backend, patience: dict[str, float], origin: str
) -> None:
    patience["model"] = SLOW
    answer, took = asked(here, PICTURE, "60")
    assert (answer.status, answer.json()["code"]) == (504, "model_too_slow")
    assert MODEL_SECONDS - 0.1 < took < seconds(MODEL_SECONDS + LATE)
    assert behind.remaining[-1] <= MODEL_SECONDS + ROUNDED
    patience["model"] = 0
    answer, took = asked(here, urls(f"{origin}/6"), "60", "application/json")
    assert (answer.status, answer.json()["code"]) == (422, "fetch_failed")
    assert FETCH_SECONDS - 0.1 < took < seconds(FETCH_SECONDS + LATE)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.timing
def test_a_slow_picture_is_waited_for_no_longer_and_the_model_is_not_asked(
    here: Gateway, behind: Backend, origin: str, count: int
) -> None:
    before = len(behind.remaining)
    addresses = [f"{origin}/0"] * (count - 1) + [f"{origin}/6"]
    answer, took = asked(here, urls(*addresses), "0.6", "application/json")
    assert (answer.status, answer.json()["code"]) == (504, "out_of_time")
    assert 0.5 < took < seconds(0.6 + LATE)
    assert len(behind.remaining) == before


@pytest.mark.timing
def test_what_fetching_took_the_model_does_not_get(
    here: Gateway, behind: Backend, patience: dict[str, float], origin: str
) -> None:
    patience["model"] = SLOW
    answer, took = asked(here, urls(f"{origin}/1"), "1.6", "application/json")
    assert (answer.status, answer.json()["code"]) == (504, "out_of_time")
    assert 1.5 < took < seconds(1.6 + LATE)
    assert behind.remaining[-1] <= 0.6 + ROUNDED


def sent(here: Gateway, limit: str) -> http.client.HTTPConnection:
    """Before this returns it is on its way: who is sent later comes later."""
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
    connection.request("POST", "/predict", PICTURE, {"X-Request-Timeout": limit})
    return connection


@pytest.mark.timing
def test_waiting_for_a_thread_counts(here: Gateway, behind: Backend, patience: dict[str, float]) -> None:
    """One thread, and it is busy for a second: of three that follow two will not wait so long."""
    for _ in range(30):  # so that a short wait is expected
        here.post("/predict", PICTURE)
    patience["model"] = 1.0
    before = len(behind.remaining)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(asked, here, PICTURE, None)
        while len(behind.remaining) == before:
            time.sleep(0.01)
        began = time.monotonic()
        *short, long = [sent(here, limit) for limit in ("0.4", "0.4", "2.5")]
        for late in short:
            answer = late.getresponse()
            assert (answer.status, json.loads(answer.read())["code"]) == (504, "out_of_time")
            assert time.monotonic() - began < seconds(0.4 + LATE), "answered when their time is over"
        assert first.result()[0].status == 200
        assert long.getresponse().status == 200
    for connection in (*short, long):
        connection.close()
    assert len(behind.remaining) == before + 2, "what came too late cost the model nothing"
    assert behind.remaining[-1] < 2.5 - 0.7 + 0.2


def test_on_one_connection_each_request_has_its_own_time(here: Gateway) -> None:
    """Counted from when it was whole, not from the connection's start."""
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=60)
    for limit in ("2", "5", "2"):
        connection.request("POST", "/predict", PICTURE, {"X-Request-Timeout": limit})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.read()
        time.sleep(1.1)
    connection.close()
