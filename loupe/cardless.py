"""Serve models that Loupe did not make. They have no card; their signature and two settings stand in for it.

    interface(card, heatmaps=True).outputs         # what to ask any card's model for
    card = foreign_card("tires", signatures, labels=("cracked", "normal"), preprocess="xception")     # or ModelUnfit
    pixels = prepare_picture(card, data)           # as the card's model wants it; takes Loupe's own cards as well
    rows if is_distribution(rows) else softmax(rows)

A float32 input is prepared by keras-image-helper, including its nearest-neighbour resize. A uint8 input gets pixels
resized as for Loupe's own models. In both cases Loupe first checks the picture, turns it upright and puts it on white.
Not supported: a single output (a sigmoid), inputs beside the picture, an input of open size, channels first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from keras_image_helper import create_preprocessor
from PIL import Image

from loupe import proto
from loupe.card import LARGEST, Card
from loupe.errors import ModelUnfit, UserError
from loupe.images.allowance import UNLIMITED, Allowance
from loupe.images.api import decode, upright_size
from loupe.images.decode import RESIZE

TOLERANCE = 1e-3  # by which probabilities may sum to other than 1
EXPORT_AGAIN = "export it again with convert.py"

Array = np.ndarray[Any, Any]

OWN_SCALINGS: dict[str, Callable[[Array], Array]] = {  # those that keras-image-helper does not have
    "rescale": lambda pixels: pixels / 255,
    "none": lambda pixels: pixels,
}


@dataclass(frozen=True, kw_only=True)
class ForeignCard(Card):
    image: str  # the input's name
    dtype: str  # float32 or uint8
    output: str
    preprocess: str  # empty for uint8: such a model scales pixels itself

    def to_dict(self) -> dict[str, Any]:
        card = super().to_dict()
        input_fields = {"name": self.image, "dtype": self.dtype, "preprocess": self.preprocess or None}
        card["input"] |= input_fields
        return card | {"loupe": None, "precision": None, "output": self.output}


class Interface(NamedTuple):
    """A version's input, and the outputs asked for. Versions with equal ones take the same prepared pictures."""

    image: str
    dtype: str
    height: int
    width: int
    outputs: list[str]


def interface(card: Card, heatmaps: bool) -> Interface:
    if isinstance(card, ForeignCard):
        return Interface(card.image, card.dtype, card.height, card.width, [card.output])
    return Interface("image", "uint8", card.height, card.width, _outputs(card, heatmaps))


