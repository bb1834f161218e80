"""Test what Prometheus and Grafana are told: deploy/monitoring against the metrics that a gateway and a model server
really have, and the alerts against series that make each fire or stay silent (rules.test.yaml)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from loupe.gateway.problems import MEANINGS
from tests.support import models
from tests.support.gateways import Gateway, gateway
from tests.support.pictures import encoded
from tests.support.servers import ROOT, free_port, model_server, until

MONITORING = ROOT / "deploy" / "monitoring"
OF_PROMETHEUS = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}  # which it makes itself
BY_PROMETHEUS = {"job", "instance"}  # labels that it adds to every series
WIDTH = 24  # columns of a Grafana dashboard

Series = dict[str, dict[str, set[str]]]  # name → label → values


def dashboard() -> Any:
    return json.loads((MONITORING / "dashboard.json").read_text())


def rules() -> list[Any]:
    (group,) = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    return list(group["rules"])


def panels() -> list[Any]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> dict[str, str]:
    """Every expression, by where it stands."""
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in panels():
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    found |= {f"{note['name']} of the dashboard": note["expr"] for note in dashboard()["annotations"]["list"]}
    return {place: expression.replace("$__rate_interval", "5m") for place, expression in found.items()}


def nodes(expression: str) -> list[Any]:
    seen: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), seen.append)
    return seen


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    return [node for node in nodes(expression) if isinstance(node, promql_parser.VectorSelector)]


def grouped_by(expression: str) -> set[str]:
    """The labels after every `by`."""
    groups = [node for node in nodes(expression) if isinstance(node, promql_parser.AggregateExpr) and node.modifier]
    return {label for node in groups if node.modifier for label in node.modifier.labels}


def series_in(page: bytes) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Series]:
    """What a gateway and a model server expose after pictures of every kind, a version that breaks, and an error."""
    # A model that finds dark pictures unfamiliar and is sure of nothing, and a second version that cannot be loaded.
    folder = tmp_path_factory.mktemp("models")
    card = models.card(certain_at=0.999, unfamiliar_below=0.5, training={"images": {"cracked": 300, "normal": 400}})
    models.write(folder / "tires" / "1", text=card, familiarity=True)
    (folder / "tires" / "2").mkdir()
    (folder / "tires" / "2" / "saved_model.pb").write_bytes(b"no graph")
    port = free_port()
    with (
        model_server(
            folder, "tires", f"--monitoring_config_file={ROOT / 'deploy' / 'serving' / 'monitoring.txt'}",
            "--max_num_load_retries=0",
        ) as server,
        gateway(f"localhost:{server.port}", LOUPE_METRICS_PORT=str(port)) as here,
    ):  # fmt: skip
        # Enough predictions for the drift, and a request that fails.
        grey = [encoded(Image.new("RGB", (40, 40), (level,) * 3), "PNG") for level in (51, 204)]
        for _ in range(5):
            assert here.post_files("/predict", *grey * 12).status == 200
        assert here.post("/predict", b"no picture", "image/jpeg").status == 422
        assert here.get("/readyz").status == 200
        metrics, calls = Gateway(here.process, port, here.log), Gateway(here.process, server.rest_port, here.log)
        page = "/monitoring/prometheus/metrics"
        until(lambda: b'status="fail"' in calls.get(page).body, "the broken version to be tried")
        yield {**series_in(metrics.get("/metrics").body), **series_in(calls.get(page).body)}


# ------------------------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize("place", expressions())
def test_every_metric_and_label_that_is_asked_for_is_exposed(exposed: Series, place: str) -> None:
    expression = expressions()[place]
    assert selectors(expression)
    there: set[str] = set()
    for selector in selectors(expression):
        name = str(selector.name)
        assert name in exposed or name in OF_PROMETHEUS, f"{name} is a metric of neither"
        labels = set(exposed.get(name, {})) | BY_PROMETHEUS | OF_PROMETHEUS.get(name, set())
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels, f"{selector}: it has {labels}"
        there |= labels
    assert grouped_by(expression) <= there


@pytest.mark.parametrize("place", expressions())
def test_every_value_that_is_asked_for_is_one_that_is_given(exposed: Series, place: str) -> None:
    """Codes and statuses are not all caused here: for these their list decides."""
    jobs = {job["job_name"] for job in yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]}
    for selector in selectors(expressions()[place]):
        for matcher in selector.matchers.matchers:
            known = {"job": jobs, "code": set(MEANINGS)}.get(matcher.name)
            known = known or exposed.get(str(selector.name), {}).get(matcher.name, set())
            if selector.name != "ALERTS" and matcher.name != "status":
                assert set(matcher.value.split("|")) <= known, matcher
            if matcher.name == "status" and selector.name == "loupe_requests_total":
                assert all(re.fullmatch(r"[1-5](\d\d|\.\.)", status) for status in matcher.value.split("|")), matcher
            elif matcher.name == "status":
                assert matcher.value in known, matcher


def test_the_operator_names_the_jobs_as_prometheus_does_here() -> None:
    """Their names are Loupe's own, or a Service `gateway` of another namespace would count as one of ours."""
    monitors = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "service-monitors.yaml"
    renamed = {
        monitor["metadata"]["name"]: [
            relabeling for each in monitor["spec"]["endpoints"] for relabeling in each["relabelings"]
        ]
        for monitor in yaml.safe_load_all(monitors.read_text())
    }
    jobs = [job["job_name"] for job in yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]]
    assert jobs == [f"loupe-{name}" for name in renamed] == ["loupe-gateway", "loupe-model"]
    assert renamed == {name: [{"targetLabel": "job", "replacement": f"loupe-{name}"}] for name in renamed}


