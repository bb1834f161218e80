"""A trained network in another format, for where neither TensorFlow Serving nor our own model server runs.

    folder = write(source, "onnx", Path("exports/tires-onnx"))     # model.onnx and card.json; or litert, openvino

By Keras's own exporters. `image`, float32 [N, H, W, 3] of 0…255 (RGB), gives `probabilities` [N, C], calibrated:
scaling and temperature are inside, heat map and familiarity are not. The file is read back, ONNX and OpenVINO's by
OpenVINO and LiteRT's by TensorFlow's interpreter, and compared with the original model's own answers, for one picture
and for many at once; only then the folder gets its name. A LiteRT file holds builtin operators alone, which every
interpreter has.
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
from loupe.export.parity.tolerance import Answers, Wanted, judged
from loupe.export.quiet import quiet
from loupe.export.source import Source

FILES = {"onnx": "model.onnx", "litert": "model.tflite", "openvino": "model.xml"}
NEEDED = {"onnx": ("tf2onnx", "onnx", "openvino"), "litert": (), "openvino": ("openvino",)}
CATEGORY = {"openvino": "modelserver"}  # of the Pipfile; the others are in export
PICTURES = 24  # compared

Array = np.ndarray[Any, Any]


def write(source: Source, kind: str, folder: Path, images: Path | None = None) -> Path:
    """`images`: pictures to compare on, where the run's own are not there."""
    if source.model is None:
        raise UserError(f"--to {kind} needs the layers of a Keras model, and this one can only be exported as it is.")
    for name in NEEDED[kind]:
        if not importlib.util.find_spec(name):
            sync = f"pipenv sync --categories {CATEGORY.get(name, 'export')}"
            raise UserError(f"--to {kind} needs {name}: `{sync}` installs it.")
    _refuse_foreign(folder, kind)
    part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    try:
        part.mkdir(parents=True)
        with quiet(stdout=True):
            _export(source.model, source.card, kind, part / FILES[kind])
            card = _checked(source, kind, part / FILES[kind], images)
        (part / "card.json").write_text(card.to_json(), encoding="utf-8")
        _put(part, folder)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or folder})"
        raise UserError(f"Cannot write {folder}: {reason}. Free it, or name another folder with --out.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _refuse_foreign(folder: Path, kind: str) -> None:
    """An earlier export is replaced; anything else that somebody keeps there is not."""
    ours = {"card.json", FILES[kind], "model.bin"}
    if folder.exists() and not (folder.is_dir() and {entry.name for entry in folder.iterdir()} <= ours):
        raise UserError(f"{folder} holds something else than an earlier export. Name another folder with --out.")


def _put(part: Path, folder: Path) -> None:
    old = part.with_name(f"{part.name}-old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _export(model: keras.Model, card: Card, kind: str, file: Path) -> None:
    # Names of their own, since the network's layers have the usual ones.
    scaled = keras.layers.Rescaling(1 / card.temperature, dtype="float32", name="loupe_temperature")(model.output)
    probabilities = keras.layers.Softmax(dtype="float32", name="loupe_probabilities")(scaled)
    # By a dict, because its keys become the names that are seen from outside.
    whole = keras.Model(model.input, {"probabilities": probabilities})
    whole(np.zeros((1, card.height, card.width, 3), np.float32))  # Keras exports to ONNX only what was called
    options = {}
    if kind == "litert":
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    try:
        with warnings.catch_warnings(action="ignore"):
            whole.export(str(file), format=kind, verbose=False, **options)
    except OSError:
        raise
    except Exception as error:  # the converters raise of every kind
        raise UserError(f"Keras cannot write this network as {kind}: {_telling(error)}") from error


def _checked(source: Source, kind: str, file: Path, images: Path | None) -> Card:
    card = source.card
    chosen = replay_pictures.for_replay(source.run, images, card.labels, most=PICTURES)
    pixels = replay_pictures.read(chosen, card.height, card.width)
    if len(pixels) < 2:
        raise UserError("There are no pictures to check the export on: name a folder of some with --images.")
    try:
        ask = _lite(file) if kind == "litert" else _openvino(file)
        answers = Answers(ask(pixels.astype(np.float32)), alone=ask(pixels[:1].astype(np.float32)))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"The {kind} file cannot be read back: {_telling(error)}; nothing is written.") from error
    row = judged(kind, answers, Wanted(source.reference(pixels)), "float32")
    if row.fault or not row.steps:
        raise UserError(f"The {kind} file {row.fault}, compared with the original; nothing is written.")
    parity = {
        "images": len(pixels),
        "pictures": chosen.what,
        "disagreements": row.steps.turned,
        "near_ties": row.steps.near_ties,
        "largest_difference": row.steps.largest,
        "stages": [kind],
    }
    return replace(card, precision="float32", heatmap=False, unfamiliar_below=None, parity=parity)


def _openvino(file: Path) -> Callable[[Array], Array]:
    from loupe.engines.openvino_engine import compile_model

    model = compile_model(file)
    return lambda pixels: np.array(model({"image": pixels})["probabilities"])


def _lite(file: Path) -> Callable[[Array], Array]:
    with warnings.catch_warnings(action="ignore"):  # TensorFlow 2.20 still has it, and says that a later one will not
        interpreter = tf.lite.Interpreter(str(file))
    runner = interpreter.get_signature_runner("serving_default")
    return lambda pixels: np.array(runner(image=pixels)["probabilities"])


def _telling(error: Exception) -> str:
    """Its first line that does not name OpenVINO's own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "src/" not in line]
    return lines[0] if lines else type(error).__name__
