"""Augmentation: vary training pictures by turning, shifting and lighting. The same number gives the same batch.

    vary = Augment(Augmentation(flip="horizontal", rotation=10), seed=42)
    pixels = vary(pixels, number=17)                     # uint8 or float [n, H, W, 3] in, float32 0…255 out
    pixels, shares = blend(pixels, shares, alpha=0.2, seed=42, number=17)         # mixup; shares are [n, classes]

Every draw depends on (seed, number) alone, so a resumed training sees the batches it would have seen.

All movements of a picture are combined in one matrix and one resampling. Keras's layers resample, and blur, once each:
RandomFlip, Rotation, Zoom, Shear, Translation, Contrast and Erasing took 147 ms in a row for 64 pictures of 96×96 on
one core, and this module takes 44 ms, colours included. A training step of the larger network takes 400 ms.
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
BLEND = 1  # keeps mixup's draws apart from the others of the same batch


@dataclass(frozen=True)
class Augmentation:
    """The limits of each variation. A picture gets values drawn within them, anew every time it is seen."""

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
        _check_range("rotation", self.rotation, 0, 180, "degrees")
        _check_range("shear", self.shear, 0, 80, "degrees")
        _check_range("shift", self.shift, 0, 0.5, "as a share of the picture's side")
        _check_range("contrast", self.contrast, 0, 0.95, "as a share")
        _check_range("colour", self.colour, 0, 1, "as a share")
        _check_range("erasing", self.erasing, 0, 1, "as a share of the pictures")
        _check_range("mixup", self.mixup, 0, 10, "as the alpha of a beta distribution")
        _check_span("zoom", self.zoom, 0.2, 5)
        _check_span("brightness", self.brightness, 0.1, 5)

    @property
    def is_none(self) -> bool:
        return self == Augmentation()

    @property
    def moves(self) -> bool:
        """Return True if pixels change their places, not only their values."""
        return (self.flip, self.rotation, self.zoom, self.shear, self.shift) != ("none", 0, (1, 1), 0, 0)

    @property
    def colours(self) -> bool:
        """Return True if brightness, contrast or colour change."""
        return (self.brightness, self.contrast, self.colour) != ((1, 1), 0, 0)


class Augment:
    def __init__(self, augmentation: Augmentation, seed: int) -> None:
        self.augmentation, self.seed = augmentation, seed

    def __call__(self, pixels: Any, number: int) -> Array:
        """Return the varied pictures. `number` tells batches apart: for example the step, counted from the start of
        training."""
        if self.augmentation.is_none:
            return np.asarray(pixels, dtype=np.float32)
        from keras import ops  # imported late: only training itself needs TensorFlow

        # Every draw of this batch comes from one generator.
        count, height, width, _ = pixels.shape
        rng = np.random.default_rng((self.seed, number))
        images = ops.cast(pixels, "float32")
        # Move pixels, then change colours, then erase rectangles.
        if self.augmentation.moves:
            transforms = transforms_of(self.augmentation, rng, count, height, width)
            images = ops.image.affine_transform(images, transforms, fill_mode="reflect")
        if self.augmentation.colours:
            images = ops.reshape(images, (count, height * width, 3))
            images = ops.matmul(images, channel_mixtures(self.augmentation, rng, count))
            images = change_contrast(images, self.augmentation.contrast, rng)
            images = ops.reshape(ops.clip(images, 0, 255), (count, height, width, 3))
        varied: Array = np.array(images)
        erase_rectangles(varied, self.augmentation.erasing, rng)
        return varied


def transforms_of(limits: Augmentation, rng: np.random.Generator, count: int, height: int, width: int) -> Array:
    """Return [a0 a1 a2 b0 b1 b2 0 0] for each picture: an output pixel is taken from x' = a0 x + a1 y + a2, and y'
    likewise."""
    # Draw rotation, shear, zoom and stretch, and combine them.
    angle = np.deg2rad(rng.uniform(-limits.rotation, limits.rotation, count))
    shear = np.deg2rad(rng.uniform(-limits.shear, limits.shear, count))
    smallest, largest = np.log(limits.zoom)
    zoom = np.exp(rng.uniform(smallest, largest, count))
    stretch = np.exp(rng.uniform(-1, 1, count) * np.log(STRETCH) / 2 * (limits.zoom != (1, 1)))
    scale = np.stack([stretch / zoom, 1 / (stretch * zoom)], axis=-1)
    matrix = _rotation(angle) @ _shear(shear)
    # Mirror, and turn by quarters if asked for.
    if limits.flip == "both":
        quarters = rng.integers(4, size=count) if height == width else 2 * rng.integers(2, size=count)
        matrix = matrix @ _rotation(quarters * np.pi / 2)
    mirror = np.where(rng.random(count) < 0.5 * (limits.flip != "none"), -1.0, 1.0)
    matrix = matrix * np.stack([scale[:, 0] * mirror, scale[:, 1]], axis=-1)[:, None, :]

    # Shift; zoomed-in pictures may shift over what is out of sight.
    size = np.array([width, height])
    spare = np.maximum(0, 1 - 1 / zoom)[:, None] / 2  # this much to either side is out of sight
    shift = (rng.uniform(-1, 1, (count, 2)) * (limits.shift + spare)) * size
    centre = (size - 1) / 2
    origin = centre + shift - matrix @ centre
    zeros = np.zeros((count, 1))
    # Eight numbers for each picture, as Keras wants them.
    rows = (matrix[:, 0], origin[:, :1], matrix[:, 1], origin[:, 1:], zeros, zeros)
    return np.concatenate(rows, axis=1).astype(np.float32)


def channel_mixtures(limits: Augmentation, rng: np.random.Generator, count: int) -> Array:
    """Return for each picture how its channels make up the new ones, brightness included, [n, 3 old, 3 new]."""
    matrix = np.tile(np.eye(3), (count, 1, 1))
    if limits.colour:
        matrix += rng.normal(0, MIXED, (count, 3, 3))
        matrix /= np.maximum(0.5, matrix.sum(axis=1, keepdims=True))  # grey stays grey
        matrix[rng.random(count) < limits.colour] = np.array(LUMA)[:, None]
    return (matrix * _draw(rng, *limits.brightness, count)[:, None, None]).astype(np.float32)


def change_contrast(images: Any, contrast: float, rng: np.random.Generator) -> Any:
    """Return flat pictures [n, H×W, 3] with their differences from their own mean scaled."""
    from keras import ops

    factor = _draw(rng, 1 - contrast, 1 + contrast, len(images))[:, None, None]
    mean = ops.mean(images, axis=(1, 2), keepdims=True)
    return (images - mean) * factor + mean


def erase_rectangles(pixels: Array, share: float, rng: np.random.Generator) -> None:
    """Paint a grey rectangle over some of the pictures, in place."""
    side = np.array(pixels.shape[1:3])
    for number in np.flatnonzero(rng.random(len(pixels)) < share):
        aspect = np.exp(rng.uniform(-0.5, 0.5))  # from 1:2.7 to 2.7:1
        extent = np.minimum(1, np.sqrt(rng.uniform(*ERASED)) * np.array([aspect, 1 / aspect]))
        start = rng.uniform(0, 1 - extent)
        (top, left), (bottom, right) = (start * side).astype(int), ((start + extent) * side).astype(int)
        pixels[number, top:bottom, left:right] = FILL


def blend(pixels: Array, shares: Array, alpha: float, seed: int, number: int) -> tuple[Array, Array]:
    """Mix each picture and its label with another's (mixup). The picture itself keeps at least half."""
    rng = np.random.default_rng((seed, number, BLEND))
    own = rng.beta(alpha, alpha, len(pixels)).astype(np.float32)
    own = np.maximum(own, 1 - own)
    other = rng.permutation(len(pixels))
    by_picture = own[:, None, None, None]
    blended = pixels * by_picture + pixels[other] * (1 - by_picture)
    return blended, shares * own[:, None] + shares[other] * (1 - own[:, None])


def _draw(rng: np.random.Generator, low: float, high: float, count: int) -> Array:
    return rng.uniform(low, high, count).astype(np.float32)


def _rotation(angle: Any) -> Any:
    return np.moveaxis(np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]), -1, 0)


def _shear(angle: Any) -> Any:
    return np.moveaxis(np.array([[np.ones_like(angle), -np.sin(angle)], [0 * angle, np.cos(angle)]]), -1, 0)


def _check_range(name: str, value: float, low: float, high: float, unit: str) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} is {value:g}; give {low:g} to {high:g}, {unit}.")


def _check_span(name: str, span: tuple[float, float], low: float, high: float) -> None:
    if not (len(span) == 2 and low <= span[0] <= span[1] <= high):
        written = " ".join(f"{value:g}" for value in span)
        raise UserError(f"{name} is {written}; give two factors, the lower first, from {low:g} to {high:g}.")
