"""data/fetch.py against a real server on this machine."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import fetch as script
from data.fetch import CARS, FOOD, SOURCES, Source, below, fetch
from loupe.errors import UserError
from loupe.training.data import download as downloading
from tests.support.servers import ROOT, free_port, until

ALL = below("")


def packed(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


def tarred(*entries: tuple[str, bytes | None]) -> bytes:
    """Return a tar of these entries; None is a symbolic link that leads out."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
            entry.size = len(content or b"")
            archive.addfile(entry, io.BytesIO(content or b""))
    return memory.getvalue()


PICTURES = packed({f"things/{label}/{n}.jpg": os.urandom(20_000) for label in ("a", "b") for n in range(10)})


@dataclass
class Site:
    """A server of one file that knows Range and If-Range, and whose faults are set from outside."""

    content: bytes = PICTURES
    tag: str = '"one"'
    content_type: str = "application/zip"
    status: int = 0  # answered instead of the file
    cut: int = 0  # bytes of an answer's body after which the connection is closed
    declared: int = 0  # Content-Length instead of the true one
    redirect: str = ""
    slow: threading.Event | None = None  # waits for it after half of the body
    seen: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/things.zip"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.seen.append({name.lower(): value for name, value in handler.headers.items()})
        # Answers that are set from outside.
        if self.redirect:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
            return
        if self.status:
            handler.send_error(self.status)
            return
        # The part that is asked for, if it is of this version.
        wanted_range = self.seen[-1].get("range", "") if self.seen[-1].get("if-range") == self.tag else ""
        start = int(wanted_range.removeprefix("bytes=").rstrip("-") or 0)
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        # The headers.
        handler.send_response(206 if wanted_range else 200)
        body = self.content[start:]
        if wanted_range:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.tag:
            handler.send_header("ETag", self.tag)
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Content-Length", str(self.declared or len(body)))
        handler.end_headers()
        # The body, slowly or cut off if so set.
        if self.slow:
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            self.slow.wait(30)
            body = body[len(body) // 2 :]
        handler.wfile.write(body[: self.cut or None])


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    site.port = server.server_port
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def source(site: Site | str, place: Callable[[Sequence[str]], dict[str, str]] = ALL, **more: object) -> Source:
    url = site if isinstance(site, str) else site.url
    return Source("things", url, "https://example.org/things", 1, 20, place, **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nothing_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no proxy of the machine's, and no long pauses between tries."""
    for name in [*os.environ]:
        if name.startswith("KAGGLE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "no-key"))
    monkeypatch.setattr(downloading, "PAUSE", 0.001)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(archive: bytes = PICTURES) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def refused(things: Source, out: Path) -> str:
    with pytest.raises(UserError) as raised:
        fetch(things, out)
    assert not out.exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_an_archive_is_fetched_and_unpacked_and_nothing_else_is_left(tmp_path: Path) -> None:
    with serving(Site()) as site:
        assert fetch(source(site), tmp_path / "data" / "things") == 20
    assert contents(tmp_path / "data" / "things") == expected()
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["things"]


def test_a_connection_that_breaks_again_and_again_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with serving(Site(cut=70_000)) as site:
        fetch(source(site), tmp_path / "things")
    assert contents(tmp_path / "things") == expected()
    assert [seen.get("range") for seen in site.seen][:3] == [None, "bytes=70000-", "bytes=140000-"]


def test_a_killed_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out, partial = tmp_path / "things", tmp_path / "things.zip.part"
    with serving(Site(slow=threading.Event(), content=packed({"a.jpg": os.urandom(6_000_000)}))) as site:
        code = (
            "from pathlib import Path; from data.fetch import *\n"
            f"fetch(Source('things', {site.url!r}, '', 1, 1, below('')), Path({str(out)!r}))"
        )
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
        until(lambda: partial.exists() and partial.stat().st_size > 1_000_000, "half of it")
        process.kill()
        process.wait(60)
        have, slow = partial.stat().st_size, site.slow
        assert slow
        site.slow = None
        slow.set()
        assert not out.exists()
        fetch(source(site), out)
    assert contents(out) == expected(site.content)
    assert site.seen[-1]["range"] == f"bytes={have}-"


def test_ctrl_c_says_what_is_kept_of_a_download_and_how_to_go_on(tmp_path: Path) -> None:
    out, partial = tmp_path / "things", tmp_path / "things.zip.part"
    with serving(Site(slow=threading.Event(), content=packed({"a.jpg": os.urandom(6_000_000)}))) as site:
        code = (
            "import sys; from data import fetch as script; from loupe.cli import run_script\n"
            f"script.SOURCES['flowers'] = script.Source('', {site.url!r}, '', 1, 1, script.below(''))\n"
            f"sys.argv = ['fetch.py', 'flowers', '--out', {str(out)!r}]\n"
            "run_script(script.main)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        until(lambda: partial.exists() and partial.stat().st_size > 1_000_000, "half of it")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert f" MB are kept in {partial}: the same command goes on from there" in said
        assert len(said.strip().splitlines()) == 1
        assert site.slow
        site.slow.set()


def test_what_was_whole_but_not_yet_renamed_is_not_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "things.zip.part").write_bytes(PICTURES)
    (tmp_path / "things.zip.part.json").write_text('{"version": "\\"one\\""}')
    with serving(Site()) as site:
        fetch(source(site), tmp_path / "things")
    assert len(site.seen) == 1
    assert contents(tmp_path / "things") == expected()


def test_two_versions_of_a_file_are_never_joined(tmp_path: Path) -> None:
    (tmp_path / "things.zip.part").write_bytes(b"of yesterday")
    (tmp_path / "things.zip.part.json").write_text('{"version": "\\"yesterday\\""}')
    with serving(Site()) as site:
        fetch(source(site), tmp_path / "things")
    assert contents(tmp_path / "things") == expected()


def test_a_server_without_versions_is_asked_for_all_of_it_again(tmp_path: Path) -> None:
    (tmp_path / "things.zip.part").write_bytes(b"something")
    with serving(Site(tag="")) as site:
        fetch(source(site), tmp_path / "things")
    assert "range" not in site.seen[0]
    assert contents(tmp_path / "things") == expected()


def test_a_body_that_is_always_cut_at_the_same_place_ends_in_one_line(tmp_path: Path) -> None:
    with serving(Site(cut=1000, tag="")) as site:
        said = refused(source(site), tmp_path / "things")
    assert "broke off" in said
    assert "save it as" in said
    assert len(site.seen) == 1 + downloading.TRIES


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_is_gone_is_one_line_that_says_what_to_do_by_hand(tmp_path: Path, status: int) -> None:
    with serving(Site(status=status)) as site:
        said = refused(source(site), tmp_path / "things")
    assert f"answers {status}" in said
    assert f"save it as {tmp_path}/things.zip, and run this again" in said
    assert not any(tmp_path.iterdir())


def test_a_busy_server_is_asked_again_a_few_times(tmp_path: Path) -> None:
    with serving(Site(status=503)) as site:
        assert "answers 503" in refused(source(site), tmp_path / "things")
    assert len(site.seen) == 1 + downloading.TRIES


def test_without_a_network_one_line_says_what_to_download_and_where_to_put_it(tmp_path: Path) -> None:
    said = refused(source(f"http://127.0.0.1:{free_port()}/things.zip"), tmp_path / "things")
    assert "cannot be reached" in said
    assert f"save it as {tmp_path}/things.zip" in said


def test_what_was_put_there_by_hand_is_taken_and_left(tmp_path: Path) -> None:
    (tmp_path / "things.zip").write_bytes(PICTURES)
    fetch(source(f"http://127.0.0.1:{free_port()}/things.zip"), tmp_path / "things")
    assert contents(tmp_path / "things") == expected()
    assert (tmp_path / "things.zip").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "mine.jpg").touch()
    with serving(Site()) as site, pytest.raises(UserError, match="is there already"):
        fetch(source(site), tmp_path / "things")
    assert [*contents(tmp_path / "things")] == ["mine.jpg"]
    assert not site.seen


@pytest.mark.parametrize("name", ["../out.jpg", "a/../../out.jpg", "/tmp/out.jpg", "C:/out.jpg", "..\\out.jpg"])
def test_a_name_that_leads_elsewhere_refuses_the_whole_archive(tmp_path: Path, name: str) -> None:
    with serving(Site(content=packed({"a.jpg": b"fine", name: b"not"}))) as site:
        assert "land elsewhere" in refused(source(site), tmp_path / "data" / "things")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "things.zip"]


def test_a_link_in_a_tar_refuses_the_whole_archive(tmp_path: Path) -> None:
    with serving(Site(content=tarred(("a.jpg", b"fine"), ("etc", None), ("etc/out.jpg", b"not")))) as site:
        assert "no plain file" in refused(source(site), tmp_path / "things")


def test_a_tar_is_unpacked_too(tmp_path: Path) -> None:
    with serving(Site(content=tarred(("./in/b/2.jpg", b"two"), ("./in/a/1.jpg", b"one")))) as site:
        fetch(source(site, below("in/")), tmp_path / "things")
    assert contents(tmp_path / "things") == {"b/2.jpg": b"two", "a/1.jpg": b"one"}


def test_an_archive_that_would_fill_any_disk_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = bytearray(packed({f"{n}.jpg": b"small" for n in range(9)}))
    offset = 0
    while (offset := bomb.find(b"PK\x01\x02", offset + 1)) > 0:
        bomb[offset + 24 : offset + 28] = (4_000_000_000).to_bytes(4, "little")  # the size that it declares
    with serving(Site(content=bytes(bomb))) as site:
        assert "36.0 GB: too much" in refused(source(site), tmp_path / "things")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    with serving(Site(content=PICTURES[:100_000])) as site:
        assert "is damaged" in refused(source(site), tmp_path / "things")
    (tmp_path / "things.zip").unlink()
    flipped = bytearray(PICTURES)
    flipped[100_000] ^= 1
    with serving(Site(content=bytes(flipped))) as site:
        assert "is damaged" in refused(source(site), tmp_path / "things")


def test_an_archive_of_other_things_is_refused(tmp_path: Path) -> None:
    with serving(Site()) as site:
        assert "nothing of what was looked for" in refused(source(site, below("elsewhere/")), tmp_path / "things")


def test_another_size_or_another_content_than_the_known_is_refused(tmp_path: Path) -> None:
    with serving(Site()) as site:
        assert "bytes where 7 were known" in refused(source(site, size=7), tmp_path / "things")
        assert "not the archive that was known" in refused(source(site, sha256="0" * 64), tmp_path / "things")


def test_a_download_that_the_disk_has_no_room_for_is_refused_at_once(tmp_path: Path) -> None:
    with serving(Site(declared=10**15)) as site:
        assert "1000000000 MB are to come" in refused(source(site), tmp_path / "things")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_fills_up_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "things.zip.part").symlink_to("/dev/full")
    with serving(Site()) as site:
        assert "is full" in refused(source(site), tmp_path / "things")


