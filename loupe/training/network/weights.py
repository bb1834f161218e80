"""Load a backbone's weights: from Keras's download, a file, or an earlier run.

    features = from_imagenet(keras.applications.Xception, pixels, "xception_….h5", height)
    copy("runs/tires", trunk)              # or a .keras, a full .h5, a .weights.h5

A file's layers are matched by name. If the names differ, they are matched by order and shapes, because Keras numbers
layers anew in each process. Layers behind the backbone (another task's head) are left out.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from loupe.card import Card
from loupe.errors import UserError

Layer = tuple[str, list[Any]]  # a name, and its arrays


def from_imagenet(make: Callable[..., Any], pixels: Any, file: str, height: int) -> Any:
    """Return the backbone's output with ImageNet weights, or raise a UserError that says how to get them."""
    file = file.format(size=height if height in (96, 128, 160, 192, 224) else 224)
    path = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / file
    try:
        return make(weights="imagenet", input_tensor=pixels).output
    except Exception as error:  # Keras raises a plain Exception for a download that failed
        if "URL fetch failure" in str(error):
            raise UserError(
                "The ImageNet weights cannot be downloaded (no network?). Give --backbone efficientnetlite0, whose "
                f"weights come with pip; or place {file} at {path}; or give --weights FILE, or --weights none."
            ) from error
        if path.exists():
            raise UserError(f"{path} is damaged ({_first_line(error)}). Remove it, to download it again.") from error
        raise


def copy(source: str, trunk: keras.Model) -> None:
    """Copy weights into all layers of the backbone, or raise a UserError that says what does not fit."""
    targets = [layer for layer in trunk.layers if layer.weights]
    stored = list(_layers(_weights_file(source)))
    by_name = dict(stored)
    for names in ([layer.name for layer in targets], _names_by_type(targets)):
        if all(name in by_name and _fits(layer, by_name[name]) for layer, name in zip(targets, names, strict=True)):
            arrays_of_layers = [by_name[name] for name in names]
            break
    else:
        _refuse_another_width(targets, by_name, source)
        arrays_of_layers = _in_order(targets, [arrays for _, arrays in stored], source)
    for layer, arrays in zip(targets, arrays_of_layers, strict=True):
        layer.set_weights(arrays)


def _names_by_type(layers: list[Any]) -> list[str]:
    """Return the layers' names as `.weights.h5` files have them: conv2d, conv2d_1, dense, …"""
    counts: Counter[str] = Counter()
    names = []
    for layer in layers:
        type_name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
        names.append(f"{type_name}_{counts[type_name]}" if counts[type_name] else type_name)
        counts[type_name] += 1
    return names


def _refuse_another_width(targets: list[Any], by_name: dict[str, list[Any]], source: str) -> None:
    """Refuse a file whose layers bear the backbone's names, and have other numbers of channels: MobileNet's alpha."""
    for names in ([layer.name for layer in targets], _names_by_type(targets)):
        if not all(name in by_name for name in names):
            continue
        for layer, name in zip(targets, names, strict=True):
            wanted, there = _shapes(layer.weights), _shapes(by_name[name])
            if wanted != there and [len(shape) for shape in wanted] == [len(shape) for shape in there]:
                raise UserError(
                    f"{source} holds a network of other widths than this backbone: {layer.name} wants {wanted[0]}, and "
                    f"there is {there[0]}. Only Keras's default is built, alpha=1: name a file of that, or another "
                    "--backbone. convert.py publishes such a model as it is."
                )


def _in_order(targets: list[Any], stored: list[list[Any]], source: str) -> list[list[Any]]:
    for layer, arrays in zip(targets, stored, strict=False):
        if not _fits(layer, arrays):
            raise UserError(
                f"{source} does not hold this backbone's weights: {layer.name} wants {_told(layer.weights)}, and there "
                f"is {_told(arrays)}. {_advice(source)}"
            )
    if len(stored) < len(targets):
        raise UserError(
            f"{source} has {len(stored)} layers with weights; this backbone has {len(targets)}. {_advice(source)}"
        )
    return stored[: len(targets)]


def _advice(source: str) -> str:
    """Return which network the weights want, if they are a run's, whose card says it."""
    with suppress(UserError):
        name = Card.read(Path(source) / "card.json").backbone.get("name")
        return f"Its network is {name}: give --backbone {name}."
    return "Name its network by --backbone; a network of your own is published by convert.py."


def _fits(layer: Any, arrays: list[Any]) -> bool:
    return _shapes(layer.weights) == _shapes(arrays)


def _shapes(arrays: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(array.shape) for array in arrays]


def _told(arrays: list[Any]) -> str:
    return " and ".join(map(str, _shapes(arrays)))


def _weights_file(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        path = path / "model.keras"
    if not path.is_file():
        raise UserError(
            f"There are no weights at {path}. --weights is imagenet, none, a .keras or .h5 file, or a run's folder."
        )
    return path


def _layers(path: Path) -> Iterator[Layer]:
    """Yield every layer that has weights, in the order it computes; of an HDF5 file, in the order it was written."""
    try:
        if zipfile.is_zipfile(path):
            yield from _layers_of_model(keras.saving.load_model(path, compile=False))
        elif h5py.is_hdf5(path):
            yield from _layers_of_hdf5(path)
        else:
            raise UserError(f"{path} is neither a .keras file nor an HDF5 file of weights (.h5).")
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a Keras model: {_first_line(error)}. Save it again.") from error


def _layers_of_model(model: keras.Model) -> Iterator[Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):  # Keras's tutorials nest the backbone
            yield from _layers_of_model(layer)
        elif layer.weights:
            yield layer.name, layer.get_weights()


def _layers_of_hdf5(path: Path) -> Iterator[Layer]:
    with h5py.File(path) as file:
        if "layers" in file and "layer_names" not in file.attrs:
            yield from _layers_of_keras3(file["layers"])
            return
        group = file.get("model_weights", file)
        for name in group.attrs["layer_names"]:
            yield from _layers_of_legacy(group[_text(name)], _text(name))


def _layers_of_legacy(group: Any, name: str) -> Iterator[Layer]:
    """Yield the layers of a group in the format of Keras 2 and full .h5 files: a group for each layer with its arrays
    named in order. A nested backbone has all its arrays in one group."""
    arrays: dict[str, list[Any]] = {}
    for weight in group.attrs["weight_names"]:
        path = _text(weight)
        parts = path.split("/")
        arrays.setdefault(parts[-2] if len(parts) > 1 else name, []).append(np.asarray(group[path]))
    if len(arrays) == 1:
        yield name, next(iter(arrays.values()))
    else:
        yield from arrays.items()


def _layers_of_keras3(group: Any) -> Iterator[Layer]:
    """Yield the layers of a `.weights.h5` file: groups named after the layers' types, numbered in the order of each
    type."""
    for name in group:
        vars_ = group[name].get("vars")
        if vars_ is not None and len(vars_):
            yield name, [np.asarray(vars_[str(number)]) for number in range(len(vars_))]
        elif "layers" in group[name]:
            yield from _layers_of_keras3(group[name]["layers"])


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
