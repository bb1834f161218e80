"""Write requests that a server replays before it serves a version, so that no caller waits for its one-time setup.

    write(folder, card)           # → folder/assets.extra/tf_serving_warmup_requests
    record(folder, ask)           # adds the answers that the SavedModel itself gives

With the answers a server can say that a version computes otherwise where it is served than where it was exported. The
file is TensorFlow Serving's own format: TFRecords of PredictionLog, one Predict request a batch size. A picture's
tensor is its type, its shape and one value, which TensorFlow spreads over the shape: some hundred bytes in all. A
server that batches must allow batches of the largest size here (`max_batch_size` at least 8), or it refuses the
version.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loupe import proto, tfrecord
from loupe.card import Card

if TYPE_CHECKING:  # it loads TensorFlow
    from loupe.export.graph.savedmodel import Ask

REQUESTS = Path("assets.extra", "tf_serving_warmup_requests")
BATCHES = (1, 2, 4, 8)  # the batch sizes that TensorFlow Serving rounds up to
GREY = 128


def write(folder: Path, card: Card, batches: Sequence[int] = BATCHES) -> list[int]:
    """Write the requests. Return the batch sizes left out, since their pictures are too many and too large."""
    path = folder / REQUESTS
    path.parent.mkdir(exist_ok=True)
    tfrecord.write(path, [_record(card, batch) for batch in batches if _is_spreadable(card, batch)])
    return [batch for batch in batches if not _is_spreadable(card, batch)]


def record(folder: Path, ask: Ask) -> None:
    """Add the answers to the requests that are there."""
    path = folder / REQUESTS
    records = []
    for data in list(tfrecord.read(path)):
        log = proto.PredictionLog.FromString(data)
        request, response = log.predict_log.request, log.predict_log.response
        answer = ask(proto.PREDICT_SIGNATURE, {"image": proto.to_array(request.inputs["image"])})
        response.model_spec.CopyFrom(request.model_spec)
        for name, array in answer.items():
            response.outputs[name].CopyFrom(proto.to_tensor(array))
        records.append(log.SerializeToString(deterministic=True))
    tfrecord.write(path, records)


def _is_spreadable(card: Card, batch: int) -> bool:
    """Return True if a server accepts one value for a whole batch. It refuses to spread it over too many."""
    return batch * card.height * card.width * 3 <= proto.MAX_SPREAD_BYTES


def _record(card: Card, batch: int) -> bytes:
    image = proto.Tensor(dtype=proto.BY_NAME["uint8"].number, int_val=[GREY])
    for size in (batch, card.height, card.width, 3):
        image.tensor_shape.dim.add(size=size)
    request = proto.predict_request(card.name, {"image": image}, signature=proto.PREDICT_SIGNATURE)
    log = proto.PredictionLog()
    log.predict_log.request.CopyFrom(request)
    data: bytes = log.SerializeToString(deterministic=True)
    return data