def test_a_metric_that_does_not_exist_would_be_found(exposed: Series) -> None:
    found = selectors("sum by (le) (rate(loupe_nothing{a='b'}[5m])) > loupe_model_version")
    assert [str(each.name) for each in found] == ["loupe_nothing", "loupe_model_version"]
    assert "loupe_nothing" not in exposed
    assert set(exposed[":tensorflow:cc:saved_model:load_attempt_count"]["status"]) == {"success", "fail"}
    assert {"whole", "model", "decode", "fetch", "wait"} <= exposed["loupe_stage_duration_seconds_bucket"]["stage"]


# ---------------------------------------------------------------------------------------------------------- the alerts


@pytest.fixture(scope="module")
def promtool() -> str:
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("no promtool is installed; Debian: apt install prometheus")
    return path


def run(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_promtool_takes_the_configuration_and_the_rules(promtool: str) -> None:
    done = run(promtool, "check", "config", str(MONITORING / "prometheus.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_each_alert_fires_where_it_should_and_is_silent_where_it_should(promtool: str) -> None:
    done = run(promtool, "test", "rules", str(ROOT / "tests" / "deploy" / "rules.test.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_left_out_of_these_series() -> None:
    cases = [
        case
        for series in yaml.safe_load((ROOT / "tests" / "deploy" / "rules.test.yaml").read_text())["tests"]
        for case in series["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


@pytest.mark.parametrize("expression", ["vector(1) > 2", "vector(1)"])
def test_alerts_that_never_fire_or_always_do_are_found(promtool: str, expression: str, tmp_path: Path) -> None:
    changed = [{**rule, "expr": expression, "for": "0s"} for rule in rules()]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "loupe", "rules": changed}]}))
    series = (ROOT / "tests" / "deploy" / "rules.test.yaml").read_text()
    (tmp_path / "test.yaml").write_text(series.replace("../../deploy/monitoring/rules.yaml", "rules.yaml"))
    done = run(promtool, "test", "rules", "test.yaml", folder=tmp_path)
    assert done.returncode != 0
    assert set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr)) == {rule["alert"] for rule in rules()}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert re.fullmatch(r"Loupe[A-Z]\w+", rule["alert"])
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]


# ------------------------------------------------------------------------------------------------------- the dashboard


def test_each_panel_has_an_id_a_title_and_the_chosen_source() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    (variable,) = dashboard()["templating"]["list"]
    assert (variable["name"], variable["type"], variable["query"]) == ("datasource", "datasource", "prometheus")
    for panel in panels():
        letters = [target["refId"] for target in panel["targets"]]
        assert letters and len(set(letters)) == len(letters), panel["title"]
        for each in [panel, *panel["targets"]]:
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_the_panels_cover_the_dashboard_without_gap_or_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken[x, y]}"
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1
    assert set(taken) == {(x, y) for x in range(WIDTH) for y in range(height)}


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_legend_names_only_labels_that_its_series_have(exposed: Series, panel: Any) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "5m")
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        metric = next(str(selector.name) for selector in selectors(expression))
        left = grouped_by(expression) or set(exposed.get(metric, {})) | BY_PROMETHEUS
        assert named <= left, target["legendFormat"]


def test_requests_stages_versions_confidence_familiarity_and_drift_are_shown() -> None:
    shown = {str(each.name) for panel in panels() for target in panel["targets"]
             for each in selectors(target["expr"].replace("$__rate_interval", "5m"))}  # fmt: skip
    assert {
        "loupe_requests_total", "loupe_errors_total", "loupe_stage_duration_seconds_bucket", "loupe_model_version",
        "loupe_predictions_total", "loupe_confidence_ratio_bucket", "loupe_familiarity_ratio_bucket", "loupe_drift_psi",
        ":tensorflow:serving:request_count", ":tensorflow:serving:request_latency_bucket",
    } <= shown  # fmt: skip


def test_grafana_finds_the_source_and_the_dashboard_where_they_are_mounted() -> None:
    (source,) = yaml.safe_load((MONITORING / "grafana" / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    (provider,) = yaml.safe_load((MONITORING / "grafana" / "dashboards" / "loupe.yaml").read_text())["providers"]
    grafana = yaml.safe_load((ROOT / "deploy" / "compose" / "monitoring.yaml").read_text())["services"]["grafana"]
    mounted = {target: source for source, target, _ in (volume.split(":") for volume in grafana["volumes"][:-1])}
    assert mounted[f"{provider['options']['path']}/loupe.json"] == "./deploy/monitoring/dashboard.json"
    assert mounted["/etc/grafana/provisioning"] == "./deploy/monitoring/grafana"
