"""Models made elsewhere, by any Keras or TensorFlow, as what Loupe exports.

    source = read_model(Path("model.h5"), labels="cup,fork,spoon", preprocess="xception", size="299", name=None)

A Keras file is brought into Loupe's own form, held to the original's answers, and then exported as a run would be.
Where that cannot be done, and for a SavedModel, what the original computes is exported as it is, without heat map.
"""

from __future__ import annotations

import re
from dataclasses import replace
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
from loupe.export.foreign.scaling import Scaling, scaling_of
from loupe.export.foreign.vet_keras import vetted
from loupe.export.graph.savedmodel import Network, Parts, network_of, plain
from loupe.export.source import BATCH, Array, Source

PROBES = 4  # pictures, of smooth random colours, that a model of Loupe's form is held to its original with
AGREES = 1e-4  # of a probability, in float32: what another order of adding up may change


def read_model(
    path: Path,
    *,
    labels: str | None,
    preprocess: str | None,
    size: str | None,
    name: str | None,
    output: str | None = None,
) -> Source:
    if not path.exists():
        raise UserError(f"There is no model at {path}.")
    _ = savedmodel.vetted(path) if path.is_dir() else vetted(path)  # first: what it is, and then what it needs
    if not labels:
        raise UserError(f"{path} does not say what its outputs mean: name them in order, --labels cup,fork,spoon.")
    scaling, named, asked = scaling_of(preprocess), labels_of(labels), size_of(size)
    original = savedmodel.read(path) if path.is_dir() else _read_keras(path)
    height, width = _size(path, original, asked)
    card = Card(
        name or _slug(path), named, height, width, backbone={"name": scaling.name, "source": path.name}
    )  # fmt: skip
    if original.whole_numbers and scaling.mode != "none":
        raise UserError(f"{path} takes pixels as whole numbers, so nothing can be scaled before it: --preprocess none.")
    pixels = _probes(height, width)
    answers = _answers(path, original, scaling, pixels)
    flat = _flattened(original, scaling, height, width)
    kind, how = output_kind.kind(path, output, _ending(path, original, flat, height, width), answers)
    _check_outputs(path, answers, kind, named)

    def reference(pixels: Array) -> Array:
        return probabilities(original.predict(scaling.of(pixels)), kind)

    notes = original.notes
    if answers.shape[1] == 1:
        one = "logit" if kind == "logits" else "probability"
        notes = (*notes, f"its one output is the {one} of {named[1]}, {how}; {named[0]} has the rest")
    network = _as_it_is(original, scaling, kind, answers.shape[1])
    black_box = Source(card, network, None, reference, notes=notes)
    return _adopted(black_box, flat, kind, pixels) if flat else _without_heatmap(black_box)


