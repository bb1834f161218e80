"""What predict.py is made of, called directly: ids, globs, targets, copies, the lock, the summary."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loupe.card import Card
from loupe.client.bulk.csv_table import CsvTable
from loupe.client.bulk.find import find, lines
from loupe.client.bulk.ids import find_ids
from loupe.client.bulk.lock import Lock
from loupe.client.bulk.row import Row
from loupe.client.bulk.sort_into import NotSorted, Sorter
from loupe.client.bulk.submission import Form
from loupe.client.bulk.summary import Summary
from loupe.client.bulk.table_file import TableFile
from loupe.client.bulk.target import OURS, Target, check_targets, part_of
from loupe.client.picture import Picture, picture_of
from loupe.errors import PictureUnreadable, UserError
from tests.support.servers import ROOT, free_port


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name in ("a.jpg", "x/a.jpg", "x/b.jpg", "x/c.jpg", "y/c.jpg", "y/d.jpg", "y/d.png", "y/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(*words: Path | str, without: Path | None = None) -> list[str]:
    return ["/".join(Path(found.picture.name).parts[-2:]) for found in find(map(str, words), without).pictures]


def test_an_id_is_a_path_or_a_name_that_only_one_file_has(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "ids.csv"
    for given, found in {
        "a.jpg": "a.jpg", "a": "a.jpg", "x/a": "x/a.jpg", "./x/a.jpg": "x/a.jpg", "b": "x/b.jpg", "b.jpg": "x/b.jpg",
        "d.png": "y/d.png", "y/notes.txt": "y/notes.txt", str(images / "x" / "b.jpg"): "x/b.jpg",
    }.items():  # fmt: skip
        table.write_text(f"id\n{given}\n{given}\n")
        once, twice = (each.picture for each in find_ids(table, images, None, None).pictures)
        assert once.name == given and once == twice
        assert once.read().decode() == found
    for given, said in {
        "c": "c could be 2 files: x/c.jpg, y/c.jpg",
        "c.jpg": "2 files",
        "y/d": "y/d could be 2 files: y/d.jpg, y/d.png",
        "z/b.jpg": "No such file",
    }.items():
        table.write_text(f"id\n{given}\n")
        [each] = find_ids(table, images, None, None).pictures
        with pytest.raises(PictureUnreadable, match=said):
            each.picture.read()
    table.write_text("id\nhttp://localhost/a.jpg\n")
    assert find_ids(table, images, None, None).pictures[0].picture.address == "http://localhost/a.jpg"


def test_tables_have_commas_semicolons_or_tabs(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    for mark in ",;\t":
        path.write_text(f"\ufeffid {mark} label\na{mark}b\n", encoding="utf-8")
        table = CsvTable.read(path)
        assert (table.header, table.rows) == (["id", "label"], [["a", "b"]])
    path.write_text("id;label\na;cat\n")
    form = Form.read(path, ("cat", "dog"))
    form.write(tmp_path / "out.csv", {"a": Row("a", "dog")}, Card("m", ("cat", "dog"), 8, 8))
    assert (tmp_path / "out.csv").read_text() == "id;label\na;dog\n"


def test_a_picture_that_is_named_twice_is_taken_once(images: Path) -> None:
    assert names(images / "x", images / "x" / "b.jpg", f"{images}/./x") == ["x/a.jpg", "x/b.jpg", "x/c.jpg"]


def test_a_glob_searches_folders_unless_it_does_so_itself(images: Path) -> None:
    assert names(f"{images}/**/[bc]*") == ["x/b.jpg", "x/c.jpg", "y/c.jpg"]
    assert names(f"{images}/[x]") == ["x/a.jpg", "x/b.jpg", "x/c.jpg"]
    assert names(f"{images}/**/x*") == [], "the folder x itself is no picture"
    assert names(f"{images}/*/b*", f"{images}/?", without=images / "y") == ["x/b.jpg", "x/a.jpg", "x/c.jpg"]


def test_what_can_be_no_path_is_a_picture_with_an_error_of_its_own(images: Path) -> None:
    (images / "to_y").symlink_to(images / "y")
    for word in ("n" * 5000, "a\0b"):
        [found] = find([word]).pictures
        with pytest.raises(PictureUnreadable):
            found.picture.read()
    assert find([str(images)]).links == 1


def test_a_list_may_have_a_mark_and_spaces() -> None:
    assert lines("\ufeffa.jpg \r\n\n  b c.jpg\n".encode()) == ["a.jpg", "b c.jpg"]
    assert lines(b"a \0b\n.jpg\0") == ["a ", "b\n.jpg"]


def test_no_output_replaces_what_is_not_ours(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    (tmp_path / "link.csv").symlink_to(images / "a.jpg")
    (tmp_path / "old.csv.part").write_text("mine")
    ours = tmp_path / "ours.csv"
    with TableFile("csv", str(ours)):
        pass
    for name, said in {
        str(images / "new.jpg"): "picture's ending",
        str(tmp_path / "link.csv"): "picture's ending",
        str(images): "is a folder",
        str(tmp_path / "nix" / "a.csv"): "there is no folder",
        str(tmp_path / "mine.csv"): "was not written by predict.py",
        str(tmp_path / "old.csv"): "was not written by predict.py",
    }.items():
        with pytest.raises(UserError, match=said):
            check_targets({"--csv": Target(name, OURS["csv"])}, [])
    target = Target(str(ours), OURS["csv"])
    check_targets({"--csv": target, "--json": Target("/dev/null", OURS["json"])}, [])
    with pytest.raises(UserError, match="is read by this command"):
        check_targets({"--csv": target}, [str(ours)])
    with pytest.raises(UserError, match="name the same file"):
        check_targets({"--csv": target, "--jsonl": Target(f"{tmp_path}/./ours.csv", OURS["jsonl"])}, [])


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_a_file_of_an_earlier_run_may_be_replaced(kind: str, tmp_path: Path) -> None:
    target = Target(str(tmp_path / "out"), OURS[kind])
    for rows in ([], [Row("a.jpg", "cat", 0.5, version=1)]):
        with TableFile(kind, target.name) as table:
            for row in rows:
                table.write(row)
        check_targets({"--x": target}, [])


def test_a_link_stays_and_a_pipe_is_written_straight(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with TableFile("csv", str(tmp_path / "link.csv")):
        pass
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text().startswith("file,")
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True) as reader:
        with TableFile("csv", str(tmp_path / "pipe")):
            pass
        assert reader.communicate(timeout=20)[0].startswith("file,")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "pipe", "real.csv"]


def model(name: str = "tires", labels: tuple[str, ...] = ("a", "b"), version: int = 1) -> Any:
    return SimpleNamespace(card=Card(name, labels, 8, 8), version=version)


def test_one_run_works_on_a_csv_and_another_model_does_not_go_on(tmp_path: Path) -> None:
    table = tmp_path / "out.csv"
    with Lock(table) as lock:
        lock.begin(model(), "models/tires")
        with pytest.raises(UserError, match="Another predict.py works on"), Lock(table):
            pass
        part_of(table).touch()
    with Lock(table) as lock:
        lock.check(model(), "models/tires")
        for other, where, said in [
            (model(version=2), "models/tires", "version 1 of the model, and now 2 answers"),
            (model(labels=("b", "a")), "models/tires", "other labels"),
            (model("cats"), "models/tires", "model: tires, now cats"),
            (model(), "http://localhost", "where: .*models/tires, now http"),
        ]:
            with pytest.raises(UserError, match=said):
                lock.check(other, where)
        part_of(table).unlink()
    assert list(tmp_path.iterdir()) == []


def test_many_of_one_name_are_sorted_without_a_search_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that an earlier run has put there is not put again."""
    pictures = []
    for number in range(600):
        path = tmp_path / f"{number}" / "img.jpg"
        path.parent.mkdir()
        path.write_text(str(number))
        pictures.append(picture_of(path))
    first = [Sorter(tmp_path / "sorted", link=False).put(picture, "a") for picture in pictures[:1]]
    sorter = Sorter(tmp_path / "sorted", link=False)
    looked: list[Path] = []
    is_there = os.path.lexists

    def look(path: Path) -> bool:
        looked.append(path)
        return is_there(path)

    monkeypatch.setattr(os.path, "lexists", look)
    put = [sorter.put(picture, "a") for picture in pictures]
    assert put[0] == first[0] and len(set(put)) == 600
    assert {path.read_text() for path in put} == {str(number) for number in range(600)}
    assert len(list((tmp_path / "sorted" / "a").iterdir())) == 600
    assert len(looked) < 3 * 600


