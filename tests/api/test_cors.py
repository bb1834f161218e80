"""Whose pages may ask from a browser, and the headers that keep ours safe."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loupe.errors import UserError
from loupe.gateway.settings import Settings
from tests.support.gateways import Answer, Gateway, gateway
from tests.support.servers import free_port

OURS, OTHER = "https://app.example.org", "https://evil.example.org"


def started(origins: str) -> Iterator[Gateway]:
    """No model is needed to be told whether one may ask."""
    with gateway(f"localhost:{free_port()}", LOUPE_CORS_ORIGINS=origins) as running:
        yield running


@pytest.fixture(scope="module")
def here() -> Iterator[Gateway]:
    yield from started(f" {OURS}, http://localhost:3000 ")


@pytest.fixture(scope="module")
def everyones() -> Iterator[Gateway]:
    yield from started("*")


@pytest.fixture(scope="module")
def closed() -> Iterator[Gateway]:
    yield from started("")


def preflight(gate: Gateway, origin: str) -> Answer:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-api-key",
    }
    return gate.ask("OPTIONS", "/predict", None, headers)


def test_a_page_that_may_ask_is_told_so_before_and_after(here: Gateway) -> None:
    before = preflight(here, OURS)
    assert before.status in (200, 204)
    assert before.headers["Access-Control-Allow-Origin"] == OURS
    assert "POST" in before.headers["Access-Control-Allow-Methods"]
    allowed = before.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"content-type", "x-api-key", "authorization", "x-request-id", "x-request-timeout"} <= set(allowed)
    assert int(before.headers["Access-Control-Max-Age"]) > 0
    answers = [here.get(path, Origin=OURS) for path in ("/healthz", "/nothing")]
    for answer in (*answers, here.post("/predict", b"", Origin=OURS)):
        assert answer.headers["Access-Control-Allow-Origin"] == OURS, "on errors, too, or no page could read them"
        assert answer.headers["Access-Control-Expose-Headers"] == "X-Request-ID, Retry-After"
        assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    [OTHER, "http://app.example.org", OURS + ".evil.org", OURS + ":444", "null", "https://xapp.example.org", "*", ""],
)
def test_any_other_page_is_told_nothing(here: Gateway, origin: str) -> None:
    for answer in (preflight(here, origin), here.get("/healthz", Origin=origin)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert answer.headers["Vary"] == "Origin", "or a cache would give one page the other's answer"


def test_with_a_star_every_page_may(everyones: Gateway) -> None:
    for answer in (preflight(everyones, OTHER), everyones.get("/healthz", Origin="null")):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


def test_unless_set_no_page_may(closed: Gateway) -> None:
    for answer in (preflight(closed, OURS), closed.get("/healthz", Origin=OURS)):
        assert not [name for name in answer.headers if name.lower().startswith(("access-control", "vary"))]


@pytest.mark.parametrize("text", ["app.example.org", "https://a.org/", "https://*.a.org", "ftp://a.org", "https://"])
def test_an_origin_that_is_none_is_refused_at_start(text: str) -> None:
    with pytest.raises(UserError, match="LOUPE_CORS_ORIGINS is .* but must be origins such as"):
        Settings.from_environment({"LOUPE_CORS_ORIGINS": f"{OURS},{text}"})


def test_every_answer_of_the_application_and_of_its_front_is_kept_out_of_frames(closed: Gateway) -> None:
    long = closed.get("/" + "x" * 70_000)
    assert long.status == 431
    for answer in (closed.get("/"), closed.get("/docs"), closed.get("/nothing"), closed.get("/page/page.css"), long):
        headers = answer.headers
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "camera=(self)" in headers["Permissions-Policy"]
        assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
