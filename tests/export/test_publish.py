"""Publishing and taking back: numbers never used twice, half versions never seen, whatever is killed, full or taken."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loupe.errors import UserError
from loupe.export.publish import model_folder
from loupe.export.publish.publication import publication, rollback, versions
from tests.support.publishing import child, names
from tests.support.servers import ROOT

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def put(models_at: Path, content: str = "x", keep: int | None = None, name: str = "toy") -> Path:
    with publication(models_at, name) as staging:
        write(staging.folder, content)
        return staging.publish(keep)


def write(folder: Path, content: str = "x") -> None:
    (folder / "assets.extra").mkdir(parents=True)
    (folder / "saved_model.pb").write_text(content)


# ------------------------------------------------------------------------------------------------------------- numbers


def test_versions_count_up_from_whatever_is_there(tmp_path: Path) -> None:
    home = tmp_path / "toy"
    assert put(tmp_path) == home / "1"
    (home / "007").mkdir()
    assert versions(home) == [1, 7]
    assert put(tmp_path).name == "8"
    (home / "9").touch()
    (home / "10").symlink_to("nowhere")
    assert versions(home) == [1, 7, 8], "a file and a dead link are no versions"
    assert put(tmp_path).name == "11", "and are in nobody's way"
    for ignored in ("12b", "-13", "1e9", "٣٣", "9" * 30, ".14"):
        (home / ignored).mkdir()
    assert put(tmp_path).name == "12"


def test_a_deleted_version_gives_its_number_to_none(tmp_path: Path) -> None:
    home = tmp_path / "toy"
    put(tmp_path)
    shutil.rmtree(put(tmp_path))
    assert put(tmp_path).name == "3"
    shutil.rmtree(home / "3")
    (home / ".numbers").unlink()
    (home / ".withdrawn-5").mkdir()
    assert put(tmp_path).name == "6", "what lies aside still tells its number"


@pytest.mark.parametrize(("ledger", "number"), [
    (b"", 3), (b"\n9\n", 10), (b"\n9\n\n1", 10), (b"\n9\n\n12", 10), (b"9\n8\n", 10), (b"\xff\x00\n\n-5\n x\n", 3),
    (b"\n" + b"9" * 5000 + b"\n", 3), (b"\n9223372036854775807\n", None), (b"\n9223372036854775808\n", 3),
])  # fmt: skip
def test_a_ledger_that_is_torn_old_or_junk_is_made_the_best_of(
    tmp_path: Path, ledger: bytes, number: int | None
) -> None:
    for _ in range(2):
        put(tmp_path)
    (tmp_path / "toy" / ".numbers").write_bytes(ledger)
    if number is None:
        with pytest.raises(UserError, match="used up its numbers"):
            put(tmp_path)
    else:
        assert put(tmp_path).name == str(number)
        assert int(put(tmp_path).name) > number


def test_a_number_taken_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = model_folder.record

    def record_while_another_publishes(home: Path, ledger: int, number: int) -> None:
        record(home, ledger, number)
        if number == 1:
            write(home / "1", "theirs")

    monkeypatch.setattr(model_folder, "record", record_while_another_publishes)
    assert put(tmp_path, "ours").name == "2"
    assert (tmp_path / "toy" / "1" / "saved_model.pb").read_text() == "theirs"


def test_publications_at_once_never_collide(tmp_path: Path) -> None:
    code = """
        for _ in range(12):
            with publication(models, "toy") as part:
                part.folder.mkdir()
                (part.folder / "who").write_text(sys.argv[2])
                print(part.publish().name)
    """
    processes = [subprocess.Popen(child(code, tmp_path, who), cwd=ROOT, stdout=subprocess.PIPE) for who in "abcd"]
    numbers_of = {
        who: process.communicate(timeout=60)[0].split() for who, process in zip("abcd", processes, strict=True)
    }
    assert sorted(int(number) for numbers in numbers_of.values() for number in numbers) == list(range(1, 49))
    for who, numbers in numbers_of.items():
        assert all((tmp_path / "toy" / number.decode() / "who").read_text() == who for number in numbers)
    assert len(names(tmp_path / "toy")) == 48


# ----------------------------------------------------------------------------------------------- parts, living and dead


def test_a_part_is_a_models_folder_hidden_from_servers(tmp_path: Path) -> None:
    with publication(tmp_path, "toy") as staging:
        write(staging.folder)
        assert staging.folder.parent.parent.parent == tmp_path / "toy"
        assert versions(staging.folder.parent) == [1]
        assert versions(tmp_path / "toy") == []
    assert not (tmp_path / "toy").exists(), "not published, and cleared away"


def test_a_refused_publication_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    def refused(name: str) -> None:
        with pytest.raises(UserError, match="no good"), publication(tmp_path, name) as staging:
            write(staging.folder)
            raise UserError("no good")

    refused("toy")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    refused("mine")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"], "somebody else's folder stays"
    put(tmp_path)
    shutil.rmtree(tmp_path / "toy" / "1")
    refused("toy")
    assert put(tmp_path).name == "2", "numbers that were given are not forgotten"


def test_publications_that_are_refused_do_not_disturb_others_at_the_same_time(tmp_path: Path) -> None:
    code = """
        for turn in range(30):
            try:
                with publication(models, "toy") as part:
                    part.folder.mkdir()
                    if turn % 10 < 9:
                        raise UserError("no good")
                    print(part.publish().name)
            except UserError as error:
                assert str(error) == "no good", error
    """
    processes = [subprocess.Popen(child(code, tmp_path), cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
    numbers = [int(number) for process in processes for number in process.communicate(timeout=120)[0].split()]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(numbers) == list(range(1, 13))


def test_a_folder_that_another_publication_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, removals = model_folder.make, iter(range(2))

    def make_and_lose(home: Path) -> bool:
        made = make(home)
        if next(removals, None) is not None:
            home.rmdir()  # what a publication does that was refused at this moment
        return made

    monkeypatch.setattr(model_folder, "make", make_and_lose)
    assert put(tmp_path).name == "1"
    assert next(removals, None) is None


def test_the_parts_of_the_dead_are_cleared_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    # What killed processes leave, and a process that is publishing.
    home = tmp_path / "toy"
    write(home / ".part-1" / "toy" / "1")  # process 1 lives; it never wrote this
    (home / f".part-{os.getpid()}").mkdir()  # as does this one
    (home / ".part-2").touch()
    write(home / ".removed-4" / "half")
    code = """
        with publication(models, "toy") as part:
            part.folder.mkdir()
            print(part.folder, flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(child(code, tmp_path), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    # Nothing of a living process is deleted; all of a dead one is.
    with process, publication(tmp_path, "toy") as mine:
        write(mine.folder)
        theirs = Path(process.stdout.readline().strip())
        with publication(tmp_path, "toy") as another:  # begun last, and of the same process as `mine`
            assert another.folder != mine.folder
            assert theirs.is_dir()
            assert mine.folder.is_dir()
        process.kill()
        process.wait()
        assert put(tmp_path).name == "5"
        assert not theirs.exists()
        assert mine.publish().name == "6"
    assert names(home) == ["5", "6"]


def test_a_lock_held_for_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    monkeypatch.setattr(model_folder, "LOCK_SECONDS", 0.2)
    with (tmp_path / "toy" / ".numbers").open() as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another publication has held"):
            put(tmp_path)
    assert put(tmp_path).name == "2"


# ---------------------------------------------------------------------------------------------------------------- keep


def test_old_versions_go_and_the_newest_stay(tmp_path: Path) -> None:
    home = tmp_path / "toy"
    for _ in range(4):
        put(tmp_path)
    outside = tmp_path / "outside"
    write(outside)
    (home / "005").symlink_to(outside)
    assert put(tmp_path, keep=3).name == "6"
    assert names(home) == ["005", "4", "6"]
    assert put(tmp_path, keep=1).name == "7"
    assert names(home) == ["7"]
    assert (outside / "saved_model.pb").exists(), "a link goes, not what it leads to"
    for wrong in (0, -1):
        with pytest.raises(UserError, match="At least one version"):
            put(tmp_path, keep=wrong)
    assert names(home) == ["7"]


# ------------------------------------------------------------------------------------------------------------ rollback


def test_the_newest_is_moved_aside_and_its_number_is_not_given_again(tmp_path: Path) -> None:
    home = tmp_path / "toy"
    put(tmp_path, "one")
    put(tmp_path, "two")
    assert rollback(tmp_path, "toy") == (2, 1, home / ".withdrawn-2")
    assert (home / ".withdrawn-2" / "saved_model.pb").read_text() == "two"
    shutil.copytree(home / ".withdrawn-2", home / "2")  # brought back, as a copy
    assert rollback(tmp_path, "toy").moved == home / ".withdrawn-2-2"
    shutil.rmtree(home / ".withdrawn-2")
    shutil.rmtree(home / ".withdrawn-2-2")
    assert put(tmp_path).name == "3"
    (home / ".withdrawn-2").symlink_to("1")
    (home / "4").symlink_to("1")
    (home / "04").mkdir()
    assert rollback(tmp_path, "toy")[:2] == (4, 3)
    assert versions(home) == [1, 3], "4 and 04 are one version to a server"
    assert (home / "1").is_dir()


def test_a_rollback_with_nothing_to_fall_back_to_is_refused(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path, name="cup")
    (tmp_path / "none").mkdir()
    for name, words in {
        "toy": "toy has no version but 1: nothing to fall back to",
        "none": "There is no model none in .*; there are: cup, toy",
        "../toy": "not '../toy'", ".toy": "no dot or dash in front", "": "not ''", "a\nb": "no space",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words) as refused:
            rollback(tmp_path, name)
        assert "\n" not in str(refused.value)
    assert versions(tmp_path / "toy") == [1]
    with pytest.raises(UserError, match="nor another"):
        rollback(tmp_path / "missing", "toy")
    assert not (tmp_path / "missing").exists()


# -------------------------------------------------------------------------------------------------------- what is wrong


def mounting() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


def on_a_small_disk(folder: Path, code: str) -> str:
    """Run with `folder` a disk of its own of 64 KiB, seen by that process alone."""
    if not mounting():
        pytest.skip("no file system can be mounted here")
    folder.mkdir()
    mount = ["sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"', str(folder)]
    return run([*UNSHARE, *mount, *child(code, folder)])


REFUSED = """
    def refused(attempt, *arguments):
        try:
            attempt(*arguments)
        except UserError as error:
            print(error)
"""


def test_a_full_disk_leaves_no_half_version(tmp_path: Path) -> None:
    code = f"""{REFUSED}
    def put(size, filler=0):
        with publication(models, "toy") as part:
            part.folder.mkdir()
            (part.folder / "saved_model.pb").write_bytes(b"x" * size)
            with (models / "filler").open("wb", 0) as file:
                while filler and file.write(b"x" * 4096) == 4096:
                    pass
            part.publish()
    put(8000)
    (home / ".numbers").unlink()
    refused(put, 1 << 20)
    os.truncate(home / ".numbers", 0)
    refused(put, 100, 1)
    (models / "filler").unlink()
    put(100)
    print(sorted(entry.name for entry in home.iterdir()))
    """
    # Each failure is one line, and only whole versions are left.
    *lines, last = on_a_small_disk(tmp_path / "disk", code).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"Cannot publish to {tmp_path}/disk/toy: No space left on device")
        assert line.endswith(
            "Free some space, by deleting old versions for instance, or name another folder with --models."
        )
    assert last == "['.numbers', '1', '2']"


def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    code = f"""{REFUSED}
    def put(name="toy"):
        with publication(models, name) as part:
            part.folder.mkdir()
            part.publish()
    put()
    put()
    assert os.system(f"mount -o remount,ro {{models}}") == 0
    refused(put)
    refused(put, "new")
    refused(rollback, models, "toy")
    print(versions(home))
    """
    # Each failure is one line, and the versions stay.
    *lines, last = on_a_small_disk(tmp_path / "disk", code).splitlines()
    assert [line.split(": Read-only")[0] for line in lines] == [
        f"Cannot publish to {tmp_path}/disk/toy", f"Cannot publish to {tmp_path}/disk/new",
        f"Cannot take a version out of {tmp_path}/disk/toy",
    ]  # fmt: skip
    assert all("Make it writable" in line for line in lines)
    assert last == "[1, 2]"


def test_a_file_too_large_for_the_user_leaves_no_half_version(tmp_path: Path) -> None:
    code = f"""{REFUSED}
    def put():
        with publication(models, "toy") as part:
            part.folder.mkdir()
            (part.folder / "saved_model.pb").write_bytes(b"x" * 10_000)
            part.publish()
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    refused(put)
    print(home.exists())
    """
    line, last = run(child(code, tmp_path)).splitlines()
    assert "File too large" in line
    assert last == "False"


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "ledger" / "toy" / ".numbers").mkdir(parents=True)
    for models_at, name, words in (
        (tmp_path / "file", "toy", f"{tmp_path}/file is a file where a folder should be. Move it away"),
        (tmp_path, "file", f"{tmp_path}/file is a file where a folder should be. Move it away"),
        (tmp_path / "ledger", "toy", f"Is a directory \\({tmp_path}/ledger/toy/.numbers\\)"),
        (tmp_path, "n" * 300, "File name too long"),
        (tmp_path / ("n" * 300), "toy", "File name too long"),
        (tmp_path, "../toy", "not '../toy'"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            put(models_at, name=name)
        assert "\n" not in str(refused.value)


def test_a_fault_of_something_else_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    fault: Exception
    for fault in (
        OSError(98, "Address already in use"),
        FileNotFoundError(2, "No such file", "/tmp/x"),
        ValueError("x"),
    ):
        with pytest.raises(type(fault)) as raised, publication(tmp_path, "toy"):
            raise fault
        assert raised.value is fault
    for fault in (
        RuntimeError("tf: /x; No space left on device"),
        shutil.Error([("a", "b", "No space left on device")]),
    ):
        with pytest.raises(UserError, match="Cannot publish to .*No space left"), publication(tmp_path, "toy"):
            raise fault
    assert not (tmp_path / "toy").exists()
