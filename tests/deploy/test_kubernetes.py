"""Test deploy/kubernetes: every combination renders, fits Kubernetes' schemas, and keeps the rules of
tests/support/kubernetes_policy.py.

    python -m pytest tests/deploy/test_kubernetes.py --cluster kind-kind

asks that cluster as well, in a namespace of its own, which is removed in the end.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.kubernetes import (
    FOLDER,
    OVERLAYS,
    Cluster,
    built,
    combinations,
    customized,
    invalid,
    kubectl,
    render,
)
from tests.support.kubernetes_policy import OF_ANY_POD, amount, breaches, server
from tests.support.servers import ROOT

VERSIONS = ("1.31", kubernetes_validate.latest_version())
COMBINATIONS = list(combinations())
GUIDE = (ROOT / "docs" / "deploy.md").read_text()
EKS_CONFIG = yaml.safe_load((FOLDER / "eks-config.yaml").read_text())

Room = tuple[Decimal, Decimal]  # processors and bytes of memory
# What EKS leaves to pods. Processors: of four it keeps 60 + 10 + 5 + 5 millicores. Memory: of 16 GiB it keeps 255 MiB,
# 11 MiB for each of 58 pods, and 100 MiB at which it evicts; the machine itself takes some 600. Rounded down.
ALLOCATABLE: dict[str, Room] = {"m7i.xlarge": (Decimal("3.92"), amount("14Gi"))}
# Requested on each node: the network plugin's two containers 25m each, kube-proxy 100m, the identity agent nothing.
ON_EACH_NODE: Room = (Decimal("0.15"), amount("256Mi"))
# Two each of CoreDNS (100m, 70Mi), metrics-server (100m, 200Mi), and the load balancer's controller (no request).
OF_THE_CLUSTER: tuple[Room, ...] = ((Decimal("0.1"), amount("200Mi")),) * 6


@pytest.mark.parametrize(
    ("overlay", "components"),
    COMBINATIONS,
    ids=["+".join((overlay, *components)) for overlay, components in COMBINATIONS],
)
def test_every_combination_fits_the_schemas_and_keeps_the_rules(overlay: str, components: tuple[str, ...]) -> None:
    cluster = render(overlay, *components)
    assert [invalid(cluster, version) for version in VERSIONS] == [[], []]
    assert breaches(cluster) == {}


def test_overlays_can_be_applied_as_they_are() -> None:
    for overlay in OVERLAYS:
        folder = FOLDER / "base" if overlay == "base" else FOLDER / "overlays" / overlay
        assert built(folder) == render(overlay)


def test_the_pod_that_uploads_models_keeps_the_rules_for_any_pod() -> None:
    pod = yaml.safe_load((FOLDER / "components" / "models-volume" / "upload.yaml").read_text())
    alone = Cluster([pod])
    assert [invalid(alone, version) for version in VERSIONS] == [[], []]
    assert [line for rule in OF_ANY_POD for line in rule(alone)] == []
    (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == "models"]
    assert render("base", "models-volume").one("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])


def test_a_misspelt_field_does_not_fit_the_schemas() -> None:
    cluster = render("base").copy()
    server(cluster, "gateway")["readinessProb"] = {}
    assert ["readinessProb" in line for line in invalid(cluster, "1.31")] == [True]


# ---------------------------------------------------------------------------------------------- what an overlay changes


def test_another_model_is_two_lines_and_rolls_both_deployments() -> None:
    generator = {"name": "loupe", "behavior": "merge", "literals": ["MODEL_NAME=cars"]}
    cluster = customized("kind", configMapGenerator=[generator])
    assert breaches(cluster) == {}
    for name in ("gateway", "model"):
        named = [_reference(each, name) for each in (cluster, render("kind"))]
        assert named[0] != named[1]  # the name ends in a checksum, so another content is another pod
        assert cluster.one("ConfigMap", named[0])["data"] == {"MODEL_NAME": "cars"}


def _reference(cluster: Cluster, name: str) -> str:
    entry = next(each for each in server(cluster, name)["env"] if each["name"] == "MODEL_NAME")
    return str(entry["valueFrom"]["configMapKeyRef"]["name"])


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("models-bucket", "MODELS", "bucket:mine/models"),
        ("models-gs", "MODEL_BASE_PATH", "gs://mine/models"),
    ],
)
def test_another_bucket_is_a_patch(component: str, key: str, value: str) -> None:
    patch = json.dumps([{"op": "replace", "path": f"/data/{key}", "value": value}])
    patches = [{"target": {"kind": "ConfigMap", "name": component}, "patch": patch}]
    cluster = customized("eks", component, patches=patches)
    assert breaches(cluster) == {}
    assert value in json.dumps(cluster.all("ConfigMap"))
    assert invalid(cluster, "1.31") == []


def test_another_namespace_holds_everything() -> None:
    cluster = render("kind", "models-bucket", "monitoring", "feedback", namespace="pictures")
    assert breaches(cluster) == {}
    assert {each["metadata"].get("namespace", "pictures") for each in cluster.objects} == {"pictures"}


# ------------------------------------------------------------------------------------------ files that belong together


def test_the_alerts_are_those_of_the_monitoring_folder() -> None:
    here = render("base", "monitoring").one("PrometheusRule", "loupe")["spec"]
    there = yaml.safe_load((ROOT / "deploy" / "monitoring" / "rules.yaml").read_text())
    assert here == there, "put rules.yaml below `spec:` of components/monitoring/rules.yaml: sed 's/^./  &/'"


def test_every_rolling_update_finds_room_on_the_eks_cluster_and_a_node_can_be_drained() -> None:
    cluster, nodes = render("eks", "models-bucket"), EKS_CONFIG["managedNodeGroups"][0]["minSize"]
    assert room_for(cluster, nodes, surge=True)
    assert room_for(cluster, nodes - 1, surge=False)


def test_model_servers_that_each_take_a_node_of_their_own_find_no_room_for_a_third() -> None:
    cluster = render("eks").copy()
    server(cluster, "model")["resources"]["requests"]["cpu"] = "2"
    assert room_for(cluster, 2, surge=False)
    assert not room_for(cluster, 2, surge=True)


def test_memory_counts_as_well() -> None:
    cluster = render("eks").copy()
    server(cluster, "model")["resources"]["requests"]["memory"] = "8Gi"
    assert not room_for(cluster, 2, surge=True)


def room_for(cluster: Cluster, nodes: int, *, surge: bool) -> bool:
    """Whether so many nodes hold the least of each server, and with `surge` those that come before old ones go."""
    (group,) = EKS_CONFIG["managedNodeGroups"]
    free = _minus(ALLOCATABLE[group["instanceType"]], ON_EACH_NODE)
    wanted = list(OF_THE_CLUSTER)
    for name in ("gateway", "model"):
        count = cluster.one("HorizontalPodAutoscaler", name)["spec"]["minReplicas"]
        deployment = cluster.one("Deployment", name)["spec"]
        count += deployment["strategy"]["rollingUpdate"]["maxSurge"] if surge else 0
        wanted += [_requested(deployment["template"]["spec"])] * count
    return always_fit((free,) * nodes, tuple(sorted(wanted)))


@functools.cache
def always_fit(nodes: tuple[Room, ...], pods: tuple[Room, ...]) -> bool:
    """Whether each pod finds a node, in whatever order they come, and wherever those before it were put."""
    for pod in set(pods):
        rest = list(pods)
        rest.remove(pod)
        places = [place for place, free in enumerate(nodes) if min(_minus(free, pod)) >= 0]
        for place in places:
            left = (*nodes[:place], _minus(nodes[place], pod), *nodes[place + 1 :])
            if not always_fit(tuple(sorted(left)), tuple(rest)):
                return False
        if not places:
            return False
    return True


def _minus(room: Room, taken: Room) -> Room:
    return room[0] - taken[0], room[1] - taken[1]


def _requested(pod: dict[str, Any]) -> Room:
    sidecars = [each for each in pod.get("initContainers", []) if each.get("restartPolicy") == "Always"]
    requests = [each["resources"]["requests"] for each in (*pod["containers"], *sidecars)]
    cpu, memory = (sum((amount(each[what]) for each in requests), Decimal(0)) for what in ("cpu", "memory"))
    return cpu, memory


def test_network_policies_are_enforced_on_the_eks_cluster() -> None:
    (plugin,) = [each for each in EKS_CONFIG["addons"] if each["name"] == "vpc-cni"]
    assert json.loads(plugin["configurationValues"]) == {"enableNetworkPolicy": "true"}
    assert float(EKS_CONFIG["metadata"]["version"]) >= 1.31


def test_the_commands_in_the_eks_config_are_those_of_the_guide() -> None:
    commands = re.findall(r"^#   ((?:eksctl|kubectl) .*)$", (FOLDER / "eks-config.yaml").read_text(), re.MULTILINE)
    assert len(commands) == 3
    assert [each for each in commands if not re.search(rf"^{re.escape(each)}( +#.*)?$", GUIDE, re.MULTILINE)] == []


def test_the_host_name_on_eks_is_the_one_in_the_overlay() -> None:
    file = FOLDER / "overlays" / "eks" / "ingress.yaml"
    cluster = customized("eks", patches=[{"patch": file.read_text().replace("loupe.example.org", "mine.example.org")}])
    assert "host: loupe.example.org" in file.read_text()
    assert [each["host"] for each in cluster.one("Ingress", "gateway")["spec"]["rules"]] == ["mine.example.org"]
    assert breaches(cluster) == {}


def test_what_the_eks_config_has_as_comments_fits_as_well() -> None:
    (group,) = yaml.safe_load(_commented_out("With components/gpu."))
    (taint,) = group["taints"]
    (toleration,) = render("gpu").one("Deployment", "model")["spec"]["template"]["spec"]["tolerations"]
    assert (toleration["key"], toleration["effect"]) == (taint["key"], taint["effect"])
    (identity,) = yaml.safe_load(_commented_out("With components/models-bucket:"))["podIdentityAssociations"]
    assert render("eks", "models-bucket").one("ServiceAccount", identity["serviceAccountName"])
    assert identity["namespace"] == "loupe"


def _commented_out(heading: str) -> str:
    """Return the lines below a heading in eks-config.yaml as they are once their # is taken away."""
    _, _, below = (FOLDER / "eks-config.yaml").read_text().partition(f"  # {heading}")
    commented = itertools.takewhile(lambda line: line.startswith("  # "), below.splitlines()[1:])
    return "\n".join(line.removeprefix("  # ") for line in commented)


