"""Test each overlay of deploy/compose with a real engine: it comes up healthy, test.py passes, and it leaves nothing.

gpu.yaml is only read here, for want of a GPU, and Grafana's files are in test_monitoring.py, for want of its image.
"""

from __future__ import annotations

import http.client
import json
import re
import select
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from tests.support.containers import Compose, clone, docker, inspect, up
from tests.support.gateways import Answer, Gateway
from tests.support.servers import ROOT, free_port, until
from tests.support.stand_ins import all_stand_ins

OVERLAYS = ROOT / "deploy" / "compose"
OF_OURS = ("loupe-model", "loupe-gateway", "loupe-embedded", "loupe-model-gpu")
SAMPLE = (ROOT / "data" / "samples" / "cracked-1.jpg").read_bytes()
pytestmark = pytest.mark.containers


def overlay(name: str) -> Any:
    return yaml.safe_load((OVERLAYS / f"{name}.yaml").read_text())["services"]


def rendered(folder: Path, *overlays: str, **environment: str) -> Any:
    """What docker-compose makes of the base and these overlays."""
    return yaml.safe_load(Compose(folder, overlays, environment)("config"))["services"]


@pytest.fixture(scope="module")
def folder(checkout: Path, images: dict[str, str]) -> Path:
    """A clone with all images built."""
    assert images
    all_stand_ins()
    return checkout


def ask(port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
    return Gateway(None, port, None).ask(method, path, body, headers or {})  # type: ignore[arg-type]


def post(port: int, body: bytes, request_id: str = "") -> Answer:
    headers = {"Content-Type": "image/jpeg"} | ({"X-Request-ID": request_id} if request_id else {})
    return ask(port, "POST", "/predict", body, headers)


def check_hardened(compose: Compose, *services: str) -> None:
    """No root, nothing that can be written but what is mounted, no privileges, and limits."""
    for service in services:
        for container in compose.containers(service):
            known = inspect(container)
            assert known["Config"]["User"].partition(":")[0] not in ("", "0", "root"), service
            host = known["HostConfig"]
            assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], service
            assert "no-new-privileges:true" in host["SecurityOpt"], service
            assert host["Memory"] and host["NanoCpus"], service
            assert host["RestartPolicy"]["Name"] == "unless-stopped", service


# -------------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize("path", sorted(OVERLAYS.glob("*.yaml")), ids=lambda path: path.stem)
def test_docker_compose_takes_it_and_every_image_is_pinned_or_ours(folder: Path, path: Path) -> None:
    for name, service in rendered(folder, path.stem).items():
        image, _, tag = service["image"].rpartition(":")
        assert image in OF_OURS or re.fullmatch(r"v?\d+\.\d+\.\d+", tag), name
        assert "ports" not in service or name in ("gateway", "nginx") or all(
            str(port).startswith("127.0.0.1:") for port in service["ports"]
        ), f"{name} is open to other machines"  # fmt: skip


def test_the_gpu_overlay_asks_for_one_and_computes_in_batches(folder: Path) -> None:
    plain, model = rendered(folder)["model"], rendered(folder, "gpu")["model"]
    assert model["build"]["args"]["SERVING"].endswith("-gpu")
    assert rendered(folder, "gpu", SERVING="2.99.0-gpu")["model"]["build"]["args"]["SERVING"] == "2.99.0-gpu"
    (device,) = model["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert set(model["command"]) - set(plain["command"]) == {
        "--enable_batching", "--batching_parameters_file=/etc/loupe/batching.txt",
    }  # fmt: skip
    assert set(plain["command"]) <= set(model["command"])


def test_the_gateways_behind_nginx_are_the_gateway_without_a_port(folder: Path) -> None:
    one, several = rendered(folder, GATEWAY_WORKERS="3")["gateway"], rendered(folder, "replicas", GATEWAY_WORKERS="3")
    many = several["gateways"]
    for service in (one, many):
        del service["networks"]
        service.pop("ports", None)
    assert many.pop("deploy") == {"replicas": 2}
    assert many["environment"].pop("FORWARDED_ALLOW_IPS") == "*"
    assert many == one
    assert "gateway" not in several or several["gateway"]["profiles"] == ["alone"]


