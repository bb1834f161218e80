"""Write a trained network in another format, for where neither TensorFlow Serving nor Loupe's model server runs.

    folder = write(source, "onnx", Path("exports/tires-onnx"))     # model.onnx and card.json; or litert, openvino

Keras's own exporters write the file. `image`, float32 [N, H, W, 3] of 0…255 (RGB), gives `probabilities` [N, C],
calibrated: scaling and temperature are inside, heat map and familiarity are not. The file is read back, ONNX and
OpenVINO by OpenVINO and LiteRT by TensorFlow's interpreter, and compared with the original model's own answers, for one
picture and for many at once. Only then is the staging folder renamed. A LiteRT file has builtin operators only, which
every interpreter supports.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loupe.card import Card
from loupe.errors import UserError
from loupe.export import replay_pictures
from loupe.export.parity.tolerance import Answers, Expected, compare
from loupe.export.source import Source
from loupe.quiet import quiet

FILES = {"onnx": "model.onnx", "litert": "model.tflite", "openvino": "model.xml"}
NEEDED = {"onnx": ("tf2onnx", "onnx", "openvino"), "litert": (), "openvino": ("openvino",)}
CATEGORY = {"openvino": "modelserver"}  # category of the Pipfile; the other packages are in `export`
PICTURE_COUNT = 24  # to compare on, at most

Array = np.ndarray[Any, Any]


def write(source: Source, target: str, folder: Path, images: Path | None = None) -> Path:
    """Export the model to `folder`. `images` is a folder of pictures to compare on, instead of the run's own."""
    # Check what is needed, and that nothing else is overwritten.
    if source.model is None:
        raise UserError(f"--to {target} needs the layers of a Keras model, and this one can only be exported as it is.")
    for name in NEEDED[target]:
        if not importlib.util.find_spec(name):
            sync = f"pipenv sync --categories {CATEGORY.get(name, 'export')}"
            raise UserError(f"--to {target} needs {name}: `{sync}` installs it.")
    _refuse_foreign(folder, target)
    # Write and check the export in a staging folder, then rename it.
    staging = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    try:
        staging.mkdir(parents=True)
        with quiet(stdout=True):
            _export(source.model, source.card, target, staging / FILES[target])
            card = _check(source, target, staging / FILES[target], images)
        (staging / "card.json").write_text(card.to_json(), encoding="utf-8")
        _replace(staging, folder)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or folder})"
        raise UserError(f"Cannot write {folder}: {reason}. Free it, or name another folder with --out.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _refuse_foreign(folder: Path, target: str) -> None:
    """Refuse a folder that holds anything but an earlier export, which is replaced."""
    ours = {"card.json", FILES[target], "model.bin"}
    if folder.exists() and not (folder.is_dir() and {entry.name for entry in folder.iterdir()} <= ours):
        raise UserError(f"{folder} holds something else than an earlier export. Name another folder with --out.")


def _replace(staging: Path, folder: Path) -> None:
    old = staging.with_name(f"{staging.name}-old")
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _export(model: keras.Model, card: Card, target: str, file: Path) -> None:
    # The names are prefixed, since the network's layers may have the usual ones.
    scaled = keras.layers.Rescaling(1 / card.temperature, dtype="float32", name="loupe_temperature")(model.output)
    probabilities = keras.layers.Softmax(dtype="float32", name="loupe_probabilities")(scaled)
    # A dict, since its keys become the names of the outputs.
    whole = keras.Model(model.input, {"probabilities": probabilities})
    whole(np.zeros((1, card.height, card.width, 3), np.float32))  # Keras exports to ONNX only a model that was called
    # LiteRT: builtin operators only.
    options = {}
    if target == "litert":
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    try:
        with warnings.catch_warnings(action="ignore"):
            whole.export(str(file), format=target, verbose=False, **options)
    except OSError:
        raise
    except Exception as error:  # the converters raise errors of every type
        raise UserError(f"Keras cannot write this network as {target}: {_first_useful_line(error)}") from error


def _check(source: Source, target: str, file: Path, images: Path | None) -> Card:
    """Compare the file with the original model. Return its card."""
    # Read the pictures, and ask the file.
    card = source.card
    chosen = replay_pictures.for_replay(source.run, images, card.labels, most=PICTURE_COUNT)
    pixels = replay_pictures.read(chosen, card.height, card.width)
    if len(pixels) < 2:
        raise UserError("There are no pictures to check the export on: name a folder of some with --images.")
    try:
        ask = _litert(file) if target == "litert" else _openvino(file)
        answers = Answers(ask(pixels.astype(np.float32)), alone=ask(pixels[:1].astype(np.float32)))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The {target} file cannot be read back: {_first_useful_line(error)}; nothing is written."
        ) from error
    # Compare its answers with the model's.
    row = compare(target, answers, Expected(source.reference(pixels)), "float32")
    if row.fault or not row.differences:
        raise UserError(f"The {target} file {row.fault}, compared with the original; nothing is written.")
    parity = {
        "images": len(pixels),
        "pictures": chosen.origin,
        "disagreements": row.differences.relabelled,
        "near_ties": row.differences.near_ties,
        "largest_difference": row.differences.largest,
        "stages": [target],
    }
    return replace(card, precision="float32", heatmap=False, unfamiliar_below=None, parity=parity)


def _openvino(file: Path) -> Callable[[Array], Array]:
    from loupe.engines.openvino_engine import compile_model

    model = compile_model(file)
    return lambda pixels: np.array(model({"image": pixels})["probabilities"])


def _litert(file: Path) -> Callable[[Array], Array]:
    with warnings.catch_warnings(action="ignore"):  # TensorFlow 2.20 warns that a later version will drop it
        interpreter = tf.lite.Interpreter(str(file))
    runner = interpreter.get_signature_runner("serving_default")
    return lambda pixels: np.array(runner(image=pixels)["probabilities"])


def _first_useful_line(error: Exception) -> str:
    """Return the message's first line that does not name OpenVINO's own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "src/" not in line]
    return lines[0] if lines else type(error).__name__