# ----------------------------------------------------------------------------------------------------------- the guide


def test_the_overlay_in_the_guide_keeps_the_rules() -> None:
    overlay, patches = _overlay_and_patches()
    components = [each.rpartition("/")[2] for each in overlay["components"]]
    more = {key: overlay[key] for key in ("configMapGenerator", "images")}
    cluster = customized("base", *components, **more, patches=patches)
    assert breaches(cluster) == {}
    assert [invalid(cluster, version) for version in VERSIONS] == [[], []]
    assert {"MODEL_NAME": "cars"} in [each.get("data") for each in cluster.all("ConfigMap")]
    assert {each["imagePullSecrets"][0]["name"] for each in cluster.all("ServiceAccount")} == {"ghcr"}


def test_every_model_in_the_guide_has_the_memory_that_it_took_there() -> None:
    """On TensorFlow Serving all but Xception in float32, which has it with the guide's patch; all on our server."""
    _, patches = _overlay_and_patches()
    base, patched = _memory(render("base")), _memory(customized("base", patches=patches))
    taken = _taken()
    assert len(taken) == 9  # int8 only on our server
    assert {key for key, most in taken.items() if key[1] == "tensorflow" and most > base} == {
        ("Xception, 299 px, float32", "tensorflow")
    }
    assert all(most < patched for most in taken.values())
    embedded = _memory(render("embedded"))
    assert all(2 * most < embedded for (_, engine), most in taken.items() if engine == "openvino")  # two versions


