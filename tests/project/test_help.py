"""Test `--help` of every script: it fits a screen or stands under headings, and it is there at once."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loupe.cli import fill
from tests.support.pace import seconds
from tests.support.servers import ROOT

SCRIPTS = (
    "train.py", "convert.py", "gateway.py", "serve.py", "predict.py", "test.py", "data/tires.py", "data/fetch.py",
    "-m loupe.modelserver", "-m loupe.gateway.keys", "tools/environment.py", "tools/release.py",
)  # fmt: skip
BENCHMARKS = tuple(f"benchmarks/{name}.py" for name in ("footprint", "frozen", "int8", "sample", "tune"))
SCREEN = 50  # lines; what has more is grouped
HEAVY = ("tensorflow", "keras", "openvino", "numpy", "PIL", "flask", "sklearn")
MOST_SECONDS = 0.3  # of processor time
GROUP = re.compile(r"^([a-z][\w -]*):\n  [A-Z].*\.\n\n  -", re.MULTILINE)  # a heading, and what it is about


@functools.cache
def help_of(script: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """Its --help, with every import on stderr."""
    command = [sys.executable, "-X", "importtime", *script.split(), "--help"]
    variables = {**os.environ, "COLUMNS": str(columns)}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)


def imported(script: str) -> set[str]:
    lines = [line for line in help_of(script).stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 20
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("script", [*SCRIPTS, *BENCHMARKS])
def test_help_fits_80_columns_and_a_screen_or_is_grouped(script: str) -> None:
    done = help_of(script)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert len(lines) <= SCREEN or len(GROUP.findall(done.stdout)) >= 3, f"{len(lines)} lines, not grouped"
    assert script.split()[-1] in done.stdout, "an example"
    assert [line for line in done.stderr.splitlines() if not line.startswith("import time:")] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_that_takes_long(script: str) -> None:
    assert imported(script) & set(HEAVY) == set()


def test_every_script_has_its_help_tested() -> None:
    scripts = {path.name for path in ROOT.glob("*.py")} - {"proto.py", "gunicorn.conf.py"}
    assert scripts <= set(SCRIPTS)
    mains = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "loupe").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    inner = {"loupe/images/sandbox_child.py"}  # started by Loupe alone
    assert mains - inner == {"loupe/modelserver/__main__.py", "loupe/gateway/keys.py"}


def test_a_narrow_terminal_gets_narrow_paragraphs_and_whole_commands() -> None:
    narrow, wide = help_of("gateway.py", 50).stdout, help_of("gateway.py", 300).stdout
    prose = [line for line in narrow.splitlines() if not line.startswith(" ")]
    assert max(map(len, prose)) <= 50
    assert max(map(len, wide.splitlines())) <= 100
    for text in (narrow, wide):
        assert "    curl -F file=@data/samples/cracked-1.jpg http://localhost:9696/predict\n" in text


def test_paragraphs_are_filled_and_indented_lines_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "42")
    doc = "One two three four five six\nseven eight nine ten.\n\n    a  command  # of any length\n"
    assert fill(doc).split("\n") == [
        "One two three four five six seven eight", "nine ten.", "",
        "    a  command  # of any length",
    ]  # fmt: skip
    monkeypatch.setenv("COLUMNS", "1")
    assert fill("Two words").split() == ["Two", "words"]


@pytest.mark.timing
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_there_in_under_a_third_of_a_second_of_processor_time(script: str, tmp_path: Path) -> None:
    """The least of three, once its byte code is cached."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    variables["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    took = []
    for _ in range(4):
        command = [sys.executable, *script.split(), "--help"]
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        took.append(usage.ru_utime + usage.ru_stime)
    assert min(took[1:]) < seconds(MOST_SECONDS)
