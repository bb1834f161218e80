"""POST /feedback: what is kept of a correction, by which rules, and what becomes of the rest."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from loupe import feedback, files
from loupe.gateway.access.keys import digest_of
from tests.gateway.test_metrics import scrape
from tests.support import models
from tests.support.backends import backend
from tests.support.gateways import Answer, Gateway, gateway, internet, running
from tests.support.pictures import encoded, picture
from tests.support.servers import ROOT, ModelServer, free_port, until

PICTURE = encoded()
SHA256 = hashlib.sha256(PICTURE).hexdigest()


def kept(root: Path, state: str = "waiting") -> dict[str, list[str]]:
    """The names of the pictures in each label's folder, and no note without one."""
    found = {folder.name: sorted(path.name for path in folder.iterdir()) for folder in (root / state).glob("*")}
    for names in found.values():
        assert {Path(name).stem for name in names if name.endswith(".json")} == {Path(name).stem for name in names}
    return {folder: [name for name in names if not name.endswith(".json")] for folder, names in found.items() if names}


def note(root: Path, label: str, state: str = "waiting") -> Any:
    (path,) = (root / state / label).glob("*.json")
    return json.loads(path.read_text())


def refused(answer: Answer, status: int, code: str) -> str:
    assert (answer.status, answer.json()["code"]) == (status, code), answer.body
    return str(answer.json()["detail"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "corrections"


@pytest.fixture
def here(server: ModelServer, root: Path) -> Iterator[Gateway]:
    with gateway(f"localhost:{server.port}", LOUPE_FEEDBACK_DIR=str(root)) as started:
        yield started


# ------------------------------------------------------------------------------------------------ what is kept


def test_a_picture_is_kept_as_it_was_sent_with_what_the_model_really_said(here: Gateway, root: Path) -> None:
    said = here.post("/predict", PICTURE).json()
    answer = here.post("/feedback?label=worn&predicted=cracked", PICTURE, **{"X-Request-ID": "mine-1"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    predicted = {key: said[key] for key in ("label", "confidence", "certain", "reason")}
    assert answer.json() == {
        "kept": True,
        "label": "worn",
        "predicted": predicted,
        "model": {"name": "tires", "version": 1},
        "request_id": "mine-1",
    }
    assert kept(root) == {"worn": [f"{SHA256}.jpg"]}
    assert (root / "waiting" / "worn" / f"{SHA256}.jpg").read_bytes() == PICTURE
    written = note(root, "worn")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", written.pop("time"))
    assert written == {
        "label": "worn",
        "predicted": predicted,
        "model": {"name": "tires", "version": 1},
        "request_id": "mine-1",
    }
    assert sorted(entry.name for entry in root.iterdir()) == [".lock", "waiting"], "nothing is left beside"


def test_one_picture_may_be_sent_in_every_way_that_predict_takes_one(server: ModelServer, root: Path) -> None:
    sent = [encoded(picture(seed=seed)) for seed in range(4)]
    with (
        internet(lambda _, write: write(b"HTTP/1.0 200 OK\r\n\r\n" + sent[3])) as port,
        gateway(f"localhost:{server.port}", LOUPE_FEEDBACK_DIR=str(root), LOUPE_FETCH_ALLOW="127.0.0.1") as started,
    ):
        answers = [
            started.post("/feedback?label=worn", sent[0], "image/jpeg"),
            started.post_files("/feedback?label=worn", sent[1]),
            started.post_json("/feedback?label=worn", {"b64": base64.b64encode(sent[2]).decode()}),
            started.post_json("/feedback?label=worn", {"url": f"http://127.0.0.1:{port}/a.jpg"}),
        ]
    assert [(answer.status, answer.json()["kept"]) for answer in answers] == [(200, True)] * 4
    assert kept(root)["worn"] == sorted(f"{hashlib.sha256(data).hexdigest()}.jpg" for data in sent)


def test_its_suffix_is_that_of_its_bytes(here: Gateway, root: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"):
        assert here.post("/feedback?label=worn", encoded(kind=kind), "image/tiff").json()["kept"], kind
    assert {Path(name).suffix for name in kept(root)["worn"]} == {".jpg", ".png", ".webp", ".gif", ".bmp", ".avif"}


def test_what_cannot_be_kept_is_refused_and_leaves_nothing(here: Gateway, root: Path) -> None:
    two = [base64.b64encode(PICTURE).decode()] * 2
    for query, body, kind, status, code, said in (
        ("", PICTURE, None, 400, "bad_request", "/feedback?label=LABEL"),
        ("label=", PICTURE, None, 400, "bad_request", "/feedback?label=LABEL"),
        ("label=worn&label=cracked", PICTURE, None, 400, "bad_request", "Say once"),
        ("label=Worn", PICTURE, None, 400, "bad_request", "it has cracked, normal, worn."),
        ("label=%1b%5bworn", PICTURE, None, 400, "bad_request", "no label of this model"),
        ("label=worn", PICTURE[:300], None, 422, "broken_image", "damaged"),
        ("label=worn", b"", None, 422, "broken_image", "empty"),
        ("label=worn", b"%PDF-1.4", None, 415, "unsupported_image", "JPEG"),
        ("label=worn", PICTURE, "text/html", 415, "unsupported_body", "JSON"),
        ("label=worn", json.dumps({"urls": ["http://x.invalid/"]}), "application/json", 400, "bad_request", "One"),
        ("label=worn", json.dumps({"b64": two}), "application/json", 400, "bad_request", "b64"),
        ("label=worn", json.dumps({"url": "http://10.0.0.1/"}), "application/json", 400, "refused_url", "upload"),
    ):
        detail = refused(here.post(f"/feedback?{query}", body, kind), status, code)
        assert said.lower() in detail.lower()
        assert "\x1b" not in detail
    assert "One picture" in refused(here.post_files("/feedback?label=worn", PICTURE, PICTURE), 400, "bad_request")
    refused(here.get("/feedback?label=worn"), 405, "method_not_allowed")
    assert kept(root) == {}


def test_a_correction_counts_in_the_log_and_not_as_a_prediction(server: ModelServer, root: Path) -> None:
    port = free_port()
    settings = {"LOUPE_FEEDBACK_DIR": str(root), "LOUPE_METRICS_PORT": str(port)}
    with gateway(f"localhost:{server.port}", **settings) as started:
        label = started.post("/feedback?label=worn", PICTURE, **{"X-Request-ID": "mine-2"}).json()["predicted"]["label"]
        until(lambda: "mine-2" in started.log.read_text(), "the log")
        (line,) = [json.loads(line) for line in started.log.read_text().splitlines() if '"mine-2"' in line]
        numbers = scrape(port)
    assert (line["path"], line["labels"], line["version"], line["pictures"]) == ("/feedback", {label: 1}, 1, 1)
    assert numbers['loupe_requests_total{endpoint="/feedback",status="200"}'] == 1
    assert not any(name.startswith("loupe_predictions_total") for name in numbers)


# ------------------------------------------------------------------------------------------------ once, by content


def test_the_same_picture_is_kept_once_and_moves_with_its_label(here: Gateway, root: Path) -> None:
    sent = [here.post(f"/feedback?label={label}", PICTURE).json()["kept"] for label in ("worn", "worn", "normal")]
    assert sent == [True, False, True]
    assert kept(root) == {"normal": [f"{SHA256}.jpg"]}
    assert note(root, "normal")["label"] == "normal"


@pytest.mark.parametrize("state", ["accepted", "rejected"])
def test_what_was_reviewed_is_not_asked_for_again(here: Gateway, root: Path, state: str) -> None:
    here.post("/feedback?label=worn", PICTURE)
    (waiting,) = feedback.pictures(root, "waiting")
    assert feedback.move(root, feedback.read(waiting), state)
    assert [here.post(f"/feedback?label={label}", PICTURE).json()["kept"] for label in ("worn", "normal")] == [
        False
    ] * 2
    assert (kept(root), kept(root, state)) == ({}, {"worn": [f"{SHA256}.jpg"]})


def test_a_restart_forgets_nothing(server: ModelServer, root: Path) -> None:
    for expected in (True, False):
        with gateway(f"localhost:{server.port}", LOUPE_FEEDBACK_DIR=str(root)) as started:
            assert started.post("/feedback?label=worn", PICTURE).json()["kept"] is expected


def test_a_folder_is_where_the_gateway_was_started(server: ModelServer, tmp_path: Path) -> None:
    """gateway.py goes on in the folder of the code, where the relative path would be another one."""
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")},
        "TF_SERVING_HOST": f"localhost:{server.port}", "LOUPE_PORT": str(port), "LOUPE_FEEDBACK_DIR": "mine",
    }  # fmt: skip
    with running([sys.executable, str(ROOT / "gateway.py")], tmp_path, environment, port) as here:
        assert here.post("/feedback?label=worn", PICTURE).json()["kept"]
    assert kept(tmp_path / "mine") == {"worn": [f"{SHA256}.jpg"]}
    assert not (ROOT / "mine").exists()


def test_what_a_kill_left_half_written_is_written_again(here: Gateway, root: Path) -> None:
    """A note without its picture, and a part beside it: that is all a kill can leave."""
    (root / "waiting" / "worn").mkdir()
    (root / "waiting" / "worn" / f"{SHA256}.json").write_text("{")
    (root / ".part").write_bytes(PICTURE[:100])
    assert here.post("/feedback?label=worn", PICTURE).json()["kept"]
    (waiting,) = feedback.pictures(root, "waiting")
    assert feedback.read(waiting).label == "worn"


# ------------------------------------------------------------------------------------------------ labels

HOSTILE = [
    ["../x", "a/b", ".."],
    [".", "/", "\\"],
    ["é" * 300, "é" * 299, "x" * 3000],
    ["a\nb", "a\tb", "\x00"],
    ["%2E", "~", "con "],
    ["not sure", ".hidden", "\u202egnp"],
]


@pytest.mark.parametrize("labels", HOSTILE)
def test_a_label_never_leaves_its_folder_and_is_told_as_it_is(tmp_path: Path, labels: list[str]) -> None:
    """Hostile input 52."""
    root = tmp_path / "corrections"
    with (
        backend(lambda *_: None, models.card(labels=labels)) as behind,
        gateway(f"localhost:{behind.port}", LOUPE_FEEDBACK_DIR=str(root)) as started,
    ):
        for seed, label in enumerate(labels):
            answer = started.post(f"/feedback?label={quote(label, safe='')}", encoded(picture(seed=seed)))
            assert answer.json()["label"] == label
            assert answer.json()["kept"], label
        refused(started.post("/feedback?label=" + quote("../../x", safe=""), PICTURE), 400, "bad_request")
    corrections = [feedback.read(path) for path in feedback.pictures(root, "waiting")]
    assert Counter(one.label for one in corrections) == Counter(labels)
    assert {one.picture.parent.parent for one in corrections} == {root / "waiting"}
    assert len({one.picture.parent for one in corrections}) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["corrections"]


def test_plain_labels_name_their_folders_themselves() -> None:
    for label in ("cracked", "T-Shirt", "not sure", "v1.2", "a_b", "Äpfel", "猫"):
        assert files.folder_name(label) == label
    assert files.folder_name("a/b") == "a%2Fb"


# ------------------------------------------------------------------------------------------------ how much


def test_no_more_wait_than_may_and_two_workers_count_together(server: ModelServer, root: Path) -> None:
    """Hostile input 53."""
    settings = {"LOUPE_FEEDBACK_MAX": "10", "LOUPE_WORKERS": "2"}
    pictures = [encoded(picture(seed=seed)) for seed in range(30)]
    with (
        gateway(f"localhost:{server.port}", LOUPE_FEEDBACK_DIR=str(root), **settings) as started,
        ThreadPoolExecutor(12) as pool,
    ):
        answers = list(pool.map(lambda data: started.post("/feedback?label=worn", data), pictures))
        assert Counter(answer.status for answer in answers) == {200: 10, 507: 20}
        full = next(answer for answer in answers if answer.status == 507)
        assert "train.py --review" in refused(full, 507, "feedback_full")
        assert len(kept(root)["worn"]) == 10
        # What is there may still be corrected, and what is taken away leaves room.
        there = next(data for data, answer in zip(pictures, answers, strict=True) if answer.status == 200)
        assert started.post("/feedback?label=normal", there).json()["kept"]
        for path in (root / "waiting" / "normal").iterdir():
            path.unlink()
        assert started.post("/feedback?label=worn", there).json()["kept"]


def test_bytes_are_bounded_too(server: ModelServer, root: Path) -> None:
    room = str(2 * len(PICTURE))  # for one and its note, and not for another
    with gateway(f"localhost:{server.port}", LOUPE_FEEDBACK_DIR=str(root), LOUPE_FEEDBACK_BYTES=room) as started:
        assert started.post("/feedback?label=worn", PICTURE).status == 200
        refused(started.post("/feedback?label=worn", encoded(picture(seed=2))), 507, "feedback_full")


def test_two_workers_keep_one_picture_once(server: ModelServer, root: Path) -> None:
    with (
        gateway(f"localhost:{server.port}", LOUPE_FEEDBACK_DIR=str(root), LOUPE_WORKERS="2") as started,
        ThreadPoolExecutor(12) as pool,
    ):
        same = pool.map(lambda _: started.post("/feedback?label=worn", PICTURE).json()["kept"], range(24))
        assert Counter(same) == {True: 1, False: 23}
        labels = ["worn", "normal", "cracked"] * 12
        assert {answer.status for answer in pool.map(
            lambda label: started.post(f"/feedback?label={label}", PICTURE), labels
        )} == {200}  # fmt: skip
    (waiting,) = feedback.pictures(root, "waiting")
    assert feedback.read(waiting).label in labels


# ------------------------------------------------------------------------------------------------ faults


def assert_told(here: Gateway, why: str) -> None:
    log = here.log.read_text()
    assert f"A correction cannot be kept in LOUPE_FEEDBACK_DIR: {why}." in log
    assert "traceback" not in log


def test_a_full_disk_is_a_problem_that_says_so(here: Gateway, root: Path) -> None:
    """/dev/full is one: each write to it finds no room."""
    (root / ".part").symlink_to("/dev/full")
    answer = here.post("/feedback?label=worn", PICTURE)
    detail = refused(answer, 507, "feedback_unwritable")
    assert "No space left on device" in detail
    assert str(root) not in detail
    assert kept(root) == {}
    assert_told(here, "No space left on device")
    assert here.post("/predict", PICTURE).status == 200
    assert here.post("/feedback?label=worn", PICTURE).json()["kept"], "as soon as there is room"


def test_a_folder_that_cannot_be_written_any_more_is_a_problem_that_says_so(here: Gateway, root: Path) -> None:
    (root / "waiting").rmdir()
    (root / "waiting").write_text("")
    refused(here.post("/feedback?label=worn", PICTURE), 507, "feedback_unwritable")
    assert_told(here, "Not a directory")
    (root / "waiting").unlink()
    assert here.post("/feedback?label=worn", PICTURE).json()["kept"]


@pytest.mark.slow
def test_a_lock_that_is_never_given_back_is_waited_for_and_then_told(here: Gateway, root: Path) -> None:
    with (root / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(here.post("/feedback?label=worn", PICTURE), 507, "feedback_unwritable")
    assert here.post("/feedback?label=worn", PICTURE).json()["kept"]


@pytest.mark.slow
def test_a_gateway_that_is_killed_again_and_again_leaves_whole_corrections(server: ModelServer, root: Path) -> None:
    pictures = [encoded(picture(seed=seed)) for seed in range(60)]
    with gateway(f"localhost:{server.port}", LOUPE_FEEDBACK_DIR=str(root), LOUPE_WORKERS="2") as started:

        def send(number: int) -> None:
            if number % 10 == 9:
                for worker in started.workers()[:1]:
                    os.kill(worker, signal.SIGKILL)
            with suppress(OSError, HTTPException):  # its worker was killed
                started.post(f"/feedback?label={'worn' if number % 3 else 'normal'}", pictures[number % 60])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send, range(240)))
        until(lambda: started.get("/healthz").status == 200, "the gateway")
        for data in pictures:
            assert started.post("/feedback?label=cracked", data).status == 200
    corrections = [feedback.read(path) for path in feedback.pictures(root, "waiting")]
    assert {one.sha256 for one in corrections} == {hashlib.sha256(data).hexdigest() for data in pictures}
    assert len(corrections) == 60


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("/proc/nowhere")])
def test_a_folder_that_is_none_stops_the_gateway_with_all_that_is_wrong(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "corrections")
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "gateway:app"], cwd=ROOT,
        env={"LOUPE_FEEDBACK_DIR": str(tmp_path / "corrections"), "LOUPE_FEEDBACK_MAX": "0"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "LOUPE_FEEDBACK_DIR: nothing can be written to" in done.stderr
    assert "LOUPE_FEEDBACK_MAX is '0'" in done.stderr


# ------------------------------------------------------------------------------------------------ who may


def test_it_is_off_unless_a_folder_is_named(server: ModelServer) -> None:
    with gateway(f"localhost:{server.port}") as started:
        assert "not taken here" in refused(started.post("/feedback?label=worn", PICTURE), 404, "not_found")
        assert "/feedback" not in started.get("/openapi.json").json()["paths"]
        assert b"/feedback" not in started.get("/docs").body


def test_it_needs_a_key_where_keys_are_on_and_notes_whose_it_was(
    server: ModelServer, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"anne:{digest_of('loupe_anne')}\n")
    settings = {"LOUPE_FEEDBACK_DIR": str(root), "LOUPE_API_KEYS": str(tmp_path / "keys")}
    with gateway(f"localhost:{server.port}", **settings) as started:
        refused(started.post("/feedback?label=worn", PICTURE), 401, "unauthorized")
        assert kept(root) == {}
        assert started.post("/feedback?label=worn", PICTURE, **{"X-API-Key": "loupe_anne"}).json()["kept"]
        assert "security" in started.get("/openapi.json").json()["paths"]["/feedback"]["post"]
    assert note(root, "worn")["key"] == "anne"


def test_it_is_described_and_pages_of_allowed_sites_may_send(server: ModelServer, root: Path) -> None:
    site = "https://app.example.org"
    settings = {"LOUPE_FEEDBACK_DIR": str(root), "LOUPE_CORS_ORIGINS": site}
    with gateway(f"localhost:{server.port}", **settings) as started:
        described = started.get("/openapi.json").json()
        assert b"/feedback?label=cracked" in started.get("/docs").body
        answer = started.post("/feedback?label=worn", PICTURE, Origin=site)
        asked = {"Origin": site, "Access-Control-Request-Method": "POST"}
        assert started.ask("OPTIONS", "/feedback", None, asked).headers["Access-Control-Allow-Origin"] == site
    assert answer.headers["Access-Control-Allow-Origin"] == site
    assert set(answer.json()) == set(described["components"]["schemas"]["Kept"]["properties"])
    assert set(answer.json()["predicted"]) == set(described["components"]["schemas"]["Predicted"]["properties"])
    assert "507" in described["paths"]["/feedback"]["post"]["responses"]
