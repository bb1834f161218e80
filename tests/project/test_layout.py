"""Test the repository's own rules: who imports whom, what is pinned where, and words that no file contains."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import ROOT

WINGS = {"gateway", "modelserver", "training", "export"}
HEAVY = {"tensorflow", "keras"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def modules(wing: str) -> list[Path]:
    paths = sorted((ROOT / "loupe" / wing).rglob("*.py"))
    assert paths
    return paths


@pytest.mark.parametrize("wing", sorted(WINGS))
def test_no_wing_imports_another_nor_a_script(wing: str) -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")} - {"proto"}
    for path in modules(wing):
        for name in imports(path):
            assert name.split(".")[0] not in scripts, f"{path} imports {name}"
            assert not name.startswith(tuple(f"loupe.{other}" for other in WINGS - {wing})), f"{path} imports {name}"


def test_what_is_shared_imports_no_wing() -> None:
    for path in [*(ROOT / "loupe").glob("*.py"), ROOT / "proto.py"]:
        assert not any(name.startswith(tuple(f"loupe.{wing}" for wing in WINGS)) for name in imports(path)), path


def test_only_the_gateway_knows_flask() -> None:
    for wing in WINGS - {"gateway"}:
        for path in modules(wing):
            assert not {name.split(".")[0] for name in imports(path)} & {"flask", "werkzeug"}, path


@pytest.mark.parametrize("script", ["train.py", "convert.py", "serve.py", "gateway.py", "test.py", "proto.py"])
def test_help_reads_well_and_loads_no_tensorflow(script: str) -> None:
    code = (
        f"import sys; sys.argv = ['{script}', '--help']; import runpy; runpy.run_path('{script}', run_name='__main__')"
    )
    if script == "proto.py":
        code = "import proto"
    code = f"import atexit, sys; atexit.register(lambda: print(sorted(set(sys.modules) & {HEAVY!r})))\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("[]")
    assert script == "proto.py" or "usage:" in done.stdout


@pytest.mark.parametrize("script", ["train.py", "convert.py", "serve.py", "gateway.py", "benchmarks/footprint.py"])
def test_an_unknown_flag_is_one_line_and_status_2(script: str) -> None:
    command = [sys.executable, script, *["runs/x"] * (script == "convert.py"), "--halp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "'--halp' is no flag of this script; did you mean --help?" in done.stderr


def test_one_lock_file_pins_one_version_of_each_package_and_names_no_source() -> None:
    lock = json.loads((ROOT / "Pipfile.lock").read_text())
    assert lock["_meta"]["sources"] == []
    versions: dict[str, set[str]] = {}
    for category in lock.keys() - {"_meta"}:
        for name, entry in lock[category].items():
            assert entry["hashes"]
            versions.setdefault(name, set()).add(entry["version"])
    assert {name: pinned for name, pinned in versions.items() if len(pinned) > 1} == {}


def test_pipenv_is_the_same_in_the_image_as_in_the_makefile() -> None:
    pinned = re.search(r'PIPENV = "(.+)"', (ROOT / "tools" / "environment.py").read_text())
    assert pinned
    assert f"pipenv=={pinned[1]} " in (ROOT / "image-gateway.dockerfile").read_text()


def test_the_gateways_image_gets_every_module_that_the_gateway_imports(tmp_path: Path) -> None:
    """Copy what the dockerfile copies, and import it there."""
    for line in (ROOT / "image-gateway.dockerfile").read_text().splitlines():
        if line.startswith("COPY") and "Pipfile" not in line:
            *sources, target = line.split()[1:]
            for source in (path for pattern in sources for path in ROOT.glob(pattern)):
                folder = tmp_path / target
                folder = folder if source.is_file() else folder.parent
                folder.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", source, folder], check=True)
    done = subprocess.run(
        [sys.executable, "-c", "import gateway; gateway.app"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_committed_file_names_a_registry() -> None:
    hosts = "|".join(name + r"\.(org|com)" for name in ("pypi", "pythonhosted", "npmjs", "debian"))
    done = subprocess.run(["git", "grep", "-nIE", hosts], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
