"""/openapi.json is held to what the gateway does: schemathesis asks whatever it allows, and what it forbids."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.engine import events, from_schema

from loupe.errors import Problem
from loupe.gateway.docs.openapi import TIMEOUT, document, every_problem
from loupe.gateway.problems import MEANINGS
from loupe.gateway.settings import Settings
from tests.support.gateways import Gateway, gateway
from tests.support.pictures import encoded
from tests.support.servers import ROOT, ModelServer, model_server

PICTURE = encoded()
SOMETHING = st.one_of(st.sampled_from([PICTURE, PICTURE[:300], b"GIF89a", b"%PDF-1.4", b""]), st.binary(max_size=200))
schemathesis.openapi.media_type("image/*", SOMETHING, aliases=["application/octet-stream"])


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with model_server(ROOT / "models", "tires") as running:
        yield running


@pytest.fixture(scope="module")
def here(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    corrections = str(tmp_path_factory.mktemp("corrections"))
    with gateway(f"localhost:{server.port}", LOUPE_MAX_IMAGES="7", LOUPE_FEEDBACK_DIR=corrections) as running:
        yield running


# ----------------------------------------------------------------------------------------------- schemathesis


@dataclass
class Tried:
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.statuses.total()


def fuzz(here: Gateway, examples: int, seed: int) -> Tried:
    """Every phase of schemathesis with all its checks."""
    config = schemathesis.Config.from_dict(
        {
            "seed": seed,
            "continue-on-failure": True,
            "generation": {"max-examples": examples // 10, "database": "none"},
            "operations": [{"include-name": "POST /predict", "generation": {"max-examples": examples}}],
            # What the schema cannot say: which hosts there are, and which bytes are a picture of which format.
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "415", "422"]}},
        }
    )
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{here.port}/openapi.json", config=config)
    tried = Tried()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _count(event, tried)
        elif isinstance(event, (events.NonFatalError, events.FatalError)):
            tried.failures.append(repr(event))
    return tried


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """What no generator comes upon: time enough to answer in, and a picture in base64. And nobody else is asked."""
    with suppress(ValueError):
        if 0 < float((case.headers or {}).get(TIMEOUT["name"], "")) <= TIMEOUT["schema"]["maximum"]:
            case.headers[TIMEOUT["name"]] = "30"
    if case.media_type == "application/json" and isinstance(case.body, dict):
        given = case.body.get("b64")
        if isinstance(given, str) and len(given) % 2:
            case.body["b64"] = base64.b64encode(PICTURE).decode()
        for key in ("url", "urls"):
            if "example.org" in str(case.body.get(key)):
                case.body[key] = json.loads(json.dumps(case.body[key]).replace("example.org", "example.invalid"))


def _count(event: events.ScenarioFinished, tried: Tried) -> None:
    recorder = event.recorder
    for place, interaction in recorder.interactions.items():
        if interaction.response is None:
            tried.failures.append(f"{recorder.cases[place].value}: no answer")
            continue
        tried.statuses[event.label or "", interaction.response.status_code] += 1
    for place, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                case = recorder.cases[place].value
                tried.failures.append(f"{check.name}: {check.failure_info.failure} for {case.as_curl_command()}")


def assert_held(tried: Tried, least: int) -> None:
    print(f"{tried.cases:,} cases: {sorted(tried.statuses.items())}")
    assert tried.failures == []
    assert tried.cases >= least
    assert [status for _, status in tried.statuses if status >= 500] == []
    asked = {label for label, _ in tried.statuses}
    assert {"POST /predict", "POST /feedback", "GET /model", "GET /docs", "GET /samples/{name}"} <= asked
    assert tried.statuses["POST /predict", 200] > least / 100, "pictures were classified, too"
    assert {400, 415, 422} <= {status for label, status in tried.statuses if label == "POST /predict"}


def test_whatever_schemathesis_sends_is_answered_as_the_description_says(here: Gateway) -> None:
    assert_held(fuzz(here, examples=60, seed=1), least=120)


@pytest.mark.slow
def test_two_thousand_cases_are_answered_as_the_description_says(here: Gateway) -> None:
    assert_held(fuzz(here, examples=2000, seed=2), least=2000)


# -------------------------------------------------------------------------------------------- what it is made from


def test_it_describes_every_error_of_the_tree_and_says_what_to_do_about_each() -> None:
    described = document(Settings.from_environment({"LOUPE_FEEDBACK_DIR": "corrections"}), ["a.jpg"], keys=True)
    codes: set[str] = set()
    for methods in described["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    _, narrowed = answer["content"]["application/problem+json"]["schema"]["allOf"]
                    codes |= set(narrowed["properties"]["code"]["enum"])
    everything = {problem.code for problem in every_problem()}
    assert codes == everything - {"method_not_allowed"}, "a method that is described is never refused"
    assert set(MEANINGS) == everything
    assert len(everything) > 15
    assert issubclass(Problem, Exception)


def test_its_limits_are_those_of_the_settings(here: Gateway) -> None:
    described = here.get("/openapi.json").json()
    urls = described["components"]["schemas"]["Question"]["properties"]["urls"]
    assert urls["maxItems"] == 7
    answer = here.post_json("/predict", {"urls": ["http://10.0.0.1/"] * 8})
    assert (answer.status, answer.json()["code"]) == (400, "bad_request")
    assert here.post_json("/predict", {"urls": ["http://10.0.0.1/"] * 7}).json()["code"] == "all_failed"


def test_it_is_not_sent_again_to_those_who_have_it(here: Gateway) -> None:
    first = here.get("/openapi.json")
    again = here.get("/openapi.json", **{"If-None-Match": first.headers["ETag"]})
    assert (first.status, again.status, again.body) == (200, 304, b"")


# ------------------------------------------------------------------------------------------------ what is checked

DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff", b"\0", b"{}", b"[]", b'"url"', b'{"ulr": "http://x"}', b'{"url": "http://x"} more',
        b'{"x": ' + b"[" * DEEP + b"]" * DEEP + b"}", b'{"x": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        b'{"url": 1e999999}', b'{"url": ' + b"9" * 100_000 + b"}", b'{"urls": [NaN]}', b'{"url": -Infinity}',
        b'{"url": "http://x", "x": NaN}', b'{"url": "http://\xff"}', b'{"url": "http://x", "x": "\xff"}',
        b'{"url": "\\ud800"}', b'{"url": "a", "url": "b"}', b'{"url": "a", "\\u0075rl": "b"}',
        b'{"b64": "aa", "b64": "bb"}', b'{"url": "a", "b64": null}', b'{"url": {"url": "a"}}',
        b'{"url": "http://x", "x": {"y": 1, "y": 2}}',
        '{"url": "http://x"}'.encode("utf-16"), '{"url": "http://x"}'.encode("utf-32"),
        b'{"url": "http://x/' + b"a" * 2048 + b'"}', b'{"urls": ["http://x", ""]}', b'{"b64": ""}',
    ],
)  # fmt: skip
def test_json_that_is_odd_is_a_bad_request_and_never_our_fault(here: Gateway, body: bytes) -> None:
    answer = here.post("/predict", body, "application/json")
    assert (answer.status, answer.json()["code"]) == (400, "bad_request"), answer.body
    assert answer.json()["detail"].endswith((".", "?"))


def test_a_byte_order_mark_and_keys_that_mean_nothing_here_do_no_harm(here: Gateway) -> None:
    picture = base64.b64encode(PICTURE).decode()
    for body in (
        b"\xef\xbb\xbf" + json.dumps({"b64": picture}).encode(),
        json.dumps({"b64": picture, "instance": {"id": 3, "of": [1.5e300, None]}, "ä": "\U0001f600"}).encode(),
    ):
        assert here.post("/predict", body, "application/json").status == 200


@pytest.mark.parametrize("query", ["top=1&top=2", "heatmap=0&heatmap=1", "top=100000", "top=" + "9" * 2000, "top=+1"])
def test_a_query_that_is_odd_is_a_bad_request(here: Gateway, query: str) -> None:
    answer = here.post(f"/predict?{query}", PICTURE)
    assert (answer.status, answer.json()["code"]) == (400, "bad_request")


def test_nothing_is_answered_that_is_not_described(here: Gateway) -> None:
    """The schemas allow other keys, as everybody should who reads answers; the gateway gives none."""
    schemas = here.get("/openapi.json").json()["components"]["schemas"]
    many = here.post_files("/predict?heatmap=1", PICTURE, b"no picture").json()
    for shape, answer in (
        ("Answer", here.post("/predict?heatmap=1", PICTURE).json()),
        ("Answers", many),
        ("Prediction", many["predictions"][0]),
        ("FailedPrediction", many["predictions"][1]),
        ("Fault", many["predictions"][1]["error"]),
        ("FaultAnswer", here.post_files("/predict", b"no", b"no").json()),
        ("CardAnswer", here.get("/model").json()),
        ("Input", here.get("/model").json()["input"]),
        ("Ready", here.get("/readyz").json()),
        ("Alive", here.get("/healthz").json()),
    ):
        assert set(answer) == set(schemas[shape]["properties"]), shape
