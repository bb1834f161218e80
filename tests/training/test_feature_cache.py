"""The feature cache: computed once, bounded, and safe whatever happens to it."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from loupe.errors import UserError
from loupe.training.fit.feature_cache import Cache, CachedFeatures, Mapped

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)
IDS = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in PIXELS]
ROOM = 1e9


def front(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3))
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 3)(image)))


def keep(
    cache: Cache, model: keras.Model | None = None, ids: Sequence[str] = IDS, dependencies: dict[str, Any] | None = None
) -> CachedFeatures:
    return cache.features(
        model or front(), lambda rows: PIXELS[list(rows)], list(ids), dependencies or {"network": "small"}
    )


def wanted(model: keras.Model) -> Any:
    return np.asarray(model(PIXELS.astype(np.float32)))


def test_features_are_those_of_the_network_and_are_computed_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ROOM)
    first, again = keep(cache), keep(cache)
    assert (first.computed, again.computed) == (70, 0)
    assert first.array.dtype == np.float16
    np.testing.assert_allclose(first.array, wanted(front()), rtol=2e-3, atol=0.1)
    np.testing.assert_array_equal(first.array, again.array)


def test_a_picture_more_costs_one_picture(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ROOM)
    assert keep(cache, ids=IDS[:69]).computed == 69
    all_of_them = keep(cache)
    assert all_of_them.computed == 1
    np.testing.assert_allclose(all_of_them.array, wanted(front()), rtol=2e-3, atol=0.1)


def test_the_order_asked_for_is_the_order_given_and_copies_are_computed_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ROOM)
    keep(cache)
    turned = cache.features(front(), lambda rows: PIXELS[::-1][list(rows)], IDS[::-1] + IDS[:1], {"network": "small"})
    assert turned.computed == 0
    np.testing.assert_array_equal(turned.array[-1], turned.array[-2])


def test_of_rows_with_one_id_the_first_is_computed_and_rows_come_in_order(tmp_path: Path) -> None:
    """A validation picture has the same id in every view. The last view's row was asked for, which no pixels had."""
    asked: list[int] = []

    def pixels(rows: Sequence[int]) -> Any:
        asked.extend(rows)
        return PIXELS[np.array(rows) % 70]

    views = [f"{row:064x}" if row % 2 else IDS[row] for row in range(70)]
    kept = Cache(tmp_path, ROOM).features(front(), pixels, IDS + views, {"network": "small"})
    assert asked[:70] == list(range(70))
    assert sorted(asked[70:]) == asked[70:] == list(range(71, 140, 2))
    assert kept.computed == 105


def test_other_weights_and_other_settings_are_other_features(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ROOM)
    keep(cache)
    assert keep(cache, front(2)).computed == 70
    assert keep(cache, dependencies={"network": "small", "precision": "bfloat16"}).computed == 70
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == 3


def test_deleting_any_of_it_is_safe(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ROOM)
    entry = keep(cache).folder
    assert entry
    for victim in ("ids.txt", "rows.f16", "about.json"):
        (entry / victim).unlink()
        np.testing.assert_allclose(keep(cache).array, wanted(front()), rtol=2e-3, atol=0.1)


