"""EfficientNet-Lite0: made for phones and for int8, and the backbone whose ImageNet weights pip has.

    model = efficientnet_lite0(weights="imagenet", input_tensor=pixels)     # pixels as scale() gives them

It is EfficientNet-B0 without squeeze-and-excitation, and with ReLU6 in place of swish. 3.4 million weights without its
head, 0.4 billion multiplications at 224 px: a twentieth of what Xception takes at 299 px.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from loupe.training.network.lite_weights import published

# Times the channels are expanded, channels, repeats, stride of the first, kernel side.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM, LAST = 32, 1280  # channels of the first and of the last convolution


def scale(image: Any) -> Any:
    return layers.Rescaling(1 / 128, offset=-127 / 128)(image)


def efficientnet_lite0(weights: str | None, input_tensor: Any) -> keras.Model:
    """Build it without its head, as keras.applications' functions do. `weights` is imagenet or None."""
    model = keras.Model(keras.utils.get_source_inputs(input_tensor), _features(input_tensor))
    if weights == "imagenet":
        targets = [layer for layer in model.layers if layer.weights]
        sources = published()
        del sources["_fc"]
        for layer, arrays in zip(targets, sources.values(), strict=True):
            layer.set_weights(arrays)
    return model


def _features(x: Any) -> Any:
    x = _relu6(_convolve(x, STEM, 3, "stem", stride=2), "stem")
    number = 0
    for expansion, channels, repeats, first_stride, kernel in STAGES:
        for repeat in range(repeats):
            x = _block(x, f"block_{number}", expansion, channels, 1 if repeat else first_stride, kernel)
            number += 1
    return _relu6(_convolve(x, LAST, 1, "last"), "last")


def _block(x: Any, name: str, expansion: int, channels: int, stride: int, kernel: int) -> Any:
    """An inverted residual: to more channels, a filter for each of them, and back to few. With a shortcut where the
    shape stays."""
    y = x
    if expansion > 1:
        y = _relu6(_convolve(y, x.shape[-1] * expansion, 1, f"{name}_expand"), f"{name}_expand")
    y = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise")(y)
    y = _relu6(_norm(y, f"{name}_depthwise"), f"{name}_depthwise")
    y = _convolve(y, channels, 1, f"{name}_project")
    return layers.Add(name=f"{name}_add")([x, y]) if x.shape == y.shape else y


def _convolve(x: Any, filters: int, kernel: int, name: str, stride: int = 1) -> Any:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=name)(x)
    return _norm(x, name)


def _norm(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=1e-3, name=f"{name}_norm")(x)


def _relu6(x: Any, name: str) -> Any:
    return layers.ReLU(6.0, name=f"{name}_relu")(x)
