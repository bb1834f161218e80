"""train.py --review: the sheet, the numbers on it, and what becomes of the pictures that they name."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loupe import feedback
from loupe.errors import UserError
from loupe.training.review.choice import choose
from tests.support import corrections
from tests.support.pictures import encoded, exif, picture
from tests.support.servers import ROOT
from tests.training.test_training import refused, train

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def put(root: Path, label: str, seed: int, **more: Any) -> Path:
    """A correction that waits. A later seed is a later picture; odd ones lie on their side."""
    data = encoded(picture(120, 80, seed=seed), exif=exif(6)) if seed % 2 else encoded(picture(seed=seed), "PNG")
    return corrections.put(root, label, data, age=seed, **more)


def review(root: Path, *flags: str) -> str:
    ran = train("--review", root, *flags)
    assert ran.returncode == 0, ran.stderr
    return str(ran.stdout)


def names(root: Path, state: str) -> set[str]:
    return {path.name for path in feedback.pictures(root, state)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "corrections"


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("accept", "reject", "chosen"),
    [
        ("1,3-7", "all", ([1, 3, 4, 5, 6, 7], [2, 8, 9])),
        ("all", "2", ([1, 3, 4, 5, 6, 7, 8, 9], [2])),
        ("none", " 9 , 8-8", ([], [8, 9])),
        ("", "", ([], [])),
        ("3 - 4", "NONE", ([3, 4], [])),
    ],
)
def test_numbers_are_read_as_people_write_them(accept: str, reject: str, chosen: Any) -> None:
    assert choose(accept, reject, 9) == chosen


@pytest.mark.parametrize(
    ("accept", "reject", "said"),
    [
        ("0", "", "from 1 to 9"), ("1-10", "", "from 1 to 9"), ("4-2", "", "lower one first"), ("1,,2", "", "'' is no"),
        ("one", "", "'one' is no"), ("1-999999999", "", "from 1 to 9"), ("9" * 5000, "", "is no number"),
        ("-1", "", "'-1' is no"), ("1-3", "3", "3 is both"), ("all", "all", "cannot be both"), ("١", "", "is no"),
    ],
)  # fmt: skip
def test_numbers_that_are_none_say_why(accept: str, reject: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose(accept, reject, 9)


# ------------------------------------------------------------------------------------------------ without a terminal


def test_what_is_accepted_or_rejected_moves_and_the_rest_waits_on(root: Path) -> None:
    paths = [put(root, "cracked", 1), put(root, "cracked", 2), put(root, "normal", 3), put(root, "normal", 4)]
    said = review(root)
    assert re.search(r"1-2 +cracked\n +3-4 +normal\n", said)
    said = review(root, "--accept", "1,4", "--reject", "2")
    assert re.search(r"waiting +1\naccepted +2\nrejected +1\n", said)
    assert names(root, "accepted") == {paths[0].name, paths[3].name}
    assert [path.parent.name for path in feedback.pictures(root, "accepted")] == ["cracked", "normal"]
    assert (names(root, "rejected"), names(root, "waiting")) == ({paths[1].name}, {paths[2].name})
    assert all(feedback.read(path).note["time"] for state in feedback.STATES for path in feedback.pictures(root, state))
    assert "4: it was accepted before" in review(root, "--reject", "3-4"), "the same sheet, so the same numbers"
    assert names(root, "rejected") == {paths[1].name, paths[2].name}


def test_numbers_mean_what_the_sheet_showed_whatever_came_since(root: Path) -> None:
    shown = [put(root, "cracked", 1), put(root, "cracked", 2), put(root, "normal", 3)]
    review(root)
    put(root, "a label before all others", 0)
    put(root, "cracked", 4)
    feedback.keep(root, shown[1].read_bytes(), shown[1].suffix[1:], {"label": "normal"}, shown[1])
    shown[2].unlink()
    said = review(root, "--accept", "all")
    assert "2: it is said to be normal by now, so it waits on" in said
    assert "3: it was taken away since the sheet was written" in said
    assert names(root, "accepted") == {shown[0].name}
    assert len(names(root, "waiting")) == 3


def test_nothing_is_accepted_that_nobody_could_look_at(root: Path) -> None:
    put(root, "cracked", 1)
    assert "Nobody has looked at them yet" in refused(train("--review", root, "--accept", "all"))
    (root / "review.html").write_text("<p>")
    assert "is no sheet of a review" in refused(train("--review", root, "--accept", "all"))
    (root / "review.html").write_text('<script type="application/json" id="numbers">["../../x"]</script>')
    assert "is no sheet of a review" in refused(train("--review", root, "--accept", "all"))
    assert names(root, "accepted") == set()


def test_damaged_corrections_are_named_and_keep_nobody_from_the_others(root: Path) -> None:
    cut, lost, changed, whole = (put(root, "cracked", seed) for seed in range(1, 5))
    cut.write_bytes(cut.read_bytes()[:200])
    lost.with_suffix(".json").unlink()
    changed.with_suffix(".json").write_text('{"label": "normal"}')
    (root / "waiting" / "cracked" / ("0" * 64 + ".jpg")).mkdir()
    bomb = root / "waiting" / "cracked" / (hashlib.sha256(b"no picture").hexdigest() + ".jpg")
    bomb.write_bytes(b"no picture")
    bomb.with_suffix(".json").write_text('{"label": "cracked", "predicted": 7, "model": [], "key": "\\u202e"}')
    said = review(root)
    for path in (cut, lost, changed, bomb):
        assert re.search(rf"skipped +\S*{path.name}", said), said
    assert re.search(r"\n +1 +cracked\n", said)
    assert "skipped" not in review(root, "--accept", "1")
    assert names(root, "accepted") == {whole.name}


def test_a_picture_that_is_damaged_after_it_was_looked_at_is_not_accepted(root: Path) -> None:
    path = put(root, "cracked", 1)
    review(root)
    path.write_bytes(encoded(picture(seed=9)))
    assert "1: " in review(root, "--accept", "all")
    assert names(root, "accepted") == set()


def test_an_empty_folder_has_nothing_to_review_and_another_is_refused(root: Path) -> None:
    (root / "waiting").mkdir(parents=True)
    assert "nothing waits" in review(root)
    assert "holds no corrections" in refused(train("--review", root / "nowhere"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--accept", "all"], "--review DIR"),
        (["--review", "x", "--add", "y"], "one of the two"),
        (["--review", "x", "--epochs", "3"], "leave --epochs out"),
        (["--review", "x", "--fresh"], "leave --fresh out"),
        (["photos", "--review", "x"], "leave 'photos' out"),
        (["--add", "x"], "--from runs/NAME"),
        (["--from", "x"], "--add DIR"),
        (["--add", "x", "--from", "y", "--recipe", "sample"], "leave --recipe out"),
        (["--add", "x", "--from", "y", "--lr", "1"], "leave --lr out"),
        (["--add", "x", "--from", "y", "--check"], "leave --check out"),
    ],
)
def test_flags_that_make_no_sense_together_are_one_line(flags: list[str], said: str) -> None:
    assert said in refused(train(*flags))


# ------------------------------------------------------------------------------------------------ at a terminal


Say = Callable[[str], None]


def at_terminal(root: Path, talk: Callable[[Say, Say, Callable[[], None]], None]) -> tuple[int, str]:
    """Run --review with a terminal. `talk` gets three functions: wait until this is said; type that; Ctrl-C."""
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "--review", root], stdin=its, stdout=its, stderr=its,
        preexec_fn=os.setsid, close_fds=True,
    )  # fmt: skip
    os.close(its)
    said = ""

    def wait(words: str) -> None:
        nonlocal said
        limit = time.monotonic() + 60
        while said.count(words) == 0:
            assert time.monotonic() < limit, said
            said += os.read(mine, 1000).decode()

    def type_in(text: str) -> None:
        nonlocal said
        said = ""
        os.write(mine, text.encode())

    def interrupt() -> None:
        """Ctrl-C, again if it came between the question and the wait for its answer, where Python does not see it."""
        for _ in range(10):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
                return

    talk(wait, type_in, interrupt)
    status = process.wait(60)
    os.set_blocking(mine, False)
    with suppress(OSError):  # the terminal is gone
        while part := os.read(mine, 1000):
            said += part.decode()
    os.close(mine)
    return status, said


def test_a_terminal_is_asked_what_to_accept_and_then_what_to_reject(root: Path) -> None:
    paths = [put(root, "cracked", seed) for seed in range(1, 5)]

    def talk(wait: Say, type_in: Say, interrupt: Callable[[], None]) -> None:
        wait("accept which?")
        type_in("5\n")
        wait("from 1 to 4")
        type_in("1-2\n")
        wait("reject which")
        type_in("2\n")
        wait("2 is both")
        type_in("4\n")

    status, said = at_terminal(root, talk)
    assert (status, "Traceback" in said) == (0, False), said
    assert names(root, "accepted") == {path.name for path in paths[:2]}
    assert (names(root, "rejected"), names(root, "waiting")) == ({paths[3].name}, {paths[2].name})


def test_ctrl_c_keeps_what_was_decided(root: Path) -> None:
    paths = [put(root, "cracked", seed) for seed in range(1, 4)]

    def talk(wait: Say, type_in: Say, interrupt: Callable[[], None]) -> None:
        wait("accept which?")
        type_in("2\n")
        wait("reject which")
        interrupt()

    status, said = at_terminal(root, talk)
    assert (status, "Traceback" in said) == (130, False), said
    assert (names(root, "accepted"), len(names(root, "waiting"))) == ({paths[1].name}, 2)


# ------------------------------------------------------------------------------------------------ the sheet

HOSTILE = '<img src=x onerror=alert(1)>"\u202e'


def test_the_sheet_is_one_file_and_escapes_what_it_quotes(root: Path) -> None:
    put(root, HOSTILE, 1, said="</script><script>alert(2)</script>", key="<b>")
    put(root, "cracked", 2)
    review(root)
    html = (root / "review.html").read_text()
    assert "<img src=x" not in html and "<script>alert" not in html and "<b>" not in html and "\u202e" not in html
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', html) == []
    assert [entry.name for entry in root.iterdir() if entry.name.endswith(".part")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_sheet_fits_phones_and_screens(chromium: Browser, root: Path, width: int, scheme: Any) -> None:
    for seed in range(1, 13):
        put(root, "cracked" if seed % 3 else "a label that is as long as labels are when people name folders", seed)
    put(root, "normal", 20, key="anne")
    review(root)
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: asked.append(request.url))
    page.goto(f"file://{root}/review.html")
    assert page.locator(".number").all_inner_texts() == [str(number) for number in range(1, 14)]
    corner = "(number) => { const at = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.top] };"
    corner += " return `${at(number)}` === `${at(number.parentNode)}` }"
    assert all(number.evaluate(corner) for number in page.locator(".number").all()), "each on its picture, top left"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    text = page.locator("main").inner_text()
    assert "the model said normal (97\u202f%, not certain)" in text
    assert "2026-05-04 10:20:30 UTC · version 3 · key anne" in text
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    if folder := os.environ.get("LOUPE_SHOTS"):
        page.screenshot(path=f"{folder}/review-{width}-{scheme}.png", full_page=True)
    page.close()
