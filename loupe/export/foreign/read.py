"""Read a model made elsewhere, by any Keras or TensorFlow, as a source to export.

    source = read_model(Path("model.h5"), labels="cup,fork,spoon", preprocess="xception", size="299", name=None)

A Keras file is brought into Loupe's own form, checked against the original's answers, and then exported as a run would
be. Where that cannot be done, and for a SavedModel, the original is exported as it is, without heat map.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loupe.card import LARGEST, Card
from loupe.errors import UserError
from loupe.export.foreign import adopt, keras2, output_kind, savedmodel
from loupe.export.foreign.labels import labels_of
from loupe.export.foreign.original import Original, in_batches, logits, probabilities
from loupe.export.foreign.output_kind import Ending
from loupe.export.foreign.scaling import ONE_OF_EACH, UNSCALED, Scaling, choices, known_network, scaling_of
from loupe.export.foreign.vet_keras import check_keras_file
from loupe.export.graph.savedmodel import Network, NetworkOutputs, network_of, network_without_heatmap
from loupe.export.replay_pictures import class_folders
from loupe.export.source import BATCH, Array, Source

PROBE_COUNT = 4  # pictures of smooth random colours, on which Loupe's form is compared with the original
MAX_DIFFERENCE = 1e-4  # of a probability in float32; another order of summing changes no more


def read_model(
    path: Path,
    *,
    labels: str | None,
    preprocess: str | None,
    size: str | None,
    name: str | None,
    output: str | None = None,
    images: Path | None = None,
) -> Source:
    """`images` is a folder of pictures that may lie in a folder a label: an error names these."""
    # Check the file before any library builds it, then the flags.
    if not path.exists():
        raise UserError(f"There is no model at {path}.")
    _ = savedmodel.check_savedmodel(path) if path.is_dir() else check_keras_file(path)
    if not labels:
        raise UserError(
            f"{path} does not say what its outputs mean: name them in order, --labels {_labels_to_try(images)}."
        )
    asked_scaling = scaling_of(preprocess) if preprocess else None
    names, asked_size = labels_of(labels), size_of(size)
    # Read it, decide how its pixels are scaled, and make its card.
    original = savedmodel.read(path) if path.is_dir() else _read_keras(path)
    height, width = _input_size(path, original, asked_size)
    flat = _try_flatten(original, asked_scaling or UNSCALED, height, width)
    scaling, scaling_notes = _decide_scaling(path, original, asked_scaling, flat)
    backbone = {"source": path.name, "preprocess": scaling.name}
    if original.network:
        backbone["name"] = original.network
    card = Card(name or _name_from(path), names, height, width, backbone=backbone)
    # Try it on a few pictures, and decide what its outputs are.
    pixels = _probe_pictures(height, width)
    answers = _original_answers(path, original, scaling, pixels)
    ends_in, known_by = output_kind.decide(path, output, _find_ending(path, original, flat, height, width), answers)
    _check_outputs(path, answers, ends_in, names)

    # Describe it as a source; use Loupe's own form of it where there is one.
    def answer(scaling: Scaling, pixels: Array) -> Array:
        return probabilities(original.predict(scaling.of(pixels)), ends_in)

    others = () if original.integer_pixels else [other for other in ONE_OF_EACH if other.mode != scaling.mode]
    rescaled = {other.name: partial(answer, other) for other in others}
    notes = (*original.notes, *scaling_notes)
    if answers.shape[1] == 1:
        meaning = "logit" if ends_in == "logits" else "probability"
        notes = (*notes, f"its one output is the {meaning} of {names[1]}, {known_by}; {names[0]} has the rest")
    network = _black_box_network(original, scaling, ends_in, answers.shape[1])
    black_box = Source(card, network, None, partial(answer, scaling), rescaled=rescaled, notes=notes)
    return _adopt(black_box, flat, ends_in, pixels) if flat else _without_heatmap(black_box)


def _labels_to_try(images: Path | None) -> str:
    """Return the folders' names as the flag takes them: image_dataset_from_directory numbers classes by these."""
    names = class_folders(images) if images else []
    if len(names) < 2 or any("," in name for name in names):
        return "cup,fork,spoon"
    return f"{shlex.quote(','.join(names))} if they are the folders of --images in the order of their names"


