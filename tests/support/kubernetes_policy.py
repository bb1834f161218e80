"""What every rendering of deploy/kubernetes must keep to, a function for each rule.

    breaches(cluster)      # {"has_requests_and_limits": ["gateway: no limit of memory"], …}; {} if all is well

Schemas know fields and types; these rules know what belongs together, and what Kubernetes' Pod Security Standard
`restricted` asks. Each rule yields a line for each thing that breaks it. tests/deploy/test_kubernetes.py breaks each.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import loupe
from loupe.errors import UserError
from loupe.gateway.request.addresses import is_public
from loupe.gateway.request.fetch import TOTAL_FACTOR
from loupe.gateway.settings import SETTINGS, Settings
from loupe.modelserver import flags
from loupe.modelserver.server import STOP_DELAY
from tests.support.kubernetes import Cluster, Object

USER = 10001
OWN_BYTES = 100_000_000  # of a worker that has nothing in hand
MARGIN = 5  # seconds between the last thing that a pod does and its kill
SECRETS = {"loupe-keys"}  # made by hand
UNITS = {"m": Decimal("0.001"), "": Decimal(1), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30)}
JITTER = 1.1  # gRPC ends a connection up to a tenth later than max_connection_age says
# Of each kind that a caller could name in a URL. The node's metadata servers hand out rights.
PRIVATE = (
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.169.254",
    "169.254.170.23", "168.63.129.16", "0.0.0.0", "224.0.0.1", "255.255.255.255", "fd00::1", "fe80::1", "::1",
    "64:ff9b::a00:1", "2002:a00:1::", "fd00:ec2::254",
)  # fmt: skip
METADATA = "169.254.169.254"  # of EC2, and of GKE with Dataplane V2
NAME_SERVERS = {"169.254.20.10/32", "169.254.169.254/32"}  # the cache on the node, and GKE's Cloud DNS

Rule = Callable[[Cluster], Iterator[str]]


def breaches(cluster: Cluster) -> dict[str, list[str]]:
    """Return what breaks each rule, and only the rules that are broken."""
    found = {rule.__name__: list(_lines(rule, cluster)) for rule in RULES}
    return {name: lines for name, lines in found.items() if lines}


def _lines(rule: Rule, cluster: Cluster) -> Iterator[str]:
    try:
        yield from rule(cluster)
    except (LookupError, UserError) as error:  # what the rule is about is missing, or its programs would not start
        yield str(error)


# What pods are made of.


def pods(cluster: Cluster) -> Iterator[tuple[str, Object]]:
    for deployment in cluster.all("Deployment"):
        yield deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]
    for alone in cluster.all("Pod"):
        yield alone["metadata"]["name"], alone["spec"]


def containers(cluster: Cluster) -> Iterator[tuple[str, Object]]:
    for name, pod in pods(cluster):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{name}/{container['name']}", container


def server(cluster: Cluster, name: str) -> Object:
    """Return the container that a Deployment is named after."""
    pod = cluster.one("Deployment", name)["spec"]["template"]["spec"]
    found: Object = next(each for each in pod["containers"] if each["name"] == name)
    return found


def amount(text: Any) -> Decimal:
    """`250m`, `2`, `1Gi` → a number."""
    digits, unit = re.fullmatch(r"([\d.]+)([a-zA-Z]*)", str(text)).groups()  # type: ignore[union-attr]
    return Decimal(digits) * UNITS[unit]


def environment(cluster: Cluster, container: Object) -> dict[str, str]:
    """Return the environment that kubelet would give: what refers to a ConfigMap or a limit is looked up."""
    values: dict[str, str] = {}
    for entry in container.get("env", []):
        source = entry.get("valueFrom", {})
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            values[entry["name"]] = cluster.one("ConfigMap", reference["name"])["data"][reference["key"]]
        elif "resourceFieldRef" in source:
            part, _, resource = source["resourceFieldRef"]["resource"].partition(".")
            given = amount(container["resources"][part][resource])
            values[entry["name"]] = str(-int(-given // 1))  # rounded up, as kubelet does
        else:
            values[entry["name"]] = entry["value"]
    return values


def model_flags(cluster: Cluster) -> flags.Flags:
    """Return the model server's flags as our own server reads them, which takes TensorFlow Serving's."""
    container = server(cluster, "model")
    known = environment(cluster, container)
    arguments = [re.sub(r"\$\((\w+)\)", lambda found: known[found[1]], each) for each in container["args"]]
    return flags.parse(arguments, known)


def gateway_settings(cluster: Cluster) -> Settings:
    return Settings.from_environment(environment(cluster, server(cluster, "gateway")))


def selects(selector: Object, labels: Object) -> bool:
    return (selector.get("matchLabels") or {}).items() <= labels.items()


def labels_of(deployment: Object) -> Object:
    found: Object = deployment["spec"]["template"]["metadata"]["labels"]
    return found


# Pod Security `restricted`, and what goes beyond it.


def runs_as_nobody(cluster: Cluster) -> Iterator[str]:
    for name, pod in pods(cluster):
        context = pod.get("securityContext", {})
        if not context.get("runAsNonRoot") or context.get("runAsUser") != USER:
            yield f"{name}: not as user {USER}"
    for name, container in containers(cluster):
        if {"runAsUser", "runAsNonRoot"} & container.get("securityContext", {}).keys():
            yield f"{name}: another user than its pod"


def gains_no_rights(cluster: Cluster) -> Iterator[str]:
    for name, pod in pods(cluster):
        if pod.get("securityContext", {}).get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: no seccomp profile"
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name}: a namespace of the node"
        for volume in pod.get("volumes", []):
            if not volume.keys() & {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}:
                yield f"{name}: volume {volume['name']}"
    for name, container in containers(cluster):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{name}: may gain rights"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: has capabilities"


def writes_to_tmp_alone(cluster: Cluster) -> Iterator[str]:
    for name, container in containers(cluster):
        if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            yield f"{name}: its root can be written to"
        if "/tmp" not in {mount["mountPath"] for mount in container.get("volumeMounts", [])}:
            yield f"{name}: has no /tmp"
    for name, pod in pods(cluster):
        for volume in pod.get("volumes", []):
            if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
                yield f"{name}: volume {volume['name']} may fill the node"


def has_no_token_and_no_service_links(cluster: Cluster) -> Iterator[str]:
    for name, pod in pods(cluster):
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name}: holds a token of the cluster"
        if pod.get("enableServiceLinks") is not False:
            yield f"{name}: service links"


def namespace_is_restricted(cluster: Cluster) -> Iterator[str]:
    for namespace in cluster.all("Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield namespace["metadata"]["name"]
    if len(cluster.all("Namespace")) != 1:
        yield "not one namespace"


# What a pod needs and says.


def has_requests_and_limits(cluster: Cluster) -> Iterator[str]:
    for name, container in containers(cluster):
        resources = container.get("resources", {})
        for what in ("cpu", "memory"):
            pair = [resources.get(part, {}).get(what) for part in ("requests", "limits")]
            if None in pair:
                yield f"{name}: no request or no limit of {what}"
            elif amount(pair[0]) > amount(pair[1]):
                yield f"{name}: requests more {what} than its limit"


def memory_suffices_for_the_largest_pictures(cluster: Cluster) -> Iterator[str]:
    """All that callers can make the gateway hold: bodies, pictures that are decoded, and those that are fetched."""
    settings = gateway_settings(cluster)
    fetched = settings.fetches * TOTAL_FACTOR * settings.max_bytes
    most = settings.workers * (OWN_BYTES + settings.body_memory + settings.decode_memory + fetched)
    given = amount(server(cluster, "gateway")["resources"].get("limits", {}).get("memory", 0))
    if given < most:
        yield f"{int(given) >> 20} MiB of {most >> 20}"


def has_probes(cluster: Cluster) -> Iterator[str]:
    for name, pod in pods(cluster):
        for container in pod["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe not in container:
                    yield f"{name}/{container['name']}: no {probe}"


def readiness_follows_the_model(cluster: Cluster) -> Iterator[str]:
    """TensorFlow Serving's status has 200 whatever the state is, so that has to be read; its health service follows
    nothing. That of our own server follows the model."""
    for probe in ("startupProbe", "readinessProbe"):
        container = server(cluster, "model")
        asked = container.get(probe, {})
        if "grpc" in asked:
            if not model_flags(cluster).enable_grpc_healthcheck_service or "loupe-embedded" not in container["image"]:
                yield f"{probe}: the health service does not follow the model"
        elif "AVAILABLE" not in str(asked.get("exec")):
            yield f"{probe}: does not read the model's state"
    if server(cluster, "gateway").get("readinessProbe", {}).get("httpGet", {}).get("path") != "/readyz":
        yield "gateway: is not asked at /readyz"


def images_are_pinned(cluster: Cluster) -> Iterator[str]:
    for name, container in containers(cluster):
        repository, _, tag = container["image"].rpartition(":")
        if not repository or not re.match(r"\d+\.\d+\.\d+", tag):
            yield f"{name}: {container['image']}"
        elif "loupe-" in repository and tag.removesuffix("-gpu") != loupe.__version__:
            yield f"{name}: {container['image']}, but this is version {loupe.__version__}"


def settings_are_read(cluster: Cluster) -> Iterator[str]:
    """As the gateway and the model server would read them at their start."""
    try:
        gateway_settings(cluster)
        model_flags(cluster)
    except UserError as error:
        yield str(error)
    for name in environment(cluster, server(cluster, "gateway")):
        if name not in SETTINGS:
            yield f"{name} is no setting of the gateway"


def threads_equal_the_limit(cluster: Cluster) -> Iterator[str]:
    container = server(cluster, "model")
    limit = amount(container["resources"].get("limits", {}).get("cpu", 0))
    read = model_flags(cluster)
    if read.tensorflow_intra_op_parallelism != limit:
        yield f"{read.tensorflow_intra_op_parallelism} threads and a limit of {limit} processors"
    if read.tensorflow_inter_op_parallelism not in (limit, 0) or (
        not read.tensorflow_inter_op_parallelism and "loupe-embedded" not in container["image"]
    ):
        yield f"{read.tensorflow_inter_op_parallelism} calls at a time and a limit of {limit} processors"


# How pods come and go.


def has_time_to_stop(cluster: Cluster) -> Iterator[str]:
    # The gateway answers what it has; its readiness fails while it still listens.
    settings = gateway_settings(cluster)
    pod = cluster.one("Deployment", "gateway")["spec"]["template"]["spec"]
    if pod.get("terminationGracePeriodSeconds", 30) < settings.grace + MARGIN:
        yield f"gateway: less than {settings.grace + MARGIN} s"
    probe = server(cluster, "gateway").get("readinessProbe", {})
    if settings.stop_delay < probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3):
        yield "gateway: stops listening before its readiness has failed"
    # The model server stays until every connection has ended once and DNS no longer names it.
    pod = cluster.one("Deployment", "model")["spec"]["template"]["spec"]
    asleep = server(cluster, "model").get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    age = dict(model_flags(cluster).channel_arguments).get("grpc.max_connection_age_ms", 0)
    if not age:
        yield "model: connections never end, so a new pod is never called"
    elif asleep < int(age) / 1000 * JITTER + settings.model_timeout:
        yield f"model: ends after {asleep} s, with connections open"
    if pod.get("terminationGracePeriodSeconds", 30) < asleep + STOP_DELAY + MARGIN:
        yield f"model: less than {asleep + STOP_DELAY + MARGIN} s"


def rolls_without_a_gap(cluster: Cluster) -> Iterator[str]:
    for deployment in cluster.all("Deployment"):
        rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate", {})
        needs_gpu = "nvidia.com/gpu" in str(deployment)
        if rolling.get("maxUnavailable") != 0 and not needs_gpu:
            yield deployment["metadata"]["name"]


def is_spread(cluster: Cluster) -> Iterator[str]:
    for deployment in cluster.all("Deployment"):
        name = deployment["metadata"]["name"]
        constraints = deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        if {each["topologyKey"] for each in constraints} != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
            yield f"{name}: not over nodes and zones"
        for constraint in constraints:
            if constraint["labelSelector"]["matchLabels"] != deployment["spec"]["selector"]["matchLabels"]:
                yield f"{name}: counts other pods than its own"


def is_scaled(cluster: Cluster) -> Iterator[str]:
    for deployment in cluster.all("Deployment"):
        name = deployment["metadata"]["name"]
        scalers = [
            each["spec"]
            for each in cluster.all("HorizontalPodAutoscaler")
            if (each["spec"]["scaleTargetRef"]["kind"], each["spec"]["scaleTargetRef"]["name"]) == ("Deployment", name)
        ]
        if len(scalers) != 1:
            yield f"{name}: {len(scalers)} autoscalers"
            continue
        if "replicas" in deployment["spec"]:
            yield f"{name}: `replicas` undo what its autoscaler does"
        if not 1 <= scalers[0]["minReplicas"] < scalers[0]["maxReplicas"]:
            yield f"{name}: cannot scale"
        # The percentage is of the request: above the limit it would never be reached.
        shares = [each["resource"]["target"] for each in scalers[0]["metrics"] if each["type"] == "Resource"]
        request, limit = (amount(server(cluster, name)["resources"][part]["cpu"]) for part in ("requests", "limits"))
        if not shares or request * shares[0]["averageUtilization"] / 100 > limit * Decimal("0.8"):
            yield f"{name}: is full before it scales"


def may_be_drained(cluster: Cluster) -> Iterator[str]:
    for deployment in cluster.all("Deployment"):
        name = deployment["metadata"]["name"]
        budgets = [
            each["spec"]
            for each in cluster.all("PodDisruptionBudget")
            if selects(each["spec"]["selector"], labels_of(deployment))
        ]
        if len(budgets) != 1:
            yield f"{name}: {len(budgets)} disruption budgets"
        elif budgets[0].get("maxUnavailable") != 1:
            yield f"{name}: not one pod at a time"


def gateways_ask_for_no_more_than_is_admitted(cluster: Cluster) -> Iterator[str]:
    settings = gateway_settings(cluster)
    gateways = cluster.one("HorizontalPodAutoscaler", "gateway")["spec"]["maxReplicas"]
    models = cluster.one("HorizontalPodAutoscaler", "model")["spec"]["minReplicas"]
    asked = gateways * settings.workers * (settings.threads + settings.fetches)
    admitted = models * model_flags(cluster).threads
    if asked > admitted:
        yield f"{asked} calls at a time, of which {admitted} are admitted"


# What refers to what.


def references_lead_somewhere(cluster: Cluster) -> Iterator[str]:
    here = {(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in cluster.objects}
    for deployment in cluster.all("Deployment"):
        name, namespace = deployment["metadata"]["name"], deployment["metadata"].get("namespace")
        pod = deployment["spec"]["template"]["spec"]
        for kind, wanted in _referenced(pod):
            if (kind, namespace, wanted) not in here and not (kind == "Secret" and wanted in SECRETS):
                yield f"{name}: no {kind} {wanted} in {namespace}"
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{name}: no volume {mount['name']}"
    if len({place for kind, place, _ in here if kind != "Namespace"}) != 1:
        yield "objects are in several namespaces"


def _referenced(pod: Object) -> Iterator[tuple[str, str]]:
    yield "ServiceAccount", pod.get("serviceAccountName", "default")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for entry in container.get("env", []):
            if reference := entry.get("valueFrom", {}).get("configMapKeyRef"):
                yield "ConfigMap", reference["name"]
        for entry in container.get("envFrom", []):
            yield "ConfigMap", entry["configMapRef"]["name"]
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def selectors_match(cluster: Cluster) -> Iterator[str]:
    for deployment in cluster.all("Deployment"):
        if not selects(deployment["spec"]["selector"], labels_of(deployment)):
            yield f"Deployment {deployment['metadata']['name']} does not select its own pods"
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for each in cluster.all(kind):
            spec = each["spec"]
            selector = (
                {"matchLabels": spec["selector"]}
                if kind == "Service"
                else spec.get("selector", spec.get("podSelector"))
            )
            found = [one for one in cluster.all("Deployment") if selects(selector, labels_of(one))]
            if len(found) != 1 and selector:
                yield f"{kind} {each['metadata']['name']} selects {len(found)} Deployments"
    for monitor in cluster.all("ServiceMonitor"):
        if len(list(_watched(cluster, monitor))) != 1:
            yield f"ServiceMonitor {monitor['metadata']['name']} does not select one Service"


def _watched(cluster: Cluster, monitor: Object) -> Iterator[Object]:
    for service in cluster.all("Service"):
        if selects(monitor["spec"]["selector"], service["metadata"].get("labels", {})):
            yield service


def ports_match(cluster: Cluster) -> Iterator[str]:
    # Services and probes name ports of the containers.
    open_ports = {
        name: {port["name"]: port["containerPort"] for port in server(cluster, name)["ports"]} for name in SERVERS
    }
    for service in cluster.all("Service"):
        name = service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            if open_ports[name].get(port["targetPort"]) != port["port"]:
                yield f"Service {name}: port {port['port']} leads to {port['targetPort']}"
    for name in SERVERS:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = server(cluster, name).get(probe, {})
            port = (asked.get("httpGet") or asked.get("grpc") or {}).get("port")
            if port and port not in {*open_ports[name], *open_ports[name].values()}:
                yield f"{name}: {probe} asks at port {port}"
    # What the programs listen on is what the containers name.
    settings, read = gateway_settings(cluster), model_flags(cluster)
    if open_ports["gateway"] != {"http": settings.port, "metrics": settings.metrics_port}:
        yield "gateway: listens on other ports"
    if open_ports["model"] != {"grpc": read.port, "rest": read.rest_api_port}:
        yield "model: listens on other ports"
    # The gateway asks at the model's Service; Ingresses and monitors find theirs.
    target = cluster.one("Service", "model")
    if settings.target != f"model:{target['spec']['ports'][0]['port']}":
        yield f"gateway: asks at {settings.target}"
    yield from _outer_ports(cluster)


def _outer_ports(cluster: Cluster) -> Iterator[str]:
    for ingress in cluster.all("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                if (backend["name"], backend["port"].get("name")) != ("gateway", "http"):
                    yield f"Ingress leads to {backend}"
    for monitor in cluster.all("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            for service in _watched(cluster, monitor):
                if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                    yield f"ServiceMonitor {monitor['metadata']['name']}: no port {endpoint['port']}"


def calls_are_balanced(cluster: Cluster) -> Iterator[str]:
    if cluster.one("Service", "model")["spec"].get("clusterIP") != "None":
        yield "the model's Service gives one address, to which each gateway would hold one connection"


# Who reaches whom.


def nobody_reaches_anybody_by_default(cluster: Cluster) -> Iterator[str]:
    for policy in cluster.all("NetworkPolicy"):
        spec = policy["spec"]
        if spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
            return
    yield "no policy denies what no other allows"


def the_model_is_for_the_gateway(cluster: Cluster) -> Iterator[str]:
    read = model_flags(cluster)
    gateway = labels_of(cluster.one("Deployment", "gateway"))
    reached = False
    for name, rule in _rules(cluster, "model", "ingress"):
        ports = {port["port"] for port in rule.get("ports", [])}
        for peer in rule.get("from", [{}]):
            near = "podSelector" in peer and "namespaceSelector" not in peer
            from_gateway = near and peer["podSelector"].get("matchLabels") and selects(peer["podSelector"], gateway)
            from_monitoring = "monitoring" in str(peer.get("namespaceSelector", ""))
            if not (from_gateway and ports == {read.port} or from_monitoring and ports == {read.rest_api_port}):
                yield f"{name}: {peer} reaches {sorted(ports)}"
            reached = reached or bool(from_gateway)
    if not reached:
        yield "the gateway does not reach it"


def metrics_stay_inside(cluster: Cluster) -> Iterator[str]:
    metrics = gateway_settings(cluster).metrics_port
    for name, rule in _rules(cluster, "gateway", "ingress"):
        open_to_all = "monitoring" not in str(rule.get("from", ""))
        if open_to_all and (not rule.get("ports") or metrics in {port["port"] for port in rule["ports"]}):
            yield f"{name}: opens {metrics}"


def the_gateway_reaches_the_public_alone(cluster: Cluster) -> Iterator[str]:
    model = labels_of(cluster.one("Deployment", "model"))
    asked = set()
    for name, rule in _rules(cluster, "gateway", "egress"):
        ports = {port["port"] for port in rule.get("ports", [])}
        if not ports or not rule.get("to"):
            yield f"{name}: everywhere, or on every port"
        for peer in rule.get("to", []):
            block = peer.get("ipBlock")
            if block and ports != {53}:
                asked.add("public")
                yield from (f"{name}: reaches {each}" for each in _open_private(block))
                yield from (f"{name}: does not reach {each}, which is public" for each in _shut_public(block))
            elif "namespaceSelector" not in peer and "podSelector" in peer:
                asked |= {"model"} & ({"model"} if selects(peer["podSelector"], model) else set())
                if ports != {model_flags(cluster).port}:
                    yield f"{name}: reaches the model's ports {sorted(ports)}"
            elif ports == {53}:
                asked.add("dns")
            else:
                yield f"{name}: reaches {peer}"
    if missing := {"public", "model", "dns"} - asked:
        yield f"the gateway does not reach: {', '.join(sorted(missing))}"


def names_are_looked_up_wherever_the_cluster_has_its_servers(cluster: Cluster) -> Iterator[str]:
    """Whoever may reach anything by a name may ask all of them: in pods, on the node, at GKE's address."""
    asked = set()
    for target in SERVERS:
        for name, rule in _rules(cluster, target, "egress"):
            if {port["port"] for port in rule.get("ports", [])} != {53}:
                continue
            asked.add(target)
            if {port.get("protocol", "TCP") for port in rule["ports"]} != {"UDP", "TCP"}:
                yield f"{name}: not by both UDP and TCP"
            if {each["ipBlock"]["cidr"] for each in rule["to"] if "ipBlock" in each} != NAME_SERVERS:
                yield f"{name}: not exactly at {', '.join(sorted(NAME_SERVERS))}"
            if not any(each.get("podSelector") == {"matchLabels": {"k8s-app": "kube-dns"}} for each in rule["to"]):
                yield f"{name}: not in the cluster's own pods"
    if "gateway" not in asked:
        yield "the gateway looks up no names"


