"""Small SavedModels for the tests, frozen and written the TF1 way, as Contract 1 says (docs/architecture.md).

    models.write(folder / "tires" / "1", seed=1)

`write` makes one with `image` (uint8 unless told otherwise), `probabilities`, `heatmap` and the signature `describe`;
`write_plain` one that knows nothing of Loupe: `serving_default` alone, float32 in, logits out, no card;
`write_foreign` another such one, of any signature, that takes each pixel's exact value into account;
`write_uncomputable` one that a session loads, and that cannot compute there;
`write_slow` one whose answer takes as long as its input says; `write_text_length` one that needs TensorFlow;
`write_scalar` one of a single number;
`write_conformance` what test_conformance.py asks about, `python -m tests.support.models FOLDER` too;
`write_half_plus_two` the model of TensorFlow's own guides, with signatures for predict, classify and regress.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

SIDE, CLASSES = 32, 3
FOREIGN_SIZE = (24, 40)  # height, width
LABELS = ["cracked", "normal", "worn"]


def card(name: str = "tires", **entries: Any) -> str:
    known = {
        "loupe": 1,
        "name": name,
        "labels": LABELS,
        "input": {"height": SIDE, "width": SIDE, "resize": "bilinear-antialiased", "fit": "stretch"},
        "precision": "float32",
    }
    return json.dumps(known | entries)


def write(
    folder: Path,
    *,
    seed: int = 1,
    side: int = SIDE,
    dtype: tf.DType = tf.uint8,
    text: str | None = None,
    familiarity: bool = False,
) -> Path:
    """Write one version into `folder`; another seed gives other answers. With `familiarity` it has that output as well:
    how bright the picture is, from 0 to 1."""
    # Build the graph with both signatures.
    text = card() if text is None else text
    graph = _frozen(_network(seed), tf.TensorSpec([None, side, side, 3], dtype, name="image"))
    with tf.Graph().as_default():
        image, probabilities, heatmap = tf.graph_util.import_graph_def(
            graph, name="", return_elements=["image:0", "probabilities:0", "heatmap:0"]
        )
        outputs = {"probabilities": probabilities, "heatmap": heatmap}
        if familiarity:
            outputs["familiarity"] = tf.reduce_mean(tf.cast(image, tf.float32) / 255, [1, 2, 3], name="familiarity")
        request = tf.compat.v1.placeholder(tf.string, [None], name="request")
        answer = tf.identity(tf.fill(tf.shape(request), tf.constant(text)), name="card")
        signatures = {
            "serving_default": _signature({"image": image}, outputs),
            "describe": _signature({"request": request}, {"card": answer}),
        }
        _save(folder, signatures)
    # Put the card beside it.
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / "card.json").write_text(text)
    return folder


def write_plain(folder: Path) -> Path:
    with tf.Graph().as_default():
        pixels = tf.compat.v1.placeholder(tf.float32, [None, SIDE, SIDE, 3], name="input_8")
        logits = tf.reduce_mean(pixels, [1, 2]) @ tf.constant(np.eye(3, 4, dtype=np.float32))
        _save(folder, {"serving_default": _signature({"input_8": pixels}, {"dense_7": logits})})
    return folder


def write_foreign(
    folder: Path,
    *,
    shape: tuple[int | None, ...] = (None, *FOREIGN_SIZE, 3),
    dtype: tf.DType = tf.float32,
    classes: int = 4,
    softmax: bool = False,
    inputs: int = 1,
    outputs: tuple[str, ...] = ("dense_7",),
) -> Path:
    """Write a model `input_8` → `dense_7` that gives `foreign_logits`, or their softmax."""
    # Logits from the mean colour if sizes are open, from all pixels if not.
    with tf.Graph().as_default():
        tensors = {
            f"input_{8 + n}": tf.compat.v1.placeholder(dtype, shape, name=f"input_{8 + n}") for n in range(inputs)
        }
        pixels = tf.cast(tensors["input_8"], tf.float32)
        is_open = None in shape[1:]
        flat = (
            tf.reduce_mean(pixels, [1, 2])
            if is_open
            else tf.reshape(pixels, [-1, math.prod(side or 0 for side in shape[1:])])
        )
        logits = 2 * tf.sin(flat @ tf.constant(_foreign_weights(int(flat.shape[1]), classes)))
        answer = tf.nn.softmax(logits) if softmax else logits
        _save(folder, {"serving_default": _signature(tensors, {name: tf.identity(answer) for name in outputs})})
    return folder


def foreign_logits(pixels: np.ndarray[Any, Any], classes: int = 4) -> np.ndarray[Any, Any]:
    flat = pixels.reshape(len(pixels), -1).astype(np.float32)
    result: np.ndarray[Any, Any] = 2 * np.sin(flat @ _foreign_weights(flat.shape[1], classes))
    return result


def _foreign_weights(count: int, classes: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(8).normal(0, 0.003, (count, classes)).astype(np.float32)


def write_uncomputable(folder: Path) -> Path:
    """Write a Keras model by `tf.saved_model.save`, float32 in and logits out. A session, as TensorFlow Serving's,
    loads it and does not find its variables."""
    import keras

    pixels = keras.Input((SIDE, SIDE, 3))
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(pixels))
    tf.saved_model.save(keras.Model(pixels, keras.layers.Dense(CLASSES)(features)), str(folder))
    return folder


def write_slow(folder: Path) -> Path:
    """Write a model `turns` → `done`, both float32 [N, 1]: its first value is the number of turns of a loop, about 0.2
    ms each."""
    with tf.Graph().as_default():
        turns = tf.compat.v1.placeholder(tf.float32, [None, 1], name="turns")
        start = tf.constant(np.random.default_rng(1).normal(0, 0.06, (256, 256)).astype(np.float32))
        _, last = tf.while_loop(
            lambda i, _: i < turns[0, 0], lambda i, m: (i + 1.0, tf.tanh(m @ m)), (tf.constant(0.0), start)
        )
        _save(folder, {"serving_default": _signature({"turns": turns}, {"done": turns + tf.reduce_mean(last)})})
    return folder


def write_text_length(folder: Path) -> Path:
    """Write a model `text` string [N] → `length` int32 [N], which only OpenVINO cannot compute."""
    with tf.Graph().as_default():
        text = tf.compat.v1.placeholder(tf.string, [None], name="text")
        _save(folder, {"serving_default": _signature({"text": text}, {"length": tf.strings.length(text)})})
    return folder


def write_half_plus_two(folder: Path) -> Path:
    """Write a model whose every answer is half of x, plus two. `serving_default` takes `x` float32 [None], gives `y`;
    `classify_x_to_y` and `regress_x_to_y` take serialized tf.Examples with a float feature "x" (input `inputs`), and
    give `scores` and `outputs`, [N, 1]."""
    saved_model = tf.compat.v1.saved_model
    methods = saved_model.signature_constants
    with tf.Graph().as_default():
        # Predict.
        x = tf.compat.v1.placeholder(tf.float32, [None], name="x")
        signatures = {"serving_default": _signature({"x": x}, {"y": tf.add(x * 0.5, 2.0, name="y")})}
        # Classify and Regress.
        examples = tf.compat.v1.placeholder(tf.string, [None], name="tf_example")
        features = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        y = tf.add(features["x"] * 0.5, 2.0, name="y_of_examples")
        for name, output, method in (
            ("classify_x_to_y", methods.CLASSIFY_OUTPUT_SCORES, methods.CLASSIFY_METHOD_NAME),
            ("regress_x_to_y", methods.REGRESS_OUTPUTS, methods.REGRESS_METHOD_NAME),
        ):
            signatures[name] = saved_model.signature_def_utils.build_signature_def(
                {"inputs": saved_model.utils.build_tensor_info(examples)},
                {output: saved_model.utils.build_tensor_info(y)},
                method,
            )
        _save(folder, signatures)
    return folder


def write_scalar(folder: Path, dtype: tf.DType = tf.float32) -> Path:
    """Write a model of one number `x`, of this type, whose answer `y` is twice that."""
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(dtype, [], name="x")
        _save(folder, {"serving_default": _signature({"x": x}, {"y": tf.add(x, x, name="y")})})
    return folder


def write_conformance(folder: Path) -> Path:
    """Write the models that test_conformance.py asks about, and return the configuration file that serves them."""
    for number in ("1", "2"):
        write_half_plus_two(folder / "half" / number)
    write(folder / "tires" / "3")
    file = folder / "models.config"
    file.write_text(
        "model_config_list {\n"
        f'  config {{ name: "half" base_path: "{folder}/half" model_platform: "tensorflow"\n'
        "    model_version_policy { all {} }\n"
        '    version_labels { key: "stable" value: 1 } }\n'
        f'  config {{ name: "tires" base_path: "{folder}/tires" model_platform: "tensorflow" }}\n'
        "}\n"
    )
    return file


def _network(seed: int) -> tf.Module:
    rng = np.random.default_rng(seed)

    # A convolution, a head, and the head's heat map.
    class Network(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(rng.normal(0, 0.3, (3, 3, 3, 8)), dtype=tf.float32)
            self.head = tf.Variable(rng.normal(0, 1.0, (8, CLASSES)), dtype=tf.float32)

        def __call__(self, image: Any) -> dict[str, Any]:
            pixels = tf.cast(image, tf.float32) / 127.5 - 1.0
            features = tf.nn.relu(tf.nn.conv2d(pixels, self.kernel, 2, "SAME"))
            logits = tf.reduce_mean(features, [1, 2]) @ self.head
            top = tf.gather(tf.transpose(self.head), tf.argmax(logits, 1))
            heat = tf.nn.relu(tf.einsum("nhwc,nc->nhw", features, top))
            peak = tf.reduce_max(heat, [1, 2], keepdims=True)
            return {
                "probabilities": tf.identity(tf.nn.softmax(logits), name="probabilities"),
                "heatmap": tf.math.divide_no_nan(heat, peak, name="heatmap"),
            }

    return Network()


def _frozen(network: Any, spec: tf.TensorSpec) -> Any:
    concrete = tf.function(network.__call__, input_signature=[spec]).get_concrete_function()
    return convert_variables_to_constants_v2(concrete).graph.as_graph_def()


def _signature(inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    return tf.compat.v1.saved_model.signature_def_utils.predict_signature_def(inputs, outputs)


def _save(folder: Path, signatures: dict[str, Any]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tf.compat.v1.Session() as session:
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


if __name__ == "__main__":
    print(write_conformance(Path(sys.argv[1]).resolve()))
