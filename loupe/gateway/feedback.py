"""Take corrections (POST /feedback?label=LABEL): pictures that a caller says are of another label than was answered.

    corrections = Corrections(settings, model, memory)
    corrections.take(request.args, request.environ, timeout)     # the answer, or a problem

The model is asked here, so that what was predicted is true and not what a caller claims. Nothing is learnt from these
pictures before somebody has looked at them (train.py --review): everybody may send what they like. Off unless
LOUPE_FEEDBACK_DIR is set; loupe/feedback.py has the layout of that folder.
"""

from __future__ import annotations

import hashlib
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loupe import feedback
from loupe.card import Card
from loupe.cli import plain
from loupe.errors import BadRequest, FeedbackFull, FeedbackUnwritable, NotFound
from loupe.gateway.decoding import DecodeMemory
from loupe.gateway.model.client import ModelClient
from loupe.gateway.observe.record import current_entry
from loupe.gateway.predictions import Batch
from loupe.gateway.request.body import read_pictures
from loupe.gateway.request.deadline import check_caller, read_deadline
from loupe.gateway.request.schema import read_label
from loupe.gateway.settings import Settings
from loupe.images.decode import suffix_of
from loupe.prediction import decide

LABELS_NAMED = 10  # of the model's, in a message

_log = logging.getLogger(__name__)


class Corrections:
    def __init__(self, settings: Settings, model: ModelClient, memory: DecodeMemory) -> None:
        self._settings, self._model, self._memory = settings, model, memory

    def take(self, arguments: Any, environ: dict[str, Any], timeout: str | None) -> dict[str, Any]:
        """Keep the picture of a request. `timeout` is its X-Request-Timeout. Returns the answer (schema.py, Kept)."""
        if not self._settings.feedback_dir:
            raise NotFound("Corrections are not taken here: this gateway has no LOUPE_FEEDBACK_DIR.")
        # The label, and the picture as it was sent.
        started, entry = time.monotonic(), current_entry()
        caller_deadline = read_deadline(timeout)
        check_caller(caller_deadline)
        label = read_label(arguments)
        try:
            batch = self._read(environ, caller_deadline)
        finally:
            entry.add_stage("fetch", started)
        # What the model says of it. The log has it; the metrics of predictions would count this picture twice.
        answer = self._model.predict(batch.pixels, caller_deadline=caller_deadline)
        (prediction,) = decide(answer.card, answer.probabilities, answer.familiarity)
        entry.pictures, entry.version, entry.predictions = 1, answer.version, [prediction]
        if label not in answer.card.labels:
            raise BadRequest(_unknown(label, answer.card))
        # Keep it, with a note of all this.
        told = {
            "label": label,
            "predicted": {
                "label": prediction.label,
                "confidence": round(prediction.confidence, 6),
                "certain": prediction.certain,
                "reason": prediction.reason,
            },
            "model": {"name": self._settings.model, "version": answer.version},
            "request_id": entry.request_id,
        }
        by = {"key": entry.key} if entry.key else {}
        note = {**told, "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **by}
        return {"kept": self._keep(batch.first(), note), **told}

    def _read(self, environ: dict[str, Any], caller_deadline: float) -> Batch:
        sent = read_pictures(environ, self._settings)
        if sent.is_batch:
            raise BadRequest("One picture a correction: send a form with one file, a picture's bytes, or url or b64.")
        batch = Batch(sent, self._settings, self._memory, caller_deadline)
        batch.fetch_urls()
        return batch

    def _keep(self, data: bytes, note: dict[str, Any]) -> bool:
        """Keep the picture unless it is there under this label, or was reviewed. Under another label it moves."""
        root, suffix = Path(self._settings.feedback_dir), suffix_of(data)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with feedback.locked(root):
                state, path = feedback.find(root, hashlib.sha256(data).hexdigest(), suffix) or ("", None)
                if state in (feedback.ACCEPTED, feedback.REJECTED):
                    return False
                if path and (feedback.read_note(path) or {}).get("label") == note["label"]:
                    return False
                if not path:
                    self._check_room(root, len(data))
                feedback.keep(root, data, suffix, note, path)
                return True
        except OSError as error:
            _log.error("A correction cannot be kept in LOUPE_FEEDBACK_DIR: %s.", error.strerror or error)
            raise FeedbackUnwritable(
                f"The correction cannot be kept ({error.strerror}): tell whoever runs this gateway."
            ) from error

    def _check_room(self, root: Path, more: int) -> None:
        settings = self._settings
        count, size = feedback.size(root, feedback.WAITING)
        if count >= settings.feedback_max or size + more > settings.feedback_bytes:
            raise FeedbackFull(
                f"{count:,} corrections wait for a review, and no more are kept; whoever runs this gateway "
                "reviews them with train.py --review, or raises LOUPE_FEEDBACK_MAX and LOUPE_FEEDBACK_BYTES."
            )


def _unknown(label: str, card: Card) -> str:
    named = ", ".join(plain(known, 60) for known in card.labels[:LABELS_NAMED])
    more = f" and {len(card.labels) - LABELS_NAMED} more, see /model" if len(card.labels) > LABELS_NAMED else ""
    return f"{label[:60]!r} is no label of this model; it has {named}{more}."
