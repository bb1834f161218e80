"""The drawn sample: the same each time, laid out as promised, and honest."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.sample import baseline
from data.tires import CLASSES, SPLITS, draw
from tests.support.servers import ROOT

FEW = {"training_data": 2, "testing_data": 2}
PART = {"training_data": 24, "testing_data": 6}
whole = pytest.mark.parametrize("drawing", [pytest.param(SPLITS, marks=pytest.mark.slow, id="whole")], indirect=True)
either = pytest.mark.parametrize(
    "drawing", [pytest.param(PART, id="part"), pytest.param(SPLITS, marks=pytest.mark.slow, id="whole")], indirect=True
)
SCRIPT = ROOT / "data" / "tires.py"


@pytest.fixture(scope="session")
def drawing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of so many pictures: the whole sample takes a minute to draw."""
    out = tmp_path_factory.mktemp("drawn") / "tires"
    draw(out, splits=request.param)
    return out


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("few") / "tires"
    assert draw(out, splits=FEW) is True
    return out


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.jpg")}


def sides(folder: Path) -> list[tuple[int, int]]:
    sizes = []
    for file in sorted(folder.glob("*.jpg")):
        with Image.open(file) as image:
            sizes.append(image.size)
    return sizes


@pytest.mark.slow
def test_two_drawings_with_one_seed_are_the_same_bytes(tmp_path: Path, few: Path) -> None:
    draw(tmp_path / "two", splits=FEW)
    assert pictures(few) == pictures(tmp_path / "two")


def test_another_seed_draws_other_pictures(tmp_path: Path, few: Path) -> None:
    draw(tmp_path / "two", seed=2, splits=FEW)
    one, two = pictures(few), pictures(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(one[name] != two[name] for name in one)


@either
def test_the_layout_is_balanced_and_complete(drawing: Path, request: pytest.FixtureRequest) -> None:
    splits = request.node.callspec.params["drawing"]
    for split, count in splits.items():
        for label in CLASSES:
            assert len(list((drawing / split / label).glob("*.jpg"))) == count // 2
    assert len(pictures(drawing)) == sum(splits.values())


@either
def test_no_picture_is_drawn_twice(drawing: Path) -> None:
    assert len(set(pictures(drawing).values())) == len(pictures(drawing))


@either
def test_sides_run_from_224_to_1024_pixels_and_are_not_all_equal(drawing: Path) -> None:
    sizes = [size for label in CLASSES for size in sides(drawing / "training_data" / label)]
    assert min(min(size) for size in sizes) >= 224
    assert max(max(size) for size in sizes) <= 1024
    assert max(max(size) for size in sizes) > 900
    assert sum(width != height for width, height in sizes) > 0.75 * len(sizes)


@whole
def test_both_classes_share_size_brightness_and_contrast(drawing: Path) -> None:
    def facts(label: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        rows = []
        for file in sorted((drawing / "training_data" / label).glob("*.jpg")):
            with Image.open(file) as image:
                grey = np.asarray(image.convert("L"), dtype=np.float64)
            rows.append((*grey.shape, grey.mean(), grey.std()))
        return np.array(rows)

    cracked, normal = facts("cracked"), facts("normal")
    spread = np.concatenate([cracked, normal]).std(axis=0)
    apart = np.abs(cracked.mean(axis=0) - normal.mean(axis=0)) / spread
    assert (apart < 0.35).all(), apart  # in standard deviations; chance alone gives about 0.1 to 0.2


@whole
def test_thumbnails_do_not_tell_the_classes_apart(drawing: Path) -> None:
    reached = baseline(drawing)
    assert max(reached.values()) <= 0.75, reached


def test_a_second_run_leaves_the_pictures_alone_and_says_so(tmp_path: Path, few: Path) -> None:
    shutil.copytree(few, tmp_path / "tires")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "tires").rglob("*.jpg")}
    assert draw(tmp_path / "tires", splits=FEW) is False
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "tires").rglob("*.jpg")} == before


def test_a_drawing_that_lost_a_picture_is_drawn_again(tmp_path: Path, few: Path) -> None:
    shutil.copytree(few, tmp_path / "tires")
    (tmp_path / "tires" / "testing_data" / "normal" / "000.jpg").unlink()
    assert draw(tmp_path / "tires", splits=FEW) is True
    assert pictures(tmp_path / "tires") == pictures(few)


def test_what_a_killed_drawing_left_is_no_hindrance(tmp_path: Path, few: Path) -> None:
    shutil.copytree(few, tmp_path / "tires.part")
    (tmp_path / "tires.part" / "testing_data" / "normal" / "000.jpg").unlink()
    assert draw(tmp_path / "tires", splits=FEW) is True
    assert len(pictures(tmp_path / "tires")) == 4
    assert not (tmp_path / "tires.part").exists()


def test_a_folder_of_somebody_elses_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    ran = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path, "--force"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert "was not drawn by" in ran.stderr
    assert (tmp_path / "photo.jpg").read_bytes() == b"precious"


def test_another_drawing_is_replaced_only_by_force(tmp_path: Path, few: Path) -> None:
    shutil.copytree(few, tmp_path / "tires")
    with pytest.raises(FileExistsError, match="--force"):
        draw(tmp_path / "tires", seed=2, splits=FEW)
    assert pictures(tmp_path / "tires") == pictures(few)
    assert draw(tmp_path / "tires", seed=2, splits=FEW, force=True) is True
    assert pictures(tmp_path / "tires") != pictures(few)
