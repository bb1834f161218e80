"""Training pictures seen otherwise: turned, shifted, in another light. The same number gives the same batch.

    vary = Augment(Augmentation(flip="horizontal", rotation=10), seed=42)
    pixels = vary(pixels, number=17)                     # uint8 or float [n, H, W, 3] in, float32 0…255 out
    pixels, shares = blend(pixels, shares, alpha=0.2, seed=42, number=17)         # mixup; shares are [n, classes]

Every draw comes from (seed, number) alone, so training that goes on after a kill sees the batches it would have seen.

All that moves pixels is one matrix a picture and one resampling. Keras's layers resample, and blur, once each:
RandomFlip, Rotation, Zoom, Shear, Translation, Contrast and Erasing took 147 ms in a row for 64 pictures of 96×96 on
one core, and this takes 44 ms, colours included; a training step of the larger network takes 400 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loupe.errors import UserError

Array = np.ndarray[Any, np.dtype[np.float32]]

FLIPS = ("none", "horizontal", "both")
STRETCH = 1.25  # where zoom is on: up to this much more in one direction than in the other
MIXED = 0.12  # where colour is on: standard deviation of a channel's share in another
LUMA = (0.299, 0.587, 0.114)
ERASED = (0.02, 0.25)  # share of the picture's area
FILL = 120.0  # what an erased rectangle shows
BLEND = 1  # a stream of draws of its own


@dataclass(frozen=True)
class Augmentation:
    """Each value is a limit; what a picture gets is drawn anew within it, every time the picture is seen."""

    flip: str = "none"  # "both": mirrored and turned by quarters, for what has no upright position
    rotation: float = 0.0  # degrees to either side
    zoom: tuple[float, float] = (1.0, 1.0)  # magnification; above 1 a random part of the picture is seen
    shear: float = 0.0  # degrees to either side
    shift: float = 0.0  # share of the picture's side, in each direction
    brightness: tuple[float, float] = (1.0, 1.0)  # factors of all values
    contrast: float = 0.0  # share by which differences from the picture's mean grow or shrink
    colour: float = 0.0  # share of pictures shown in grey; the others' channels are mixed a little as well
    erasing: float = 0.0  # share of pictures that lose a rectangle to grey
    mixup: float = 0.0  # alpha of the beta distribution by which two pictures and their labels are blended

    def __post_init__(self) -> None:
        if self.flip not in FLIPS:
            raise UserError(f"flip is {self.flip!r}; it must be one of {', '.join(FLIPS)}.")
        _within("rotation", self.rotation, 0, 180, "degrees")
        _within("shear", self.shear, 0, 80, "degrees")
        _within("shift", self.shift, 0, 0.5, "as a share of the picture's side")
        _within("contrast", self.contrast, 0, 0.95, "as a share")
        _within("colour", self.colour, 0, 1, "as a share")
        _within("erasing", self.erasing, 0, 1, "as a share of the pictures")
        _within("mixup", self.mixup, 0, 10, "as the alpha of a beta distribution")
        _rising("zoom", self.zoom, 0.2, 5)
        _rising("brightness", self.brightness, 0.1, 5)

    @property
    def is_none(self) -> bool:
        return self == Augmentation()

    @property
    def moves(self) -> bool:
        """Whether pixels change their places, and not only their values."""
        return (self.flip, self.rotation, self.zoom, self.shear, self.shift) != ("none", 0, (1, 1), 0, 0)

    @property
    def colours(self) -> bool:
        """Whether brightness, contrast or colour change."""
        return (self.brightness, self.contrast, self.colour) != ((1, 1), 0, 0)


class Augment:
    def __init__(self, augmentation: Augmentation, seed: int) -> None:
        self.augmentation, self.seed = augmentation, seed

    def __call__(self, pixels: Any, number: int) -> Array:
        """`number` tells batches apart: the step, counted from the start of training, say."""
        if self.augmentation.is_none:
            return np.asarray(pixels, dtype=np.float32)
        from keras import ops  # here, so that nothing but training itself loads TensorFlow

        count, height, width, _ = pixels.shape
        rng = np.random.default_rng((self.seed, number))
        images = ops.cast(pixels, "float32")
        if self.augmentation.moves:
            from_where = places(self.augmentation, rng, count, height, width)
            images = ops.image.affine_transform(images, from_where, fill_mode="reflect")
        if self.augmentation.colours:
            images = ops.reshape(images, (count, height * width, 3))
            images = ops.matmul(images, mixtures(self.augmentation, rng, count))
            images = contrasted(images, self.augmentation.contrast, rng)
            images = ops.reshape(ops.clip(images, 0, 255), (count, height, width, 3))
        varied: Array = np.array(images)
        erase(varied, self.augmentation.erasing, rng)
        return varied


def places(wanted: Augmentation, rng: np.random.Generator, count: int, height: int, width: int) -> Array:
    """Of each picture: where an output pixel is taken from, as [a0 a1 a2 b0 b1 b2 0 0], x' = a0 x + a1 y + a2."""
    turn = np.deg2rad(rng.uniform(-wanted.rotation, wanted.rotation, count))
    slant = np.deg2rad(rng.uniform(-wanted.shear, wanted.shear, count))
    smallest, largest = np.log(wanted.zoom)
    zoom = np.exp(rng.uniform(smallest, largest, count))
    stretch = np.exp(rng.uniform(-1, 1, count) * np.log(STRETCH) / 2 * (wanted.zoom != (1, 1)))
    scale = np.stack([stretch / zoom, 1 / (stretch * zoom)], axis=-1)
    matrix = _turned(turn) @ _slanted(slant)
    if wanted.flip == "both":
        quarters = rng.integers(4, size=count) if height == width else 2 * rng.integers(2, size=count)
        matrix = matrix @ _turned(quarters * np.pi / 2)
    mirror = np.where(rng.random(count) < 0.5 * (wanted.flip != "none"), -1.0, 1.0)
    matrix = matrix * np.stack([scale[:, 0] * mirror, scale[:, 1]], axis=-1)[:, None, :]

    size = np.array([width, height])
    spare = np.maximum(0, 1 - 1 / zoom)[:, None] / 2  # zoomed in, this much to either side is out of sight
    away = (rng.uniform(-1, 1, (count, 2)) * (wanted.shift + spare)) * size
    middle = (size - 1) / 2
    origin = middle + away - matrix @ middle
    nothing = np.zeros((count, 1))
    rows = (matrix[:, 0], origin[:, :1], matrix[:, 1], origin[:, 1:], nothing, nothing)
    return np.concatenate(rows, axis=1).astype(np.float32)


