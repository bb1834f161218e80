"""AVIF is decoded by a process of its own, which is ended when it has had its share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loupe.errors import ImageError, TooManyPixels
from loupe.images import sandbox
from loupe.images.api import decode, upright_size
from loupe.images.decode import decode_here
from tests.support.hostile_pictures import avif_declaring, avif_of_frames, avif_of_items
from tests.support.pictures import encoded, picture
from tests.support.servers import ROOT, until

AVIF = encoded(picture(300, 200), "AVIF")


def helper() -> int:
    assert sandbox._helper
    return sandbox._helper[1].pid


def test_its_pixels_and_its_size_are_those_of_any_other_way() -> None:
    assert (decode(AVIF, 100, 120) == decode_here(AVIF, 100, 120)).all()
    assert upright_size(AVIF) == (200, 300)


def test_one_process_decodes_them_all() -> None:
    decode(AVIF, 8, 8)
    first = helper()
    for _ in range(3):
        decode(AVIF, 8, 8)
    assert helper() == first


def test_its_errors_are_those_of_any_other_way() -> None:
    with pytest.raises(TooManyPixels, match="12000×12000"):
        decode(avif_declaring(12000, 12000), 8, 8)
    with pytest.raises(ImageError, match="damaged"):
        decode(AVIF[:-50], 8, 8)
    with pytest.raises(ImageError):
        upright_size(AVIF[:100])


@pytest.mark.parametrize(
    "hostile",
    [lambda: avif_of_frames(5000), pytest.param(lambda: avif_of_items(400_000), marks=pytest.mark.slow)],
)
def test_what_takes_too_long_is_ended_and_the_next_is_answered(hostile: object) -> None:
    assert callable(hostile)
    data = hostile()
    spent = time.process_time()
    with pytest.raises(ImageError, match="too long"):
        decode(data, 8, 8)
    assert time.process_time() - spent < 1
    assert decode(AVIF, 8, 8).shape == (8, 8, 3)


def test_killed_while_idle_it_is_started_again() -> None:
    decode(AVIF, 8, 8)
    before = helper()
    os.kill(before, signal.SIGKILL)
    until(lambda: Path(f"/proc/{before}/stat").read_text().rpartition(")")[2].split()[0] == "Z", "its end")
    assert decode(AVIF, 8, 8).shape == (8, 8, 3)
    assert helper() != before


def test_after_ctrl_c_the_next_picture_gets_its_own_answer(tmp_path: Path) -> None:
    """Test in a process of its own, which gets the Ctrl-C."""
    (tmp_path / "slow").write_bytes(avif_of_frames(80))
    (tmp_path / "next").write_bytes(AVIF)
    code = """
import sys
from pathlib import Path
from loupe.images.api import decode
from loupe.images.decode import decode_here
slow, following = (Path(name).read_bytes() for name in sys.argv[1:])
decode(following, 8, 8)
print("now", flush=True)
try:
    decode(slow, 8, 8)
    print("it was too fast")
except KeyboardInterrupt:
    print("same" if (decode(following, 8, 8) == decode_here(following, 8, 8)).all() else "other")
"""
    # Interrupt it while it decodes the slow picture.
    command = [sys.executable, "-c", code, str(tmp_path / "slow"), str(tmp_path / "next")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "now\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "same\n"


def test_it_ends_with_its_parent_however_that_ends() -> None:
    code = (
        "import sys, time; from loupe.images import sandbox; from loupe.images.api import decode;"
        "decode(sys.stdin.buffer.read(), 8, 8); print(sandbox._helper[1].pid, flush=True); time.sleep(60)"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe) as parent:
        assert parent.stdin and parent.stdout
        parent.stdin.write(AVIF)
        parent.stdin.close()
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        assert child.exists()
        parent.kill()
    until(lambda: not child.exists(), "its helper's end")
