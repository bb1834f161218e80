"""What a SavedModel says of itself, read without TensorFlow: its signatures, and Loupe's card where it has one.

    model = savedmodel.read(Path("models/tires/1"))
    model.signatures["serving_default"].inputs["image"].dtype

Not covered: saved_model.pbtxt and sharded .cpb files, which only very old or very large models have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from grpc import StatusCode

import proto
from loupe.modelserver.refused import Refused

CARD = Path("assets.extra", "card.json")
WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
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
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise Refused(StatusCode.NOT_FOUND, f"{path} is no file")
    try:
        graphs = proto.SavedModel.FromString(path.read_bytes()).meta_graphs
    except OSError as error:
        raise Refused(
            StatusCode.NOT_FOUND, f"Could not find SavedModel .pb at {folder} ({error.strerror or error})"
        ) from error
    except proto.WireError as error:
        raise Refused(StatusCode.DATA_LOSS, f"Can't parse {path} as binary proto") from error
    for graph in graphs:
        if set(graph.meta_info_def.tags) == set(tags):
            return SavedModel(folder, tuple(tags), _copied(graph.signature_def), _card(folder))
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


def _card(folder: Path) -> str | None:
    path = folder / CARD
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        if isinstance(json.loads(text), dict):
            return text
    except (OSError, ValueError) as error:
        raise Refused(StatusCode.DATA_LOSS, f"{path} cannot be read as a card: {error}") from error
    raise Refused(StatusCode.DATA_LOSS, f"{path} is no card: a card is a JSON object")


def sample_batch(signature: Any) -> dict[str, Array] | None:
    """One of zeros for every input, to try a model with; None where the signature leaves its size or kind open."""
    batch: dict[str, Array] = {}
    for alias, info in signature.inputs.items():
        kind, shape = proto.BY_NUMBER.get(info.dtype), proto.shape_of(info.tensor_shape)
        if kind is None or kind.number in (proto.STRING, proto.BFLOAT16) or not shape or min(shape[1:], default=1) < 0:
            return None
        batch[alias] = np.zeros((1 if shape[0] < 0 else shape[0], *shape[1:]), kind.numpy)
    return batch
