"""README, the other documents and the project say the same."""

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
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "README.md"]
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if not target.startswith("https://"):
            assert (document.parent / target.partition("#")[0]).exists(), target


def test_every_path_and_function_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text().split("```")[-1]
    paths = [name for name in re.findall(r"`([\w./-]+)`", text) if re.match(r"(loupe|tests|docs)/", name)]
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).exists()] == []
    functions = re.findall(r"`([\w./]+\.py)`:?\s`(\w+)\(\)`", text)
    assert len(functions) > 15
    for path, function in functions:
        assert f"def {function}(" in (ROOT / path).read_text(), f"{path} {function}()"
    code = "".join(path.read_text() for path in [*ROOT.glob("*.py"), *ROOT.glob("loupe/**/*.py")])
    for name in re.findall(r"`(\w+)\(\)`", text):
        assert f"def {name}(" in code, name
    for name in re.findall(r"`(_?[A-Z][A-Z_]{3,})`", text):
        assert re.search(rf"\b{name}\b", code), name


def test_the_map_of_the_tests_names_every_file() -> None:
    parts = re.split(r"^\| \*\*.*\| `(\w+)/` \|$", (ROOT / "tests" / "README.md").read_text(), flags=re.MULTILINE)
    named = {f"{folder}/{name}" for folder, rows in zip(parts[1::2], parts[2::2], strict=True)
             for name in re.findall(r"`(test_\w+\.py)`", rows)}  # fmt: skip
    assert named == {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py")}


def test_no_file_cites_what_is_not_in_the_repository() -> None:
    """Issues and notes lie elsewhere, and may be gone."""
    pattern = r"\bissues? [0-9]|\.\./[s]hared|docs/design"
    done = subprocess.run(
        ["git", "grep", "-nIE", pattern, "--", ".", ":!Pipfile.lock", ":!.ci/run"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if "pattern = r" not in line] == []


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
