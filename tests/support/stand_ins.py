"""Give the names of images that overlays pin to stand-ins, where no registry can be reached: Debian's packages.

all_stand_ins()               # nginx-stand-in.dockerfile → nginx:1.28.0, prometheus-stand-in.dockerfile → …

They show that our files work with such a program, not the images' own bytes. tests/support/containers.py has the one of
tensorflow/serving.
"""

from __future__ import annotations

import yaml

from tests.support.containers import can_be_had, docker
from tests.support.servers import ROOT

SUPPORT = ROOT / "tests" / "support"
PINNED_BY = {"nginx": "replicas", "prometheus": "monitoring"}  # service → overlay


def all_stand_ins() -> None:
    for service, overlay in PINNED_BY.items():
        known = yaml.safe_load((ROOT / "deploy" / "compose" / f"{overlay}.yaml").read_text())
        image = known["services"][service]["image"]
        if not can_be_had(image):
            docker("build", "-f", str(SUPPORT / f"{service}-stand-in.dockerfile"), "-t", image, str(SUPPORT))