def no_pod_takes_the_rights_of_its_node(cluster: Cluster) -> Iterator[str]:
    """EC2 hands them out at the address where GKE with Dataplane V2 has the pod's own: models-gs alone goes there."""
    for policy in cluster.all("NetworkPolicy"):
        if policy["metadata"]["name"] == "models-gs":
            continue
        for rule in policy["spec"].get("egress", []):
            ports = {port.get("port") for port in rule.get("ports", [{}])}
            anywhere = not rule.get("to") and ports != {53}
            reached = [each["ipBlock"] for each in rule.get("to", []) if "ipBlock" in each]
            if anywhere or (ports & {None, 80, 443, 8080} and any(METADATA in _open_private(each) for each in reached)):
                yield f"{policy['metadata']['name']}: reaches {METADATA}"


def _rules(cluster: Cluster, target: str, direction: str) -> Iterator[tuple[str, Object]]:
    """Every rule of this direction of the policies that select the target's pods."""
    labels = labels_of(cluster.one("Deployment", target))
    for policy in cluster.all("NetworkPolicy"):
        if selects(policy["spec"]["podSelector"], labels):
            for rule in policy["spec"].get(direction, []):
                yield policy["metadata"]["name"], rule


def _open_private(block: Object) -> Iterator[str]:
    whole = ipaddress.ip_network(block["cidr"])
    refused = [ipaddress.ip_network(each) for each in block.get("except", [])]
    for text in PRIVATE:
        address = ipaddress.ip_address(text)
        assert not is_public(text)
        if address.version == whole.version and address in whole and not any(address in each for each in refused):
            yield text