def test_a_long_name_is_sorted_and_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    sorter = Sorter(tmp_path / "sorted", link=False)
    for number in range(2):
        path = tmp_path / str(number) / ("n" * 251 + ".jpg")
        path.parent.mkdir()
        path.write_text(str(number))
        assert sorter.put(picture_of(path), "é" * 200).read_text() == str(number)
    for given in (f"http://127.0.0.1:{free_port()}/a.jpg", str(tmp_path / "gone.jpg")):
        with pytest.raises(NotSorted):
            sorter.put(picture_of(given), "a")
    with pytest.raises(UserError, match="cannot be put into"):
        Sorter(path, link=False).put(Picture("a", b"a"), "a")


def test_reasons_are_counted_without_the_pictures_names() -> None:
    summary = Summary(("a", "b"), truths_given=True, before=0)
    for name, error in [
        ("12", "images/12 cannot be read (No such file)."),
        ("13", "images/13 cannot be read (No such file)."),
        ("./c.jpg", "c.jpg cannot be read (No such file)."),
        ("not", "broken_image: These bytes are not a picture."),
        ("picture", "broken_image: These bytes are not a picture."),
    ]:
        summary.add(Row(name, error=error), None)
    summary.add(Row("x", "a"), "a")
    summary.add(Row("y", "a"), "cat")
    summary.add(Row("z", "a"), "dog")
    text = summary.text(1.0)
    assert "    2  it cannot be read" not in text
    assert "    3  it cannot be read (No such file).\n" in text
    assert "    2  broken_image: These bytes are not a picture.\n" in text
    assert "accuracy 100.0% of 1 picture, by the CSV's labels" in text
    assert "the truth of 2 pictures is no label of this model, such as 'cat'" in text


