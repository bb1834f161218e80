"""Test the rules for the manifests (tests/support/kubernetes_policy.py): break each on purpose, and it must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import kubernetes_policy as policy
from tests.support.kubernetes import Cluster, render
from tests.support.kubernetes_policy import server

Breaking = Callable[[Cluster], object]
SCALER, BUDGET, NETWORK = "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"


def pod(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.one("Deployment", name)["spec"]["template"]["spec"]
    return found


def spec(cluster: Cluster, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster.one(kind, name)["spec"]
    return found


def security(cluster: Cluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = server(cluster, name)["securityContext"]
    return found


def resources(cluster: Cluster, name: str, part: str) -> dict[str, Any]:
    found: dict[str, Any] = server(cluster, name)["resources"][part]
    return found


def rule(cluster: Cluster, name: str, direction: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = spec(cluster, NETWORK, name)[direction][number]
    return found


def block(cluster: Cluster, number: int) -> dict[str, Any]:
    """The addresses that the gateway may reach: 0 of IPv4, 1 of IPv6."""
    found: dict[str, Any] = rule(cluster, "gateway", "egress", 2)["to"][number]["ipBlock"]
    return found


def remove(cluster: Cluster, kind: str, name: str) -> None:
    cluster.objects.remove(cluster.one(kind, name))


def remove_script(cluster: Cluster) -> None:
    (script,) = [each for each in cluster.all("ConfigMap") if "script" in each["metadata"]["name"]]
    cluster.objects.remove(script)


def set_variable(cluster: Cluster, name: str, variable: str, value: str) -> None:
    container = server(cluster, name)
    container["env"] = [each for each in container["env"] if each["name"] != variable]
    container["env"].append({"name": variable, "value": value})


def set_flag(cluster: Cluster, flag: str, value: str) -> None:
    container = server(cluster, "model")
    container["args"] = [each for each in container["args"] if not each.startswith(f"--{flag}=")]
    container["args"] += [f"--{flag}={value}"] if value else []


def lead_ingress_to(cluster: Cluster, port: str) -> None:
    path = spec(cluster, "Ingress", "gateway")["rules"][0]["http"]["paths"][0]
    path["backend"]["service"]["port"] = {"name": port}


def relax(cluster: Cluster) -> None:
    cluster.all("Namespace")[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "baseline"


WHOLE = ("base", "api-keys", "models-bucket", "monitoring")
# What is done to it, below the rule that it breaks.
BROKEN: dict[policy.Rule, list[Breaking]] = {
    policy.runs_as_nobody: [
        lambda c: pod(c, "model")["securityContext"].update(runAsUser=0),
        lambda c: pod(c, "gateway")["securityContext"].pop("runAsNonRoot"),
        lambda c: security(c, "gateway").update(runAsUser=0),
    ],
    policy.gains_no_rights: [
        lambda c: security(c, "model").pop("allowPrivilegeEscalation"),
        lambda c: security(c, "model").update(privileged=True),
        lambda c: security(c, "model")["capabilities"].update(add=["SYS_ADMIN"]),
        lambda c: pod(c, "model")["initContainers"][0]["securityContext"].pop("capabilities"),
        lambda c: pod(c, "gateway")["securityContext"].pop("seccompProfile"),
        lambda c: pod(c, "gateway").update(hostNetwork=True),
        lambda c: pod(c, "model")["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
    ],
    policy.writes_to_tmp_alone: [
        lambda c: security(c, "gateway").update(readOnlyRootFilesystem=False),
        lambda c: server(c, "gateway")["volumeMounts"].clear(),
        lambda c: pod(c, "gateway")["volumes"].append({"name": "more", "emptyDir": {}}),
    ],
    policy.has_no_token_and_no_service_links: [
        lambda c: pod(c, "gateway").pop("automountServiceAccountToken"),
        lambda c: pod(c, "gateway").pop("enableServiceLinks"),
    ],
    policy.namespace_is_restricted: [relax, lambda c: remove(c, "Namespace", "loupe")],
    policy.has_requests_and_limits: [
        lambda c: resources(c, "gateway", "limits").pop("memory"),
        lambda c: resources(c, "gateway", "requests").pop("cpu"),
        lambda c: resources(c, "gateway", "requests").update(cpu="1500m"),
    ],
    policy.memory_suffices_for_the_largest_pictures: [
        lambda c: resources(c, "gateway", "limits").update(memory="1Gi"),
        lambda c: set_variable(c, "gateway", "LOUPE_DECODE_MEMORY", "2000000000"),
    ],
    policy.has_probes: [
        lambda c: server(c, "gateway").pop("startupProbe"),
        lambda c: server(c, "model").pop("livenessProbe"),
    ],
    policy.readiness_follows_the_model: [
        lambda c: server(c, "model").update(readinessProbe={"httpGet": {"path": "/v1/models/tires", "port": 8501}}),
        lambda c: server(c, "model").update(readinessProbe={"grpc": {"port": 8500}}),
        lambda c: server(c, "gateway")["readinessProbe"]["httpGet"].update(path="/healthz"),
    ],
    policy.images_are_pinned: [
        lambda c: server(c, "gateway").update(image="loupe-gateway:latest"),
        lambda c: server(c, "gateway").update(image="registry:5000/loupe-gateway"),
        lambda c: server(c, "model").update(image="loupe-model:0.0.1"),
    ],
    policy.settings_are_read: [
        lambda c: set_variable(c, "gateway", "LOUPE_DRIAN", "5"),
        lambda c: set_variable(c, "gateway", "GATEWAY_DRAIN", "5"),
        lambda c: set_flag(c, "grpc_max_thread", "64"),
    ],
    policy.threads_equal_the_limit: [
        lambda c: set_flag(c, "tensorflow_intra_op_parallelism", "4"),
        lambda c: set_flag(c, "tensorflow_inter_op_parallelism", ""),
        lambda c: resources(c, "model", "limits").update(cpu="2500m"),
        lambda c: set_variable(c, "model", "MODEL_THREADS", "8"),
    ],
    policy.has_time_to_stop: [
        lambda c: pod(c, "gateway").pop("terminationGracePeriodSeconds"),
        lambda c: set_variable(c, "gateway", "LOUPE_DRAIN", "15"),
        lambda c: set_variable(c, "gateway", "LOUPE_DRAIN", "1"),
        lambda c: server(c, "model").pop("lifecycle"),
        lambda c: pod(c, "model").update(terminationGracePeriodSeconds=40),
        lambda c: set_flag(c, "grpc_channel_arguments", ""),
    ],
    policy.rolls_without_a_gap: [
        lambda c: spec(c, "Deployment", "gateway")["strategy"]["rollingUpdate"].update(maxUnavailable=1),
    ],
    policy.is_spread: [
        lambda c: pod(c, "model")["topologySpreadConstraints"].pop(),
        lambda c: pod(c, "model")["topologySpreadConstraints"][0].update(labelSelector={"matchLabels": {"a": "b"}}),
    ],
    policy.is_scaled: [
        lambda c: remove(c, SCALER, "model"),
        lambda c: spec(c, SCALER, "model")["scaleTargetRef"].update(name="models"),
        lambda c: spec(c, "Deployment", "gateway").update(replicas=3),
        lambda c: spec(c, SCALER, "gateway").update(maxReplicas=2),
        lambda c: spec(c, SCALER, "model")["metrics"][0]["resource"]["target"].update(averageUtilization=130),
        lambda c: spec(c, SCALER, "gateway").update(metrics=[]),
    ],
    policy.may_be_drained: [
        lambda c: remove(c, BUDGET, "gateway"),
        lambda c: spec(c, BUDGET, "model").update(maxUnavailable=0),
        lambda c: spec(c, BUDGET, "model")["selector"].update(matchLabels={"app": "model"}),
    ],
    policy.gateways_ask_for_no_more_than_is_admitted: [
        lambda c: set_flag(c, "grpc_max_threads", "8"),
        lambda c: spec(c, SCALER, "gateway").update(maxReplicas=50),
    ],
    policy.references_lead_somewhere: [
        remove_script,
        lambda c: remove(c, "ServiceAccount", "model"),
        lambda c: c.all("ConfigMap")[0]["metadata"].pop("namespace"),
        lambda c: pod(c, "gateway")["volumes"].pop(),
        lambda c: pod(c, "gateway")["volumes"][0]["secret"].update(secretName="keys"),
    ],
    policy.selectors_match: [
        lambda c: spec(c, "Service", "gateway")["selector"].update({"app.kubernetes.io/name": "gate"}),
        lambda c: spec(c, "Deployment", "model")["selector"]["matchLabels"].update(tier="back"),
        lambda c: spec(c, NETWORK, "gateway")["podSelector"].update(matchLabels={"app": "gateway"}),
        lambda c: spec(c, "ServiceMonitor", "model")["selector"].update(matchLabels={"app": "model"}),
    ],
    policy.ports_match: [
        lambda c: spec(c, "Service", "gateway")["ports"][0].update(targetPort="web"),
        lambda c: spec(c, "Service", "model")["ports"][0].update(port=8600),
        lambda c: server(c, "gateway")["livenessProbe"]["httpGet"].update(port=8080),
        lambda c: set_variable(c, "gateway", "LOUPE_METRICS_PORT", "9700"),
        lambda c: set_variable(c, "gateway", "TF_SERVING_HOST", "model:8501"),
        lambda c: lead_ingress_to(c, "metrics"),
        lambda c: spec(c, "ServiceMonitor", "model")["endpoints"][0].update(port="metrics"),
    ],
    policy.calls_are_balanced: [lambda c: spec(c, "Service", "model").pop("clusterIP")],
    policy.nobody_reaches_anybody_by_default: [
        lambda c: remove(c, NETWORK, "default-deny"),
        lambda c: spec(c, NETWORK, "default-deny").update(policyTypes=["Ingress"]),
        lambda c: spec(c, NETWORK, "default-deny").update(egress=[{}]),
    ],
    policy.the_model_is_for_the_gateway: [
        lambda c: rule(c, "model", "ingress").pop("from"),
        lambda c: rule(c, "model", "ingress")["from"].append({"podSelector": {}}),
        lambda c: rule(c, "model", "ingress")["ports"].append({"port": 8501}),
        lambda c: rule(c, "monitoring-model", "ingress")["ports"].append({"port": 8500}),
        lambda c: remove(c, NETWORK, "model"),
    ],
    policy.metrics_stay_inside: [
        lambda c: rule(c, "gateway", "ingress")["ports"].append({"port": 9697}),
        lambda c: rule(c, "gateway", "ingress").pop("ports"),
    ],
    policy.the_gateway_reaches_the_public_alone: [
        lambda c: block(c, 0)["except"].remove("169.254.0.0/16"),
        lambda c: block(c, 0)["except"].append("8.8.8.0/24"),
        lambda c: block(c, 1).update(cidr="::/0"),
        lambda c: rule(c, "gateway", "egress", 2).pop("ports"),
        lambda c: spec(c, NETWORK, "gateway")["egress"].pop(1),
        lambda c: spec(c, NETWORK, "gateway")["egress"].append({"to": [{"namespaceSelector": {}}]}),
    ],
    policy.names_are_looked_up_wherever_the_cluster_has_its_servers: [
        lambda c: rule(c, "gateway", "egress", 1)["to"].pop(),
        lambda c: rule(c, "gateway", "egress", 1)["ports"].pop(),
        lambda c: rule(c, "model-egress", "egress")["to"].pop(0),
        lambda c: rule(c, "model-egress", "egress")["to"].pop(),
        lambda c: rule(c, "model-egress", "egress")["to"].append({"ipBlock": {"cidr": "169.254.0.0/16"}}),
        lambda c: spec(c, NETWORK, "gateway")["egress"].pop(1),
    ],
    policy.no_pod_takes_the_rights_of_its_node: [
        lambda c: rule(c, "model-egress", "egress")["ports"].append({"port": 80}),
        lambda c: rule(c, "model-egress", "egress", 1)["to"][0]["ipBlock"]["except"].remove("169.254.0.0/16"),
        lambda c: rule(c, "gateway", "egress", 1).pop("ports"),
        lambda c: spec(c, NETWORK, "model-egress")["egress"].append({"ports": [{"port": 80}]}),
    ],
}
CASES = [(broken, number) for broken, ways in BROKEN.items() for number in range(len(ways))]


@pytest.mark.parametrize(("broken", "number"), CASES, ids=[f"{broken.__name__}-{number}" for broken, number in CASES])
def test_a_rule_that_is_broken_is_noticed(broken: policy.Rule, number: int) -> None:
    cluster = render(*WHOLE).copy()
    BROKEN[broken][number](cluster)
    assert policy.breaches(cluster)[broken.__name__]


def test_what_is_broken_above_keeps_the_rules_before() -> None:
    assert policy.breaches(render(*WHOLE)) == {}


def test_each_rule_is_broken_above() -> None:
    assert set(BROKEN) == set(policy.RULES)