# -------------------------------------------------------------------------------------------------- embedded and REST


def test_embedded_serves_without_tensorflow_serving(folder: Path) -> None:
    with up(folder, "embedded") as compose:
        compose.wait_healthy("model", "gateway")
        done = compose.smoke()
        assert done.returncode == 0, done.stderr
        assert inspect(compose.containers("model")[0])["Config"]["Image"].startswith("loupe-embedded:")
        check_hardened(compose, "model", "gateway")
    assert compose.leftovers() == ""


def test_rest_publishes_the_models_own_port_to_this_machine(folder: Path) -> None:
    port = free_port()
    with up(folder, "rest", REST_PORT=str(port)) as compose:
        compose.wait_healthy("model", "gateway")
        assert compose.smoke().returncode == 0
        status = ask(port, "GET", "/v1/models/tires").json()
        assert [version["state"] for version in status["model_version_status"]] == ["AVAILABLE"]
        published = compose.inspect("model")["NetworkSettings"]["Ports"]
        assert published["8501/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": str(port)}]
        assert not published.get("8500/tcp")
    assert compose.leftovers() == ""


# -------------------------------------------------------------------------------------------------- replicas and nginx


@pytest.fixture(scope="module")
def replicas(folder: Path) -> Iterator[Compose]:
    with up(folder, "replicas") as compose:
        compose.wait_healthy("model", "gateways", "nginx")
        yield compose
    assert compose.leftovers() == ""


def test_three_model_servers_and_two_gateways_answer_behind_nginx(replicas: Compose) -> None:
    assert [len(replicas.containers(service)) for service in ("model", "gateways", "nginx", "gateway")] == [3, 2, 1, 0]
    done = replicas.smoke()
    assert done.returncode == 0, done.stderr
    check_hardened(replicas, "model", "gateways", "nginx")
    assert not any(any(inspect(each)["NetworkSettings"]["Ports"].values()) for each in replicas.containers("gateways"))


def test_what_nginx_hands_on_is_what_was_sent(replicas: Compose) -> None:
    answer = post(replicas.port, SAMPLE, "mine-1")
    assert (answer.status, answer.json()["label"], answer.headers["X-Request-ID"]) == (200, "cracked", "mine-1")
    log = docker("logs", replicas.containers("nginx")[0])
    lines = [json.loads(line) for line in log.splitlines()]
    (line,) = (line for line in lines if line["request_id"] == "mine-1")
    assert (line["status"], line["answered"]) == (200, "200")
    assert re.fullmatch(r"[\d.]+:9696", line["gateway"])
    strange = ask(replicas.port, "GET", "/healthz", headers={"X-Request-ID": 'a"b c'})
    assert re.fullmatch(r"[0-9a-f]{32}", strange.headers["X-Request-ID"])
    assert b"http://" + f"127.0.0.1:{replicas.port}".encode() in ask(replicas.port, "GET", "/docs").body


def test_a_body_of_the_gateways_limit_reaches_it_and_larger_ones_are_refused(replicas: Compose) -> None:
    """The gateway's own answers for what it takes or refuses; nginx only bounds what is gathered."""
    limit = 10_000_000  # LOUPE_MAX_BYTES
    answers = [post(replicas.port, bytes(size)) for size in (limit, limit + 1, 10 * 1024 * 1024 + 1)]
    assert [(answer.status, answer.json()["code"]) for answer in answers] == [
        (422, "broken_image"), (413, "too_large"), (413, "too_large"),
    ]  # fmt: skip
    assert "10,000,000" in answers[1].json()["detail"] and "10,000,000" not in answers[2].json()["detail"]
    for answer in answers:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["X-Request-ID"] == answer.json()["request_id"]


