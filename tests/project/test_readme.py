"""README and the project say the same."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.gateways import gateway
from tests.support.servers import ROOT, model_server

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for text in (README, CONTRIBUTING)
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in block.splitlines()
]


def test_every_file_in_the_tree_is_there() -> None:
    tree = README.split("## What is where")[1].split("```")[1]
    folder = Path()
    for line in filter(None, tree.splitlines()):
        name = line.split()[0]
        path = folder / name if line.startswith("  ") else Path(name)
        folder = folder if line.startswith("  ") else Path(name)
        assert (ROOT / path).exists(), path


def test_every_link_leads_somewhere() -> None:
    for text in (README, CONTRIBUTING):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert (ROOT / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_every_make_command_is_one_that_make_knows(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_curl_command_is_answered(sample_models: Path) -> None:
    with model_server(sample_models, "tires") as server, gateway(f"localhost:{server.port}") as here:
        for command in (command for command in COMMANDS if command.startswith("curl")):
            words = shlex.split(command.replace("localhost:9696", f"localhost:{here.port}"))
            done = subprocess.run([*words, "--silent"], cwd=ROOT, capture_output=True, text=True, timeout=60)
            if "example.org" in command:  # not to be reached from everywhere, so answered by one of two
                assert (
                    '"label"' in done.stdout or '"code":"refused_url"' in done.stdout or "fetch_failed" in done.stdout
                )
            else:
                assert '"label":"cracked"' in done.stdout


def test_every_script_that_is_named_is_there() -> None:
    for command in COMMANDS:
        for word in shlex.split(command):
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), command
