"""`pip install .`: the package works outside of its folder, and requires the same as Pipfile."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

import loupe
from tests.support.servers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIPFILE = tomllib.loads((ROOT / "Pipfile").read_text())


def requirement(name: str, entry: Any) -> str:
    """Return a Pipfile's entry as pip writes it."""
    options = {"version": entry} if isinstance(entry, str) else entry
    extras = f"[{','.join(options['extras'])}]" if "extras" in options else ""
    version = options.get("version", "*").removeprefix("*")
    return f"{name}{extras}{version}" + (f"; {options['markers']}" if "markers" in options else "")


def test_the_requirements_are_those_of_pipfile() -> None:
    wanted = {category: [requirement(*item) for item in entries.items()] for category, entries in PIPFILE.items()}
    assert PROJECT["dependencies"] == wanted.pop("packages")
    wanted.pop("dev-packages")
    assert PROJECT["optional-dependencies"] == wanted


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the package, and this one's packages for what it requires."""
    # Build it from a copy of what is tracked: building leaves files behind.
    scratch = tmp_path_factory.mktemp("package")
    source = scratch / "source"
    source.mkdir()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if name.startswith("loupe/") or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", ".", "--wheel-dir", str(scratch)],
        cwd=source, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [wheel] = scratch.glob("loupe-*.whl")
    # Install it.
    home = scratch / "environment"
    venv.create(home, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--target", str(packages), str(wheel)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin" / "python"


def run(python: Path, folder: Path, code: str) -> str:
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_is_asked_outside_of_the_checkout(python: Path, tmp_path: Path) -> None:
    model, file = str(ROOT / "models" / "tires"), str(ROOT / "data" / "samples" / "cracked-1.jpg")
    code = f"""
import loupe
assert {str(ROOT)!r} not in loupe.__file__, loupe.__file__
print(loupe.__version__, loupe.load({model!r}).predict({file!r}).label)
"""
    assert run(python, tmp_path, code) == f"{loupe.__version__} cracked"


def test_the_files_of_page_and_report_are_in_it(python: Path, tmp_path: Path) -> None:
    code = """
import pathlib, loupe
home = pathlib.Path(loupe.__file__).parent
print(*sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and path.suffix != ".py"
              and path.suffix != ".pyc"))
"""
    tracked = subprocess.run(["git", "ls-files", "loupe"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = [name.removeprefix("loupe/") for name in tracked.splitlines() if not name.endswith(".py")]
    assert len(wanted) > 5
    assert run(python, tmp_path, code).split() == sorted(wanted)