def test_kaggles_key_goes_to_kaggle_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", "someone")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    with serving(Site()) as storage, serving(Site(redirect=storage.url)) as kaggle:
        fetch(source(kaggle, kaggle=True, has_rules=True), tmp_path / "things")
        fetch(source(kaggle), tmp_path / "others")
    assert kaggle.seen[0]["authorization"] == "Basic c29tZW9uZTpzZWNyZXQ="
    assert "authorization" not in kaggle.seen[1]
    assert not any("authorization" in seen for seen in storage.seen)


def test_kaggles_key_is_read_from_where_kaggle_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert script.credentials() == ""
    (tmp_path / "no-key").mkdir()
    file = tmp_path / "no-key" / "kaggle.json"
    file.write_text('{"username": "someone", "key": "secret"}')
    assert script.credentials() == "Basic c29tZW9uZTpzZWNyZXQ="
    file.write_text('{"user"')
    with pytest.raises(UserError, match="kaggle.json is not as Kaggle gives it out"):
        script.credentials()
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_secret")
    assert script.credentials() == "Bearer KGAT_secret"


def test_without_a_key_kaggles_competition_says_how_to_get_one(tmp_path: Path) -> None:
    with serving(Site()) as site:
        said = refused(source(site, kaggle=True, has_rules=True), tmp_path / "things")
    assert "KAGGLE_KEY" in said
    assert "accept the rules on https://example.org/things" in said
    assert not site.seen