def _decide_scaling(
    path: Path, original: Original, asked: Scaling | None, flat: keras.Model | None
) -> tuple[Scaling, tuple[str, ...]]:
    """Return the scaling, and notes for the user: the one asked for, or none where the model scales pixels itself."""
    if original.integer_pixels:
        if asked and asked.mode != "none":
            raise UserError(
                f"{path} takes pixels as whole numbers, so nothing can be scaled before it: --preprocess none."
            )
        return UNSCALED, ()
    inside = flat is not None and adopt.scales_itself(flat, asked or UNSCALED)
    if asked is None and not inside:
        raise UserError(
            "How its pixels were scaled in training must be said, nothing in the file tells. --preprocess takes "
            f"{choices(original.network)}."
        )
    if asked is None:
        return UNSCALED, ("its own first layers scale the pixels: --preprocess none",)
    if inside and asked.mode != "none":
        return asked, (
            f"its own first layers scale the pixels already, and --preprocess {asked.name} does so before them: unless "
            "it was trained that way, leave --preprocess out",
        )
    return asked, ()


def size_of(text: str | None) -> tuple[int, int] | None:
    """Return height and width from `299` or `320x240`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,4})(?:[x×](\d{1,4}))?", text.strip().lower())
    height, width = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST:
        raise UserError(
            f"--size takes pixels up to {LARGEST}, such as 299, or 320x240 for height x width, not {text!r}."
        )
    return height, width


def _read_keras(path: Path) -> Original:
    """Load the file by Keras 3. If that fails, load it by tf_keras and rebuild its layers in Keras 3."""
    # Load it.
    notes: tuple[str, ...] = ()
    try:
        model = keras3 = keras2.load_keras3(path)
    except Exception:  # an old configuration raises errors of every type
        model, keras3 = keras2.load_keras2(path), None
        notes = ("loaded by tf_keras, the legacy Keras 2: Keras 3 cannot load this file",)
    # One input and one output that stand in a list or dict are taken out of it.
    _check_ends(path, model)
    ends = (getattr(model, name, None) for name in ("input", "output"))  # a Sequential may lack both
    if any(isinstance(end, (dict, list)) for end in ends):
        library = keras if keras3 is not None else keras2.library()
        model = library.Model(model.inputs[0], model.outputs[0])
        keras3 = keras3 and model
    # Rebuild what only tf_keras could load.
    if keras3 is None:
        try:
            keras3 = keras2.rebuilt(model)
        except Exception as error:  # what Keras 3 does not have raises errors of every type
            notes = (*notes, f"no heat map: Keras 3 has no such network ({_first_line(error)})")
    # Describe it.
    batch = model.inputs[0].shape[0] or BATCH

    def predict(scaled: Array) -> Array:
        return in_batches(lambda batch_pixels: model.predict(batch_pixels, batch_size=batch, verbose=0), scaled, BATCH)

    def call(scaled: tf.Tensor) -> tf.Tensor:
        return model(scaled, training=False)

    height, width = model.inputs[0].shape[1:3]
    integer_pixels = "int" in str(model.inputs[0].dtype)
    return Original(height, width, predict, call, keras3, integer_pixels, None, notes, known_network(model))


def _check_ends(path: Path, model: Any) -> None:
    if not getattr(model, "inputs", None):
        raise UserError(f"{path} was never built: nothing in it says what it takes. Call it once and save it again.")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(
            f"{path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs: Loupe serves one "
            "input, one output."
        )
    input_shape, output_shape = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    if len(input_shape) != 4 or input_shape[3] != 3:
        raise UserError(f"{path} takes {_shape(input_shape)}, and Loupe gives it coloured pictures, [N, H, W, 3].")
    if len(output_shape) != 2:
        raise UserError(
            f"{path} gives {_shape(output_shape)}, and Loupe serves one row of outputs for a picture, [N, C]."
        )
    if input_shape[0] not in (None, 1):
        raise UserError(
            f"{path} takes {input_shape[0]} pictures at once and no other number: build it without a batch size."
        )


def _shape(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join(['N', *('any' if side is None else str(side) for side in shape[1:])])}]"


def _input_size(path: Path, original: Original, asked: tuple[int, int] | None) -> tuple[int, int]:
    own = (original.height, original.width)
    if asked is None:
        if own[0] is None or own[1] is None:
            raise UserError(f"{path} takes pictures of any size: give the one it was trained with, such as --size 224.")
        return own[0], own[1]
    if any(side not in (None, wanted) for side, wanted in zip(own, asked, strict=True)):
        sides = "×".join("any" if side is None else str(side) for side in own)
        raise UserError(f"{path} takes {sides} pixels, and --size says {asked[0]}×{asked[1]}: leave --size out.")
    return asked


def _name_from(path: Path) -> str:
    stem = path.resolve().name if path.is_dir() else path.stem
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", stem).strip("-._").lower()
    if not name:
        raise UserError(f"{stem!r} cannot be a model's name: give one by --name.")
    return name


def _probe_pictures(height: int, width: int) -> Array:
    coarse = np.random.default_rng(0).integers(0, 256, (PROBE_COUNT, 7, 7, 3)).astype(np.float32)
    return np.asarray(tf.cast(tf.image.resize(coarse, (height, width)), tf.uint8))


def _original_answers(path: Path, original: Original, scaling: Scaling, pixels: Array) -> Array:
    try:
        answers = original.predict(scaling.of(pixels))
    except Exception as error:
        size = "×".join(map(str, pixels.shape[1:3]))
        raise UserError(f"{path} cannot be run on pictures of {size} pixels: {_first_line(error)}") from error
    if answers.ndim != 2 or not np.isfinite(answers).all():
        raise UserError(f"{path} gives no row of numbers for a picture, or numbers that are not finite.")
    return answers


def _check_outputs(path: Path, answers: Array, ends_in: str, labels: tuple[str, ...]) -> None:
    classes = max(2, answers.shape[1])
    if classes != len(labels):
        note = f" ({ends_in}: two classes)" if answers.shape[1] == 1 else ""
        raise UserError(f"{path} has {answers.shape[1]} outputs{note}, and --labels names {len(labels)}.")


def _find_ending(path: Path, original: Original, flat: keras.Model | None, height: int, width: int) -> Ending:
    """Return what the last layer tells; if that is nothing, what the last operation tells."""
    activation = adopt.ending_of(flat) if flat else None
    if activation or original.ending:
        return Ending(activation, "layer") if activation else original.ending or Ending()
    try:
        spec = tf.TensorSpec([None, height, width, 3], tf.float32)
        frozen = output_kind.inlined(tf.function(original.call).get_concrete_function(spec))
    except Exception as error:  # any operation may be in it
        raise UserError(f"{path} cannot be frozen, its variables made constants: {_first_line(error)}") from error
    if output_kind.is_random(frozen):
        raise UserError(f"{path} answers at random, as in training: save it without what is random in it.")
    return Ending(output_kind.ending_of(frozen.graph, frozen.answer))


def _black_box_network(original: Original, scaling: Scaling, ends_in: str, outputs: int) -> Network:
    def network(pixels: tf.Tensor) -> NetworkOutputs:
        answers = tf.ensure_shape(original.call(scaling.layers(pixels)), [None, outputs])
        return NetworkOutputs(logits(answers, ends_in))

    return network


def _try_flatten(original: Original, scaling: Scaling, height: int, width: int) -> keras.Model | None:
    if original.keras is None:
        return None
    try:
        return adopt.flattened(original.keras, scaling, height, width)
    except Exception:  # the copying does not know this form: it is exported as it is
        return None


def _adopt(source: Source, flat: keras.Model, ends_in: str, pixels: Array) -> Source:
    """Return the source in Loupe's own form, if its answers there are the original's."""
    try:
        model = adopt.with_logits(flat, ends_in)
    except ValueError as error:
        return _without_heatmap(source, str(error))
    network, reason = _network_and_reason(model)
    answers = tf.nn.softmax(network(tf.cast(pixels, tf.float32)).logits).numpy()
    difference = float(np.abs(answers - source.reference(pixels)).max())
    if not difference <= MAX_DIFFERENCE:
        return _without_heatmap(source, f"put together anew, it answers differently, by {difference:.2g}")
    if reason:
        card = replace(source.card, heatmap=False)
        return _without_heatmap(replace(source, card=card, network=network, model=model), reason)
    return replace(source, network=network, model=model)


def _network_and_reason(model: keras.Model) -> tuple[Network, str | None]:
    """Return the network, and the reason if it gives no heat map."""
    try:
        return network_of(model), None
    except UserError as error:
        return network_without_heatmap(model), str(error).rstrip(".")


def _without_heatmap(source: Source, reason: str = "its layers cannot be told apart") -> Source:
    if any(note.startswith("no heat map") for note in source.notes):
        return source
    return replace(source, notes=(*source.notes, f"no heat map: {reason[0].lower()}{reason[1:]}"))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
