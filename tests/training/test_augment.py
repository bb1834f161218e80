"""Augmentation stays within its limits, is the same for the same number, and none at all changes nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from loupe.errors import UserError
from loupe.training.fit.augment import FILL, Augment, Augmentation, blend

EVERYTHING = Augmentation("both", 20, (0.8, 1.5), 10, 0.1, (0.7, 1.3), 0.3, 0.2, 0.5, 0.2)


def pictures(count: int = 6, height: int = 32, width: int = 32) -> Any:
    """Smooth ones, so that what a resampling should give can be told."""
    phases = np.random.default_rng(0).uniform(0, 6, (count, 1, 1, 3))
    y, x = np.mgrid[0:height, 0:width]
    return (127 + 100 * np.sin((x + 2 * y)[None, :, :, None] / 9 + phases)).astype(np.uint8)


def test_values_load_no_tensorflow() -> None:
    program = "import loupe.training.fit.augment, sys; print('keras' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


def test_no_augmentation_leaves_every_value_as_it_is() -> None:
    assert Augmentation().is_none
    assert not EVERYTHING.is_none
    assert (Augment(Augmentation(), 1)(pictures(), 1) == pictures()).all()


def test_the_same_number_gives_the_same_batch_whatever_came_before() -> None:
    straight = [Augment(EVERYTHING, 7)(pictures(), number) for number in range(3)]
    resumed = Augment(EVERYTHING, 7)
    for number in (2, 0, 2, 1):
        assert (resumed(pictures(), number) == straight[number]).all()


def test_another_number_or_seed_gives_another_batch() -> None:
    first = Augment(EVERYTHING, 7)(pictures(), 0)
    assert (first != Augment(EVERYTHING, 7)(pictures(), 1)).any()
    assert (first != Augment(EVERYTHING, 8)(pictures(), 0)).any()


def test_values_stay_between_0_and_255_and_shapes_as_they_were() -> None:
    varied = Augment(EVERYTHING, 7)(pictures(20, 24, 40), 0)
    assert varied.shape == (20, 24, 40, 3)
    assert varied.dtype == np.float32
    assert varied.min() >= 0
    assert varied.max() <= 255


def test_a_horizontal_flip_mirrors_about_half_of_the_pictures_and_does_nothing_else() -> None:
    before = pictures(40)
    after = Augment(Augmentation(flip="horizontal"), 1)(before, 0)
    mirrored = np.isclose(after, before[:, :, ::-1], atol=0.1).all(axis=(1, 2, 3))
    same = np.isclose(after, before, atol=0.1).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 10 < mirrored.sum() < 30


def test_a_flip_both_ways_gives_all_eight_positions_of_a_square() -> None:
    before = pictures(1).repeat(100, axis=0)
    after = Augment(Augmentation(flip="both"), 1)(before, 0)
    turned = [np.rot90(before[0], quarters) for quarters in range(4)]
    positions = [*turned, *(picture[:, ::-1] for picture in turned)]
    seen = [
        next(n for n, position in enumerate(positions) if np.allclose(position, picture, atol=0.1)) for picture in after
    ]
    assert set(seen) == set(range(8))


def test_a_flip_both_ways_turns_an_oblong_by_halves_only() -> None:
    before = pictures(30, 24, 40)
    after = Augment(Augmentation(flip="both"), 1)(before, 0)
    positions = np.stack([before, before[:, ::-1], before[:, :, ::-1], before[:, ::-1, ::-1]])
    assert np.isclose(after, positions, atol=0.1).all(axis=(2, 3, 4)).any(axis=0).all()


def test_a_shift_moves_by_no_more_than_its_share() -> None:
    before = np.zeros((40, 50, 50, 3), np.uint8)
    before[:, 23:27, 23:27] = 255
    after = Augment(Augmentation(shift=0.2), 1)(before, 0)[..., 0]
    rows, columns = np.mgrid[0:50, 0:50]
    moved = [((after * axis).sum((1, 2)) / after.sum((1, 2))) - 24.5 for axis in (rows, columns)]
    assert np.abs(moved).max() <= 10.1
    assert np.abs(moved).max() > 7


def test_a_zoom_above_1_magnifies() -> None:
    before = np.zeros((20, 64, 64, 3), np.uint8)
    before[:, 28:36, 28:36] = 255
    after = Augment(Augmentation(zoom=(1.5, 1.5)), 1)(before, 0)
    np.testing.assert_allclose(after.sum((1, 2, 3)), 1.5**2 * before.sum((1, 2, 3)), rtol=0.1)


def test_brightness_is_a_factor_and_contrast_keeps_the_mean() -> None:
    before = pictures() // 4 + 60
    bright = Augment(Augmentation(brightness=(1.2, 1.2)), 1)(before, 0)
    np.testing.assert_allclose(bright, before * 1.2, rtol=1e-4)
    contrasted = Augment(Augmentation(contrast=0.5), 1)(before, 0)
    np.testing.assert_allclose(contrasted.mean((1, 2, 3)), before.mean((1, 2, 3)), rtol=1e-3)
    assert (np.abs(contrasted.std((1, 2, 3)) / before.std((1, 2, 3)) - 1) < 0.51).all()


def test_colour_leaves_grey_pictures_grey() -> None:
    before = np.full((10, 8, 8, 3), 100, np.uint8)
    after = Augment(Augmentation(colour=0.3), 1)(before, 0)
    np.testing.assert_allclose(after, 100, atol=0.5)


def test_erasing_hides_a_rectangle_of_the_wanted_share_of_pictures() -> None:
    before = np.zeros((100, 32, 32, 3), np.uint8)
    after = Augment(Augmentation(erasing=0.5), 1)(before, 0)
    hidden = (after == FILL).all(axis=-1).mean(axis=(1, 2))
    assert 30 < (hidden > 0).sum() < 70
    assert hidden.max() < 0.3
    assert set(np.unique(after)) == {0, FILL}


def test_mixup_blends_labels_as_it_blends_pictures() -> None:
    shares = np.eye(6, dtype=np.float32)
    before = pictures().astype(np.float32)
    pixels, mixed = blend(before, shares, alpha=0.4, seed=1, number=5)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(pixels, np.tensordot(mixed, before, 1), rtol=1e-3)
    assert (mixed.argmax(axis=1) == np.arange(6)).all()
    again, _ = blend(before, shares, alpha=0.4, seed=1, number=5)
    assert (again == pixels).all()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"flip": "vertical"}, "flip is 'vertical'; it must be one of none, horizontal, both"),
        ({"rotation": 181}, "rotation is 181; give 0 to 180, degrees"),
        ({"zoom": (1.5, 1.0)}, "zoom is 1.5 1; give two factors, the lower first"),
        ({"zoom": (0.0, 1.0)}, "zoom is 0 1"),
        ({"brightness": (1.0, float("nan"))}, "brightness is 1 nan"),
        ({"shift": -0.1}, "shift is -0.1; give 0 to 0.5"),
        ({"erasing": 2}, "erasing is 2; give 0 to 1"),
        ({"mixup": float("nan")}, "mixup is nan"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_bounds(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Augmentation(**values)