def _overlay_and_patches() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The overlay in the guide, and all the patches that may be added to it."""
    overlay, *others = [yaml.safe_load(each) for each in re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.M | re.S)]
    return overlay, [patch for other in others for patch in other["patches"]]


def _memory(cluster: Cluster) -> Decimal:
    return amount(server(cluster, "model")["resources"]["limits"]["memory"])


def _taken() -> dict[tuple[str, str], int]:
    """The bytes that each model's server took with each engine, from the guide's table."""
    found, model = {}, ""
    for line in re.findall(r"^\|.*\| (?:openvino|tensorflow) \|.*\|$", GUIDE, re.MULTILINE):
        name, engine, _, _, memory = (cell.strip() for cell in line.strip("|").split("|"))
        model = name or model
        found[model, engine] = int(memory.partition(", ")[2].replace(",", "")) * 10**6
    return found


# ------------------------------------------------------------------------------------------------------- a real cluster


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[tuple[list[str], str]]:
    """kubectl for the cluster that was named, and a namespace of the base's kind there."""
    context = request.config.getoption("--cluster")
    if not context:
        pytest.skip("no cluster: name one of your kubeconfig's contexts with --cluster")
    command, name = [kubectl(), "--context", context], f"loupe-test-{uuid.uuid4().hex[:8]}"
    made = render("base", namespace=name).all("Namespace")[0]
    subprocess.run([*command, "apply", "-f", "-"], input=json.dumps(made), text=True, check=True, timeout=60)
    account = ["wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=60s"]
    subprocess.run([*command, *account], check=True, timeout=90)
    yield command, name
    subprocess.run([*command, "delete", "namespace", name, "--wait=false"], check=True, timeout=60)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_cluster_takes_every_overlay_and_admits_its_pods(namespace: tuple[list[str], str], overlay: str) -> None:
    """Nothing is kept (--dry-run=server), but all is validated and admitted as if it were, Pod Security among it."""
    command, name = namespace
    cluster = render(overlay, "models-bucket", "api-keys", "feedback", namespace=name)
    objects = [each for each in cluster.objects if each["kind"] != "Namespace"]
    for deployment in cluster.all("Deployment"):
        template = deployment["spec"]["template"]
        metadata = {**template["metadata"], "name": f"one-{deployment['metadata']['name']}", "namespace": name}
        # A Deployment is only warned about; its pods are refused. No account of theirs was really made.
        admitted = {**template["spec"], "serviceAccountName": "default"}
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": admitted})
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    done = subprocess.run(
        [*command, "apply", "--dry-run=server", "-f", "-"], input=text, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
