"""Models that Loupe did not make. They have no card: what one would say, their signature and two settings say.

    card = foreign_card("tires", signatures, labels=("cracked", "normal"), preprocess="xception")     # or ModelUnfit
    pixels = picture(card, data)                   # as that model wants it; of a card that is one, as every card's
    rows if is_distribution(rows) else softmax(rows)

A float32 input gets what keras-image-helper makes of the picture, its nearest resize included; a uint8 one gets the
pixels, resized as everywhere else. Loupe's checks come first, and the picture is upright and on white before either.
Not covered: models of one output (a sigmoid), of more inputs than the picture, of an open size, channels first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras_image_helper import create_preprocessor
from PIL import Image

import proto
from loupe.card import LARGEST, Card
from loupe.errors import ModelUnfit, UserError
from loupe.images.api import decode, upright_size
from loupe.images.decode import RESIZE

TOLERANCE = 1e-3  # of a row's sum, for it to be probabilities
AGAIN = "export it again with convert.py"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class ForeignCard(Card):
    image: str  # the input's name
    dtype: str  # float32 or uint8
    output: str
    preprocess: str  # empty for uint8, whose scaling is in the graph

    def to_dict(self) -> dict[str, Any]:
        known = super().to_dict()
        more = {"name": self.image, "dtype": self.dtype, "preprocess": self.preprocess or None}
        known["input"] |= more
        return known | {"loupe": None, "precision": None, "output": self.output}


def foreign_card(model: str, signatures: Mapping[str, Any], labels: tuple[str, ...], preprocess: str) -> ForeignCard:
    """What can be known of a model that has these signatures. ModelUnfit unless that is enough to serve it right."""
    if not labels and not preprocess:
        raise ModelUnfit(f"The model {model!r} does not describe itself; {AGAIN}, or set LOUPE_LABELS.")
    signature = signatures.get(proto.PREDICT_SIGNATURE)
    if signature is None:
        raise ModelUnfit(f"The model {model!r} has no signature {proto.PREDICT_SIGNATURE}; {AGAIN}.")
    image, dtype, height, width = _image(signature.inputs)
    output, classes = _output(signature.outputs)
    if not labels:
        raise ModelUnfit(
            f"LOUPE_PREPROCESS is set and LOUPE_LABELS is not; name the model's {classes} labels, in its order."
        )
    if len(labels) != classes:
        raise ModelUnfit(f"LOUPE_LABELS names {len(labels)} labels, and the model gives {classes} numbers; correct it.")
    if dtype == "float32" and not preprocess:
        raise ModelUnfit("The model takes float32; say in LOUPE_PREPROCESS how its pixels are scaled.")
    if dtype == "uint8" and preprocess:
        raise ModelUnfit("The model takes uint8 and scales its pixels itself; unset LOUPE_PREPROCESS.")
    try:
        return ForeignCard(
            model, labels, height, width, "nearest" if preprocess else RESIZE, heatmap=False,
            image=image, dtype=dtype, output=output, preprocess=preprocess,
        )  # fmt: skip
    except UserError as error:
        raise ModelUnfit(str(error)) from error


def _image(inputs: Mapping[str, Any]) -> tuple[str, str, int, int]:
    """Name, type, height and width of the picture that a model takes; TensorFlow Serving wants all inputs given."""
    if len(inputs) != 1:
        raise ModelUnfit(f"The model takes {_listed(inputs)}, and can be given one picture only; {AGAIN}.")
    [(name, info)] = inputs.items()
    dtype, shape = _kind(info), proto.shape_of(info.tensor_shape)
    if dtype not in ("float32", "uint8") or shape is None or len(shape) != 4 or (shape[0], shape[3]) != (-1, 3):
        raise ModelUnfit(
            f"The model takes {_listed(inputs)}, and not float32 or uint8 [-1, height, width, 3]; {AGAIN}."
        )
    height, width = shape[1:3]
    if min(height, width) < 1:
        raise ModelUnfit(f"The model leaves the size of its pictures open, {_listed(inputs)}; {AGAIN}, of a fixed one.")
    if max(height, width) > LARGEST:
        raise ModelUnfit(f"The model takes {_listed(inputs)}, larger than {LARGEST}; {AGAIN}.")
    return name, dtype, height, width


def _output(outputs: Mapping[str, Any]) -> tuple[str, int]:
    """Name and width of the one output that can be one number a class."""
    found = {}
    for name, info in outputs.items():
        shape = proto.shape_of(info.tensor_shape)
        if _kind(info) == "float32" and shape is not None and len(shape) == 2 and shape[0] == -1:
            found[name] = shape[1]
    if len(found) != 1:
        which = "more than one" if found else "none"
        raise ModelUnfit(f"The model gives {_listed(outputs)}: {which} is float32 [-1, classes]; {AGAIN}.")
    [(name, classes)] = found.items()
    if classes < 2:
        what = "one number a picture, a sigmoid" if classes == 1 else "an unknown count of numbers"
        raise ModelUnfit(f"The model gives {what}, and one number a class is wanted; {AGAIN}.")
    return name, classes


def _kind(info: Any) -> str:
    known = proto.BY_NUMBER.get(info.dtype)
    return known.name if known else f"type {info.dtype}"


def _listed(infos: Mapping[str, Any]) -> str:
    """`input_8 float32 [-1, 299, 299, 3]`, and the others."""
    named = []
    for name in sorted(infos):
        shape = proto.shape_of(infos[name].tensor_shape)
        named.append(f"{name} {_kind(infos[name])} {'of any shape' if shape is None else list(shape)}")
    return " and ".join(named) or "nothing"


def picture(card: Card, data: bytes) -> Array:
    """The picture in `data` as the card's model wants it. Raises ImageError or a child of it."""
    if not isinstance(card, ForeignCard) or not card.preprocess:
        return decode(data, card.height, card.width)
    whole = Image.fromarray(decode(data, *upright_size(data)))
    scaling: Any = _rescale if card.preprocess == "rescale" else card.preprocess
    helper = create_preprocessor(scaling, target_size=(card.width, card.height))
    pixels: Array = helper.convert_to_tensor(whole)[0]
    return pixels


def _rescale(pixels: Array) -> Array:
    return pixels / 255


def is_distribution(rows: Array) -> bool:
    """Negative or not summing to 1 are logits."""
    return bool((rows >= -TOLERANCE).all() and (np.abs(rows.sum(axis=1) - 1) <= TOLERANCE).all())


def softmax(rows: Array) -> Array:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result