@pytest.mark.parametrize("victim", ["ids.txt", "rows.f16"])
def test_a_file_cut_short_is_filled_up_again(tmp_path: Path, victim: str) -> None:
    cache = Cache(tmp_path, ROOM)
    entry = keep(cache).folder
    assert entry
    os.truncate(entry / victim, (entry / victim).stat().st_size // 2 + 3)
    mended = keep(cache)
    assert 30 < mended.computed < 40
    np.testing.assert_allclose(mended.array, wanted(front()), rtol=2e-3, atol=0.1)


def damage(entry: Path, kind: str) -> None:
    ids, rows = entry / "ids.txt", entry / "rows.f16"
    lines = ids.read_bytes().splitlines(keepends=True)
    if kind == "zeroed ids":  # as after a power cut
        ids.write_bytes(b"".join(lines[:40]) + bytes(len(lines[0]) * 30))
    elif kind == "a blank line":
        ids.write_bytes(b"".join(lines[:5]) + b"\n" + b"".join(lines[5:]))
    elif kind == "an id twice":
        ids.write_bytes(b"".join(lines[:5] + lines[4:]))
    elif kind == "no text":
        ids.write_bytes(b"\xff" + b"".join(lines)[1:])
    else:
        rows.write_bytes(rows.read_bytes()[:100] + bytes(rows.stat().st_size - 100))


@pytest.mark.parametrize("kind", ["zeroed ids", "a blank line", "an id twice", "no text", "zeroed rows"])
def test_damage_is_seen_and_computed_again(tmp_path: Path, kind: str) -> None:
    cache = Cache(tmp_path, ROOM)
    entry = keep(cache).folder
    assert entry
    damage(entry, kind)
    mended = keep(cache)
    assert mended.computed > 0
    np.testing.assert_allclose(mended.array, wanted(front()), rtol=2e-3, atol=0.1)
    assert keep(cache).computed == 0


def test_an_entry_that_another_run_is_filling_is_not_cleared_away(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ROOM)
    entry = keep(cache).folder
    assert entry
    cache.limit = 70 * 5 * 2 + 70 * 74
    with (entry / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        keep(cache, front(2))
        assert (entry / "rows.f16").exists()
    keep(cache, front(3))
    assert not entry.exists()


def test_the_entries_longest_not_used_make_room(tmp_path: Path) -> None:
    entry_bytes = 70 * 5 * 2 + 70 * 74
    cache = Cache(tmp_path, limit=2.6 * entry_bytes)
    entries = [keep(cache, front(seed)).folder for seed in (1, 2)]
    time.sleep(0.02)
    keep(cache, front(1))  # used again: the second is now the older
    third = keep(cache, front(3)).folder
    assert [entry.exists() for entry in (*entries, third) if entry] == [True, False, True]
    assert cache.size() <= 2.6 * entry_bytes


def test_what_is_larger_than_the_bound_is_computed_and_not_kept(tmp_path: Path) -> None:
    cached = keep(Cache(tmp_path, limit=100))
    assert cached.folder is None
    np.testing.assert_allclose(cached.array, wanted(front()), rtol=2e-3, atol=0.1)
    assert not list(tmp_path.iterdir())


def test_on_a_full_disk_features_that_are_not_kept_need_none(tmp_path: Path) -> None:
    """Following the advice of a full disk's error must help."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--cache-gb 0"):
        keep(Cache(tmp_path / "file", ROOM))
    assert keep(Cache(tmp_path / "file", 0)).computed == 70


def test_rows_too_many_for_the_memory_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loupe.training.fit.feature_cache.IN_MEMORY", 100)
    cached = keep(Cache(tmp_path, ROOM), ids=IDS)
    assert isinstance(cached.array, Mapped)
    np.testing.assert_allclose(cached.array[np.array([3, 60, 3])], wanted(front())[[3, 60, 3]], rtol=2e-3, atol=0.1)


def test_values_beyond_half_precision_stay_finite(tmp_path: Path) -> None:
    image = keras.Input((8, 8, 3))
    loud = keras.Model(image, keras.layers.Rescaling(1e6)(keras.layers.GlobalAveragePooling2D()(image)))
    assert np.isfinite(keep(Cache(tmp_path, ROOM), loud).array).all()


@pytest.mark.slow
def test_a_kill_while_features_are_computed_loses_at_most_a_batch(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_slowly, args=(tmp_path,))
    child.start()
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.glob("*/ids.txt")):
        assert time.monotonic() < deadline and child.is_alive()
        time.sleep(0.02)
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    gone_on = keep(Cache(tmp_path, ROOM))
    assert 0 < gone_on.computed < 70
    np.testing.assert_allclose(gone_on.array, wanted(front()), rtol=2e-3, atol=0.1)


def test_what_broke_off_while_features_were_computed_loses_at_most_a_batch(tmp_path: Path) -> None:
    def pixels(rows: Sequence[int]) -> Any:
        if rows[0]:
            raise SystemExit
        return PIXELS[list(rows)]

    with pytest.raises(SystemExit):
        Cache(tmp_path, ROOM).features(front(), pixels, IDS, {"network": "small"})
    gone_on = keep(Cache(tmp_path, ROOM))
    assert 0 < gone_on.computed < 70
    np.testing.assert_allclose(gone_on.array, wanted(front()), rtol=2e-3, atol=0.1)


def _slowly(folder: Path) -> None:
    def pixels(rows: Sequence[int]) -> Any:
        if rows[0]:
            time.sleep(60)
        return PIXELS[list(rows)]

    Cache(folder, ROOM).features(front(), pixels, IDS, {"network": "small"})