def mixtures(wanted: Augmentation, rng: np.random.Generator, count: int) -> Array:
    """Of each picture: how its channels make up the new ones, brightness included, [n, 3 of old, 3 of new]."""
    matrix = np.tile(np.eye(3), (count, 1, 1))
    if wanted.colour:
        matrix += rng.normal(0, MIXED, (count, 3, 3))
        matrix /= np.maximum(0.5, matrix.sum(axis=1, keepdims=True))  # grey stays grey
        matrix[rng.random(count) < wanted.colour] = np.array(LUMA)[:, None]
    return (matrix * _between(rng, *wanted.brightness, count)[:, None, None]).astype(np.float32)


def contrasted(images: Any, contrast: float, rng: np.random.Generator) -> Any:
    """Flat pictures [n, H×W, 3] with more or less difference from their own mean."""
    from keras import ops

    factor = _between(rng, 1 - contrast, 1 + contrast, len(images))[:, None, None]
    mean = ops.mean(images, axis=(1, 2), keepdims=True)
    return (images - mean) * factor + mean


def erase(pixels: Array, share: float, rng: np.random.Generator) -> None:
    """A rectangle of some pictures turns grey, in place."""
    side = np.array(pixels.shape[1:3])
    for number in np.flatnonzero(rng.random(len(pixels)) < share):
        form = np.exp(rng.uniform(-0.5, 0.5))  # from 1:2.7 to 2.7:1
        extent = np.minimum(1, np.sqrt(rng.uniform(*ERASED)) * np.array([form, 1 / form]))
        start = rng.uniform(0, 1 - extent)
        (top, left), (bottom, right) = (start * side).astype(int), ((start + extent) * side).astype(int)
        pixels[number, top:bottom, left:right] = FILL


def blend(pixels: Array, shares: Array, alpha: float, seed: int, number: int) -> tuple[Array, Array]:
    """Mixup: each picture and its label with a share of another's. The picture itself keeps at least half."""
    rng = np.random.default_rng((seed, number, BLEND))
    own = rng.beta(alpha, alpha, len(pixels)).astype(np.float32)
    own = np.maximum(own, 1 - own)
    other = rng.permutation(len(pixels))
    by_picture = own[:, None, None, None]
    blended = pixels * by_picture + pixels[other] * (1 - by_picture)
    return blended, shares * own[:, None] + shares[other] * (1 - own[:, None])


def _between(rng: np.random.Generator, low: float, high: float, count: int) -> Array:
    return rng.uniform(low, high, count).astype(np.float32)


def _turned(angle: Any) -> Any:
    return np.moveaxis(np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), -1, 0)


def _slanted(angle: Any) -> Any:
    return np.moveaxis(np.array([[np.ones_like(angle), -np.sin(angle)], [0 * angle, np.cos(angle)]]), -1, 0)


def _within(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} is {value:g}; give {low:g} to {high:g}, {unit}.")


def _rising(name: str, span: tuple[float, float], low: float, high: float) -> None:
    if not (len(span) == 2 and low <= span[0] <= span[1] <= high):
        written = " ".join(f"{value:g}" for value in span)
        raise UserError(f"{name} is {written}; give two factors, the lower first, from {low:g} to {high:g}.")
