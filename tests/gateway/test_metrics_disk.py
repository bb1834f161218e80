"""The files that metrics are kept in are mapped: a page of one that finds no room on the disk would kill the worker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.test_publish import UNSHARE, mounting
from tests.support.servers import ROOT

COUNTS = """
import os, sys, time
os.environ["PROMETHEUS_MULTIPROC_DIR"] = sys.argv[1]
from loupe.gateway.observe import metrics
from loupe.gateway.observe.record import Entry

if "full before" in sys.argv[2]:
    fill()
metrics.start(8)
if sys.argv[2] == "full after":
    fill()
if "with room after" in sys.argv[2]:
    os.remove(sys.argv[1] + "/filler")
    time.sleep(metrics.CHECK_SECONDS)
for number in range(300):  # each a series of its own, on new pages
    metrics.record(Entry("id", "GET", "/", "", endpoint=f"endpoint {number}", status=200))
print("alive", metrics.scrape().count(b"loupe_requests_total{"))
"""
FILL = """
def fill():
    with open(sys.argv[1] + "/filler", "wb", 0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
"""


@pytest.mark.parametrize(
    ("when", "series"), [("full after", 300), ("full before", 0), ("full before, with room after", 300)]
)
def test_a_worker_outlives_a_full_disk(tmp_path: Path, when: str, series: int) -> None:
    if not mounting():
        pytest.skip("no file system can be mounted here")
    mount = ["sh", "-c", 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"', str(tmp_path)]
    command = [*UNSHARE, *mount, sys.executable, "-c", FILL + COUNTS, str(tmp_path), when]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"alive {series}\n"), done.stderr
