"""What a SavedModel says of itself, read without TensorFlow: its signatures, and Loupe's card where it has one.

    model = savedmodel.read(Path("models/tires/1"))
    model.signatures["serving_default"].inputs["image"].dtype

Not covered: saved_model.pbtxt and sharded .cpb files, which only very old or very large models have.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grpc import StatusCode

import proto
from loupe import files
from loupe.engines.refused import Refused, invalid

CARD = Path("assets.extra", "card.json")
DESCRIBE = "describe"
PASSED_ON = {"Identity": 0, "Fill": 1}  # operation → the input whose value it gives
MOST_STEPS = 10
WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
LARGEST, LARGEST_CARD = 1 << 31, 1 << 20  # bytes; protobuf itself ends at 2 GiB
READ_BY_ENGINES = ("", "variables", "assets")
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
        graphs = proto.SavedModel.FromString(files.read(path, LARGEST)).meta_graphs
        _refuse_pipes(folder)
    except OSError as error:
        raise Refused(
            StatusCode.NOT_FOUND, f"Could not find SavedModel .pb at {folder} ({error.strerror or error})"
        ) from error
    except proto.WireError as error:
        raise Refused(StatusCode.DATA_LOSS, f"Can't parse {path} as binary proto") from error
    for graph in graphs:
        if set(graph.meta_info_def.tags) == set(tags):
            return SavedModel(folder, tuple(tags), _copied(graph.signature_def), _card(folder, _described(graph)))
    raise Refused(
        StatusCode.NOT_FOUND,
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }} in {path}",
    )


def _copied(signatures: Any) -> dict[str, Any]:
    """Copies, since a part of a message keeps the whole of it in memory, here with every weight of the model."""
    copies = {}
    for name in signatures:
        copies[name] = proto.Signature()
        copies[name].CopyFrom(signatures[name])
    return copies


def _refuse_pipes(folder: Path) -> None:
    """The engines open these themselves, and would wait for a pipe without end."""
    for part in READ_BY_ENGINES:
        for path in (folder / part).iterdir() if (folder / part).is_dir() else ():
            if path.exists() and not path.is_file() and not path.is_dir():
                raise OSError(errno.EINVAL, f"{path.name} is no file")


def _card(folder: Path, described: str | None) -> str | None:
    """The text of the file, which must say the same as the graph does, where the graph can be understood."""
    path = folder / CARD
    try:
        text = files.read(path, LARGEST_CARD).decode()
        card = json.loads(text)
        if not isinstance(card, dict):
            raise Refused(StatusCode.DATA_LOSS, f"{path} is no card: a card is a JSON object")
        if described not in (None, text) and card != json.loads(described or ""):
            raise invalid(f"{path} is not the card that the graph itself gives by {DESCRIBE}: copy or export it again")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(StatusCode.DATA_LOSS, f"{path} cannot be read as a card: {error}") from error
    return described or text


def _described(graph: Any) -> str | None:
    """What `describe` answers, where that is a constant, filled into a shape perhaps: so Loupe writes it."""
    if DESCRIBE not in graph.signature_def or "card" not in graph.signature_def[DESCRIBE].outputs:
        return None
    nodes = {node.name: node for node in graph.graph_def.node}
    name = graph.signature_def[DESCRIBE].outputs["card"].name
    for _ in range(MOST_STEPS):
        node = nodes.get(name.partition(":")[0])
        if node is None or node.op not in PASSED_ON or len(node.input) <= PASSED_ON[node.op]:
            break
        name = node.input[PASSED_ON[node.op]]
    if node is None or node.op != "Const":
        return None
    texts = proto.Constant.FromString(node.SerializeToString()).attr["value"].tensor.string_val
    return texts[0].decode(errors="replace") if len(texts) == 1 else None


def sample_batch(signature: Any) -> dict[str, Array] | None:
    """One of zeros for every input, to try a model with; None where the signature leaves its size or kind open."""
    batch: dict[str, Array] = {}
    for alias, info in signature.inputs.items():
        kind, shape = proto.BY_NUMBER.get(info.dtype), proto.shape_of(info.tensor_shape)
        if kind is None or kind.number in (proto.STRING, proto.BFLOAT16) or not shape or min(shape[1:], default=1) < 0:
            return None
        batch[alias] = np.zeros((1 if shape[0] < 0 else shape[0], *shape[1:]), kind.numpy)
    return batch
