"""Reading every file once, splitting without a picture on two sides, and refusing."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from loupe.errors import UserError
from loupe.images.api import decode
from loupe.training.data.dataset import CUT, Dataset, Source, read
from loupe.training.data.splits import split
from tests.support.servers import ROOT


def scene(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """A picture with large and small shapes, different for each seed."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((width, height)),
            dtype=float,
        )
        for cells in (3, 5, 9)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def grain(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


def paint(folder: Path, count: int, labels: tuple[str, ...] = ("blue", "red"), start: int = 0) -> Path:
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for picture in range(start, start + count):
            scene(1000 * sum(label.encode()) + picture).save(folder / label / f"{picture:03}.png")
    return folder


def take(folder: Path, seed: int = 42, size: int = 64, **shares: float) -> Dataset:
    return read(Source(folder), size, size, seed, folder, **shares)  # type: ignore[arg-type]


def everything(data: Dataset) -> list[int]:
    return sorted(np.concatenate([data.train, data.validation, data.calibration, data.test]).tolist())


def row(data: Dataset, name: str) -> int:
    return next(index for index, picture in enumerate(data.pictures) if picture.file.path.as_posix().endswith(name))


def test_missing_splits_are_cut_class_by_class_and_no_picture_is_in_two(tmp_path: Path) -> None:
    data = take(paint(tmp_path, 40))
    share = round(CUT * 40)
    assert data.counts(data.test) == {"blue": share, "red": share}
    assert data.counts(data.validation) == data.counts(data.calibration) == {"blue": share // 2, "red": share // 2}
    assert data.counts(data.train) == {"blue": 40 - 2 * share, "red": 40 - 2 * share}
    assert everything(data) == list(range(80))


@pytest.mark.parametrize(
    ("validating", "calibrates"), [(0, 0), (29, 14), (30, 20), (36, 20), (39, 20), (40, 20), (42, 21), (301, 150)]
)
def test_where_half_would_be_too_few_somewhat_more_calibrate(validating: int, calibrates: int) -> None:
    classes = np.arange(400) % 4
    rows = {"train": np.arange(validating, 400), "validation": np.arange(validating), "test": np.arange(0)}
    splits = split(rows, classes, [str(row) for row in range(400)], [], 42, 0, 0)
    assert len(splits.calibration) == calibrates
    assert len(splits.validation) == validating - calibrates
    assert np.ptp(np.bincount(classes[splits.calibration], minlength=4)) <= 1, "evenly over the classes"


def test_shares_are_of_all_pictures_and_a_test_split_can_be_declined(tmp_path: Path) -> None:
    paint(tmp_path, 40)
    tenths = take(tmp_path, validation_share=0.1, test_share=0.1)
    assert [len(rows) for rows in (tenths.train, tenths.validation, tenths.calibration, tenths.test)] == [64, 4, 4, 8]
    untested = take(tmp_path, test_share=0)
    assert not len(untested.test)
    assert len(untested.train) == 80 - 2 * round(CUT * 40)


def test_one_seed_cuts_the_same_pictures_and_another_seed_others(tmp_path: Path) -> None:
    paint(tmp_path, 40)
    first, again, other = take(tmp_path), take(tmp_path), take(tmp_path, seed=7)
    for name in ("train", "validation", "calibration", "test"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_given_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    for name, count, start in (("training_data", 12, 0), ("valid", 4, 100), ("testing_data", 5, 200)):
        paint(tmp_path / name, count, start=start)
    data = take(tmp_path)
    assert [len(rows) for rows in (data.train, data.validation, data.calibration, data.test)] == [24, 4, 4, 10]
    assert {data.pictures[n].file.split for n in data.calibration} == {"validation"}


def test_only_what_is_missing_is_cut(tmp_path: Path) -> None:
    paint(tmp_path / "training_data", 50)
    paint(tmp_path / "testing_data", 10, start=500)
    data = take(tmp_path)
    assert set(data.counts(data.train).values()) == {50 - round(CUT * 50)}
    assert len(data.test) == 20


def test_copies_and_near_copies_stay_on_one_side_of_a_cut(tmp_path: Path) -> None:
    paint(tmp_path, 20)
    for label in ("blue", "red"):
        for number in range(20):
            image = Image.open(tmp_path / label / f"{number:03}.png")
            image.resize((90, 68)).save(tmp_path / label / f"again-{number:03}.jpg", quality=80)
    data = take(tmp_path, validation_share=0.3, test_share=0.3)
    assert len(data.twins) == 40
    side = {n: name for name in ("train", "validation", "calibration", "test") for n in getattr(data, name).tolist()}
    assert {frozenset((side[a], side[b])) for a, b in data.twins} == {
        frozenset([name]) for name in ("train", "validation", "calibration", "test")
    }
    assert data.counts(data.test) == {"blue": 12, "red": 12}


def test_an_exact_copy_of_a_test_picture_is_not_trained_on(tmp_path: Path) -> None:
    paint(tmp_path / "train", 12)
    paint(tmp_path / "test", 4, start=100)
    shutil.copy(tmp_path / "test/red/100.png", tmp_path / "train/red/leak.png")
    shutil.copy(tmp_path / "test/red/101.png", tmp_path / "train/blue/leak.png")
    data = take(tmp_path)
    assert len(data.test) == 8
    left_out = {row(data, "train/red/leak.png"), row(data, "train/blue/leak.png")}
    assert everything(data) == [n for n in range(len(data.pictures)) if n not in left_out]


def test_exact_copies_are_trained_on_once_and_not_at_all_under_two_labels(tmp_path: Path) -> None:
    paint(tmp_path, 12)
    shutil.copy(tmp_path / "red/000.png", tmp_path / "red/same.png")
    shutil.copy(tmp_path / "red/001.png", tmp_path / "blue/both.png")
    data = take(tmp_path)
    assert len(data.pictures) == 26
    left_out = {row(data, "red/same.png"), row(data, "red/001.png"), row(data, "blue/both.png")}
    assert everything(data) == [n for n in range(26) if n not in left_out]


def test_training_sees_the_pixels_that_serving_sees(tmp_path: Path) -> None:
    data = take(paint(tmp_path, 10))
    served = decode((tmp_path / "red" / "000.png").read_bytes(), 64, 64)
    assert np.array_equal(data.pixels[row(data, "red/000.png")], served)


def test_another_size_has_the_same_pictures_and_splits(tmp_path: Path) -> None:
    data = take(paint(tmp_path, 10))
    larger = data.resized(96, 80, tmp_path)
    assert larger.pixels.shape == (20, 96, 80, 3)
    assert np.array_equal(larger.train, data.train) and larger.pictures == data.pictures
    assert np.array_equal(larger.pixels[3], decode(data.pictures[3].file.path.read_bytes(), 96, 80))
    scene(7).save(data.pictures[3].file.path)
    with pytest.raises(UserError, match="changed"):
        data.resized(96, 80, tmp_path)


def test_more_pixels_than_fit_the_memory_go_to_a_file_and_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = take(paint(tmp_path, 10))
    monkeypatch.setattr("loupe.training.data.dataset.IN_MEMORY", 1000)
    outside = take(tmp_path)
    assert isinstance(outside.pixels, np.memmap)
    assert np.array_equal(inside.pixels, outside.pixels)


def test_a_full_disk_is_one_line_before_any_picture_is_read(tmp_path: Path) -> None:
    paint(tmp_path, 10)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from loupe.training.data import dataset; from loupe.cli import run_script\n"
        "dataset.IN_MEMORY = 1000; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "here = Path(sys.argv[1])\n"
        "run_script(lambda: dataset.read(dataset.Source(here), 64, 64, 42, here) and None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "do not fit the disk" in done.stderr


def test_bad_files_are_left_out_and_listed_with_what_they_are(tmp_path: Path) -> None:
    paint(tmp_path, 12)
    # Bad files of each category.
    whole = (tmp_path / "red" / "000.png").read_bytes()
    (tmp_path / "red" / "empty.jpg").touch()
    (tmp_path / "red" / "text.jpg").write_text("no picture")
    (tmp_path / "red" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "blue" / "stub.png").write_bytes(whole[:20])
    (tmp_path / "blue" / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "blue" / "gone.jpg").symlink_to("nowhere")
    Image.new("1", (7000, 6000)).save(tmp_path / "blue" / "huge.png")
    # They are listed, and the rest is read.
    data = take(tmp_path)
    assert {skipped.path.name: skipped.category for skipped in data.skipped} == {
        "empty.jpg": "empty",
        "text.jpg": "no picture",
        "cut.png": "damaged",
        "stub.png": "damaged",
        "drawing.svg": "unsupported",
        "gone.jpg": "unreadable",
        "huge.png": "too large",
    }
    assert len(data.pixels) == len(data.pictures) == len(data.classes) == 24
    assert "empty.jpg" not in data.summary("mine"), "the doctor tells of them"


@pytest.mark.parametrize("length", [0x14, 0x18, 0x1C, 0x20, 0x24])
def test_a_telephone_s_own_format_is_known_whatever_its_header_s_length(tmp_path: Path, length: int) -> None:
    paint(tmp_path, 10)
    for brand in (b"heic", b"mif1", b"avif", b"isom"):
        (tmp_path / "red" / f"{brand.decode()}.jpg").write_bytes(
            bytes([0, 0, 0, length]) + b"ftyp" + brand + bytes(200)
        )
    kinds = {skipped.path.stem: skipped.category for skipped in take(tmp_path, size=32).skipped}
    assert kinds == {"heic": "heic", "mif1": "heic", "avif": "damaged", "isom": "no picture"}


def test_pictures_to_predict_that_cannot_be_read_are_listed_and_still_asked_for(tmp_path: Path) -> None:
    paint(tmp_path / "train", 10)
    (tmp_path / "test").mkdir()
    scene(1).save(tmp_path / "test" / "1.png")
    (tmp_path / "test" / "2.png").write_bytes((tmp_path / "test" / "1.png").read_bytes()[:200])
    data = take(tmp_path, size=32)
    assert [(skipped.path.name, skipped.category) for skipped in data.skipped] == [("2.png", "damaged")]
    assert data.skipped[0].why == "damaged or cut short; its row says the most frequent class"
    assert [file.id for file in data.predict] == ["1", "2"]


def test_a_damaged_test_picture_that_a_submission_asks_for_as_well_is_listed_once(tmp_path: Path) -> None:
    paint(tmp_path / "images", 24, ("mixed",))
    for name, numbers in (("train", range(20)), ("test", range(20, 24))):
        rows = "".join(f"{number:03},{'ab'[number % 2]}\n" for number in numbers)
        (tmp_path / f"{name}.csv").write_text(f"id,label\n{rows}")
    (tmp_path / "sample_submission.csv").write_text("id,label\n" + "".join(f"{n:03},a\n" for n in range(20, 24)))
    (tmp_path / "images" / "mixed" / "021.png").write_bytes(b"\x89PNG cut short")
    assert [skipped.path.name for skipped in take(tmp_path, size=32).skipped] == ["021.png"]


def test_a_class_without_a_picture_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    paint(tmp_path, 10)
    (tmp_path / "green").mkdir()
    with pytest.raises(UserError, match="Class 'green' has no pictures: add some to"):
        take(tmp_path, size=32)


def test_a_class_whose_every_picture_has_another_label_too_is_refused(tmp_path: Path) -> None:
    paint(tmp_path, 10)
    paint(tmp_path, 10, ("green",))
    shutil.copytree(tmp_path / "green", tmp_path / "lime")
    paint(tmp_path, 10, ("lime",), start=20)
    with pytest.raises(UserError, match="'green' has 0 readable and different"):
        take(tmp_path, size=32)


def test_one_validation_picture_a_class_is_enough_to_calibrate(tmp_path: Path) -> None:
    labels = tuple(f"class {number}" for number in range(6))
    paint(tmp_path / "train", 8, labels)
    paint(tmp_path / "val", 1, labels, start=50)
    data = take(tmp_path, size=32)
    assert len(data.validation) == len(data.calibration) == 3
    assert np.array_equal(data.calibration, take(tmp_path, size=32).calibration)


def test_the_summary_says_where_the_labels_are_from(tmp_path: Path) -> None:
    paint(tmp_path / "images", 20, ("mixed",))
    rows = "".join(f"{number:03},{'ab'[number % 2]}\n" for number in range(20))
    (tmp_path / "train.csv").write_text(f"Id,what\n{rows}")
    assert "labels: train.csv, columns Id → what" in take(tmp_path, size=32).summary("mine")


def test_a_name_of_odd_bytes_is_read_and_can_be_printed(tmp_path: Path) -> None:
    paint(tmp_path, 12)
    odd = bytes(tmp_path / "red") + b"/caf\xe9.jpg"
    with open(odd, "wb") as file:  # noqa: PTH123
        file.write(b"no picture")
    assert str(take(tmp_path).skipped[0]).encode().endswith("caf\ufffd.jpg: not a picture".encode())


def test_a_class_with_too_few_pictures_is_refused_by_name_but_can_be_looked_at(tmp_path: Path) -> None:
    paint(tmp_path, 10)
    paint(tmp_path, 2, labels=("green",))
    with pytest.raises(UserError, match="'green' has 2 readable"):
        take(tmp_path)
    data = read(Source(tmp_path), 64, 64, 42, tmp_path, fewest=0)
    assert data.counts(data.train)["green"] == 2


def test_copies_of_one_picture_do_not_make_a_class(tmp_path: Path) -> None:
    paint(tmp_path, 10)
    for number in range(30):
        shutil.copy(tmp_path / "red" / "000.png", tmp_path / "red" / f"copy-{number}.png")
    for number in range(1, 10):
        (tmp_path / "red" / f"{number:03}.png").unlink()
    with pytest.raises(UserError, match="'red' has 1 readable and different"):
        take(tmp_path)


def test_a_look_at_a_picture_tells_its_file_light_and_sharpness(tmp_path: Path) -> None:
    paint(tmp_path, 10)
    bright = Image.new("L", (300, 100), 250)
    bright.save(tmp_path / "red" / "bright.bmp")
    grain(400, 300).filter(ImageFilter.GaussianBlur(8)).save(tmp_path / "red" / "blurred.webp")
    grain(400, 300).save(tmp_path / "red" / "sharp.webp")
    data = take(tmp_path, size=32)
    facts, blurred, sharp = (data.pictures[row(data, name)] for name in ("bright.bmp", "blurred.webp", "sharp.webp"))
    data_of_file = (tmp_path / "red" / "bright.bmp").read_bytes()
    assert (facts.width, facts.height, facts.mode, facts.format, facts.size) == (
        300,
        100,
        "L",
        "BMP",
        len(data_of_file),
    )
    assert facts.sha256 == hashlib.sha256(data_of_file).hexdigest()
    assert abs(facts.brightness - 250) < 1
    assert blurred.sharpness < sharp.sharpness / 2
    large = read(Source(tmp_path), 160, 160, 42, tmp_path).pictures[row(data, "sharp.webp")]
    assert large.sharpness == pytest.approx(sharp.sharpness, rel=0.3)


def test_a_run_of_copies_is_found_through_size_format_and_margins(tmp_path: Path) -> None:
    """A picture in several versions, and two others that share its background."""
    folder = tmp_path / "red"
    folder.mkdir()
    whole = scene(1, 400, 300)
    whole.save(folder / "a.png")
    whole.save(folder / "b.jpg", quality=40)
    whole.save(folder / "c.webp", quality=60)
    whole.resize((200, 150)).save(folder / "d.jpg", quality=80)
    whole.crop((6, 4, 394, 297)).save(folder / "e.jpg", quality=90)
    for name, seed in (("other-1.png", 11), ("other-2.png", 12)):
        thing = scene(1, 400, 300)
        thing.paste(scene(seed, 120, 120), (140, 90))
        thing.save(folder / name)
    paint(tmp_path, 10, labels=("blue",))
    paint(tmp_path, 10)
    data = take(tmp_path, size=96)
    names = {frozenset(data.pictures[n].file.path.stem for n in pair) for pair in data.twins}
    assert set().union(*names) == set("abcde")


def test_the_same_shape_in_another_colour_is_another_picture(tmp_path: Path) -> None:
    paint(tmp_path, 10)
    shape = scene(3, 200, 200).convert("L")
    for number, colour in enumerate(((255, 30, 30), (30, 30, 255), (30, 200, 30))):
        layers = [shape.point(lambda value, level=level: int(value * level / 255)) for level in colour]
        Image.merge("RGB", layers).save(tmp_path / "red" / f"tint-{number}.png")
    assert take(tmp_path).twins == []
