"""docs/deploy.md: every command that can run on a machine with a Docker engine is run, from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import COMPOSE, TAG, clone, docker
from tests.support.servers import ROOT, free_port
from tests.support.stand_ins import all_stand_ins

GUIDE = (ROOT / "docs" / "deploy.md").read_text()
NEEDS = "# needs: "  # the first line of a block that cannot run here
# Ports and images of this run's own: others may use the usual ones on this machine.
PORTS = {port: str(free_port()) for port in ("9696", "8501")}
ENVIRONMENT = {
    "PORT": PORTS["9696"],
    "REST_PORT": PORTS["8501"],
    "IMAGE_TAG": TAG,
    "COMPOSE_PROJECT_NAME": f"guide-{TAG}",
}


def blocks(text: str) -> list[tuple[str, str]]:
    """Return each block of shell commands with the heading above it."""
    found = re.finditer(r"^#{2,3} (?P<heading>[^\n]+)$|^```sh\n(?P<block>.*?)^```$", text, re.MULTILINE | re.DOTALL)
    heading, result = "", []
    for match in found:
        heading = match["heading"] or heading
        if match["block"]:
            result.append((heading, match["block"]))
    return result


BLOCKS = blocks(GUIDE)
RUNNABLE = [(heading, block) for heading, block in BLOCKS if not block.startswith(NEEDS)]


def as_run_here(block: str) -> str:
    """Return the block with this run's ports and names."""
    for port, ours in PORTS.items():
        block = re.sub(rf"(localhost:|127\.0\.0\.1:|-p |PORT=){port}\b", rf"\g<1>{ours}", block)
    block = re.sub(rf"(-p \d+):{9696}\b", rf"\1:{PORTS['9696']}", block)
    block = block.replace("python3 test.py", f"python3 test.py --url http://localhost:{PORTS['9696']}")
    block = re.sub(r"(?<=[ \n])loupe-all-in-one(?=[ \n])", f"loupe-all-in-one:{TAG}", block)
    block = re.sub(r"--name (\w+)", rf"--name \1-{TAG}", block)
    block = re.sub(r"^(docker stop.*) (tires|loupe)$", rf"\1 \2-{TAG}", block, flags=re.MULTILINE)
    return block if COMPOSE == ["docker-compose"] else block.replace("docker-compose ", "docker compose ")


@pytest.fixture(scope="module")
def folder(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh clone, whose images are in the engine's cache."""
    all_stand_ins()
    folder = clone(tmp_path_factory.mktemp("guide"))
    yield folder
    for name in ("tires", "loupe"):
        subprocess.run(["docker", "rm", "--force", f"{name}-{TAG}"], capture_output=True)


def test_every_file_that_the_guide_names_is_there() -> None:
    named = set(re.findall(r"(?<![\w/.:-])(?:deploy/[\w./-]*\w|image-[\w-]+\.dockerfile|heroku\.yml)", GUIDE))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.containers
@pytest.mark.parametrize("number", range(len(RUNNABLE)), ids=[heading for heading, _ in RUNNABLE])
def test_the_commands_of_the_guide_run(number: int, folder: Path) -> None:
    """A block may go on with what the one before it started."""
    command = ["bash", "-euo", "pipefail", "-c", as_run_here(RUNNABLE[number][1])]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.containers
def test_nothing_is_left_of_them(folder: Path) -> None:
    label = f"--filter=label=com.docker.compose.project={ENVIRONMENT['COMPOSE_PROJECT_NAME']}"
    assert docker("ps", "--all", "--quiet", label) + docker("network", "ls", "--quiet", label) == ""
    assert docker("ps", "--all", "--quiet", f"--filter=name={TAG}") == ""