def _outputs(card: Card, heatmaps: bool) -> list[str]:
    """Return the outputs to ask for: a model refuses requests for outputs that it lacks.

    It may lack `familiarity` if its card sets no limit for it.
    """
    wanted = {
        "probabilities": True,
        "heatmap": heatmaps and card.heatmap,
        "familiarity": card.unfamiliar_below is not None,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def foreign_card(
    model: str,
    signatures: Mapping[str, Any],
    labels: tuple[str, ...],
    preprocess: str,
    *,
    names: tuple[str, str] = ("LOUPE_LABELS", "LOUPE_PREPROCESS"),
) -> ForeignCard:
    """Make a card from a model's signatures and the settings. Raise ModelUnfit if they do not suffice. `names` are
    those of the two settings, for its messages."""
    labels_name, preprocess_name = names
    # The names must be known.
    try:
        if preprocess and preprocess not in OWN_SCALINGS:
            create_preprocessor(preprocess, target_size=(1, 1))
    except Exception as error:  # the library has no class of its own for it
        raise ModelUnfit(
            f"{preprocess_name} {preprocess!r} is unknown to keras-image-helper, and neither rescale nor none."
        ) from error
    # The signature to use.
    if not labels and not preprocess:
        raise ModelUnfit(f"The model {model!r} does not describe itself; {EXPORT_AGAIN}, or set {labels_name}.")
    signature = signatures.get(proto.PREDICT_SIGNATURE)
    if signature is None:
        raise ModelUnfit(f"The model {model!r} has no signature {proto.PREDICT_SIGNATURE}; {EXPORT_AGAIN}.")
    # Its input and its output.
    image, dtype, height, width = _read_input(signature.inputs)
    output, classes = _read_output(signature.outputs)
    # The settings must fit them.
    if not labels:
        raise ModelUnfit(
            f"{preprocess_name} is set and {labels_name} is not; name the model's {classes} labels, in its order."
        )
    if len(labels) != classes:
        raise ModelUnfit(f"{labels_name} names {len(labels)} labels, and the model gives {classes}; correct it.")
    if dtype == "float32" and not preprocess:
        raise ModelUnfit(
            f"The model takes float32; say in {preprocess_name} how its pixels are scaled; `none` where "
            "it does that itself."
        )
    if dtype == "uint8" and preprocess:
        raise ModelUnfit(f"The model takes uint8 and scales its pixels itself; unset {preprocess_name}.")
    try:
        return ForeignCard(
            model, labels, height, width, "nearest" if preprocess else RESIZE, heatmap=False,
            image=image, dtype=dtype, output=output, preprocess=preprocess,
        )  # fmt: skip
    except UserError as error:
        raise ModelUnfit(str(error)) from error


def _read_input(inputs: Mapping[str, Any]) -> tuple[str, str, int, int]:
    """Return name, type, height and width of the one input. TensorFlow Serving refuses requests that lack an input."""
    if len(inputs) != 1:
        raise ModelUnfit(f"The model takes {_describe(inputs)}, and can be given one picture only; {EXPORT_AGAIN}.")
    [(name, info)] = inputs.items()
    dtype, shape = _type_name(info), proto.shape_of(info.tensor_shape)
    if dtype not in ("float32", "uint8") or shape is None or len(shape) != 4 or (shape[0], shape[3]) != (-1, 3):
        raise ModelUnfit(
            f"The model takes {_describe(inputs)}, and not float32 or uint8 [-1, height, width, 3]; {EXPORT_AGAIN}."
        )
    height, width = shape[1:3]
    if min(height, width) < 1:
        raise ModelUnfit(
            f"The model leaves the size of its pictures open, {_describe(inputs)}; {EXPORT_AGAIN}, of a fixed one."
        )
    if max(height, width) > LARGEST:
        raise ModelUnfit(f"The model takes {_describe(inputs)}, larger than {LARGEST}; {EXPORT_AGAIN}.")
    return name, dtype, height, width


def _read_output(outputs: Mapping[str, Any]) -> tuple[str, int]:
    """Return the name and the number of classes of the one output that can hold class scores."""
    candidates = {}
    for name, info in outputs.items():
        shape = proto.shape_of(info.tensor_shape)
        if _type_name(info) == "float32" and shape is not None and len(shape) == 2 and shape[0] == -1:
            candidates[name] = shape[1]
    if len(candidates) != 1:
        which = "more than one" if candidates else "none"
        raise ModelUnfit(f"The model gives {_describe(outputs)}: {which} is float32 [-1, classes]; {EXPORT_AGAIN}.")
    [(name, classes)] = candidates.items()
    if classes < 2:
        what = "one number a picture, a sigmoid" if classes == 1 else "an unknown count of numbers"
        raise ModelUnfit(f"The model gives {what}, and one number a class is wanted; {EXPORT_AGAIN}.")
    return name, classes


def _type_name(info: Any) -> str:
    known = proto.BY_NUMBER.get(info.dtype)
    return known.name if known else f"type {info.dtype}"


def _describe(infos: Mapping[str, Any]) -> str:
    """Return names, types and shapes: `input_8 float32 [-1, 299, 299, 3] and …`."""
    described = []
    for name in sorted(infos):
        shape = proto.shape_of(infos[name].tensor_shape)
        described.append(f"{name} {_type_name(infos[name])} {'of any shape' if shape is None else list(shape)}")
    return " and ".join(described) or "nothing"


def prepare_picture(card: Card, data: bytes, allowance: Allowance = UNLIMITED) -> Array:
    """Decode the picture as the card's model wants it. Raise ImageError or a child of it, and what the allowance does.
    What was taken of it is needed until this returns."""
    if not isinstance(card, ForeignCard) or not card.preprocess:
        return decode(data, card.height, card.width, allowance)
    image = Image.fromarray(decode(data, *upright_size(data, allowance), allowance))
    scaling: Any = OWN_SCALINGS.get(card.preprocess, card.preprocess)
    helper = create_preprocessor(scaling, target_size=(card.width, card.height))
    pixels: Array = helper.convert_to_tensor(image)[0]
    return pixels


def is_distribution(rows: Array) -> bool:
    """Return True if the rows are probabilities. Rows with negative numbers or another sum than 1 are logits."""
    return bool((rows >= -TOLERANCE).all() and (np.abs(rows.sum(axis=1) - 1) <= TOLERANCE).all())


def softmax(rows: Array) -> Array:
    exponentials = np.exp(rows - rows.max(axis=1, keepdims=True))
    result: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result
