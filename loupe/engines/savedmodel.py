"""Read a SavedModel's signatures, and Loupe's card if it has one, without TensorFlow.

    model = savedmodel.read(Path("models/tires/1"))
    model.signatures["serving_default"].inputs["image"].dtype

Not covered: saved_model.pbtxt and sharded .cpb files, which only very old or very large models have.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grpc import StatusCode

from loupe import checksums, files, proto
from loupe.engines.refused import Refused, invalid

CARD = Path("assets.extra", "card.json")
DESCRIBE = "describe"
PASS_THROUGH = {"Identity": 0, "Fill": 1}  # operation → the input whose value it passes on
MAX_STEPS = 10
WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
SUMS = Path("assets.extra", checksums.NAME)
CHECKED_FILE = "../saved_model.pb"  # as SUMS names it
MAX_BYTES, MAX_CARD_BYTES = 1 << 31, 1 << 20  # protobuf itself reads at most 2 GiB
FOLDERS_READ = ("", "variables", "assets")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SavedModel:
    folder: Path
    tags: tuple[str, ...]
    signatures: dict[str, Any]
    card: str | None

    @property
    def precision(self) -> str:
        return str(json.loads(self.card).get("precision", "float32")) if self.card else "float32"


def read(folder: Path, tags: Sequence[str] = ("serve",)) -> SavedModel:
    path = folder / "saved_model.pb"
    try:
        data = files.read(path, MAX_BYTES)
        _refuse_pipes(folder)
        _refuse_damaged(folder, data)
        graphs = proto.SavedModel.FromString(data).meta_graphs
    except OSError as error:
        raise Refused(
            StatusCode.NOT_FOUND, f"Could not find SavedModel .pb at {folder} ({error.strerror or error})"
        ) from error
    except proto.WireError as error:
        raise Refused(StatusCode.DATA_LOSS, f"Can't parse {path} as binary proto") from error
    for graph in graphs:
        if set(graph.meta_info_def.tags) == set(tags):
            return SavedModel(folder, tuple(tags), _copied(graph.signature_def), _card(folder, _card_in_graph(graph)))
    raise Refused(
        StatusCode.NOT_FOUND,
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }} in {path}",
    )


def _copied(signatures: Any) -> dict[str, Any]:
    """Return copies of the signatures: a part of a message keeps all of it in memory, with every weight of the
    model."""
    copies = {}
    for name in signatures:
        copies[name] = proto.Signature()
        copies[name].CopyFrom(signatures[name])
    return copies


def _refuse_pipes(folder: Path) -> None:
    """Refuse folders with a pipe in them: the engines open the files themselves, and would wait for it for ever."""
    for subfolder in FOLDERS_READ:
        for path in (folder / subfolder).iterdir() if (folder / subfolder).is_dir() else ():
            if path.exists() and not path.is_file() and not path.is_dir():
                raise OSError(errno.EINVAL, f"{path.name} is no file")


def _refuse_damaged(folder: Path, data: bytes) -> None:
    """Refuse a graph that is not as it was exported, where its checksum was written: other bytes in the weights load
    just as well."""
    try:
        digest = checksums.read((folder / SUMS).parent).get(CHECKED_FILE)
    except FileNotFoundError:
        return
    if digest and digest != hashlib.sha256(data).hexdigest():
        raise Refused(
            StatusCode.DATA_LOSS,
            f"{folder / 'saved_model.pb'} is not as it was exported: its checksum is not the one in {SUMS}. "
            "Copy it again",
        )


def _card(folder: Path, graph_card: str | None) -> str | None:
    """Return the card's text. The file must agree with the card in the graph, if that can be read."""
    path = folder / CARD
    try:
        text = files.read(path, MAX_CARD_BYTES).decode()
        card = json.loads(text)
        if not isinstance(card, dict):
            raise Refused(StatusCode.DATA_LOSS, f"{path} is no card: a card is a JSON object")
        if graph_card not in (None, text) and card != json.loads(graph_card or ""):
            raise invalid(f"{path} is not the card that the graph itself gives by {DESCRIBE}: copy or export it again")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(StatusCode.DATA_LOSS, f"{path} cannot be read as a card: {error}") from error
    return graph_card or text


def _card_in_graph(graph: Any) -> str | None:
    """Return what `describe` answers if that is a constant, perhaps filled into a shape, as Loupe writes it; else
    None."""
    if DESCRIBE not in graph.signature_def or "card" not in graph.signature_def[DESCRIBE].outputs:
        return None
    nodes = {node.name: node for node in graph.graph_def.node}
    name = graph.signature_def[DESCRIBE].outputs["card"].name
    for _ in range(MAX_STEPS):
        node = nodes.get(name.partition(":")[0])
        if node is None or node.op not in PASS_THROUGH or len(node.input) <= PASS_THROUGH[node.op]:
            break
        name = node.input[PASS_THROUGH[node.op]]
    if node is None or node.op != "Const":
        return None
    texts = proto.NodeWithAttributes.FromString(node.SerializeToString()).attr["value"].tensor.string_val
    return texts[0].decode(errors="replace") if len(texts) == 1 else None


def sample_batch(signature: Any) -> dict[str, Array] | None:
    """Return a batch of zeros for every input, to try a model with. None if the signature leaves a size or type
    open."""
    batch: dict[str, Array] = {}
    for alias, info in signature.inputs.items():
        dtype, shape = proto.BY_NUMBER.get(info.dtype), proto.shape_of(info.tensor_shape)
        if (
            dtype is None
            or dtype.number in (proto.STRING, proto.BFLOAT16)
            or not shape
            or min(shape[1:], default=1) < 0
        ):
            return None
        batch[alias] = np.zeros((1 if shape[0] < 0 else shape[0], *shape[1:]), dtype.numpy)
    return batch
