"""Render deploy/kubernetes as `kubectl apply -k` would, and check the objects against Kubernetes' schemas.

    cluster = render("kind", "api-keys", "feedback")     # an overlay and components; "base" is the base alone
    cluster.one("Deployment", "gateway")["spec"]
    invalid(cluster, "1.31")                             # what the schemas refuse, a line each
    for overlay, components in combinations(): ...

Objects are plain dicts. `Cluster.copy()` gives one that may be changed.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.servers import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", *sorted(path.name for path in (FOLDER / "overlays").iterdir()))
# A kind of server and a way to bring models are chosen once; all others go together.
CHOICES = (("embedded", "gpu"), ("models-bucket", "models-gs", "models-volume"))
INNER = {"model-egress"}  # taken by other components, not by overlays
OTHERS = tuple(
    sorted({path.name for path in (FOLDER / "components").iterdir()} - INNER - set(itertools.chain(*CHOICES)))
)
# TensorFlow Serving alone has GPUs and reads gs://.
CLASHES = ({"embedded", "gpu"}, {"embedded", "models-gs"})

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where PyYAML has it

Object = dict[str, Any]


@dataclass
class Cluster:
    objects: list[Object]

    def all(self, kind: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        found = [each for each in self.all(kind) if each["metadata"]["name"] == name]
        if len(found) != 1:
            raise LookupError(f"{len(found)} objects are {kind} {name}")
        return found[0]

    def copy(self) -> Cluster:
        return Cluster(copy.deepcopy(self.objects))


def kubectl() -> str:
    path = shutil.which("kubectl")
    if not path:
        pytest.skip("kubectl is not installed; it renders the manifests")
    return path


@functools.cache
def render(overlay: str, *components: str, namespace: str = "loupe") -> Cluster:
    return customized(overlay, *components, namespace=namespace)


def customized(overlay: str, *components: str, namespace: str = "loupe", **more: Any) -> Cluster:
    """Render an overlay of one's own, which takes the overlay and the components; `more` goes into its file."""
    below = FOLDER / "base" if overlay == "base" else FOLDER / "overlays" / overlay
    with tempfile.TemporaryDirectory() as folder:
        content = {
            "namespace": namespace,
            "resources": [os.path.relpath(below, Path(folder).resolve())],
            "components": [
                os.path.relpath(FOLDER / "components" / each, Path(folder).resolve()) for each in components
            ],
            **more,
        }
        (Path(folder) / "kustomization.yaml").write_text(json.dumps(content))
        return built(folder)


def built(folder: Path | str) -> Cluster:
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")  # a warning tells of a field that will be gone
    return Cluster(list(yaml.load_all(done.stdout, LOADER)))


def combinations() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each overlay alone and with much else; the base with each component, and with all that go together."""
    for overlay in OVERLAYS:
        servers, models = (("", *CHOICES[0]), CHOICES[1] if overlay == "base" else ("models-bucket",))
        sets = {(), *((*filter(None, chosen), *OTHERS) for chosen in itertools.product(servers, models))}
        if overlay == "base":
            sets |= {(name,) for name in (*OTHERS, *itertools.chain(*CHOICES))}
        for components in sorted(sets):
            used = {overlay, *components}
            if overlay not in components and not any(clash <= used for clash in CLASHES):
                yield overlay, components


def invalid(cluster: Cluster, version: str) -> list[str]:
    """Say what the schemas of this version refuse. Objects of the Prometheus operator are not Kubernetes' own."""
    own = [each for each in cluster.objects if not each["apiVersion"].startswith("monitoring.coreos.com/")]
    return [mistake for each in own if (mistake := _mistake(json.dumps(each), version))]


@functools.cache
def _mistake(text: str, version: str) -> str:
    each = json.loads(text)
    try:
        kubernetes_validate.validate(each, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return f"{each['kind']} {each['metadata']['name']}: {error}"
    return ""
