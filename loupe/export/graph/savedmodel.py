"""Freeze a network and save it as a flat SavedModel that holds its own card (docs/architecture.md, contract 1).

    frozen = freeze(network_of(model), card, familiarity)
    save(frozen, card, folder)
    write_checksum(folder)
    with loaded(folder) as ask:
        ask("serving_default", {"image": pixels})["probabilities"]

`serving_default`: `image` uint8 [N, H, W, 3] → `probabilities` [N, C]; also `heatmap` [N, h, w] where it can be
computed for the network's head, and `familiarity` [N] where training measured it.

`describe`: `request` string [N] → `card` string [N].

The SavedModel is written as TensorFlow 1 wrote it, since TensorFlow Serving loads it that way: a SavedModel that keeps
its variables in a plain tf.Module loads in Python and fails there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from loupe import checksums
from loupe.card import Card
from loupe.engines.savedmodel import CHECKED_FILE, SUMS
from loupe.familiarity import FAINTEST, LEAST, Familiarity
from loupe.gradcam import forward, grad_cam, split

FEATURES = "pooled_features"  # name of the pooled features in the graph, for the parity gate

Ask = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class NetworkOutputs:
    logits: tf.Tensor  # [N, C]
    heatmap: tf.Tensor | None = None  # [N, h, w] of 0…1
    pooled: tf.Tensor | None = None  # [N, D], the features that familiarity is computed from


Network = Callable[[tf.Tensor], NetworkOutputs]  # takes pixels, float32 [N, H, W, 3] of 0…255; traced once


@dataclass(frozen=True)
class Frozen:
    graph: Any  # GraphDef
    image: str  # name of the input tensor
    outputs: dict[str, str]  # output → name of its tensor


def network_of(model: keras.Model) -> Network:
    """Return the network of a flat Keras model from pixels of 0…255 to logits, with a head that gradcam.split knows."""
    pool, head = split(model)
    feature_map_of = keras.Model(model.input, pool.input)

    def network(pixels: tf.Tensor) -> NetworkOutputs:
        feature_map = feature_map_of(pixels, training=False)
        values = forward(pool, feature_map, head)
        return NetworkOutputs(values[-1], grad_cam(feature_map, head, values), values[0])

    return network


def network_without_heatmap(model: keras.Model) -> Network:
    """Return the network of a model with any other head."""
    call: Callable[..., Any] = model
    return lambda pixels: NetworkOutputs(call(pixels, training=False))


def freeze(network: Network, card: Card, familiarity: Familiarity | None = None) -> Frozen:
    """Return one graph from uint8 pixels to all outputs, its weights constants, its functions inlined."""

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        result = network(tf.cast(image, tf.float32))
        outputs = {"probabilities": tf.nn.softmax(result.logits / card.temperature)}
        if result.heatmap is not None:
            outputs["heatmap"] = result.heatmap
        if familiarity:
            outputs["familiarity"] = _familiarity_score(familiarity, tf.identity(result.pooled, name=FEATURES))
        return outputs

    spec = tf.TensorSpec([None, card.height, card.width, 3], tf.uint8, name="image")
    traced = tf.function(serve).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(traced)
    names = sorted(traced.structured_outputs)  # a traced function returns its dict in this order
    outputs = {name: tensor.name for name, tensor in zip(names, frozen.outputs, strict=True)}
    return Frozen(frozen.graph.as_graph_def(), frozen.inputs[0].name, outputs)


def save(frozen: Frozen, card: Card, folder: Path) -> None:
    """Write the SavedModel to `folder`, which must not exist."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(frozen.graph, name="")
        # Take the inputs and outputs of both signatures.
        image = graph.get_tensor_by_name(frozen.image)
        outputs = {name: graph.get_tensor_by_name(tensor) for name, tensor in frozen.outputs.items()}
        request = tf.compat.v1.placeholder(tf.string, [None], name="request")
        described = tf.fill(tf.shape(request), tf.constant(card.to_json()), name="card")
        # Write the SavedModel.
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            [tf.saved_model.SERVING],
            signature_def_map={
                tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY: _signature({"image": image}, outputs),
                "describe": _signature({"request": request}, {"card": described}),
            },
        )
        builder.save()
    (folder / "variables").rmdir()  # empty, since the weights are constants
    # Put the card beside it as well.
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / "card.json").write_text(card.to_json(), encoding="utf-8")


def write_checksum(folder: Path) -> None:
    """Write the graph's checksum beside the card. By it a server detects a damaged copy: a SavedModel with other bytes
    in its weights loads as well."""
    checksums.write((folder / SUMS).parent, [CHECKED_FILE])


@contextmanager
def loaded(folder: Path) -> Iterator[Ask]:
    """Load a SavedModel as TensorFlow Serving does. Yield a function that takes a signature and inputs and returns the
    outputs. Its third argument sets tensors within the graph by name, which are then not computed; `outputs=` names
    the outputs to return."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    with closing(session):
        with session.graph.as_default():
            graph = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(folder))

        def ask(
            signature: str, inputs: dict[str, Any], inner: dict[str, Any] | None = None, outputs: Any = None
        ) -> dict[str, Any]:
            definition = graph.signature_def[signature]
            fetches = {name: definition.outputs[name].name for name in outputs or definition.outputs}
            fed = {definition.inputs[name].name: value for name, value in inputs.items()}
            answer: dict[str, Any] = session.run(fetches, fed | (inner or {}))
            return answer

        yield ask


def run(folder: Path, signature: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return one answer of a SavedModel's signature, from a session of its own."""
    with loaded(folder) as ask:
        return ask(signature, inputs)


def _signature(inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> Any:
    return tf.compat.v1.saved_model.predict_signature_def(inputs, outputs)


def _familiarity_score(familiarity: Familiarity, features: tf.Tensor) -> tf.Tensor:
    """Compute what Familiarity.score does, but without a matrix product. An engine that computes in bfloat16 rounds the
    inputs of one, and of two features close together nothing would be left (seen: 0.27 of a familiarity)."""
    length = tf.sqrt(tf.reduce_sum(tf.square(features), axis=1, keepdims=True))
    unit = features / tf.maximum(length, FAINTEST)
    difference = unit[:, None, :] - familiarity.centroids
    on_axes = tf.reduce_sum(unit[:, :, None] * familiarity.axes, axis=1)
    forgiven_part = on_axes[:, None, :] - familiarity.centroids @ familiarity.axes
    squares = tf.reduce_sum(tf.square(difference), axis=2) - tf.reduce_sum(tf.square(forgiven_part), axis=2)
    distance = tf.sqrt(tf.maximum(tf.reduce_min(squares, axis=1, keepdims=True), LEAST))
    low, high = familiarity.marks[:-1], familiarity.marks[1:]
    beyond = (high - distance) / np.maximum(high - low, LEAST)
    return tf.reduce_mean(tf.clip_by_value(beyond, 0.0, 1.0), axis=1)
