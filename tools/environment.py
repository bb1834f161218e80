"""Install into .venv what a target of the Makefile needs, and nothing more.
Standard library only.

    python3 tools/environment.py packages modelserver   # categories of Pipfile
    python3 tools/environment.py --lock                 # write Pipfile.lock

The file .venv/loupe.json remembers the Python, the lock file and the
categories, so that a target that has nothing to install costs a few
milliseconds.
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
PIPENV = "2026.10.3"  # the same as in the dockerfiles; a test checks that
OLDEST, NEWEST = (3, 11), (3, 13)  # the newest that TensorFlow 2.20 is built for
# For each category alone; client shares OpenVINO with modelserver, beside which it is always installed.
DOWNLOAD_MB = {
    "packages": 40, "client": 4, "modelserver": 60, "training": 740, "export": 670, "dev-packages": 780, "tracing": 2,
    "gpu": 3450, "efficientnetlite0": 17,
}  # fmt: skip
TENSORFLOW_MB = 640  # included in some of these
CATEGORIES = tuple(DOWNLOAD_MB)
WITH_TENSORFLOW = ("training", "export", "dev-packages", "gpu")  # tensorflow-serving-api needs it, too


def main(wanted: list[str]) -> None:
    if "--help" in wanted or "-h" in wanted:
        print(f"{__doc__}\nCategories:\n    {' '.join(CATEGORIES[:6])}\n    {' '.join(CATEGORIES[6:])}")
        return
    _check_python()
    if wanted == ["--lock"]:
        lock()
        return
    unknown = sorted(set(wanted) - set(CATEGORIES))
    if unknown or not wanted:
        fail(f"unknown category {unknown}; there are {', '.join(CATEGORIES)}")
    if "gpu" in wanted and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        fail("TensorFlow uses NVIDIA's GPUs on Linux on x86-64 alone. Leave GPU=1 out")
    missing = [category for category in wanted if category not in installed()]
    if missing:
        install(missing)


def installed() -> list[str]:
    """Return the categories that .venv has as in this lock file, for this Python."""
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
    partial = STAMP.with_suffix(".part")
    partial.write_text(json.dumps(stamp))
    partial.replace(STAMP)
    print(f"set up in {time.monotonic() - started:.0f} s", flush=True)


def make_venv() -> None:
    """Make a fresh .venv with pipenv in it. One of another Python, or a half-made one, is replaced."""
    # Delete the old one.
    base = os.path.realpath(sys.executable)  # the Python itself: this may be running from the .venv that is deleted
    try:
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir()
    except OSError as error:
        fail(f"cannot write {VENV}: {error.strerror}. Work in a folder that is yours")
    # Make a new one, and install pipenv.
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
    """Write Pipfile.lock for all categories. It names no source: packages come from wherever pip is configured to
    look."""
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
    partial = LOCK.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n")
    partial.replace(LOCK)
    differing = sorted(name for name, locked in versions.items() if len(locked) > 1)
    if differing:
        fail(f"locked in two versions: {', '.join(differing)}. Pin each in Pipfile in every category that needs it")


def run(command: list[str], advice: str, environment: dict[str, str] | None = None) -> None:
    """Run the command silently. If it fails, show the end of its output, then one line that says what to do."""
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print("\n".join(done.stdout.strip().splitlines()[-8:]), file=sys.stderr)
        fail(advice)


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
    """Return the size of the download. TensorFlow is counted once, though several categories need it."""
    present = {*installed()} & {*WITH_TENSORFLOW}
    wanted = {*categories} & {*WITH_TENSORFLOW}
    counted_twice = max(0, len(wanted) - (not present))
    return sum(DOWNLOAD_MB[category] for category in categories) - counted_twice * TENSORFLOW_MB


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nset-up: interrupted; run it again, what is downloaded is kept.", file=sys.stderr)
        sys.exit(130)
