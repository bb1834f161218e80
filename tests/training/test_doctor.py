"""The doctor on data sets with faults, each caused here, and on healthy ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from loupe.training.data.dataset import Source, read
from loupe.training.data.doctor import Finding, Findings, examine
from loupe.training.data.label_errors import (
    SuspectLabel,
    describe,
    first_to_look_at,
    label_errors,
    out_of_fold,
    rather_wrong,
    second_opinion,
)
from tests.training.test_dataset import grain, paint, scene


def ask(root: Path, size: int = 64) -> Findings:
    return examine(read(Source(root), size, size, 42, root, fewest=0))


def by_category(findings: Findings) -> dict[str, Finding]:
    return {finding.category: finding for finding in findings.groups}


def names(findings: Findings, category: str) -> list[str]:
    return [findings.names[row] for row in by_category(findings)[category].rows]


def test_a_healthy_data_set_has_no_findings(tmp_path: Path) -> None:
    findings = ask(paint(tmp_path, 30))
    assert findings.groups == []
    assert "nothing found" in findings.table()
    assert findings.to_dict()["splits"]["train"] == {"blue": 22, "red": 22}


def test_bad_files_are_told_by_what_they_are(tmp_path: Path) -> None:
    paint(tmp_path, 30)
    (tmp_path / "red" / "empty.jpg").touch()
    (tmp_path / "red" / "text [1].jpg").write_text("no picture")
    whole = (tmp_path / "red" / "000.png").read_bytes()
    for number in range(4):
        (tmp_path / "blue" / f"cut-{number}.png").write_bytes(whole[: len(whole) // (number + 2)])
    findings = ask(tmp_path)
    finding_of = by_category(findings)
    assert [path.name for path in finding_of["empty"].paths] == ["empty.jpg"]
    assert [path.name for path in finding_of["no picture"].paths] == ["text [1].jpg"]
    assert len(finding_of["damaged"].paths) == 4
    assert {finding.severity for finding in findings.groups} == {"error"}
    table = findings.table()
    assert "blue/cut-0.png" in table and "red/text [1].jpg" in table and "and 2 more" in table
    files = next(entry["files"] for entry in findings.to_dict()["findings"] if entry["kind"] == "damaged")
    assert files[0] == {"file": "blue/cut-0.png", "why": "damaged or cut short"}
    assert json.loads(json.dumps(findings.to_dict())) == findings.to_dict()


def test_the_same_picture_twice_is_told_by_where_it_stands(tmp_path: Path) -> None:
    paint(tmp_path / "train", 30)
    paint(tmp_path / "test", 5, start=100)
    # Plant a duplicate of each sort.
    red, blue = tmp_path / "train" / "red", tmp_path / "train" / "blue"
    shutil.copy(tmp_path / "test/red/100.png", red / "leak.png")
    Image.open(tmp_path / "test/red/101.png").resize((100, 75)).save(red / "near-leak.jpg", quality=70)
    shutil.copy(red / "001.png", red / "copy.png")
    Image.open(red / "002.png").save(red / "near-copy.jpg", quality=60)
    Image.open(red / "003.png").save(blue / "contradiction.jpg", quality=90)
    # Each is found once, by its category.
    findings = ask(tmp_path)
    expected = {
        "leakage": ["test/red/100.png", "train/red/leak.png"],
        "near leakage": ["test/red/101.png", "train/red/near-leak.jpg"],
        "copies": ["train/red/001.png", "train/red/copy.png"],
        "near copies": ["train/red/002.png", "train/red/near-copy.jpg"],
        "two labels": ["train/blue/contradiction.jpg", "train/red/003.png"],
    }
    assert {category: sorted(names(findings, category)) for category in by_category(findings)} == expected
    assert [len(finding.sets) for finding in findings.groups] == [1] * 5
    sets = next(entry["sets"] for entry in findings.to_dict()["findings"] if entry["kind"] == "leakage")
    assert {"file": "train/red/leak.png", "label": "red"} in sets[0]


def test_small_and_uneven_and_unmeasured_classes_are_told(tmp_path: Path) -> None:
    paint(tmp_path / "train", 70, ("blue",))
    paint(tmp_path / "train", 9, ("red",))
    paint(tmp_path / "test", 4, ("blue",), start=100)
    finding_of = by_category(ask(tmp_path))
    assert finding_of["few"].severity == "warning" and "'red' 9" in finding_of["few"].text
    assert "'blue' has 8 times" in finding_of["imbalance"].text
    assert "no test pictures of 'red'" in finding_of["unmeasured"].text


def test_a_class_too_small_to_be_trained_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path, 30)
    paint(tmp_path, 3, ("green",))
    assert by_category(ask(tmp_path))["few"].severity == "error"


def test_a_class_without_pictures_is_one_finding_and_not_the_end(tmp_path: Path) -> None:
    paint(tmp_path, 30)
    (tmp_path / "green").mkdir()
    (tmp_path / "violet").mkdir()
    (tmp_path / "violet" / "text.jpg").write_text("no picture")
    findings = ask(tmp_path)
    assert [finding.category for finding in findings.groups] == ["no picture", "none"]
    assert "of 'green', 'violet': add some, or remove it" in by_category(findings)["none"].text
    assert findings.has_errors


def test_one_class_with_pictures_and_one_without_are_looked_at(tmp_path: Path) -> None:
    paint(tmp_path, 30, ("blue",))
    (tmp_path / "green").mkdir()
    assert [finding.category for finding in ask(tmp_path).groups] == ["none"]


def test_each_picture_is_reported_once_under_its_worst_fault(tmp_path: Path) -> None:
    """A copy under two labels in two splits, and a black picture, which is blank as well."""
    paint(tmp_path / "train", 30)
    paint(tmp_path / "test", 5, start=100)
    shutil.copy(tmp_path / "test" / "red" / "100.png", tmp_path / "train" / "blue" / "same.png")
    Image.new("RGB", (90, 60), (1, 1, 2)).save(tmp_path / "train" / "blue" / "night.png")
    findings = ask(tmp_path)
    rows = [row for finding in findings.groups for row in finding.rows]
    assert sorted(rows) == sorted(set(rows))
    assert {finding.category for finding in findings.groups} == {"two labels", "dark"}


def test_a_heic_says_which_package_reads_it(tmp_path: Path) -> None:
    """Where pillow-heif is not installed, as it is not for the tests."""
    paint(tmp_path, 30)
    (tmp_path / "red" / "IMG_1.HEIC").write_bytes(bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(200))
    findings = ask(tmp_path)
    assert "pip install pillow-heif" in by_category(findings)["heic"].text
    assert " ".join(findings.table().split()).count("IMG_1.HEIC") == 1


def test_what_a_finding_does_not_say_of_a_file_is_said_beside_it(tmp_path: Path) -> None:
    paint(tmp_path / "images", 12, ("mixed",))
    rows = "".join(f"{number:03},{'ab'[number % 2]}\n" for number in range(12))
    (tmp_path / "train.csv").write_text(f"id,label\n{rows}999,a\n")
    assert "999: row 14 of train.csv: no such file" in " ".join(ask(tmp_path).table().split())


def test_of_many_small_classes_the_smallest_are_named(tmp_path: Path) -> None:
    for number in range(8):
        paint(tmp_path / "train", 9 + number, (f"class {number}",))
    paint(tmp_path / "test", 4, ("class 0",), start=100)
    finding_of = by_category(ask(tmp_path))
    named = ", ".join(f"'class {number}' {9 + number}" for number in range(5))
    assert finding_of["few"].text.endswith(f"{named}, … and 3 more")
    assert "'class 5', … and 2 more" in finding_of["unmeasured"].text


def test_a_class_whose_one_validation_picture_calibrates_is_measured(tmp_path: Path) -> None:
    labels = tuple(f"class {number}" for number in range(4))
    paint(tmp_path / "train", 20, labels)
    for name, start in (("val", 50), ("test", 60)):
        paint(tmp_path / name, 1, labels, start=start)
    assert "unmeasured" not in by_category(ask(tmp_path))


def test_small_is_judged_by_the_size_that_training_reads_at(tmp_path: Path) -> None:
    data = read(Source(paint(tmp_path, 12)), 64, 64, 42, tmp_path)
    assert not [entry for entry in examine(data).groups if entry.category == "small"]
    small = next(entry for entry in examine(data, 299).groups if entry.category == "small")
    assert len(small.rows) == 24 and "299×299" in small.text
    assert "to be read at 299×299" in data.summary("mine", 299) and "64" not in data.summary("mine", 299)


def test_a_picture_in_validation_and_test_is_told_to_be_left_out_of_validation(tmp_path: Path) -> None:
    paint(tmp_path / "train", 12)
    paint(tmp_path / "val", 4, start=100)
    paint(tmp_path / "test", 4, start=200)
    shutil.copy(tmp_path / "test/red/200.png", tmp_path / "val/red/again.png")
    finding_of = by_category(ask(tmp_path))
    assert "left out of validation" in finding_of["measured twice"].text and "leakage" not in finding_of


def test_every_file_is_recorded_with_its_split_and_what_was_left_out(tmp_path: Path) -> None:
    paint(tmp_path, 12)
    shutil.copy(tmp_path / "red/001.png", tmp_path / "red/copy.png")
    (tmp_path / "red" / "text.jpg").write_text("no picture")
    shutil.copy(tmp_path / "red/001.png", tmp_path / "loose.png")
    findings = ask(tmp_path)
    record = findings.to_dict()
    splits = {entry["file"]: entry["split"] for entry in record["files"]}
    assert len(splits) == 25 and splits["red/copy.png"] == "left out"
    assert {split: list(splits.values()).count(split) for split in findings.splits} == {
        split: sum(counts.values()) for split, counts in findings.splits.items()
    }
    assert [entry["file"] for entry in record["skipped"]] == ["loose.png", "red/text.jpg"]
    assert "1 file left out: in no class's folder" in by_category(findings)["unused"].text


def test_odd_sizes_shapes_and_modes_are_told(tmp_path: Path) -> None:
    paint(tmp_path, 30)
    scene(1).resize((24, 18)).save(tmp_path / "red" / "small.png")
    scene(2, 400, 90).save(tmp_path / "red" / "wide.png")
    scene(3).convert("L").save(tmp_path / "blue" / "grey.png")
    scene(4).convert("RGBA").save(tmp_path / "blue" / "clear.png")
    findings = ask(tmp_path)
    assert names(findings, "small") == ["red/small.png"]
    assert names(findings, "shape") == ["red/wide.png"]
    modes = {finding.text: [findings.names[row] for row in finding.rows] for finding in findings.groups}
    assert modes["1 picture grey, unlike most"] == ["blue/grey.png"]
    assert modes["1 picture with transparency, unlike most"] == ["blue/clear.png"]


def test_dark_bright_and_blurred_pictures_are_told_and_no_others(tmp_path: Path) -> None:
    for label, seed in (("blue", 0), ("red", 100)):
        (tmp_path / label).mkdir()
        for number in range(30):
            picture = Image.blend(scene(seed + number, 160, 120), grain(160, 120), 0.4)
            picture.save(tmp_path / label / f"{number:02}.png")
    turned = Image.open(tmp_path / "red" / "07.png").rotate(180)
    turned.point(lambda value: value // 12).save(tmp_path / "red" / "dark.png")
    turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT).point(lambda value: 243 + value // 24).save(
        tmp_path / "red/light.png"
    )
    Image.open(tmp_path / "blue" / "03.png").rotate(180).filter(ImageFilter.GaussianBlur(6)).save(
        tmp_path / "blue/blur.png"
    )
    findings = ask(tmp_path)
    assert {finding.category: names(findings, finding.category) for finding in findings.groups} == {
        "dark": ["red/dark.png"],
        "bright": ["red/light.png"],
        "blurred": ["blue/blur.png"],
    }


def test_a_set_that_is_dark_throughout_is_not_suspicious(tmp_path: Path) -> None:
    paint(tmp_path, 30)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).point(lambda value: value // 8).save(path)
    assert ask(tmp_path).groups == []


def test_a_class_that_its_format_gives_away_is_told(tmp_path: Path) -> None:
    paint(tmp_path, 30)
    for path in (tmp_path / "red").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    findings = ask(tmp_path)
    assert {finding.category for finding in findings.groups} == {"giveaway"}
    assert "'red' can be told by its files' format alone (JPEG)" in findings.groups[1].text


def test_rows_of_a_csv_that_fit_no_picture_are_told(tmp_path: Path) -> None:
    paint(tmp_path / "images", 12, ("mixed",))
    rows = "".join(f"{number:03},{'even' if number % 2 == 0 else 'odd'}\n" for number in range(12))
    (tmp_path / "train.csv").write_text(f"id,label\n{rows}000,odd\n999,odd\n")
    finding_of = by_category(ask(tmp_path))
    assert [path.name for path in finding_of["missing"].paths] == ["999"]
    assert [path.name for path in finding_of["contradiction"].paths] == ["000.png"]


@pytest.fixture(scope="module")
def shapes() -> tuple[np.ndarray, np.ndarray]:
    """Pictures of two classes that anyone can tell apart: stripes across and stripes down."""
    rng = np.random.default_rng(0)
    classes = np.arange(120) % 2
    wave = np.sin(np.arange(64) / 3)[:, np.newaxis] * np.ones(64)
    pictures = [128 + 80 * (wave.T if number else wave) + rng.normal(0, 20, (64, 64)) for number in classes]
    return np.repeat(np.clip(pictures, 0, 255).astype(np.uint8)[..., np.newaxis], 3, axis=-1), classes.astype(np.int64)


def test_swapped_labels_are_found_by_a_model_that_never_saw_them(shapes: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, classes = shapes
    swapped = np.array([3, 40, 77])
    given = classes.copy()
    given[swapped] = 1 - given[swapped]
    suspects = label_errors(out_of_fold(describe(pixels), given, seed=42), given)
    assert {suspect.row for suspect in suspects[:3]} == set(swapped.tolist())
    assert all(
        suspect.suggested == classes[suspect.row] != suspect.given and suspect.wrong > 0.9 for suspect in suspects[:3]
    )
    assert [suspect.score for suspect in suspects] == sorted(suspect.score for suspect in suspects)


def test_the_most_doubtful_labels_are_there_to_look_at_unless_the_network_speaks_for_them() -> None:
    suspects = [SuspectLabel(row, 0, 1, score=row / 100, wrong=0.0) for row in range(30)]
    assert rather_wrong(suspects) == []
    for_it, against = np.array([0.7, 0.3]), np.array([0.2, 0.8])
    looked_at = first_to_look_at(suspects, {0: for_it, 1: against})
    assert [suspect.row for suspect in looked_at] == list(range(1, 13)), "the first dozen, but for 0"


def test_no_label_is_doubted_that_every_picture_like_it_bears(shapes: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, classes = shapes
    assert label_errors(out_of_fold(describe(pixels), classes, seed=42), classes) == []


def judged(count: int, classes: int, skill: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a judge that is wrong as often as it says, and the truth."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, skill, (count, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = (probabilities.cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
    return probabilities**0.7, truth  # and less sure than it might be, as a strongly regularised one is


def wrong_labels(probabilities: np.ndarray, given: np.ndarray) -> list[SuspectLabel]:
    shares = probabilities / probabilities.sum(axis=1, keepdims=True)
    return rather_wrong(label_errors(shares, given))


@pytest.mark.parametrize("skill", [1.0, 2.0, 4.0])
def test_what_a_judges_own_mistakes_explain_is_no_list_of_wrong_labels(skill: float) -> None:
    """Twenty judges that are right of a half to nine in ten: they contradict hundreds of right labels."""
    listed = [len(wrong_labels(*judged(600, 4, skill, seed))) for seed in range(20)]
    assert sorted(listed)[-2] == 0, f"at most one list of twenty is not empty: {listed}"


def test_the_list_says_how_many_of_it_are_expected_to_be_right() -> None:
    listed, right, stated = 0, 0, 0.0
    for seed in range(10):
        probabilities, truth = judged(1500, 6, 4.0, seed)
        random = np.random.default_rng(seed)
        given, rows = truth.copy(), random.choice(1500, 60, replace=False)
        given[rows] = (truth[rows] + random.integers(1, 6, 60)) % 6
        suspects = wrong_labels(probabilities, given)
        listed += len(suspects)
        right += sum(given[suspect.row] == truth[suspect.row] for suspect in suspects)
        stated += sum(1 - suspect.wrong for suspect in suspects)
    assert listed > 200, "of 600 wrong labels"
    assert abs(right - stated) < 0.3 * max(right, stated)


def test_a_network_that_sees_more_than_the_judge_clears_the_labels() -> None:
    suspects = [SuspectLabel(row, 0, 1, 0.02, 0.9) for row in range(30)]
    supported, contradicted = np.array([0.99, 0.01]), np.array([0.01, 0.99])
    cleared = second_opinion(suspects, dict.fromkeys(range(10), supported))
    assert max(suspect.wrong for suspect in cleared) < 0.5, "those that it never saw, and by them all others"
    agreed = second_opinion(suspects, dict.fromkeys(range(10), contradicted))
    assert [suspect.wrong for suspect in agreed] == [0.9] * 30, "it may have made the same mistake: no proof"
    shrugged = second_opinion(suspects, {0: np.array([0.5, 0.5])})
    assert [suspect.wrong for suspect in shrugged] == pytest.approx([0.9] * 30)
    assert second_opinion(suspects, {}) == suspects


def test_a_list_of_no_more_than_its_expected_false_alarms_is_no_list() -> None:
    def listed(*chances: float) -> int:
        return len(rather_wrong([SuspectLabel(row, 0, 1, 0.1, chance) for row, chance in enumerate(chances)]))

    assert (listed(0.51), listed(0.6, 0.55, 0.51), listed(*[0.51] * 6)) == (0, 0, 0)
    assert (listed(0.95), listed(0.95, 0.4), listed(*[0.9] * 10), listed(*[0.6] * 60)) == (1, 1, 10, 60)