def _shut_public(block: Object) -> Iterator[str]:
    for text in block.get("except", []):
        network = ipaddress.ip_network(text)
        for address in (network[0], network[-1]):
            if is_public(str(address)):
                yield text


SERVERS = ("gateway", "model")
OF_ANY_POD: tuple[Rule, ...] = (
    runs_as_nobody,
    gains_no_rights,
    writes_to_tmp_alone,
    has_no_token_and_no_service_links,
    has_requests_and_limits,
    images_are_pinned,
)
RULES: tuple[Rule, ...] = (
    *OF_ANY_POD,
    namespace_is_restricted,
    memory_suffices_for_the_largest_pictures,
    has_probes,
    readiness_follows_the_model,
    settings_are_read,
    threads_equal_the_limit,
    has_time_to_stop,
    rolls_without_a_gap,
    is_spread,
    is_scaled,
    may_be_drained,
    gateways_ask_for_no_more_than_is_admitted,
    references_lead_somewhere,
    selectors_match,
    ports_match,
    calls_are_balanced,
    nobody_reaches_anybody_by_default,
    the_model_is_for_the_gateway,
    metrics_stay_inside,
    the_gateway_reaches_the_public_alone,
    names_are_looked_up_wherever_the_cluster_has_its_servers,
    no_pod_takes_the_rights_of_its_node,
)
