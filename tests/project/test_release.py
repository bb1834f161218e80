"""tools/release.py, in git repositories of its own: what it refuses, and the tag that it makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import loupe
from tests.support.servers import ROOT

CHANGELOG = """# Changelog

## Unreleased

## 1.2.0 - 2026-11-29

### Added

- Something that users get.

## 1.1.0 - 2026-10-01

- What they got before.
"""
MANIFEST = """# Instead of loupe-gateway:1.2.0.
spec:
  containers:
    - image: loupe-gateway:1.2.0
    - image: nginx:1.29
"""
KUSTOMIZATION = """images:
  - name: loupe-model
    newName: ghcr.io/somebody/loupe-model
    newTag: "1.2.0"
  - name: nginx
    newTag: "1.29"
"""


def git(project: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(project: Path, name: str, text: str) -> None:
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text(text)


def commit(project: Path) -> None:
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "A change")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that can be released. Its `make check` passes while there is no file named `fault`."""
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A Tester")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "tester@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # no signing
    write(tmp_path, "loupe/__init__.py", '"""A package."""\n\n__version__ = "1.2.0"\n')
    write(tmp_path, "CHANGELOG.md", CHANGELOG)
    write(tmp_path, "deploy/kubernetes/base/gateway.yaml", MANIFEST)
    write(tmp_path, "deploy/kubernetes/overlays/kind/kustomization.yaml", KUSTOMIZATION)
    write(tmp_path, "Makefile", "check:\n\t@echo checked; test ! -e fault\n")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "release.py", tmp_path / "tools")
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    commit(tmp_path)
    return tmp_path


def release(project: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "tools/release.py", *flags]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)


def tags(project: Path) -> list[str]:
    return git(project, "tag").split()


def test_the_version_is_tagged_with_a_message_and_what_to_push_is_said(project: Path) -> None:
    done = release(project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "checked",
        "release: tagged v1.2.0. Publish it with: git push --atomic origin main v1.2.0",
    ]
    assert git(project, "for-each-ref", "refs/tags", "--format=%(refname) %(objecttype) %(subject)") == (
        "refs/tags/v1.2.0 tag Loupe 1.2.0\n"
    )
    assert git(project, "rev-parse", "v1.2.0^{commit}") == git(project, "rev-parse", "HEAD")


