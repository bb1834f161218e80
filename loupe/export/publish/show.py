"""Describe a SavedModel: what `saved_model_cli show --all` prints, readably and without TensorFlow.

    print(show(Path("models/tires")))        # the newest version; models/tires/3 for another

It takes any SavedModel: of TensorFlow 1, TensorFlow 2, Keras or Loupe. In a shape ? stands for any number. Not covered:
saved_model.pbtxt, and what saved_model_cli prints of functions that no signature names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from loupe import proto, tfrecord
from loupe.card import Card
from loupe.cli import plain
from loupe.errors import UserError
from loupe.export.graph.warmup import REQUESTS
from loupe.export.publish import model_folder

CARD, INT8 = Path("assets.extra", "card.json"), Path("assets.extra", "openvino-int8")
LONGEST, MOST = 80, 50  # characters of a name, entries of a list: an unknown file may hold anything
MOST_REQUESTS = 1000  # a server reads no more
VARIABLES = {"VarHandleOp", "VariableV2", "Variable"}
OTHER_TYPES = {
    0: "none", 8: "complex64", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 18: "complex128",
    20: "resource", 21: "variant",
}  # fmt: skip


def show(folder: Path) -> str:
    try:
        return _description(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}. Name another folder.") from error


def _description(folder: Path) -> str:
    version_folder, notes = _find_version(folder)
    graphs = _read_graphs(version_folder)
    lines = [
        f"{_plain(str(version_folder), 500)}: a SavedModel of {_megabytes(_size(version_folder))}",
        *notes,
        _weights(version_folder, graphs),
    ]
    for graph in graphs:
        lines += ["", f"tags {_join(graph.meta_info_def.tags) or '(none)'}"]
        for name in _first_names(sorted(graph.signature_def), lines):
            lines += _signature(name, graph.signature_def[name])
    return "\n".join([*lines, *_extras(version_folder)])


def _find_version(folder: Path) -> tuple[Path, list[str]]:
    """Return the SavedModel's folder and, where only its parent was named, a line on the other versions."""
    # A SavedModel's own folder.
    if (folder / "saved_model.pb").exists():
        return folder, []
    # A model's folder: take the newest version.
    numbers = model_folder.versions(folder)
    if numbers:
        newest = dict(model_folder.entries(folder))[numbers[-1]]  # of 007 and 7 it is 7, as for a server
        withdrawn_names = sorted(
            entry.name for entry in model_folder.listed(folder) if entry.name.startswith(model_folder.WITHDRAWN)
        )
        withdrawn = f"; withdrawn: {_join(withdrawn_names)}" if withdrawn_names else ""
        older = ", ".join(map(str, reversed(numbers[:-1][-MOST:]))) or "none"
        return newest, [f"the newest version; others: {older}{withdrawn}"]
    # Neither of them: say what is there.
    if not folder.exists():
        raise UserError(f"There is nothing at {folder}. Name a SavedModel's folder, such as models/tires/1.")
    models = sorted(entry.name for entry in model_folder.listed(folder) if model_folder.versions(entry))
    hint = f"Name one of the models in it: {_join(models)}" if models else "Name one that does, such as models/tires/1"
    raise UserError(f"{folder} holds no saved_model.pb and no numbered version. {hint}.")


def _read_graphs(folder: Path) -> Any:
    path = folder / "saved_model.pb"
    if not path.is_file():
        raise UserError(f"{folder} holds no saved_model.pb: it is no SavedModel, or only part of one.")
    try:
        graphs = proto.SavedModel.FromString(path.read_bytes()).meta_graphs
    except proto.WireError as error:
        raise UserError(f"{path} is damaged, or no SavedModel. Publish it again.") from error
    if not graphs:
        raise UserError(f"{path} holds no graph: it is damaged, or no SavedModel. Publish it again.")
    return graphs


def _weights(folder: Path, graphs: Any) -> str:
    if any(node.op in VARIABLES for graph in graphs for node in graph.graph_def.node):
        return f"not frozen: its weights are variables, {_megabytes(_size(folder / 'variables'))} in variables/"
    size = _megabytes((folder / "saved_model.pb").stat().st_size)
    return f"frozen: its weights are constants of the graph, {size}"


# --------------------------------------------------------------------------------------------------------- signatures


def _signature(name: str, signature: Any) -> list[str]:
    rows = [
        (
            direction,
            _plain(alias),
            _type(info.dtype),
            _shape(info.tensor_shape),
            _plain(info.name) or "(several tensors)",
        )
        for direction, infos in (("in", signature.inputs), ("out", signature.outputs))
        for alias, info in _first_tensors(infos)
    ]
    left_out = sum(max(0, len(infos) - MOST) for infos in (signature.inputs, signature.outputs))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    method = f" ({_plain(signature.method_name)})" if signature.method_name else ""
    more = [f"    … and {left_out} more"] if left_out else []
    return ["", f"  {_plain(name)}{method}", *(f"    {line}" for line in lines), *more]


