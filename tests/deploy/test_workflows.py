"""The workflows of GitHub Actions, and Dependabot's settings: two linters find nothing, and what they name is there.

Nothing here runs a workflow: that takes GitHub. jactionlint knows the syntax, the expressions and the actions' inputs,
zizmor what lets somebody else in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.servers import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
CI, IMAGES, RELEASE = WORKFLOWS
ACTION = re.compile(r"uses: +([\w./-]+)(?:@(\S+))?(.*)")
# Python's image is taken by its tag, for Debian's updates.
JACTIONLINT = ("jactionlint", "--strict-exit", "--no-online", "--no-color", "--ignore", "unpinned-images")
ZIZMOR = ("zizmor", "--offline", "--no-progress", "--color", "never", "--min-severity", "medium", ".github")


def run(folder: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a tool that was installed beside this Python."""
    command = [f"{sysconfig.get_path('scripts')}/{tool}", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def jobs(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())["jobs"]
    assert isinstance(found, dict)
    return found


def commands(path: Path) -> list[str]:
    """Return the lines of every `run` of a workflow."""
    steps = [step for job in jobs(path).values() for step in job.get("steps", [])]
    return [line for step in steps for line in step.get("run", "").replace("\\\n", " ").splitlines()]


def all_commands() -> list[str]:
    return [command for path in WORKFLOWS for command in commands(path)]


@pytest.mark.parametrize("tool", [JACTIONLINT, ZIZMOR], ids=lambda tool: tool[0])
def test_linters_find_nothing(tool: tuple[str, ...]) -> None:
    done = run(ROOT, *tool)
    assert done.returncode == 0, done.stdout + done.stderr


FAULTS = {  # a rule, and what to change in which file to break it
    JACTIONLINT: {
        "undefined-property": ("workflows/ci.yaml", "{{ matrix.python }}-bookworm", "{{ matrix.pyhton }}-bookworm"),
        "unknown-action-input": ("workflows/images.yaml", "platforms: ${{", "platform: ${{"),
        "undefined-job-needs": ("workflows/release.yaml", "needs: ci", "needs: tests"),
        "missing-timeout": ("workflows/ci.yaml", "    timeout-minutes: 30\n", ""),
        "concurrency-limits": ("workflows/ci.yaml", "concurrency:", "env:"),
        "dependabot-syntax": ("dependabot.yml", "package-ecosystem: pip ", "package-ecosystem: pipenv "),
    },
    ZIZMOR: {
        "template-injection": ("workflows/release.yaml", '"$GITHUB_REF_NAME"', "${{ github.ref_name }}"),
        "unpinned-uses": ("workflows/release.yaml", "@de0fac2e4500dabe0009e67214ff5f5447ce83dd", "@v6"),
        "artipacked": ("workflows/ci.yaml", "          persist-credentials: false\n", "          clean: true\n"),
        "dependabot-cooldown": ("dependabot.yml", "    cooldown:\n      default-days: 7\n", ""),
    },
}


@pytest.mark.parametrize(
    ("tool", "rule"),
    [(tool, rule) for tool, rules in FAULTS.items() for rule in rules],
    ids=lambda part: None if isinstance(part, tuple) else part,
)
def test_a_planted_fault_is_found(tmp_path: Path, tool: tuple[str, ...], rule: str) -> None:
    name, old, new = FAULTS[tool][rule]
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    path = tmp_path / ".github" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    done = run(tmp_path, *tool)
    assert done.returncode != 0
    assert f"[{rule}]" in done.stdout


def test_every_action_is_pinned_to_a_commit_that_names_its_version() -> None:
    found = [match for path in WORKFLOWS for match in ACTION.findall(path.read_text())]
    assert len(found) > 10
    commits: dict[str, set[tuple[str, str]]] = {}
    for action, commit, comment in found:
        if action.startswith("./"):
            assert (ROOT / action).is_file(), action
        else:
            assert re.fullmatch(r"[0-9a-f]{40}", commit), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
            commits.setdefault(action, set()).add((commit, comment))
    assert {action: pins for action, pins in commits.items() if len(pins) > 1} == {}


def test_every_make_target_is_there() -> None:
    targets = {target for command in all_commands() for target in re.findall(r"\bmake ([a-z-]+)", command)}
    assert "test-containers" in targets
    for target in targets:
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_every_file_is_there() -> None:
    words = {word for command in all_commands() for word in re.split(r"[\s\"']+", command)}
    files = {word for word in words if re.fullmatch(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|yaml|dockerfile)", word)}
    folders = {word for word in words if re.match(r"(?:deploy|tools|\.ci|tests)/", word)}
    assert {"test.py", "tools/release.py", "image-model.dockerfile", ".ci/run"} <= files | folders
    assert sorted(name for name in files | folders if not (ROOT / name).exists()) == []


def test_every_image_is_built_for_every_architecture_that_it_can_have() -> None:
    matrix = jobs(IMAGES)["image"]["strategy"]["matrix"]
    both, [other] = matrix["name"], matrix["include"]
    assert matrix["platforms"] == ["linux/amd64,linux/arm64"]
    assert other == {"name": "model", "platforms": "linux/amd64"}
    built = {f"image-{name}.dockerfile" for name in [*both, other["name"]]}
    tracked = subprocess.run(["git", "ls-files", "*.dockerfile"], cwd=ROOT, capture_output=True, text=True).stdout
    assert built == {name for name in tracked.split() if not name.startswith("tests/")}
    amd64_alone = {name for name in built if "FROM tensorflow/serving" in (ROOT / name).read_text()}
    assert amd64_alone == {"image-model.dockerfile"}


def test_the_cluster_gets_the_images_that_its_manifests_name() -> None:
    """kind pulls nothing that it was not given."""
    [line] = [command for command in commands(CI) if "kind load" in command]
    kubernetes = ROOT / "deploy" / "kubernetes"
    manifests = [*kubernetes.glob("base/*.yaml"), *kubernetes.glob("overlays/kind/*.yaml")]
    named = {name for path in manifests for name in re.findall(r"image: (loupe-[a-z-]+):", path.read_text())}
    assert named
    assert set(re.findall(r"loupe-[a-z-]+", line)) == named


def test_tests_run_on_every_python_that_loupe_runs_on() -> None:
    matrix = jobs(CI)["tests"]["strategy"]["matrix"]
    pythons = [tuple(map(int, python.split("."))) for python in matrix["python"]]
    limits = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert limits
    assert pythons == [(3, minor) for minor in range(int(limits[1]), int(limits[2]))]


def test_only_a_release_may_write_and_each_job_only_what_it_has_to() -> None:
    """The images' job takes what its caller gives."""
    granted = {
        (path.stem, name, what)
        for path in WORKFLOWS
        for name, job in jobs(path).items()
        for what, level in job.get("permissions", {}).items()
        if level != "read"
    }
    assert granted == {("release", "images", "packages"), ("release", "release", "contents")}
    for path in (CI, RELEASE):
        assert yaml.safe_load(path.read_text())["permissions"] == {}


def test_dependabot_leaves_tensorflow_alone_and_groups_the_rest() -> None:
    """It is pinned to the release of TensorFlow Serving."""
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "docker", "pip"}
    for update in updates:
        assert update["schedule"] == {"interval": "weekly"}
        assert [group["patterns"] for group in update["groups"].values()] == [["*"]]
    ignored = {rule["dependency-name"] for update in updates for rule in update.get("ignore", [])}
    pinned = re.findall(r"^([a-z-]*(?:tensorflow|tf-keras)[a-z-]*) = ", (ROOT / "Pipfile").read_text(), re.MULTILINE)
    assert {*pinned, "tensorflow/serving"} <= ignored
