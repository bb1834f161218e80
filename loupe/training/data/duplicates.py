"""Pictures that are the same picture: exact copies, and the same one resized, saved anew or cropped a little.

    bits = fingerprint(grey)                       # a perceptual hash, kept with the picture
    pairs = twins(sha256s, fingerprints, pixels)   # [(3, 17), …]: rows of the same picture, the smaller first

Fingerprints only nominate: two T-shirts on one bed sheet have near ones. Two pictures are called the same if, laid over
each other as well as shifting and stretching can, their small pixels agree everywhere, colours too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import imagehash
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter

from loupe.images.resize import Pixels

Array = np.ndarray[Any, np.dtype[np.float32]]
Truth = np.ndarray[Any, np.dtype[np.bool_]]

SIDE = 16  # of the hash: 256 bits, of which any two pictures differ in about 128
NEAR = 72  # bits: resized and saved anew the same picture differs in at most 10, with up to 5 % less margin in 20…80
CHECKS = 10_000  # pairs laid over each other, the nearest first: a minute or two
BLOCK = 2048  # pictures compared at a time: 16 MB of distances

SMALL = 64  # px at which two pictures are laid over each other
BLURS = (3.0, 1.0)  # px: coarse, then fine
STEPS = 12  # of each
FARTHEST = 0.2  # of a side: what shifting and stretching may do
HOPELESS = 0.75  # correlation before
ALIKE = 0.992  # and after: of 3,409 photographs the same one was never below 0.996, another one never above 0.985
DIFFERENT = 0.22  # deviations by which a place may differ: another print on the shirt is 0.35, worn-out JPEG 0.17
OTHER_COLOUR = 6.0  # levels, in places that blurring leaves; saving anew changes 2


def fingerprint(grey: Image.Image) -> int:
    bits = imagehash.phash(grey, hash_size=SIDE).hash
    return int.from_bytes(np.packbits(bits.ravel()).tobytes())


def twins(sha256s: Sequence[str], fingerprints: Sequence[int], pixels: Pixels) -> list[tuple[int, int]]:
    """Exact copies are paired with the first of them; near ones are sought among these first ones."""
    first: dict[str, int] = {}
    pairs = [(first[sha256], row) for row, sha256 in enumerate(sha256s) if first.setdefault(sha256, row) != row]
    rows = list(first.values())

    @lru_cache(maxsize=2048)
    def small(row: int) -> Array:
        image = Image.fromarray(pixels[row]).resize((SMALL, SMALL), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.float32)

    near = _nominated([fingerprints[row] for row in rows])
    return pairs + [(rows[a], rows[b]) for a, b in near if same(small(rows[a]), small(rows[b]))]


def same(one: Array, other: Array) -> bool:
    """Whether two small pictures are one, but for margins and for how they were saved."""
    if not correlation(one, other) >= HOPELESS:
        return False
    moved, inside = _moved(other, _fit(one.mean(-1), other.mean(-1)))
    mine, theirs = (gaussian_filter(picture.mean(-1), 0.7) for picture in (one, moved))
    if inside.mean() < 1 - 2 * FARTHEST or correlation(mine[inside], theirs[inside]) < ALIKE:
        return False
    gain, offset = np.polyfit(theirs[inside], mine[inside], 1)
    rest = np.abs(mine - gain * theirs - offset) * inside
    if uniform_filter(rest, SMALL // 8).max() > DIFFERENT * max(5.0, float(mine[inside].std())):
        return False
    # JPEG keeps colours at half the size, so they are compared where they are broad.
    tints = [picture - picture.mean(-1, keepdims=True) for picture in (one, moved)]
    apart = gaussian_filter((tints[0] - tints[1]) * inside[..., np.newaxis], (4, 4, 0))
    return bool(np.abs(apart).mean(-1).max() <= OTHER_COLOUR)


def correlation(one: Array, other: Array) -> float:
    mine, theirs = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((mine**2).sum() * (theirs**2).sum()))
    return float((mine * theirs).sum()) / scale if scale else 0.0


def _nominated(fingerprints: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of near fingerprints, the nearest first."""
    if not fingerprints:
        return
    packed = np.frombuffer(b"".join(number.to_bytes(SIDE * SIDE // 8) for number in fingerprints), dtype=np.uint8)
    signs = np.unpackbits(packed.reshape(len(fingerprints), -1), axis=1).astype(np.float32) * 2 - 1
    best = np.empty((0, 3), dtype=np.int64)  # distance, row, row
    farthest = NEAR
    for start in range(0, len(signs), BLOCK):
        for other in range(start, len(signs), BLOCK):
            apart = (SIDE * SIDE - signs[start : start + BLOCK] @ signs[other : other + BLOCK].T) / 2
            a, b = np.nonzero(apart <= farthest)
            found = np.stack([apart[a, b].astype(np.int64), a + start, b + other], axis=1)
            best = np.concatenate([best, found[found[:, 1] < found[:, 2]]])
            if len(best) > CHECKS:
                best = best[np.lexsort(best.T[::-1])[:CHECKS]]
                farthest = int(best[-1, 0])
    for _, one, another in best[np.lexsort(best.T[::-1])].tolist():
        yield one, another


_Y, _X = np.mgrid[0:SMALL, 0:SMALL].astype(np.float32)
_U, _V = _X / SMALL - 0.5, _Y / SMALL - 0.5


def _fit(one: Array, other: Array) -> Array:
    """Stretch and shift (across, down) that lay `other` over `one`: Lucas and Kanade's steps, light fitted as well."""
    place = np.zeros(4, dtype=np.float32)
    for blur in BLURS:
        mine, theirs = gaussian_filter(one, blur), gaussian_filter(other, blur)
        down, across = np.gradient(theirs)
        stack = np.stack([theirs, across, down], axis=-1)
        for _ in range(STEPS):
            moved, inside = _moved(stack, place)
            x, y = SMALL * moved[..., 1], SMALL * moved[..., 2]
            slopes = np.stack([x * _U, y * _V, x, y, -mine, -np.ones_like(mine)], axis=-1)[inside]
            # einsum and not @: products this small only wake BLAS's threads, which then wait for each other
            squares = np.einsum("ni,nj->ij", slopes, slopes) + 1e-3 * np.eye(6)
            step = np.linalg.solve(squares, -np.einsum("ni,n->i", slopes, moved[..., 0][inside]))[:4]
            place = np.clip(place + step, -FARTHEST, FARTHEST)
            if np.abs(step).max() < 1e-3:
                break
    return place


def _moved(picture: Array, place: Array) -> tuple[Array, Truth]:
    """The picture stretched and shifted, and which of its pixels lie inside."""
    x, y = _X + SMALL * (place[0] * _U + place[2]), _Y + SMALL * (place[1] * _V + place[3])
    layers = [map_coordinates(layer, [y, x], order=1, mode="nearest") for layer in np.moveaxis(picture, -1, 0)]
    last = SMALL - 1
    return np.stack(layers, axis=-1), (x >= 0) & (x <= last) & (y >= 0) & (y <= last)
