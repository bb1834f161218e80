"""Find pictures that are the same picture: exact copies, and copies that were resized, saved anew or cropped a little.

    bits = fingerprint(grey)                       # a perceptual hash, stored with the picture
    pairs = twins(sha256s, fingerprints, pixels)   # [(3, 17), …]: rows of the same picture, the smaller first

Near fingerprints only suggest pairs: two T-shirts on one bed sheet have near ones. Two pictures are called the same if
their small pixels agree everywhere, colours too, once one is shifted and stretched to lie on the other.
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
Mask = np.ndarray[Any, np.dtype[np.bool_]]

HASH_SIDE = 16  # of the hash: 256 bits, of which any two pictures differ in about 128
NEAR_BITS = 72  # resized and saved anew a copy differs in at most 10 bits, with up to 5 % less margin in 20…80
MAX_CHECKS = 10_000  # pairs that are compared closely, the nearest first: a minute or two
BLOCK = 2048  # pictures compared at a time: 16 MB of distances

SMALL_SIDE = 64  # px at which two pictures are laid over each other
BLURS = (3.0, 1.0)  # px: coarse, then fine
STEPS = 12  # of each
MAX_WARP = 0.2  # of a side: the most that shifting and stretching may move
CORRELATED_BEFORE = 0.75  # the least correlation before two pictures are aligned
CORRELATED_AFTER = 0.992  # and after: of 3,409 photographs copies were never below 0.996, others never above 0.985
MAX_DEVIATION = 0.22  # deviations by which a place may differ: another print on the shirt is 0.35, worn-out JPEG 0.17
MAX_TINT = 6.0  # levels, in places that blurring leaves; saving anew changes 2


def fingerprint(grey: Image.Image) -> int:
    bits = imagehash.phash(grey, hash_size=HASH_SIDE).hash
    return int.from_bytes(np.packbits(bits.ravel()).tobytes())


def twins(sha256s: Sequence[str], fingerprints: Sequence[int], pixels: Pixels) -> list[tuple[int, int]]:
    """Return pairs of rows with the same picture. Copies are paired with the first of them; near pictures are sought
    among these."""
    first: dict[str, int] = {}
    pairs = [(first[sha256], row) for row, sha256 in enumerate(sha256s) if first.setdefault(sha256, row) != row]
    rows = list(first.values())

    @lru_cache(maxsize=2048)
    def small(row: int) -> Array:
        image = Image.fromarray(pixels[row]).resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.float32)

    near_pairs = _near_pairs([fingerprints[row] for row in rows])
    return pairs + [(rows[a], rows[b]) for a, b in near_pairs if is_same_picture(small(rows[a]), small(rows[b]))]


def is_same_picture(first: Array, second: Array) -> bool:
    """Return True if two small pictures are the same but for margins and for how they were saved."""
    # Pictures that are far apart are not aligned at all.
    if not correlation(first, second) >= CORRELATED_BEFORE:
        return False
    # Lay the second over the first and compare what lies inside both.
    moved, inside = _warp(second, _align(first.mean(-1), second.mean(-1)))
    first_grey, second_grey = (gaussian_filter(picture.mean(-1), 0.7) for picture in (first, moved))
    if inside.mean() < 1 - 2 * MAX_WARP or correlation(first_grey[inside], second_grey[inside]) < CORRELATED_AFTER:
        return False
    # No place may differ, apart from brightness and contrast.
    gain, offset = np.polyfit(second_grey[inside], first_grey[inside], 1)
    differences = np.abs(first_grey - gain * second_grey - offset) * inside
    if uniform_filter(differences, SMALL_SIDE // 8).max() > MAX_DEVIATION * max(5.0, float(first_grey[inside].std())):
        return False
    # JPEG stores colours at half the size, so they are compared after blurring.
    tints = [picture - picture.mean(-1, keepdims=True) for picture in (first, moved)]
    tint_differences = gaussian_filter((tints[0] - tints[1]) * inside[..., np.newaxis], (4, 4, 0))
    return bool(np.abs(tint_differences).mean(-1).max() <= MAX_TINT)


def correlation(first: Array, second: Array) -> float:
    first_centred, second_centred = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first_centred**2).sum() * (second_centred**2).sum()))
    return float((first_centred * second_centred).sum()) / scale if scale else 0.0


def _near_pairs(fingerprints: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs of near fingerprints, the nearest first."""
    if not fingerprints:
        return
    # Bits as -1 and 1, so that a product counts those that are equal.
    packed = np.frombuffer(
        b"".join(number.to_bytes(HASH_SIDE * HASH_SIDE // 8) for number in fingerprints), dtype=np.uint8
    )
    signs = np.unpackbits(packed.reshape(len(fingerprints), -1), axis=1).astype(np.float32) * 2 - 1
    # Compare block with block, and keep the nearest pairs.
    best = np.empty((0, 3), dtype=np.int64)  # distance, row, row
    farthest = NEAR_BITS
    for start in range(0, len(signs), BLOCK):
        for other_start in range(start, len(signs), BLOCK):
            distances = (
                HASH_SIDE * HASH_SIDE - signs[start : start + BLOCK] @ signs[other_start : other_start + BLOCK].T
            ) / 2
            a, b = np.nonzero(distances <= farthest)
            pairs = np.stack([distances[a, b].astype(np.int64), a + start, b + other_start], axis=1)
            best = np.concatenate([best, pairs[pairs[:, 1] < pairs[:, 2]]])
            if len(best) > MAX_CHECKS:
                best = best[np.lexsort(best.T[::-1])[:MAX_CHECKS]]
                farthest = int(best[-1, 0])
    # Hand out the pairs in order.
    for _, first, second in best[np.lexsort(best.T[::-1])].tolist():
        yield first, second


_Y, _X = np.mgrid[0:SMALL_SIDE, 0:SMALL_SIDE].astype(np.float32)
_U, _V = _X / SMALL_SIDE - 0.5, _Y / SMALL_SIDE - 0.5


def _align(first: Array, second: Array) -> Array:
    """Return the stretch and shift (across, down) that lay `second` over `first`, by Lucas and Kanade's steps, fitting
    light as well."""
    # Coarse steps first, then fine ones.
    warp = np.zeros(4, dtype=np.float32)
    for blur in BLURS:
        first_blurred, second_blurred = gaussian_filter(first, blur), gaussian_filter(second, blur)
        down, across = np.gradient(second_blurred)
        stack = np.stack([second_blurred, across, down], axis=-1)
        for _ in range(STEPS):
            # One step: solve for the change that lowers the difference most.
            moved, inside = _warp(stack, warp)
            x, y = SMALL_SIDE * moved[..., 1], SMALL_SIDE * moved[..., 2]
            slopes = np.stack([x * _U, y * _V, x, y, -first_blurred, -np.ones_like(first_blurred)], axis=-1)[inside]
            # einsum and not @: products this small only wake BLAS's threads, which then wait for each other
            squares = np.einsum("ni,nj->ij", slopes, slopes) + 1e-3 * np.eye(6)
            step = np.linalg.solve(squares, -np.einsum("ni,n->i", slopes, moved[..., 0][inside]))[:4]
            warp = np.clip(warp + step, -MAX_WARP, MAX_WARP)
            if np.abs(step).max() < 1e-3:
                break
    return warp


def _warp(picture: Array, warp: Array) -> tuple[Array, Mask]:
    """Return the picture stretched and shifted, and a mask of its pixels that lie inside."""
    x, y = _X + SMALL_SIDE * (warp[0] * _U + warp[2]), _Y + SMALL_SIDE * (warp[1] * _V + warp[3])
    layers = [map_coordinates(layer, [y, x], order=1, mode="nearest") for layer in np.moveaxis(picture, -1, 0)]
    last = SMALL_SIDE - 1
    return np.stack(layers, axis=-1), (x >= 0) & (x <= last) & (y >= 0) & (y <= last)
