"""Check that the version in loupe/__init__.py can be released, and tag it.
Standard library only.

    python3 tools/release.py                # what `make release` does
    python3 tools/release.py --check        # the same, but tag nothing
    python3 tools/release.py --tag v1.0.0   # is this tag this version's? In CI
    python3 tools/release.py --notes        # the version's part of CHANGELOG.md

All that is wrong is said at once, a line each, with status 2.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.compile(r'^__version__ = "(\d+\.\d+\.\d+)"$', re.MULTILINE)
SECTION = re.compile(r"^## (\S+)(?: - (\S+))?\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
# An image with its tag, `loupe-gateway:1.0.0`, in manifests and in the guide; and the tag that kustomize gives one.
IMAGE = re.compile(r"\bloupe-[a-z-]+:(\d+\.\d+(?:[\w.-]*\w)?)")
NEW_TAG = re.compile(r"\bname: loupe-[a-z-]+\n(?: +newName: .*\n)? +newTag: [\"']?([\w.-]+)")
IMAGES_ARE_NAMED_IN = ("deploy/*.yaml", "docs/*.md")


def main() -> None:
    """Do what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="tag nothing")
    what.add_argument("--tag", metavar="TAG", help="check that TAG is this version's")
    what.add_argument("--notes", action="store_true", help="print the changes of this version")
    arguments = parser.parse_args()
    version = read_version()
    if arguments.notes:
        print(notes(version))
    elif arguments.tag:
        if wrong := [*wrong_tag(version, arguments.tag), *disagreements(version)]:
            refuse(*wrong)
        print(f"release: {arguments.tag} is the tag of Loupe {version}.")
    else:
        release(version, check_only=arguments.check)


def release(version: str, check_only: bool) -> None:
    """Tag the version, unless something is wrong."""
    # What takes a moment comes first, then the checks of style and types.
    if wrong := [*unfit_checkout(version), *disagreements(version)]:
        refuse(*wrong)
    if subprocess.run(["make", "--no-print-directory", "check"], cwd=ROOT).returncode:
        refuse("`make check` found faults. Mend them, commit, and run it again")
    if check_only:
        print(f"release: Loupe {version} can be released. Tag it with: make release")
        return
    git("tag", "--annotate", f"v{version}", "--message", f"Loupe {version}")
    print(f"release: tagged v{version}. Publish it with: git push --atomic origin main v{version}")


def read_version() -> str:
    found = VERSION.search((ROOT / "loupe" / "__init__.py").read_text())
    if not found:
        refuse('loupe/__init__.py has no line such as __version__ = "1.2.3". Write one')
    return found[1]


def notes(version: str) -> str:
    """Return what CHANGELOG.md says of the version."""
    return next((text.strip() for name, _, text in changes() if name == version), "")


def changes() -> list[tuple[str, str, str]]:
    """Return the version, the date and the text of each section of CHANGELOG.md, as they stand there."""
    return SECTION.findall((ROOT / "CHANGELOG.md").read_text())


def unfit_checkout(version: str) -> list[str]:
    """Say why no release is made from this checkout."""
    wrong = []
    if changed := [line[3:] for line in git("status", "--porcelain").splitlines()]:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        wrong.append(f"not committed: {', '.join(changed[:3])}{more}. Commit them or put them away")
    if (branch := git("branch", "--show-current")) != "main":
        wrong.append(f"this is {branch or 'no branch'}; releases are made from main. Say: git switch main")
    if git("tag", "--list", f"v{version}"):
        wrong.append(f"v{version} is tagged already. Raise __version__ in loupe/__init__.py")
    return wrong


def wrong_tag(version: str, tag: str) -> list[str]:
    if tag == f"v{version}":
        return []
    return [f"the tag is {tag}, and loupe.__version__ is {version}. Make the tag with `make release`"]


def disagreements(version: str) -> list[str]:
    """Say where CHANGELOG.md, the manifests and the guide do not agree with the version."""
    # The section of the version is there, with a date and a text, and nothing waits above it.
    wrong = []
    dates = {name: date for name, date, _ in changes()}
    if version not in dates:
        wrong.append(f"CHANGELOG.md has no section `## {version} - {datetime.date.today()}`. Write it")
    elif not is_date(dates[version]):
        wrong.append(f"CHANGELOG.md's heading of {version} has no date. Write `## {version} - {datetime.date.today()}`")
    elif not notes(version):
        wrong.append(f"CHANGELOG.md says nothing of {version}. Write what users get")
    if notes("Unreleased"):
        wrong.append(f"CHANGELOG.md has changes under Unreleased. Move them to {version}")
    # Every image that is named has the version as its tag, or as the tag's beginning, as in 1.0.0-gpu.
    for name in git("ls-files", *IMAGES_ARE_NAMED_IN).splitlines():
        text = (ROOT / name).read_text()
        for tag in sorted({*IMAGE.findall(text), *NEW_TAG.findall(text)}):
            if tag != version and not tag.startswith(f"{version}-"):
                wrong.append(f"{name} names an image with the tag {tag}. Write {version}")
    return wrong


def is_date(text: str) -> bool:
    try:
        return text == str(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        refuse(f"git {arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip("\n")


def refuse(*wrong: str) -> NoReturn:
    for line in wrong:
        print(f"release: {line}.", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
