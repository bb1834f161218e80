"""What a Keras file of unknown origin says it holds, read before any library builds it: no code from it is ever run.

config = vetted(Path("model.h5"))         # its model's configuration; raises UserError
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras

from loupe.errors import UserError
from loupe.export import legacy

CODE = {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "TensorFlowOpLayer"}
NETWORKS = {"Functional", "Model", "Sequential"}
CALLS = {"TFOpLambda", "SlicingOpLambda"}  # Keras 2's layers that call a function of TensorFlow by its name
CALLED = ("math.", "nn.", "__operators__.", "image.resize", "compat.v1.nn.", "keras.activations.", "keras.backend.")
CALLED_BY_NAME = {"reshape", "cast", "concat", "expand_dims", "squeeze", "transpose", "identity", "stack", "reverse",
                  "clip_by_value", "convert_to_tensor", "pad", "split", "unstack", "compat.v1.transpose",
                  "compat.v1.shape", "shape", "image.per_image_standardization"}  # fmt: skip
OURS = ("keras", "tf_keras", "tensorflow.keras", "tensorflow.python.keras", "builtins")
WIDTHS = ("units", "filters", "depth_multiplier")  # a layer's, each of which is a side of one of its weights
EXPANSION, FLOOR = 100, 2**28  # what a file may unpack to: so many times its size, or so many bytes


def vetted(path: Path) -> dict[str, Any]:
    try:
        config, widest = _hdf5(path) if h5py.is_hdf5(path) else _archive(path)
        _check(path, config, widest)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes h5py, zipfile and json raise
        raise UserError(f"{path} cannot be read: it is damaged or cut short ({_line(error)}).") from error
    return config


def _hdf5(path: Path) -> tuple[dict[str, Any], int]:
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise UserError(f"{path} is an HDF5 file by another name: rename it to {path.stem}.h5.")
    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None and (
            "layer_names" in file.attrs or "layers" in file or "_layer_checkpoint_dependencies" in file
        ):
            raise UserError(
                f"{path} holds weights alone, not the network: load them where it was built, and use model.save()."
            )
        if config is None:
            raise UserError(f"{path} is an HDF5 file without a Keras model in it.")
        return json.loads(config), _widest(path, file, path.stat().st_size)


def _archive(path: Path) -> tuple[dict[str, Any], int]:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no Keras model: neither HDF5 (.h5) nor a Keras archive (.keras), or cut short.")
    if path.suffix.lower() != ".keras":
        raise UserError(f"{path} is an archive by another name: if Keras wrote it, rename it to {path.stem}.keras.")
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        _check_claim(path, sum(entry.file_size for entry in archive.infolist()), size)
        if missing := {"config.json", "model.weights.h5"} - set(archive.namelist()):
            raise UserError(f"{path} is an archive without {min(missing)}: it is no Keras model.")
        with archive.open("model.weights.h5") as weights, h5py.File(weights, "r") as file:
            return json.loads(archive.read("config.json")), _widest(path, file, size)


def _widest(path: Path, file: Any, size: int) -> int:
    """The longest side of the weights in the file, whose links lead nowhere else and whose sizes it can hold."""
    claimed, widest = 0, 0
    for group in _groups(file):
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(f"{path} refers to other files ({name}): it is no Keras model as Keras writes them.")
            entry = group[name]
            if isinstance(entry, h5py.Dataset):
                if entry.external or entry.is_virtual:
                    raise UserError(
                        f"{path} refers to other files ({name}): it is no Keras model as Keras writes them."
                    )
                claimed += entry.nbytes
                widest = max([widest, *(entry.shape or ())])
    _check_claim(path, claimed, size)
    return widest


def _groups(file: Any) -> Iterator[Any]:
    """Every one once, though hard links may go round in circles."""
    seen, waiting = set(), [file]
    while waiting:
        group = waiting.pop()
        if hash(group.id) in seen:
            continue
        seen.add(hash(group.id))
        yield group
        waiting += [
            group[name] for name in group if group.get(name, getclass=True, getlink=True) is h5py.HardLink
            and group.get(name, getclass=True) is h5py.Group
        ]  # fmt: skip


def _check_claim(path: Path, claimed: int, size: int) -> None:
    if claimed > max(EXPANSION * size, FLOOR):
        raise UserError(f"{path} claims {claimed / 1e9:.1f} GB of weights in a file of {size / 1e6:.1f} MB: refused.")


def _check(path: Path, config: dict[str, Any], widest: int) -> None:
    waiting: list[tuple[Any, bool]] = [(config, True)]  # and whether it stands where a layer stands
    while waiting:
        part, layer = waiting.pop()
        if isinstance(part, dict):
            if "class_name" in part:
                _check_object(path, part, layer)
            for key, value in part.items():
                if key in WIDTHS and isinstance(value, int) and value > widest:
                    raise UserError(f"{path} names a layer {value} wide, and holds no weights of that size: refused.")
                if key != "compile_config":  # what it was trained by is not read
                    waiting.append((value, key in ("layers", "layer")))
        elif isinstance(part, list):
            waiting += [(value, layer) for value in part]


def _check_object(path: Path, part: dict[str, Any], layer: bool) -> None:
    kind, module = part["class_name"], part.get("module")
    inner = part.get("config")
    name = inner.get("name", kind) if isinstance(inner, dict) else kind
    if kind in CODE:
        raise UserError(
            f"{path.name} holds program code, in its layer {name} ({kind}); code from a file is never run. Save the "
            "model with layers of Keras in its place, such as Rescaling."
        )
    if kind in CALLS:
        function = str(inner.get("function") or "__operators__.getitem") if isinstance(inner, dict) else ""
        if not function.startswith(CALLED) and function not in CALLED_BY_NAME:
            raise UserError(f"{path.name} calls TensorFlow's {function} in its layer {name}: that is not supported.")
        return
    foreign = module is not None and str(module).split(".")[0] not in {name.split(".")[0] for name in OURS}
    if foreign or (layer and not _known(kind, module)):
        raise UserError(
            f"{path.name} holds a layer that Keras does not know, {kind} ({name}), and not its code. Where that is, "
            "write the model by model.export(…), and convert the SavedModel."
        )


def _known(kind: str, module: Any) -> bool:
    if (
        kind in NETWORKS
        or hasattr(keras.layers, kind)
        or str(module).startswith(("keras.src.ops", "keras.src.applications"))
    ):
        return True
    return hasattr(legacy.library().layers, kind)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
