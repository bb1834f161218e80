"""The sample's small network: a plain CNN, trained from scratch.

    model = build(height=224, width=224, classes=2)      # pixels of 0…255 in, logits out

Its layers are flat and of kinds that every runtime knows. The export counts on the names `features`, `pool` and
`logits`, and on nothing but Dense and Dropout after `pool`; the softmax is its business, not the network's.
"""

from __future__ import annotations

import keras
from keras import layers

# Filters, kernel side, stride, and whether the map is halved after it: 224 → 112 → 56 → 28 → 14
BLOCKS = ((16, 5, 2, True), (32, 3, 1, False), (32, 3, 1, True), (64, 3, 1, True), (128, 3, 1, False))


def build(height: int, width: int, classes: int) -> keras.Model:
    image = layers.Input((height, width, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    for number, (filters, kernel, stride, halved) in enumerate(BLOCKS, 1):
        last = number == len(BLOCKS)
        x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)  # short runs: the usual 0.99 would lag behind
        x = layers.ReLU(name="features" if last else None)(x)
        if halved:
            x = layers.MaxPooling2D(2)(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x))
