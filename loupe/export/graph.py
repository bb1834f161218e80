"""The serving graph: a flat, frozen SavedModel that explains itself (contract 1).

    write(model, card, folder)

`serving_default`: `image` uint8 [N, H, W, 3] → `probabilities` [N, C], `heatmap` [N, h, w].
`describe`: `request` string [N] → `card` string [N].
It is written the way TensorFlow 1 wrote them, because that is how TensorFlow Serving loads them: a SavedModel that
keeps its variables in a plain tf.Module loads in Python and fails there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from loupe.card import Card
from loupe.errors import UserError

OUTPUTS = ("heatmap", "probabilities")  # sorted, as a traced function returns its dict


def write(model: keras.Model, card: Card, folder: Path) -> None:
    """Write the SavedModel of `model` and `card` to `folder`, which must not exist."""
    frozen = _freeze(model, card)
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(frozen.graph.as_graph_def(), name="")
        image = graph.get_tensor_by_name(frozen.inputs[0].name)
        outputs = {
            key: graph.get_tensor_by_name(tensor.name) for key, tensor in zip(OUTPUTS, frozen.outputs, strict=True)
        }
        request = tf.compat.v1.placeholder(tf.string, [None], name="request")
        described = tf.fill(tf.shape(request), tf.constant(card.to_json()), name="card")
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
    (folder / "variables").rmdir()  # empty: the weights are constants; git and tar would lose it anyway
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / "card.json").write_text(card.to_json())


def _signature(inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> Any:
    return tf.compat.v1.saved_model.predict_signature_def(inputs, outputs)


def _freeze(model: keras.Model, card: Card) -> Any:
    """One graph from uint8 pixels to probabilities and heat map, its weights constants, its functions inlined."""
    pool, dense_layers = split(model)
    features_of = keras.Model(model.input, pool.input)

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        features = features_of(tf.cast(image, tf.float32), training=False)
        values = [tf.reduce_mean(features, [1, 2])]
        for layer in dense_layers:
            values.append(layer(values[-1]))
        logits = values[-1]
        return {
            "probabilities": tf.nn.softmax(logits / card.temperature),
            "heatmap": _grad_cam(features, dense_layers, values),
        }

    spec = tf.TensorSpec([None, card.height, card.width, 3], tf.uint8, name="image")
    return convert_variables_to_constants_v2(tf.function(serve).get_concrete_function(spec))


def _grad_cam(features: tf.Tensor, dense_layers: list[Any], values: list[tf.Tensor]) -> tf.Tensor:
    """Grad-CAM of the top class. The feature map is pooled, so its gradient is the head's alone, written out here."""
    gradient = tf.one_hot(tf.argmax(values[-1], axis=1), values[-1].shape[1])
    for layer, value in zip(reversed(dense_layers), reversed(values), strict=False):
        if layer.activation is keras.activations.relu:
            gradient *= tf.cast(value > 0, tf.float32)
        gradient = tf.matmul(gradient, layer.kernel, transpose_b=True)
    warmth = tf.nn.relu(tf.reduce_sum(features * gradient[:, None, None, :], axis=3))
    peak = tf.reduce_max(warmth, axis=[1, 2], keepdims=True)
    return warmth / tf.where(peak > 0, peak, tf.ones_like(peak))


def split(model: keras.Model) -> tuple[Any, list[Any]]:
    """The pooling layer and the Dense layers behind it; nothing else that computes may stand there."""
    pools = [n for n, layer in enumerate(model.layers) if isinstance(layer, keras.layers.GlobalAveragePooling2D)]
    if not pools:
        raise UserError("This network has no GlobalAveragePooling2D before its head, so it cannot be exported yet.")
    head = [layer for layer in model.layers[pools[-1] + 1 :] if not isinstance(layer, keras.layers.Dropout)]
    for layer in head:
        known = (keras.activations.relu, keras.activations.linear)
        if not isinstance(layer, keras.layers.Dense) or layer.activation not in known:
            raise UserError(f"The head may hold Dense layers (relu or linear) and Dropout; {layer.name} is neither.")
    if not head or head[-1].activation is not keras.activations.linear:
        raise UserError("The network must end in logits: a last Dense layer without activation.")
    return model.layers[pools[-1]], head