def size_of(text: str | None) -> tuple[int, int] | None:
    """299, or 320x240: height x width."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,4})(?:[x×](\d{1,4}))?", text.strip().lower())
    height, width = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST:
        raise UserError(
            f"--size takes pixels up to {LARGEST}, such as 299, or 320x240 for height x width, not {text!r}."
        )
    return height, width


def _read_keras(path: Path) -> Original:
    """By Keras 3; if it cannot, by tf_keras, and its layers made anew in Keras 3."""
    notes: tuple[str, ...] = ()
    try:
        model = now = keras2.load_now(path)
    except Exception:  # of many kinds: whatever an old configuration leads to
        model, now = keras2.load(path), None
        notes = ("loaded by tf_keras, the legacy Keras 2: Keras 3 cannot load this file",)
    _check_ends(path, model)
    ends = (getattr(model, name, None) for name in ("input", "output"))  # a Sequential may have neither
    if any(isinstance(end, (dict, list)) for end in ends):  # of one
        library = keras if now is not None else keras2.library()
        model = library.Model(model.inputs[0], model.outputs[0])
        now = now and model
    if now is None:
        try:
            now = keras2.rebuilt(model)
        except Exception as error:  # layers and arguments that Keras 3 does not have fail in ways of their own
            notes = (*notes, f"no heat map: Keras 3 has no such network ({_line(error)})")
    batch = model.inputs[0].shape[0] or BATCH

    def predict(scaled: Array) -> Array:
        return in_batches(lambda part: model.predict(part, batch_size=batch, verbose=0), scaled, BATCH)

    def call(scaled: tf.Tensor) -> tf.Tensor:
        return model(scaled, training=False)

    height, width = model.inputs[0].shape[1:3]
    whole = "int" in str(model.inputs[0].dtype)
    return Original(height, width, predict, call, now, whole, None, notes)


def _check_ends(path: Path, model: Any) -> None:
    if not getattr(model, "inputs", None):
        raise UserError(f"{path} was never built: nothing in it says what it takes. Call it once and save it again.")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(
            f"{path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs: Loupe serves one "
            "input, one output."
        )
    taken, given = tuple(model.inputs[0].shape), tuple(model.outputs[0].shape)
    if len(taken) != 4 or taken[3] != 3:
        raise UserError(f"{path} takes {_shape(taken)}, and Loupe gives it coloured pictures, [N, H, W, 3].")
    if len(given) != 2:
        raise UserError(f"{path} gives {_shape(given)}, and Loupe serves one row of outputs for a picture, [N, C].")
    if taken[0] not in (None, 1):
        raise UserError(f"{path} takes {taken[0]} pictures at once and no other number: build it without a batch size.")


def _shape(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join(['N', *('any' if side is None else str(side) for side in shape[1:])])}]"


def _size(path: Path, original: Original, asked: tuple[int, int] | None) -> tuple[int, int]:
    own = (original.height, original.width)
    if asked is None:
        if own[0] is None or own[1] is None:
            raise UserError(f"{path} takes pictures of any size: give the one it was trained with, such as --size 224.")
        return own[0], own[1]
    if any(mine not in (None, theirs) for mine, theirs in zip(own, asked, strict=True)):
        sides = "×".join("any" if side is None else str(side) for side in own)
        raise UserError(f"{path} takes {sides} pixels, and --size says {asked[0]}×{asked[1]}: leave --size out.")
    return asked


def _slug(path: Path) -> str:
    stem = path.resolve().name if path.is_dir() else path.stem
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", stem).strip("-._").lower()
    if not name:
        raise UserError(f"{stem!r} cannot be a model's name: give one by --name.")
    return name


def _probes(height: int, width: int) -> Array:
    coarse = np.random.default_rng(0).integers(0, 256, (PROBES, 7, 7, 3)).astype(np.float32)
    return np.asarray(tf.cast(tf.image.resize(coarse, (height, width)), tf.uint8))


def _answers(path: Path, original: Original, scaling: Scaling, pixels: Array) -> Array:
    try:
        answers = original.predict(scaling.of(pixels))
    except Exception as error:
        size = "×".join(map(str, pixels.shape[1:3]))
        raise UserError(f"{path} cannot be run on pictures of {size} pixels: {_line(error)}") from error
    if answers.ndim != 2 or not np.isfinite(answers).all():
        raise UserError(f"{path} gives no row of numbers for a picture, or numbers that are not finite.")
    return answers


def _check_outputs(path: Path, answers: Array, kind: str, labels: tuple[str, ...]) -> None:
    classes = max(2, answers.shape[1])
    if classes != len(labels):
        one = f" ({kind}: two classes)" if answers.shape[1] == 1 else ""
        raise UserError(f"{path} has {answers.shape[1]} outputs{one}, and --labels names {len(labels)}.")


def _ending(path: Path, original: Original, flat: keras.Model | None, height: int, width: int) -> Ending:
    """By its last layer; where that does not tell, by its last operation."""
    told = adopt.ending_of(flat) if flat else None
    if told or original.ending:
        return Ending(told, "layer") if told else original.ending or Ending()
    try:
        spec = tf.TensorSpec([None, height, width, 3], tf.float32)
        frozen = output_kind.inlined(tf.function(original.call).get_concrete_function(spec))
    except Exception as error:  # of whatever is in it
        raise UserError(f"{path} cannot be frozen, its variables made constants: {_line(error)}") from error
    if output_kind.draws_lots(frozen):
        raise UserError(f"{path} answers at random, as in training: save it without what is random in it.")
    return Ending(output_kind.ending_of(frozen.graph, frozen.answer))


def _as_it_is(original: Original, scaling: Scaling, kind: str, outputs: int) -> Network:
    def network(pixels: tf.Tensor) -> Parts:
        answers = tf.ensure_shape(original.call(scaling.layers(pixels)), [None, outputs])
        return Parts(logits(answers, kind))

    return network


def _flattened(original: Original, scaling: Scaling, height: int, width: int) -> keras.Model | None:
    if original.keras is None:
        return None
    try:
        return adopt.flattened(original.keras, scaling, height, width)
    except Exception:  # a network in a form that the copying does not know: it is exported as it is
        return None


def _adopted(source: Source, flat: keras.Model, kind: str, pixels: Array) -> Source:
    """The source in Loupe's own form, if its answers there are the original's."""
    try:
        model = adopt.with_logits(flat, kind)
    except ValueError as error:
        return _without_heatmap(source, str(error))
    network, why = _network(model)
    answers = tf.nn.softmax(network(tf.cast(pixels, tf.float32)).logits).numpy()
    difference = float(np.abs(answers - source.reference(pixels)).max())
    if not difference <= AGREES:
        return _without_heatmap(source, f"put together anew, it answers differently, by {difference:.2g}")
    if why:
        card = replace(source.card, heatmap=False)
        return _without_heatmap(replace(source, card=card, network=network, model=model), why)
    return replace(source, network=network, model=model)


def _network(model: keras.Model) -> tuple[Network, str | None]:
    """And why it gives no heat map, where it does not."""
    try:
        return network_of(model), None
    except UserError as error:
        return plain(model), str(error).rstrip(".")


def _without_heatmap(source: Source, why: str = "its layers cannot be told apart") -> Source:
    if any(note.startswith("no heat map") for note in source.notes):
        return source
    return replace(source, notes=(*source.notes, f"no heat map: {why[0].lower()}{why[1:]}"))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
