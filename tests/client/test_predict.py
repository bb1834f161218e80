"""predict.py: what it takes, what it writes, what is kept when it is broken off, and that all ways say the same."""

from __future__ import annotations

import csv
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.gateways import gateway, running
from tests.support.pictures import encoded, picture
from tests.support.servers import ROOT, ModelServer, free_port, model_server, until

SAMPLES = ROOT / "data" / "samples"
NAMES = ["cracked-1", "cracked-2", "cracked-3", "normal-1", "normal-2", "normal-3"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples in folders of their labels, and what else lies in people's folders."""
    folder = tmp_path_factory.mktemp("photos")
    for name in NAMES:
        label = name.split("-")[0]
        (folder / label).mkdir(exist_ok=True)
        shutil.copy(SAMPLES / f"{name}.jpg", folder / label)
    (folder / "normal" / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("mine")
    (folder / ".hidden").mkdir()
    shutil.copy(SAMPLES / "cracked-1.jpg", folder / ".hidden")
    return folder


def start(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "predict.py"), *map(str, words)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **{"cwd": ROOT, **options}
    )


def predict(*words: str | Path, status: int = 0, given: str | None = None, **options: Any) -> tuple[str, str]:
    """Return what it printed on stdout and on stderr."""
    process = start(*words, stdin=subprocess.PIPE, **options)
    out, err = process.communicate(given, timeout=120)
    assert process.returncode == status, (out, err)
    assert "Traceback" not in err
    return out, err


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_picture_is_a_line() -> None:
    out, _ = predict(SAMPLES / "cracked-1.jpg")
    assert out.split()[0] == "cracked"
    assert out.count("\n") == 1


def test_a_folder_gives_lines_a_summary_accuracy_and_confusions(photos: Path) -> None:
    out, _ = predict(photos, status=1)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["cracked"] * 3
    assert "7 pictures in" in out
    assert "1 picture failed:\n      1  broken_image: These bytes are not a picture" in out
    assert "accuracy 100.0% of 6 pictures" in out
    assert ".hidden" not in out
    assert "1 other file is no picture by its name, and was left alone" in out


def test_a_csv_has_a_row_for_every_picture_in_order(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    predict(photos / "normal", photos / "cracked", tmp_path / "gone.jpg", "--csv", table, status=1)
    found = rows(table)
    assert [Path(row["file"]).stem for row in found] == [
        "broken", "normal-1", "normal-2", "normal-3", "cracked-1", "cracked-2", "cracked-3", "gone"
    ]  # fmt: skip
    assert found[1] | {"confidence": ""} == {
        "file": str(photos / "normal" / "normal-1.jpg"), "label": "normal", "confidence": "", "certain": "true",
        "reason": "", "version": "1", "error": "",
    }  # fmt: skip
    assert float(found[1]["confidence"]) > 0.9
    assert "broken_image" in found[0]["error"] and found[0]["label"] == ""
    assert "No such file" in found[-1]["error"]
    assert not (tmp_path / "labels.csv.part").exists()


def test_json_and_json_lines_have_all_scores(photos: Path, tmp_path: Path) -> None:
    out, err = predict(photos / "normal", "--json", "-", "--jsonl", tmp_path / "out.jsonl", status=1)
    listed = json.loads(out)
    assert listed == [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert listed[1]["scores"]["normal"] == listed[1]["confidence"]
    assert list(listed[0]) == ["file", "error"]
    assert "4 pictures in" in err, "the summary does not spoil what a pipe gets"
    out, _ = predict(SAMPLES / "cracked-1.jpg", "--json", "-", "--top", "1")
    assert list(json.loads(out)[0]["scores"]) == ["cracked"]


def test_globs_lists_and_addresses_are_taken(photos: Path) -> None:
    out, _ = predict(f"{photos}/**/*-2.jpg")
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["cracked", "normal"]
    listed = f"{SAMPLES / 'cracked-1.jpg'}\n{SAMPLES / 'normal-1.jpg'}\n"
    out, _ = predict("-", given=listed)
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["cracked", "normal"]
    out, _ = predict("-", given=listed.replace("\n", "\0"))
    assert "2 pictures in" in out
    handler = lambda *args: Quiet(*args, directory=str(SAMPLES))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{site.server_address[1]}"
        out, _ = predict(f"{address}/normal-1.jpg", f"{address}/none.jpg", status=1)
        site.shutdown()
    assert out.startswith("normal")
    assert "answered 404" in out


def test_an_address_is_fetched_once_to_be_classified_and_sorted(tmp_path: Path) -> None:
    asked: list[str] = []

    class Counting(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    handler = lambda *args: Counting(*args, directory=str(SAMPLES))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        predict(f"http://127.0.0.1:{site.server_address[1]}/normal-1.jpg?a=b", "--sort-into", tmp_path)
        site.shutdown()
    assert asked == ["/normal-1.jpg?a=b"]
    assert (tmp_path / "normal" / "normal-1.jpg").read_bytes() == (SAMPLES / "normal-1.jpg").read_bytes()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_table_of_ids_names_the_pictures(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "test.csv"
    table.write_text("Id,what\ncracked-1,cracked\nnormal-1.jpg,normal\nnix,normal\n")
    predict("--ids", table, "--images", photos, "--label-column", "what", "--csv", tmp_path / "out.csv", status=1)
    found = rows(tmp_path / "out.csv")
    assert [(row["file"], row["label"]) for row in found] == [
        ("cracked-1", "cracked"), ("normal-1.jpg", "normal"), ("nix", "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Id,label\n\ncracked-1\n", "has 2 columns, and line 3 has 1"),
        ("", "is empty"),
        ("\xff\xfe", "is no CSV in UTF-8"),
        ("a,b\n1,2\n", "has no column 'what'; it has a, b"),
    ],
)
def test_a_table_that_is_none_is_explained(photos: Path, tmp_path: Path, text: str, said: str) -> None:
    table = tmp_path / "test.csv"
    table.write_bytes(text.encode("latin-1"))
    _, err = predict("--ids", table, "--images", photos, "--id-column", "what", status=2)
    assert said in err and err.count("\n") == 1


def test_a_submission_has_every_row_in_the_sample_s_form(photos: Path, tmp_path: Path) -> None:
    by_label, by_column = tmp_path / "label.csv", tmp_path / "columns.csv"
    by_label.write_text("Id,label\nnormal-1,cracked\ncracked-1,cracked\nnix,cracked\n")
    by_column.write_text("Id,normal,cracked\nnormal-1,0,0\nnix,0,0\n")
    _, err = predict("--submission", by_label, "--images", photos, "--output", tmp_path / "a.csv", status=1)
    assert (tmp_path / "a.csv").read_text().startswith("Id,label\nnormal-1,normal\ncracked-1,cracked\nnix,")
    assert "3 rows; 1 have no usable picture" in err
    predict("--submission", by_column, "--images", photos, "--output", tmp_path / "b.csv", status=1)
    found = rows(tmp_path / "b.csv")
    assert float(found[0]["normal"]) > 0.9
    assert float(found[1]["normal"]) + float(found[1]["cracked"]) == pytest.approx(1, abs=1e-5)
    by_column.write_text("Id,cat,dog\nnormal-1,0,0\n")
    _, err = predict("--submission", by_column, "--images", photos, status=2)
    assert "no labels of this model: cat, dog" in err


@pytest.mark.parametrize("link", [False, True])
def test_pictures_are_sorted_into_folders_and_nothing_is_overwritten(photos: Path, tmp_path: Path, link: bool) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(SAMPLES / "cracked-2.jpg", other / "cracked-1.jpg")  # another picture of that name
    sorted_ = tmp_path / "sorted"
    for _ in range(2):  # the second run changes nothing
        predict(photos, other, "--sort-into", sorted_, *["--link"] * link, status=1)
        names = sorted(str(path.relative_to(sorted_)) for path in sorted_.rglob("*") if not path.is_dir())
        assert names == [
            "cracked/cracked-1-2.jpg", *(f"cracked/cracked-{n}.jpg" for n in (1, 2, 3)),
            *(f"normal/normal-{n}.jpg" for n in (1, 2, 3)),
        ]  # fmt: skip
    first = sorted_ / "cracked" / "cracked-1.jpg"
    assert first.is_symlink() is link
    assert first.read_bytes() == (SAMPLES / "cracked-1.jpg").read_bytes()


def test_what_contradicts_itself_is_one_line(tmp_path: Path) -> None:
    for words, said in [
        ([], "Name pictures"),
        (["x.jpg", "--ids", "a.csv"], "one of the three"),
        (["--ids", "a.csv"], "--images"),
        (["x.jpg", "--images", "d"], "belong to --ids"),
        (["x.jpg", "--resume"], "--resume goes on with a CSV"),
        (["x.jpg", "--link"], "--sort-into"),
        (["x.jpg", "--csv", "-", "--json", "-"], "Only one"),
        (["x.jpg", "--top", "0"], "--top"),
        ([str(tmp_path)], "No picture was found"),
        ([f"{tmp_path}/*.jpg"], "Nothing matches"),
        ([str(SAMPLES), "--model", "nix"], "no such folder"),
        ([str(SAMPLES), "--model", "http://localhost:9"], "does not answer"),
        ([str(SAMPLES), "--csv", "/nix/out.csv"], "cannot be written"),
    ]:
        _, err = predict(*words, status=2)
        assert said in err, (words, err)
        assert err.count("\n") <= 2


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough pictures to be broken off among."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(400):
        (folder / f"{number:03}.jpg").write_bytes(encoded(picture(500, 400, seed=number)))
    (folder / "200.jpg").write_bytes(b"broken")
    return folder


def test_killed_and_resumed_the_csv_equals_the_undisturbed_one(many: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    predict(many, "--csv", whole, status=1)
    for number in (signal.SIGKILL, signal.SIGINT):
        _break_off(many, broken, number)
        _, err = predict(many, "--csv", broken, status=2)
        assert "--resume goes on" in err, "nothing is overwritten by mistake"
        out, _ = predict(many, "--csv", broken, "--resume", status=1)
        assert broken.read_text() == whole.read_text()
        assert "400 pictures in" in out
        broken.unlink()


def _break_off(many: Path, table: Path, number: signal.Signals) -> None:
    process = start(many, "--csv", table)
    part = table.with_name(f"{table.name}.part")
    until(lambda: part.exists() and part.read_text().count("\n") > 20, "the first rows")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert not table.exists()
    done = part.read_text().count("\n")
    assert 20 < done < 380, "it was broken off in the middle"
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "of 400 are done and kept in" in err and "Traceback" not in err
    part.write_text(part.read_text() + '"half a ro')  # and what a kill cuts off


def test_resuming_other_pictures_or_another_version_is_refused(many: Path, sample_models: Path, tmp_path: Path) -> None:
    table = tmp_path / "out.csv"
    _break_off(many, table, signal.SIGTERM)
    _, err = predict(SAMPLES, "--csv", table, "--resume", status=2)
    assert "The pictures are not those of" in err and "row 1 is" in err
    newer = tmp_path / "models" / "tires"
    shutil.copytree(sample_models / "tires" / "1", newer / "2")
    _, err = predict(many, "--csv", table, "--resume", "--model", newer, status=2)
    assert "was begun with version 1 of the model, and now 2 answers" in err


def test_a_full_disk_keeps_what_is_done(many: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "predict.py"), str(many), "--csv", "-"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the disk is full" in err and "Traceback" not in err


def test_whoever_reads_the_output_may_go(many: Path) -> None:
    process = start(many, "--jsonl", "-")
    assert process.stdout and process.stdout.readline()
    process.stdout.close()
    assert process.stderr
    err = process.stderr.read()
    process.wait(60)
    assert "Traceback" not in err


def test_every_way_gives_the_same_labels(photos: Path, sample_models: Path, tmp_path: Path) -> None:
    with (
        model_server(sample_models, "tires", f"--rest_api_port={free_port()}") as server,
        gateway(f"localhost:{server.port}") as here,
    ):
        tables = []
        for number, words in enumerate(
            [
                ["--model", str(sample_models / "tires")],
                ["--model", f"http://localhost:{here.port}"],
                ["--model", f"grpc://localhost:{server.port}", "--name", "tires"],
                ["--model", f"http://localhost:{server.rest_port}", "--name", "tires"],
            ]
        ):
            table = tmp_path / f"{number}.csv"
            predict(photos, "--csv", table, *words, status=1)
            tables.append([(row["file"], row["label"], row["certain"], row["error"]) for row in rows(table)])
    assert tables[1:] == [tables[0]] * 3


@contextmanager
def gateway_at(port: int, server: ModelServer) -> Iterator[None]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOUPE_")}
    environment = {**kept, "TF_SERVING_HOST": f"localhost:{server.port}", "LOUPE_PORT": str(port)}
    with running([sys.executable, "-m", "gunicorn", "gateway:app"], ROOT, environment, port):
        yield


def test_a_gateway_that_goes_away_in_the_middle_loses_nothing(many: Path, sample_models: Path, tmp_path: Path) -> None:
    """It is back within the patience of predict.py, and nobody notices."""
    table, port = tmp_path / "out.csv", free_port()
    part = tmp_path / "out.csv.part"
    with model_server(sample_models, "tires") as server:
        with gateway_at(port, server):
            process = start(many, "--model", f"http://localhost:{port}", "--csv", table)
            until(lambda: part.exists() and part.read_text().count("\n") > 20, "the first rows")
        assert not table.exists(), "it was not done before"
        with gateway_at(port, server):
            _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert len(rows(table)) == 400
    assert [row["file"] for row in rows(table) if row["error"]] == [str(many / "200.jpg")]


def test_a_gateway_that_stays_away_ends_it_with_what_is_done(many: Path, sample_models: Path, tmp_path: Path) -> None:
    table, port = tmp_path / "out.csv", free_port()
    part = tmp_path / "out.csv.part"
    with model_server(sample_models, "tires") as server:
        with gateway_at(port, server):
            process = start(many, "--model", f"http://localhost:{port}", "--csv", table, "--patience", "1")
            until(lambda: part.exists() and part.read_text().count("\n") > 20, "the first rows")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "does not answer" in err and "the same command with --resume goes on" in err and "Traceback" not in err
        with gateway_at(port, server):
            predict(many, "--model", f"http://localhost:{port}", "--csv", table, "--resume", status=1)
    assert len(rows(table)) == 400


def test_the_sample_model_is_found_from_any_folder(tmp_path: Path) -> None:
    Image.open(SAMPLES / "normal-1.jpg").save(tmp_path / "a b.png")
    out, _ = predict("a b.png", cwd=tmp_path)
    assert out.split()[0] == "normal"
