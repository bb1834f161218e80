"""What can be told of the dockerfiles without an engine. test_images.py builds them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from loupe.gateway.settings import SETTINGS
from tests.support.servers import ROOT

# What each image runs or imports. The model server's engine is imported when a model is loaded.
SERVER = "loupe.modelserver.server, loupe.modelserver.rest.app, loupe.modelserver.prometheus"
IMPORTS = {
    "gateway": "gateway; gateway.app",
    "embedded": f"loupe.modelserver.__main__, {SERVER}, loupe.engines.openvino_engine",
    "all-in-one": f"serve, gateway, {SERVER}, loupe.engines.openvino_engine; gateway.app",
}
NAMES = ["model", "training", *IMPORTS]


def dockerfile(name: str) -> str:
    return (ROOT / f"image-{name}.dockerfile").read_text()


def copies(name: str) -> Iterator[tuple[list[str], str]]:
    """Sources and target of each COPY from the folder that is sent to the engine."""
    for line in dockerfile(name).splitlines():
        if line.startswith("COPY") and "--from=" not in line and "Pipfile" not in line:
            *sources, target = line.split()[1:]
            yield sources, target


def test_every_dockerfile_is_known_here() -> None:
    assert sorted(f"image-{name}.dockerfile" for name in NAMES) == sorted(
        path.name for path in ROOT.glob("*.dockerfile")
    )


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_in_exec_form_and_run_by_nobody_special(name: str) -> None:
    """A shell would keep SIGTERM to itself."""
    lines = dockerfile(name).splitlines()
    commands = [line for line in lines if re.match(r"ENTRYPOINT|CMD|\s+CMD|HEALTHCHECK.* CMD", line)]
    assert commands
    for line in commands:
        assert re.search(r'(ENTRYPOINT|CMD) \["', line), line
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001"]


@pytest.mark.parametrize("name", NAMES)
def test_health_is_asked_through_no_proxy(name: str) -> None:
    """Docker sets http_proxy in containers where its own configuration names one, and urllib obeys that."""
    assert "urllib" not in dockerfile(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_copied_is_sent_to_the_engine(name: str) -> None:
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for sources, _ in copies(name):
        for path in [path.relative_to(ROOT) for source in sources for path in ROOT.glob(source)]:
            assert {str(path), *map(str, path.parents)} & set(sent), path


@pytest.mark.parametrize("name", [name for name in NAMES if name != "model"])
def test_pipenv_is_the_same_in_the_images_as_in_the_makefile(name: str) -> None:
    pinned = re.search(r'PIPENV = "(.+)"', (ROOT / "tools" / "environment.py").read_text())
    assert pinned
    assert f"pipenv=={pinned[1]} " in dockerfile(name)


@pytest.mark.parametrize(
    ("arguments", "more"),
    [({}, []), ({"GPU": "1"}, ["gpu"]), ({"BACKBONE": "efficientnetlite0"}, ["efficientnetlite0"])],
)
def test_the_training_image_installs_what_its_arguments_ask_for(arguments: dict[str, str], more: list[str]) -> None:
    categories = re.search(r'pipenv sync --system --categories (".+?")', dockerfile("training"))
    assert categories
    command = ["sh", "-c", f"echo {categories[1]}"]
    wanted = subprocess.run(command, env=arguments, capture_output=True, text=True, check=True).stdout.split()
    assert wanted == ["packages", "modelserver", "training", "export", *more]
    assert set(wanted) <= set(tomllib.loads((ROOT / "Pipfile").read_text()))
    assert all(f"ARG {name}=\n" in dockerfile("training") for name in arguments), "empty unless it is given"


def lay_out(name: str, folder: Path) -> None:
    """Copy what the dockerfile copies, to where it does."""
    for sources, target in copies(name):
        for source in (path for pattern in sources for path in ROOT.glob(pattern)):
            into = folder / target.lstrip("/")
            into = into if source.is_file() else into.parent
            into.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", source, into], check=True)


@pytest.mark.parametrize("name", IMPORTS)
def test_an_image_gets_every_module_that_is_imported_in_it(tmp_path: Path, name: str) -> None:
    lay_out(name, tmp_path)
    command = [sys.executable, "-c", f"import {IMPORTS[name]}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow  # those of containers build the image itself
def test_the_training_image_gets_every_module_that_training_imports(tmp_path: Path) -> None:
    lay_out("training", tmp_path)
    paths = [path.relative_to(tmp_path) for path in sorted(tmp_path.glob("loupe/**/*.py"))]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert {"loupe.training", "loupe.export"} <= set(modules)
    command = [sys.executable, "-c", f"import train, convert, data.tires, data.fetch, {', '.join(modules)}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_heroku_builds_this_image() -> None:
    assert re.search(r"^    web: image-all-in-one\.dockerfile$", (ROOT / "heroku.yml").read_text(), re.MULTILINE)


def test_compose_hands_every_setting_of_the_gateway_on() -> None:
    """One that it did not would be ignored without a word: a file of keys, say."""
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    by_the_image = {"LOUPE_HOST", "LOUPE_PORT", "LOUPE_METRICS_PORT"}
    assert set(services["gateway"]["environment"]) == set(SETTINGS) - by_the_image
