"""Fill .venv with what a verb of the Makefile needs, and nothing more. Standard library alone.

    python3 tools/environment.py packages modelserver      # categories of Pipfile
    python3 tools/environment.py --lock                    # make Pipfile.lock anew

The stamp .venv/loupe.json remembers the Python, the lock file and the categories, so that a verb that has nothing to
install costs a few milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "loupe.json"
LOCK = ROOT / "Pipfile.lock"
PIPENV = "2026.10.3"  # also in two dockerfiles; tests hold them together
OLDEST, NEWEST = (3, 11), (3, 13)  # the newest that TensorFlow 2.20 is built for
# MB to download
ALONE = {
    "packages": 40, "modelserver": 60, "training": 740, "export": 670, "dev-packages": 780, "tracing": 2, "gpu": 3450
}  # fmt: skip
TENSORFLOW = 640  # of these
CATEGORIES = tuple(ALONE)
WITH_TENSORFLOW = ("training", "export", "dev-packages", "gpu")  # tensorflow-serving-api needs it, too


def main(wanted: list[str]) -> None:
    _check_python()
    if wanted == ["--lock"]:
        return lock()
    unknown = sorted(set(wanted) - set(CATEGORIES))
    if unknown or not wanted:
        fail(f"unknown category {unknown}; there are {', '.join(CATEGORIES)}")
    if "gpu" in wanted and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        fail("TensorFlow uses NVIDIA's GPUs on Linux on x86-64 alone. Leave GPU=1 out")
    missing = [category for category in wanted if category not in installed()]
    if missing:
        install(missing)
    return None


def installed() -> list[str]:
    """The categories that are in .venv just as this lock file has them, for this Python."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return []
    return list(stamp["categories"]) if (stamp["python"], stamp["lock"]) == (_python(), _lock_hash()) else []


def install(missing: list[str]) -> None:
    print(f"setting up .venv for {' and '.join(missing)}: about {_megabytes(missing)} MB to download", flush=True)
    started = time.monotonic()
    have = installed()
    if not have:
        make_venv()
    pipenv("sync", "--categories", " ".join(missing))
    stamp = {"python": _python(), "lock": _lock_hash(), "categories": sorted({*have, *missing})}
    part = STAMP.with_suffix(".part")
    part.write_text(json.dumps(stamp))
    part.replace(STAMP)
    print(f"set up in {time.monotonic() - started:.0f} s", flush=True)


def make_venv() -> None:
    """A fresh .venv with pipenv in it; one of another Python, or a half-made one, is replaced."""
    base = os.path.realpath(sys.executable)  # of the Python itself: this may be running from the .venv that goes
    try:
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir()
    except OSError as error:
        fail(f"cannot write {VENV}: {error.strerror}. Work in a folder that is yours")
    run(
        [base, "-m", "venv", str(VENV)],
        f"could not make .venv. On Debian and Ubuntu: apt install python{_python()}-venv",
    )
    run(
        [
            str(VENV / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            f"pipenv=={PIPENV}",
        ],
        "could not download pipenv. Is there a network, and does `pip download pip` work? Then run it again",
    )


def pipenv(*arguments: str) -> None:
    quiet = {"PIPENV_VERBOSITY": "-1", "PIPENV_NOSPIN": "1", "PIPENV_IGNORE_VIRTUALENVS": "0"}
    environment = {**os.environ, **quiet, "VIRTUAL_ENV": str(VENV), "PIPENV_PIPFILE": str(ROOT / "Pipfile")}
    run(
        [str(VENV / "bin" / "python"), "-m", "pipenv", *arguments],
        "could not download every package. Is there a network? Run it again; what is there is kept",
        environment,
    )


def lock() -> None:
    """Pipfile.lock for all categories, naming no source: packages come from wherever pip is told to look."""
    if not (VENV / "bin" / "pipenv").exists():
        make_venv()
    pipenv("lock", "--categories", " ".join(CATEGORIES))
    content = json.loads(LOCK.read_text())
    content["_meta"]["sources"] = []
    versions: dict[str, set[str]] = {}
    for category in content.keys() - {"_meta"}:
        for name, entry in content[category].items():
            entry.pop("index", None)
            versions.setdefault(name, set()).add(entry["version"])
    part = LOCK.with_suffix(".part")
    part.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n")
    part.replace(LOCK)
    differing = sorted(name for name, found in versions.items() if len(found) > 1)
    if differing:
        fail(f"locked in two versions: {', '.join(differing)}. Pin each in Pipfile in every category that needs it")


def run(command: list[str], otherwise: str, environment: dict[str, str] | None = None) -> None:
    """Run it silently; if it fails, show the end of what it said, then one line that says what to do."""
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print("\n".join(done.stdout.strip().splitlines()[-8:]), file=sys.stderr)
        fail(otherwise)


def fail(message: str) -> None:
    print(f"set-up: {message}.", file=sys.stderr)
    sys.exit(2)


def _check_python() -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
        fail(f"this is Python {_python()}; Loupe runs on {oldest} to {newest}. Name one: make PYTHON=python{newest} up")


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _lock_hash() -> str:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def _megabytes(categories: list[str]) -> int:
    """Several bring TensorFlow in; it is downloaded once."""
    here = {*installed()} & {*WITH_TENSORFLOW}
    coming = {*categories} & {*WITH_TENSORFLOW}
    again = max(0, len(coming) - (not here))
    return sum(ALONE[category] for category in categories) - again * TENSORFLOW


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nset-up: interrupted; run it again, what is downloaded is kept.", file=sys.stderr)
        sys.exit(130)