def _first_tensors(infos: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(alias, infos[alias]) for alias in sorted(infos)[:MOST]]


def _type(number: int) -> str:
    known = proto.BY_NUMBER.get(number)
    return known.name if known else OTHER_TYPES.get(number, f"type {number}")


def _shape(shape: Any) -> str:
    sizes = proto.shape_of(shape)
    if sizes is None:
        return "of any rank"
    more = ["…"] if len(sizes) > MOST else []
    return f"[{', '.join(['?' if size < 0 else str(size) for size in sizes[:MOST]] + more)}]"


# ------------------------------------------------------------------------------------------------ the files beside it


def _extras(folder: Path) -> Iterator[str]:
    if (folder / CARD).is_file():
        yield from ["", "card", *(f"  {key:<10} {value}" for key, value in _card(folder / CARD))]
    if (folder / REQUESTS).exists():
        yield from ["", f"warm-up requests: {_warmup(folder / REQUESTS)}"]
    if (folder / INT8 / "model.xml").exists():
        yield from ["", f"int8 variant for Loupe's model server: {_megabytes(_size(folder / INT8))}"]


def _card(path: Path) -> Iterator[tuple[str, str]]:
    try:
        card = Card.read(path)
    except (UserError, OSError) as error:
        yield "unreadable", _plain(str(error), 300)
        return
    yield "name", _plain(card.name)
    yield "labels", f"{len(card.labels)}: {_join(card.labels)}"
    yield "input", f"{card.height} × {card.width}, {card.resize}, {card.fit}"
    yield "precision", _plain(str(card.precision))
    backbone, metrics = card.backbone, card.metrics
    if "name" in backbone:
        yield "backbone", _plain(str(backbone["name"]))
    if "preprocess" in backbone:
        yield "preprocess", _plain(str(backbone["preprocess"]))
    if isinstance(accuracy := metrics.get("accuracy"), int | float):
        pictures = f"{metrics.get('images', '?')} {metrics.get('split', '')} pictures".replace("  ", " ")
        yield "accuracy", _plain(f"{accuracy:.4g} on {pictures}")
    if card.certain_note:
        yield "certain", _plain(card.certain_note, 300)
    yield "parity", _parity(card.parity or {})


def _parity(entry: Mapping[str, Any]) -> str:
    if not entry:
        return "not compared with what it was made from"
    int8 = _int8(entry.get("int8"))
    if entry.get("skipped"):
        return f"skipped{int8}"
    text = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in entry.items() if key not in ("stages", "int8")
    )
    text += int8
    stages = entry.get("stages")
    return _plain(text, 300) + (f"; by {_join(map(str, stages))}" if isinstance(stages, list) else "")


def _int8(entry: Any) -> str:
    if not isinstance(entry, dict):
        return ""
    told = [
        f"{entry[key]} disagreements" if key == "disagreements" else f"judged on {entry[key]} pictures"
        for key in ("disagreements", "judged_on")
        if key in entry
    ]
    told += ["which are few"] * bool(entry.get("few_images"))
    return _plain(f"; in int8 {', '.join(told)}", 300)


def _warmup(path: Path) -> str:
    batches = []
    try:
        for record in islice(tfrecord.read(path), MOST_REQUESTS):
            shapes = [tensor.tensor_shape.dim for tensor in _inputs(record)]
            batches.append(str(shapes[0][0].size) if shapes and shapes[0] else "?")
    except (tfrecord.Damaged, proto.WireError, OSError) as error:
        return f"damaged after {len(batches)}: {_plain(str(error), 300)}"
    return f"{len(batches)}, of batch {_join(batches)}" if batches else "none"


def _inputs(record: bytes) -> list[Any]:
    return list(proto.PredictionLog.FromString(record).predict_log.request.inputs.values())


# -------------------------------------------------------------------------------------------------------- in words


def _plain(text: str, longest: int = LONGEST) -> str:
    return plain(text, longest)


def _join(texts: Iterable[str]) -> str:
    known = list(texts)
    more = [f"… and {len(known) - MOST} more"] if len(known) > MOST else []
    return ", ".join([*map(_plain, known[:MOST]), *more])


def _first_names(names: list[str], lines: list[str]) -> list[str]:
    if len(names) > MOST:
        lines.append(f"  the first {MOST} of {len(names)} signatures")
    return names[:MOST]


def _size(folder: Path) -> int:
    """Return the size of the files in bytes. Links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