def begun(port: int, size: int, first: bytes) -> http.client.HTTPConnection:
    """A request whose body is to have this size, and of which these bytes were sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Content-Length", str(size))
    connection.endheaders(first)
    return connection


def test_slow_senders_hold_no_thread_of_a_gateway_and_fill_nothing_in_nginx(replicas: Compose) -> None:
    """nginx hands on what comes, and the gateways gather it: all the while their metrics show nothing in flight."""
    slow = [begun(replicas.port, len(SAMPLE), SAMPLE[:1000]) for _ in range(20)]
    large = [begun(replicas.port, 9_000_000, bytes(2_000_000)) for _ in range(20)]  # much more than nginx' buffers
    time.sleep(2)
    count = "import urllib.request as r; print(r.urlopen('http://localhost:9697/metrics').read().decode())"
    for gateway in replicas.containers("gateways"):
        assert "loupe_requests_in_flight 0.0" in docker("exec", gateway, "python", "-c", count)
    (nginx,) = replicas.containers("nginx")
    used = docker("exec", nginx, "df", "--output=used", "--block-size=1K", "/tmp").split()[
        1
    ]  # nginx' files have no names
    assert int(used) < 100
    assert not select.select([connection.sock for connection in large], [], [], 0)[0], "one was refused already"
    # Others are answered meanwhile, and so are the slow ones in the end.
    assert post(replicas.port, SAMPLE).json()["label"] == "cracked"
    for connection in slow:
        connection.send(SAMPLE[1000:])
    assert {json.loads(connection.getresponse().read())["label"] for connection in slow} == {"cracked"}
    for connection in slow + large:
        connection.close()


def test_a_sender_that_never_comes_to_its_end_is_cut_by_the_gateway(replicas: Compose) -> None:
    """Whatever it sends each second: nginx would wait for ever. LOUPE_READ_TIMEOUT is 30 seconds."""
    started = time.monotonic()
    connection = begun(replicas.port, len(SAMPLE), SAMPLE[:1000])
    while not select.select([connection.sock], [], [], 1)[0]:
        assert time.monotonic() - started < 45
        connection.send(b"x")
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["code"]) == (408, "request_timeout")
    assert 29 < time.monotonic() - started < 45
    connection.close()


def test_an_address_where_no_gateway_listens_is_passed_over(replicas: Compose) -> None:
    """The name `gateway` leads to a container that sleeps, as well: every picture goes to the others, once."""
    gateway, front = replicas.containers("gateways")[0], f"{replicas.project}_front"
    image = inspect(gateway)["Config"]["Image"]
    asleep = docker("run", "--detach", f"--network={front}", "--network-alias=gateway", image, "sleep", "600").strip()
    try:
        time.sleep(2)  # by then nginx has asked for the addresses again
        answers = [post(replicas.port, SAMPLE, f"over-{number}") for number in range(30)]
    finally:
        docker("rm", "--force", asleep)
    assert {(answer.status, answer.json()["label"]) for answer in answers} == {(200, "cracked")}
    log = [json.loads(line) for line in docker("logs", replicas.containers("nginx")[0]).splitlines()]
    tried = Counter(line["answered"] for line in log if line["request_id"].startswith("over-"))
    assert set(tried) == {"200", "502, 200"}, tried


def test_one_address_that_asks_too_much_is_told_so(replicas: Compose) -> None:
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: post(replicas.port, b"no picture"), range(600)))
    seen = Counter(answer.status for answer in answers)
    print(f"600 requests at once of one address: {dict(seen)}")
    assert set(seen) <= {422, 429, 503} and seen[429] > 100 and seen[422] >= 50
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.json()["code"] == "too_many_requests" and refused.json()["detail"]
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["Content-Type"] == "application/problem+json"


def test_without_any_gateway_nginx_says_so_and_finds_new_ones(replicas: Compose) -> None:
    gateways = replicas.containers("gateways")
    docker("kill", *gateways)
    until(lambda: ask(replicas.port, "GET", "/healthz").status == 503, "nginx to notice", patience=15)
    answer = post(replicas.port, SAMPLE)
    assert (answer.status, answer.json()["code"], answer.headers["Retry-After"]) == (503, "no_gateway", "1")
    docker("start", *gateways)
    until(lambda: replicas.smoke().returncode == 0, "the gateways to be found", patience=30)


# ---------------------------------------------------------------------------------------------------------- monitoring


def query(port: int, expression: str) -> dict[str, float]:
    """Each sample's value, by its instance."""
    answer = ask(port, "GET", f"/api/v1/query?query={quote(expression)}").json()
    assert answer["status"] == "success", answer
    return {each["metric"].get("instance", ""): float(each["value"][1]) for each in answer["data"]["result"]}


