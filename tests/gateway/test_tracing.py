"""traceparent as the model server sees it, and spans as a collector does: gRPC servers that write down what comes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.backends import backend
from tests.support.gateways import Gateway, gateway
from tests.support.pictures import encoded
from tests.support.servers import free_port, until

PICTURE = encoded()
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
Heard = list[dict[str, str]]


@pytest.fixture(scope="module")
def heard() -> Heard:
    """The metadata of each prediction that the model was asked for."""
    return []


@pytest.fixture(scope="module")
def target(heard: Heard) -> Iterator[str]:
    with backend(lambda _, context: heard.append(dict(context.invocation_metadata()))) as behind:
        yield f"localhost:{behind.port}"


@pytest.fixture(scope="module")
def here(target: str) -> Iterator[Gateway]:
    with gateway(target) as running:
        yield running


def predict(here: Gateway, **headers: str) -> None:
    assert here.post("/predict", PICTURE, "image/jpeg", **headers).status == 200


def logged(here: Gateway, request_id: str) -> dict[str, Any]:
    until(lambda: f'"{request_id}"' in here.log.read_text(), "the request's line")
    lines = [json.loads(line) for line in here.log.read_text().splitlines()]
    return next(line for line in lines if line.get("request_id") == request_id)


@pytest.mark.parametrize("flags, passed_on", [("01", "01"), ("00", "00"), ("03", "01")])
def test_a_callers_trace_goes_on_to_the_model_server(here: Gateway, heard: Heard, flags: str, passed_on: str) -> None:
    state = "congo=t61rcWkgMzE,rojo=00f0"
    predict(here, traceparent=f"00-{TRACE}-{SPAN}-{flags}", tracestate=state, **{"X-Request-ID": "r-" + flags})
    assert heard[-1]["x-request-id"] == "r-" + flags
    assert heard[-1]["tracestate"] == state
    version, trace_id, span_id, sampled = heard[-1]["traceparent"].split("-")
    assert (version, trace_id, sampled) == ("00", TRACE, passed_on)
    assert re.fullmatch("[0-9a-f]{16}", span_id) and span_id != SPAN
    assert logged(here, "r-" + flags)["trace_id"] == TRACE


@pytest.mark.parametrize(
    "given",
    [
        "", "nonsense", f"00-{TRACE}-{SPAN}", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"cc-{TRACE}-{SPAN}-01more",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-0x",
    ],
)  # fmt: skip
def test_what_is_no_traceparent_begins_a_new_trace(here: Gateway, heard: Heard, given: str) -> None:
    predict(here, traceparent=given, tracestate="a=b")
    found = re.fullmatch("00-([0-9a-f]{32})-([0-9a-f]{16})-00", heard[-1]["traceparent"])
    assert found and found[1] != TRACE
    assert "tracestate" not in heard[-1]
    assert logged(here, heard[-1]["x-request-id"])["trace_id"] == found[1]


def test_a_version_to_come_is_read_as_far_as_it_is_known(here: Gateway, heard: Heard) -> None:
    predict(here, traceparent=f"cc-{TRACE}-{SPAN}-01-what-comes")
    assert heard[-1]["traceparent"].startswith(f"00-{TRACE}-")


@pytest.mark.parametrize("state", ["x" * 513, "a=\xff", ",".join(f"v{n}=1" for n in range(33))])
def test_a_tracestate_that_is_too_long_or_odd_is_left_out(here: Gateway, heard: Heard, state: str) -> None:
    predict(here, traceparent=f"00-{TRACE}-{SPAN}-01", tracestate=state)
    assert heard[-1]["traceparent"].startswith(f"00-{TRACE}-")
    assert "tracestate" not in heard[-1]


# ---------------------------------------------------------------------------------------------------- OpenTelemetry


@dataclass
class Collector:
    port: int = 0
    spans: list[Any] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    def named(self, trace_id: str) -> dict[str, Any]:
        return {span.name: span for span in list(self.spans) if span.trace_id.hex() == trace_id}


@contextmanager
def collector() -> Iterator[Collector]:
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

    here = Collector()

    def export(request: Any, _: Any) -> Any:
        for part in request.resource_spans:
            here.services |= {one.value.string_value for one in part.resource.attributes if one.key == "service.name"}
            here.spans += [span for scope in part.scope_spans for span in scope.spans]
        return messages.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(
        export, messages.ExportTraceServiceRequest.FromString, messages.ExportTraceServiceResponse.SerializeToString
    )
    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, {"Export": handler})])
    here.port = server.add_insecure_port(f"localhost:{free_port()}")
    server.start()
    try:
        yield here
    finally:
        server.stop(0).wait()


def test_each_request_is_a_span_with_its_stages_inside(target: str, heard: Heard) -> None:
    with collector() as there:
        endpoint = f"http://localhost:{there.port}"
        with gateway(target, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="100") as here:
            predict(here, traceparent=f"00-{TRACE}-{SPAN}-01", **{"X-Request-ID": "spanned"})
            until(lambda: {"POST /predict", "model"} <= set(there.named(TRACE)), "the spans")
            spans, told = there.named(TRACE), heard[-1]["traceparent"].split("-")
            assert set(spans) == {"POST /predict", "wait", "fetch", "card", "decode", "model"}
            whole = spans.pop("POST /predict")
            assert (whole.parent_span_id.hex(), whole.span_id.hex()) == (SPAN, told[2])
            assert whole.kind == 2  # a server's
            known = {one.key: one.value for one in whole.attributes}
            assert known["loupe.request_id"].string_value == "spanned"
            assert known["http.response.status_code"].int_value == 200
            for span in spans.values():
                assert span.parent_span_id == whole.span_id
                assert whole.start_time_unix_nano <= span.start_time_unix_nano + 1000
                assert span.start_time_unix_nano <= span.end_time_unix_nano <= whole.end_time_unix_nano + 1000
            assert abs(whole.end_time_unix_nano / 1e9 - time.time()) < 600

            predict(here)  # of no trace yet
            _, trace_id, span_id, sampled = heard[-1]["traceparent"].split("-")
            until(lambda: "POST /predict" in there.named(trace_id), "its span")
            assert there.named(trace_id)["POST /predict"].span_id.hex() == span_id and sampled == "01"

            predict(here, traceparent=f"00-{'d' * 32}-{SPAN}-00")  # its caller does not record it
            assert here.post("/predict", b"no picture", **{"traceparent": f"00-{'e' * 32}-{SPAN}-01"}).status == 422
            here.process.terminate()
            here.process.wait(60)
        assert "POST /predict" in there.named("e" * 32), "what was not sent yet is sent at the end"
        assert not there.named("d" * 32)
        assert there.services == {"loupe-gateway"}


def test_a_collector_that_is_gone_slows_nothing_and_fills_no_log(target: str) -> None:
    endpoint = f"http://localhost:{free_port()}"
    small = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
    with gateway(target, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, **small) as here:
        predict(here)
        until(lambda: "opentelemetry" in here.log.read_text(), "it to be said once")
        started = time.monotonic()
        for _ in range(100):
            predict(here)
        assert time.monotonic() - started < 60
        lines = [json.loads(line) for line in here.log.read_text().splitlines()]
        assert 1 <= sum(line.get("logger", "").startswith("opentelemetry") for line in lines) <= 3
        started = time.monotonic()
        here.process.terminate()
        assert here.process.wait(60) == 0
        assert time.monotonic() - started < 60


def test_without_the_packages_or_an_endpoint_nothing_of_them_is_there(
    target: str, heard: Heard, tmp_path: Path
) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError('as if it were not installed')\n")
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://localhost:{free_port()}", "PYTHONPATH": str(tmp_path)}
    for settings in (asked, {}):
        with gateway(target, **settings) as here:
            predict(here, traceparent=f"00-{TRACE}-{SPAN}-01")
            assert heard[-1]["traceparent"].startswith(f"00-{TRACE}-")
            modules = Path(f"/proc/{here.workers()[0]}/maps").read_text()
            assert "grpc" in modules and "opentelemetry" not in here.log.read_text()
            assert all(line["level"] == "info" for line in map(json.loads, here.log.read_text().splitlines()))
