"""AVIF is decoded by processes of their own, which are ended when they have had their share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from loupe.errors import Busy, ImageError, TooManyPixels
from loupe.images import sandbox, weight
from loupe.images.allowance import Allowance
from loupe.images.api import decode, upright_size
from loupe.images.decode import decode_here
from loupe.images.room import Room
from tests.support.hostile_pictures import avif_declaring, avif_of_frames, avif_of_items, webp_of_tables
from tests.support.pictures import encoded, picture
from tests.support.servers import ROOT, until

AVIF = encoded(picture(300, 200), "AVIF")


def children() -> list[int]:
    """The processes that decode for this one."""
    own = Path(f"/proc/{os.getpid()}/task")
    ids = [int(child) for task in own.iterdir() for child in (task / "children").read_text().split()]
    return sorted(child for child in ids if b"sandbox_child" in Path(f"/proc/{child}/cmdline").read_bytes())


class Hurried(Allowance):
    """Of a request that ends so many seconds from now."""

    def __init__(self, left: float) -> None:
        self.deadline, self.spent = time.monotonic() + left, 0.0

    def wait_for(self, room: Room, amount: int) -> None:
        if not room.take(amount, max(0.0, self.deadline - time.monotonic())):
            raise Busy("There is none; wait.")

    def spend(self, seconds: float) -> None:
        self.spent += seconds


def test_its_pixels_and_its_size_are_those_of_any_other_way() -> None:
    assert (decode(AVIF, 100, 120) == decode_here(AVIF, 100, 120)).all()
    assert upright_size(AVIF) == (200, 300)


def test_one_process_decodes_them_all() -> None:
    decode(AVIF, 8, 8)
    first = children()
    for _ in range(3):
        decode(AVIF, 8, 8)
    assert children() == first
    assert len(first) <= sandbox.PROCESSES


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
    with pytest.raises(ImageError, match="too long|damaged"):
        decode(data, 8, 8)
    assert time.process_time() - spent < 1
    assert decode(AVIF, 8, 8).shape == (8, 8, 3)


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def killed() -> list[int]:
    """Have at least one that is idle, and kill all."""
    decode(AVIF, 8, 8)
    before = children()
    for child in before:
        os.kill(child, signal.SIGKILL)
    until(lambda: all(state(child) == "Z" for child in before), "their end")
    return before


def test_told_to_stop_with_its_parent_it_goes_on_until_that_ends() -> None:
    """SIGTERM to all processes of a service, as systemd sends it: the gateway still answers what it has."""
    decode(AVIF, 8, 8)
    before = children()
    for child in before:
        os.kill(child, signal.SIGTERM)
    assert decode(AVIF, 8, 8).shape == (8, 8, 3)
    assert children() == before


def test_killed_while_idle_it_is_started_again() -> None:
    before = killed()
    assert decode(AVIF, 8, 8).shape == (8, 8, 3)
    assert not set(children()) & set(before)


@pytest.mark.parametrize("more", [0, 9_000_000])
def test_one_that_stands_still_is_given_up_at_the_deadline_and_the_next_picture_is_answered(more: int) -> None:
    """It reads nothing: a request larger than its socket takes cannot even be sent."""
    decode(AVIF, 8, 8)
    stopped = children()
    for child in stopped:
        os.kill(child, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(Busy):
        decode(AVIF + bytes(more), 8, 8, Hurried(0.3))
    assert time.monotonic() - started >= 0.3
    left = set(stopped) & set(children())
    assert len(left) == len(stopped) - 1
    for child in left:
        os.kill(child, signal.SIGCONT)
    assert decode(AVIF, 8, 8).shape == (8, 8, 3)


def test_one_that_still_starts_is_not_ended_by_a_picture_that_cannot_wait() -> None:
    killed()
    with pytest.raises(Busy):
        decode(AVIF, 8, 8, Hurried(0.001))
    until(lambda: len(children()) == 1, "the start of one")
    starting = children()
    assert decode(AVIF, 8, 8).shape == (8, 8, 3)
    assert children() == starting


def test_beside_a_picture_that_takes_long_others_are_decoded() -> None:
    slow = avif_of_frames(300)
    decode(AVIF, 8, 8)
    with ThreadPoolExecutor(1) as pool:
        attack = pool.submit(decode, slow, 8, 8)
        count = 0
        while not attack.done():
            assert decode(AVIF, 8, 8).shape == (8, 8, 3)
            count += 1
        assert count > 5
        with pytest.raises(ImageError, match="too long"):
            attack.result()


def test_where_all_are_busy_the_next_waits_until_its_deadline_and_no_longer() -> None:
    slow = avif_of_frames(300)
    with ThreadPoolExecutor(sandbox.PROCESSES) as pool:
        attacks = [pool.submit(decode, slow, 8, 8) for _ in range(sandbox.PROCESSES)]
        time.sleep(0.2)
        started = time.monotonic()
        with pytest.raises(Busy):
            decode(AVIF, 8, 8, Hurried(0.3))
        assert time.monotonic() - started >= 0.3
        assert not any(attack.done() for attack in attacks)
        assert decode(AVIF, 8, 8).shape == (8, 8, 3), "it is its turn after one of them"
    assert len(children()) <= sandbox.PROCESSES


def test_the_time_it_takes_is_told() -> None:
    allowance = Hurried(60)
    decode(encoded(picture(2000, 1500), "AVIF"), 8, 8, allowance)
    assert 0.005 < allowance.spent < sandbox.SECONDS
    with pytest.raises(ImageError, match="too long"):
        decode(avif_of_frames(300), 8, 8, allowance)
    assert allowance.spent > sandbox.SECONDS


def test_a_picture_that_takes_more_memory_than_it_was_weighed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (6000, 6000)), "AVIF", speed=10)
    assert decode(data, 8, 8).shape == (8, 8, 3)
    monkeypatch.setitem(weight.BY_FORMAT, "AVIF", 1.0)  # as if it had declared far less
    with pytest.raises(ImageError):
        decode(data, 8, 8)
    monkeypatch.undo()
    assert decode(data, 8, 8).shape == (8, 8, 3)


def test_a_webp_full_of_tables_is_refused_before_it_has_taken_much_more_than_its_pixels() -> None:
    """In this process it would take 381 MB, and 17 by its header."""
    data = webp_of_tables(1024)
    assert len(data) < 300_000
    assert decode(webp_of_tables(64), 8, 8).shape == (8, 8, 3), "it is a picture"
    for child in children():
        Path(f"/proc/{child}/clear_refs").write_text("5")  # VmHWM counts from here
    with pytest.raises(ImageError):
        decode(data, 8, 8)
    assert all(peak(child) < 150_000 for child in children())


def peak(process: int) -> int:
    return int(Path(f"/proc/{process}/status").read_text().split("VmHWM:")[1].split()[0])  # kB


def test_an_idle_one_keeps_little_of_a_large_picture() -> None:
    decode(encoded(Image.new("RGB", (6000, 6000)), "AVIF", speed=10), 8, 8)
    decode(encoded(Image.new("RGB", (6000, 6000)), "WEBP", lossless=True), 8, 8)
    until(lambda: all(resident(child) < 80_000 for child in children()), "its memory")


def resident(process: int) -> int:
    return int(Path(f"/proc/{process}/status").read_text().split("VmRSS:")[1].split()[0])  # kB


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
        "import os, sys, time; from loupe.images.api import decode; decode(sys.stdin.buffer.read(), 8, 8);"
        "print(open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read(), flush=True); time.sleep(60)"
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