def without_grafana(folder: Path) -> None:
    """Its image cannot be had here: only its files are tested, in test_monitoring.py."""
    path = folder / "deploy" / "compose" / "monitoring.yaml"
    whole = yaml.safe_load(path.read_text())
    del whole["services"]["grafana"], whole["volumes"]["grafana"]
    path.write_text(yaml.safe_dump(whole))


@pytest.mark.parametrize("overlays", [("monitoring",), ("replicas", "monitoring")], ids="-".join)
def test_prometheus_scrapes_all_of_them_and_evaluates_its_rules(
    folder: Path, tmp_path: Path, overlays: tuple[str, ...]
) -> None:
    here = clone(tmp_path)
    without_grafana(here)
    port, several = free_port(), "replicas" in overlays
    gateway = "gateways" if several else "gateway"
    with up(here, *overlays, PROMETHEUS_PORT=str(port)) as compose:
        compose.wait_healthy("model", gateway, "prometheus")
        check_hardened(compose, "prometheus")
        for _ in range(3):
            assert compose.smoke().returncode == 0
        # Every target is up.
        until(lambda: set(query(port, 'up{job="loupe-gateway"}').values()) == {1}, "the gateways to be scraped")
        until(lambda: set(query(port, 'up{job="loupe-model"}').values()) == {1}, "the model servers to be scraped")
        until(lambda: len(query(port, "up == 1")) == (2 + 3 if several else 1 + 1), "all of them", patience=30)
        # They say what happened.
        until(lambda: sum(query(port, "sum(loupe_predictions_total)").values()) >= 6, "the predictions to be counted")
        counted = "sum(:tensorflow:serving:request_count)"  # by the model servers, which are scraped by themselves
        until(lambda: sum(query(port, counted).values()) >= 6, "the calls to be counted")
        # The rules are evaluated, and none has anything to say.
        until(lambda: rule_states(port) == {"inactive"}, "the rules to be evaluated")
        assert len(rules(port)) >= 8
    assert compose.leftovers() == ""


def rules(port: int) -> list[Any]:
    (group,) = ask(port, "GET", "/api/v1/rules").json()["data"]["groups"]
    return list(group["rules"])


def rule_states(port: int) -> set[str]:
    known = rules(port)
    assert not [rule["lastError"] for rule in known if rule.get("lastError")]
    return {rule["state"] if rule["health"] == "ok" else rule["health"] for rule in known}


def test_prometheus_notices_that_the_model_is_gone(folder: Path, tmp_path: Path) -> None:
    here = clone(tmp_path)
    without_grafana(here)
    port = free_port()
    with up(here, "monitoring", PROMETHEUS_PORT=str(port)) as compose:
        compose.wait_healthy("model", "gateway", "prometheus")
        until(lambda: len(query(port, "up == 1")) == 2, "both to be scraped")
        until(lambda: rule_states(port) == {"inactive"}, "the rules to be evaluated")
        docker("kill", *compose.containers("model"))
        state = {}

        def pending() -> bool:
            state.update({rule["name"]: rule["state"] for rule in rules(port)})
            return state["LoupeModelDown"] in ("pending", "firing")

        until(pending, "LoupeModelDown", patience=90)
        assert state["LoupeGatewayDown"] == "inactive"
    assert compose.leftovers() == ""