def test_pictures_of_folders_that_no_label_names_are_said_not_to_be_counted() -> None:
    summary = Summary(("a", "b"), truths_given=False, before=0)
    for number in range(5):
        summary.add(Row(f"a/{number}", "a"), "a")
    for number in range(2):
        summary.add(Row(f"a/more/{number}", "a"), "more")
    text = summary.text(1.0)
    assert "accuracy 100.0% of 5 pictures, by their folders' names" in text
    assert "not counted: 2 pictures in no folder named by a label, such as 'more'" in text


def test_the_rate_is_that_of_this_run() -> None:
    summary = Summary(("a", "b"), truths_given=False, before=900)
    for number in range(1000):
        summary.add(Row(str(number), "a"), None)
    assert summary.text(2.0).startswith("1,000 pictures in 2.0 s, 50 a second (900 of them were done before)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a.jpg --name x", "--name has no effect where --model is a folder"),
        ("a.jpg --model http://localhost:9 --version 1", "--version has no effect where --model is an address"),
        ("a.jpg --model grpc://localhost:9", "--name says it"),
        ("a.jpg --output x.csv", "--output belongs to --submission"),
        ("--submission x.csv --images . --top 1", "--top do not go with --submission"),
        ("a.jpg --csv a.csv --json ./a.csv", "name the same file"),
        ("a.jpg --csv /dev/stdout --json -", "Only one"),
        ("a.jpg --csv /dev/null --resume", "--resume goes on with a CSV file"),
    ],
)
def test_a_flag_without_effect_is_refused_before_a_model_is_loaded(words: str, said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "predict.py"), *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("$P $S $S/* > /dev/full", 2, r"disk is full.*\n?$"),
        ("$P $S >&-", 0, "^$"),
        ("$P - <&-", 2, "No picture was found"),
        ("$P nix.jpg $S --quiet | true; exit ${PIPESTATUS[0]}", 1, "7 of 7 are done"),
    ],
)
def test_streams_may_be_closed_full_or_go_away(shell: str, status: int, said: str) -> None:
    variables = {**os.environ, "P": f"{sys.executable} {ROOT / 'predict.py'}", "S": str(ROOT / "data" / "samples")}
    done = subprocess.run(["bash", "-c", shell], env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert re.search(said, done.stderr)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr and "kept in" not in done.stderr