def test_rules_that_were_not_accepted_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    with serving(Site(status=403)) as site:
        said = refused(source(site, kaggle=True, has_rules=True), tmp_path / "things")
    assert "were the rules accepted" in said
    assert "secret" not in said


def test_a_page_instead_of_an_archive_is_said_so(tmp_path: Path) -> None:
    with serving(Site(content_type="text/html; charset=utf-8", content=b"<html>Log in")) as site:
        assert "a web page instead of a file" in refused(source(site), tmp_path / "things")


def test_each_problem_is_laid_out_as_its_recipe_wants_it() -> None:
    """The names are as others report them: the archives could not be fetched where this was written."""
    # Cars: some pictures of each model, from both halves.
    halves = [f"car_data/car_data/{half}" for half in ("train", "test")]
    cars = [
        f"{half}/{model}/{n:05}.jpg" for half in halves for model in (*CARS, "Volvo 240 Sedan 1993") for n in range(40)
    ]
    placed = SOURCES["cars"].place(cars)
    assert len(set(placed.values())) == SOURCES["cars"].pictures == 175
    for model in CARS:
        assert sum(target.startswith(f"train/{model}/") for target in placed.values()) == 28
        assert sum(target.startswith(f"validation/{model}/") for target in placed.values()) == 7
    # The others: files of the archive, and where they go.
    reported: dict[str, dict[str, str | None]] = {
        "tires": {"Tire Textures/training_data/cracked/Cracked-123.jpg": "training_data/cracked/Cracked-123.jpg"},
        "food": {f"food-101/images/{FOOD[0]}/1.jpg": f"{FOOD[0]}/1.jpg", "food-101/images/waffles/2.jpg": None},
        "kitchenware": {"images/0000.jpg": "images/0000.jpg", "train.csv": "train.csv"},
        "flowers": {"flower_photos/LICENSE.txt": "LICENSE.txt", "flower_photos/roses/1_b.jpg": "roses/1_b.jpg"},
        "clothing": {
            "clothing-dataset-small-master/train/dress/a.jpg": "train/dress/a.jpg",
            "clothing-dataset-small-master/README.md": None,
        },
    }
    for name, wanted in reported.items():
        assert SOURCES[name].place(list(wanted)) == {old: new for old, new in wanted.items() if new}, name


def test_the_script_lists_what_there_is_and_names_the_nearest(tmp_path: Path) -> None:
    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", str(ROOT / "data" / "fetch.py"), *words]  # -S: no installed packages
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, **more}, capture_output=True, text=True)

    assert all(name in run().stdout for name in SOURCES)
    offline = run("flowers", https_proxy=f"http://127.0.0.1:{free_port()}")
    assert offline.returncode == 2
    assert offline.stderr.count("\n") == 1
    assert "save it as data/flowers.tgz" in offline.stderr
    assert run("kitchen").returncode == 2