def test_what_is_said_to_push_is_what_a_remote_takes(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    remote = tmp_path_factory.mktemp("remote")
    git(remote, "init", "--quiet", "--bare")
    git(project, "remote", "add", "origin", str(remote))
    command = release(project).stdout.strip().rpartition("Publish it with: git ")[2]
    git(project, *command.split())
    assert tags(remote) == ["v1.2.0"]
    assert git(remote, "rev-parse", "main") == git(project, "rev-parse", "main")


def test_a_check_alone_makes_no_tag(project: Path) -> None:
    done = release(project, "--check")
    assert (done.returncode, tags(project)) == (0, [])
    assert done.stdout.splitlines()[-1] == "release: Loupe 1.2.0 can be released. Tag it with: make release"


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(project: Path) -> None:
        text = (project / name).read_text()
        assert old in text
        (project / name).write_text(text.replace(old, new))
        commit(project)

    return change


def leave_uncommitted(project: Path) -> None:
    (project / "CHANGELOG.md").write_text(CHANGELOG + "\n")
    (project / "notes.txt").write_text("mine")


def go_to_a_branch(project: Path) -> None:
    git(project, "switch", "--quiet", "--create", "feature")


def leave_every_branch(project: Path) -> None:
    git(project, "switch", "--quiet", "--detach")


def tag_it(project: Path) -> None:
    git(project, "tag", "v1.2.0")


def break_style(project: Path) -> None:
    write(project, "fault", "")
    commit(project)


BASE, KIND = "deploy/kubernetes/base/gateway.yaml", "deploy/kubernetes/overlays/kind/kustomization.yaml"
REFUSALS = {
    "not committed: CHANGELOG.md, notes.txt. Commit them or put them away": leave_uncommitted,
    "this is feature; releases are made from main. Say: git switch main": go_to_a_branch,
    "this is no branch; releases are made from main. Say: git switch main": leave_every_branch,
    "v1.2.0 is tagged already. Raise __version__ in loupe/__init__.py": tag_it,
    "CHANGELOG.md has no section `## 1.2.0 - ": edit("CHANGELOG.md", "1.2.0", "1.3.0"),
    "CHANGELOG.md's heading of 1.2.0 has no date": edit("CHANGELOG.md", " - 2026-11-29", ""),
    "CHANGELOG.md's heading of 1.2.0 has no date. Write": edit("CHANGELOG.md", "2026-11-29", "2026-11-31"),
    "CHANGELOG.md says nothing of 1.2.0": edit(
        "CHANGELOG.md", "### Added\n\n- Something that users get.\n", ""
    ),
    "CHANGELOG.md has changes under Unreleased. Move them to 1.2.0": edit(
        "CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- Something newer.\n"
    ),
    f"{BASE} names an image with the tag 1.1.0. Write 1.2.0": edit(BASE, "gateway:1.2.0\n", "gateway:1.1.0\n"),
    f"{KIND} names an image with the tag 1.1.0. Write 1.2.0": edit(KIND, '"1.2.0"', '"1.1.0"'),
    'loupe/__init__.py has no line such as __version__ = "1.2.3"': edit("loupe/__init__.py", "1.2.0", "1.2"),
    "`make check` found faults. Mend them, commit, and run it again": break_style,
}  # fmt: skip


@pytest.mark.parametrize(("message", "cause"), REFUSALS.items(), ids=lambda item: getattr(item, "__name__", None))
def test_what_is_not_fit_is_refused_in_one_line(project: Path, message: str, cause: Callable[[Path], None]) -> None:
    cause(project)
    before = tags(project)
    done = release(project)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert line.startswith(f"release: {message}")
    assert tags(project) == before


def test_all_that_is_wrong_is_said_at_once(project: Path) -> None:
    go_to_a_branch(project)
    edit("loupe/__init__.py", "1.2.0", "1.3.0")(project)
    done = release(project)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 4, "the branch, the changelog, and two manifests"
    assert "checked" not in done.stdout, "make check takes minutes, and comes after what takes a moment"


def test_a_variant_has_the_version_at_the_beginning_of_its_tag(project: Path) -> None:
    edit(BASE, "gateway:1.2.0\n", "gateway:1.2.0-gpu\n")(project)
    assert release(project, "--check").returncode == 0


def test_a_tag_is_held_to_the_version_from_any_checkout(project: Path) -> None:
    leave_every_branch(project)
    tag_it(project)
    assert release(project, "--tag", "v1.2.0").stdout == "release: v1.2.0 is the tag of Loupe 1.2.0.\n"
    done = release(project, "--tag", "v1.3.0")
    assert done.returncode == 2
    assert done.stderr.startswith("release: the tag is v1.3.0, and loupe.__version__ is 1.2.0.")
    edit("CHANGELOG.md", " - 2026-11-29", "")(project)
    assert release(project, "--tag", "v1.2.0").returncode == 2


def test_the_notes_are_the_versions_part_of_the_changelog(project: Path) -> None:
    assert release(project, "--notes").stdout == "### Added\n\n- Something that users get.\n"


def test_outside_of_a_repository_git_says_so_in_one_line(project: Path) -> None:
    shutil.rmtree(project / ".git")
    done = release(project)
    assert done.returncode == 2
    assert done.stderr.startswith("release: git status failed: fatal: not a git repository")
    assert done.stderr.count("\n") == 1


def test_make_release_passes_check_on() -> None:
    def said(*arguments: str) -> str:
        command = ["make", "--no-print-directory", "--dry-run", "release", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout

    assert said("CHECK=1").split()[-2:] == ["tools/release.py", "--check"]
    assert said().split()[-1] == "tools/release.py"


def test_this_repository_tells_the_changes_of_its_version() -> None:
    notes = release(ROOT, "--notes").stdout
    assert notes.count("\n- ") > 3
    assert f"\n## {loupe.__version__} - 20" in (ROOT / "CHANGELOG.md").read_text()
