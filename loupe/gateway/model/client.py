"""Ask the model server over gRPC, and obey the card of the version that answers.

    model = ModelClient(settings)
    answer = model.predict(prepare)           # prepare: card → uint8 or float32 [N, height, width, 3]
    model.predict(prepare, until=deadline)    # nor longer than the caller waits (request/deadline.py)

The card comes from the model itself (the signature `describe`), asked again each second; of a model that Loupe did not
make, from its signature and the settings. When another version answers
than the one the pictures were prepared for, they are prepared again for it and sent once more: it may have another
size, and TensorFlow Serving does not check shapes; or other outputs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import numpy as np

import proto
from loupe.card import Card
from loupe.errors import ModelError, ModelGone, ModelTooSlow, ModelUnavailable, ModelUnfit, UserError
from loupe.gateway.model.cardless import ForeignCard, foreign_card, is_distribution, softmax
from loupe.gateway.observe import record
from loupe.gateway.request.deadline import NEVER, check_deadline
from loupe.gateway.settings import Settings

Prepare = Callable[[Card], np.ndarray[Any, Any]]

DESCRIBE = "describe"  # the signature that gives the card
CARD_SECONDS = 1.0  # for which a card is believed: a server may come back with another model under the same number
PROBE_SECONDS = 2.0
CHANGING = "The model is changing versions just now; try again in a second."
CLOSE = 0.005  # seconds by which gRPC's clock may be ahead of ours
TRIES = 3  # preparations of one request, should versions change under it

_METHODS = (proto.PREDICT, proto.GET_MODEL_METADATA)
_log = logging.getLogger(__name__)
# The one layer that tries again. Each failure takes a token, each success gives half of one back; with fewer than half
# of them left nothing is tried again: a model server in trouble gets 20 calls more, not twice as many.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "retryThrottling": {"maxTokens": 40, "tokenRatio": 0.5},
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 2,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],  # cancelled: it drains
            },
        }
    ],
}
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # 120 s otherwise: a restarted server must be found soon
    ("grpc.min_reconnect_backoff_ms", 1000),  # for a connection to be made; callers wait 20 s for the first otherwise
    ("grpc.dns_min_time_between_resolutions_ms", 1000),  # 30 s otherwise: a restarted server may have a new address
    ("grpc.keepalive_time_ms", 310_000),  # TensorFlow Serving hangs up on those who ping more than once in 5 minutes
    ("grpc.keepalive_timeout_ms", 10_000),  # for a connection whose other end vanished: the kernel's timeout, too
    ("grpc.per_rpc_retry_buffer_size", 1 << 26),  # a call larger than this is never retried; 256 KiB otherwise
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
]


@dataclass(frozen=True)
class Answer:
    version: int
    card: Card
    probabilities: np.ndarray[Any, Any]  # [N, classes]
    heatmaps: np.ndarray[Any, Any] | None  # [N, h, w], 0 to 1
    familiarity: np.ndarray[Any, Any] | None  # [N], 0 to 1
    prepare_seconds: float
    model_seconds: float


class _Question(NamedTuple):
    """What a version is asked: pictures prepared for one will do for another that is asked the same."""

    image: str
    dtype: str
    height: int
    width: int
    outputs: list[str]


class _NoCard(ModelUnfit):
    pass


class ModelClient:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._calls: dict[str, Callable[..., Any]] = {}  # by a method's name, on one channel
        self._channel_of = 0  # the process: a channel made before a fork does not work after it
        self._last: tuple[int, Card, float] | None = None  # version, its card, and when it said so
        self._logits: tuple[int, Card] | None = None  # the last model without a card seen to answer in these
        self.answered_at = -math.inf  # time.monotonic(), when the model server last did
        self._told = False  # that settings for such a model are idle

    def card(self) -> tuple[int, Card]:
        """The version served now and its card, asked anew."""
        return self._describe(time.monotonic() + min(PROBE_SECONDS, self._settings.model_timeout))

    def predict(self, prepare: Prepare, *, heatmaps: bool = False, until: float = NEVER) -> Answer:
        try:
            return self._predict(prepare, heatmaps, until)
        except ModelTooSlow:
            check_deadline(until - CLOSE)  # whose limit it was
            raise

    def _predict(self, prepare: Prepare, heatmaps: bool, until: float) -> Answer:
        deadline = time.monotonic() + self._settings.model_timeout
        preparing = asking = 0.0
        for _ in range(TRIES):
            version, card = self._served(min(deadline, until))
            started = time.monotonic()
            try:
                pixels, asked = prepare(card), _question(card, heatmaps)
            finally:
                prepared = time.monotonic()
                record.stage("decode", started, prepared - started)
            preparing += prepared - started
            deadline += prepared - started  # it is the model's time, and preparing is ours
            check_deadline(until)
            limit = min(deadline, until)
            request = proto.packed_request(self._settings.model, {asked.image: pixels}, outputs=asked.outputs)
            try:
                response = self._ask(proto.PREDICT, request, limit, stage="model")
            except ModelUnfit:  # of a size that a version new to us does not take?
                if self._describe(limit) == (version, card):
                    raise
                continue
            asking += time.monotonic() - prepared
            answered = response.model_spec.version.value
            if answered != version:
                try:
                    version, card = self._describe(limit, answered)
                except ModelGone:  # replaced between its answer and this question
                    self._last = None
                    continue
                if asked != _question(card, heatmaps):
                    continue
            return self._answer(version, card, response, len(pixels), preparing, asking)
        raise ModelUnavailable(CHANGING)

    def _served(self, deadline: float) -> tuple[int, Card]:
        """What answered last, if that was just now: a version's number alone does not tell which card it has."""
        last = self._last
        if last and time.monotonic() - last[2] < CARD_SECONDS:
            return last[:2]
        return self._describe(deadline)

    def _answer(self, version: int, card: Card, response: Any, count: int, preparing: float, asking: float) -> Answer:
        try:
            arrays = {name: proto.to_array(tensor) for name, tensor in response.outputs.items()}
        except ValueError as error:
            raise ModelUnfit("The model server's answer could not be read.") from error
        probabilities = arrays.get(card.output if isinstance(card, ForeignCard) else "probabilities")
        if probabilities is None or probabilities.shape != (count, len(card.labels)):
            raise ModelUnfit("The model's answer does not fit its labels; export it again.")
        heatmaps = arrays.get("heatmap")
        if heatmaps is not None and (heatmaps.ndim != 3 or len(heatmaps) != count):
            raise ModelUnfit("The model's heat map is no picture; export it again.")
        familiarity = arrays.get("familiarity")
        if familiarity is not None and familiarity.shape != (count,):
            raise ModelUnfit("The model's familiarity is not one number a picture; export it again.")
        if not np.isfinite(probabilities).all():
            raise ModelUnfit("The model's answer is no number at all; train it again with a lower rate.")
        if isinstance(card, ForeignCard):
            probabilities = self._as_probabilities(version, card, probabilities)
        return Answer(version, card, probabilities, heatmaps, familiarity, preparing, asking)

    def _as_probabilities(self, version: int, card: Card, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Rows that are no distribution are logits; once a model gave such, all are: by chance two may sum to 1."""
        if self._logits != (version, card):
            if is_distribution(rows):
                return rows
            self._logits = (version, card)
        return softmax(rows)

    def _describe(self, deadline: float, version: int | None = None) -> tuple[int, Card]:
        request = proto.predict_request(
            self._settings.model, {"request": np.array([b""], object)}, signature=DESCRIBE, version=version
        )
        try:
            response = self._ask(proto.PREDICT, request, deadline)
        except _NoCard:
            return self._describe_foreign(deadline, version)
        try:
            card = Card.from_json(proto.to_array(response.outputs["card"])[0])
        except (ValueError, IndexError) as error:
            raise ModelUnfit("The model's card could not be read; export it again.") from error
        except UserError as error:
            raise ModelUnfit(str(error)) from error
        if (self._settings.labels or self._settings.preprocess) and not self._told:
            self._told = True
            _log.warning("The model has a card: LOUPE_LABELS and LOUPE_PREPROCESS are not used.")
        return self._remember(response, card)

    def _describe_foreign(self, deadline: float, version: int | None) -> tuple[int, Card]:
        settings = self._settings
        request = proto.GetModelMetadataRequest(
            model_spec=proto.model_spec(settings.model, version), metadata_field=["signature_def"]
        )
        response = self._ask(proto.GET_MODEL_METADATA, request, deadline)
        try:
            signatures = proto.signatures(response)
        except proto.WireError as error:
            raise ModelUnfit("The model's signatures could not be read; export it again.") from error
        if DESCRIBE in signatures:  # a version that has a card came between the two questions
            if version is not None:
                raise ModelUnavailable(CHANGING)
            return self._describe(deadline, response.model_spec.version.value)
        return self._remember(response, foreign_card(settings.model, signatures, settings.labels, settings.preprocess))

    def _remember(self, response: Any, card: Card) -> tuple[int, Card]:
        version: int = response.model_spec.version.value
        self._last = (version, card, time.monotonic())
        return version, card

    def _ask(self, method: proto.Method, request: Any, deadline: float, stage: str = "card") -> Any:
        began = time.monotonic()
        try:
            response = self._call(method)(request, timeout=max(0.001, deadline - began), metadata=record.metadata())
        except grpc.RpcError as error:
            problem = self._problem(error)
            if isinstance(problem, ModelUnavailable):
                self._last = None
            raise problem from error
        finally:
            record.stage(stage, began)
        self.answered_at = time.monotonic()
        return response

    def _problem(self, error: Any) -> ModelError:
        code, name = error.code(), self._settings.model
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return ModelTooSlow("The model did not answer in time; try again, or send fewer pictures at once.")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ModelUnavailable("The model server is at its limit; try again in a second.")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return ModelUnavailable("The model server does not answer; try again in a second.")
        if code == grpc.StatusCode.NOT_FOUND:
            return ModelGone(f"The model server serves no model {name!r} now; is MODEL_NAME right?")
        if code == grpc.StatusCode.FAILED_PRECONDITION:
            return _NoCard(f"The model {name!r} lacks a signature; export it with convert.py.")
        return ModelUnfit(f"The model server refused the question ({code.name}).")

    def _call(self, method: proto.Method) -> Callable[..., Any]:
        with self._lock:
            if self._channel_of != os.getpid():
                channel = grpc.insecure_channel(f"dns:///{self._settings.target}", options=_OPTIONS)
                self._calls = {known.name: proto.call(channel, known) for known in _METHODS}
                self._channel_of = os.getpid()
            return self._calls[method.name]


def _question(card: Card, heatmaps: bool) -> _Question:
    if isinstance(card, ForeignCard):
        return _Question(card.image, card.dtype, card.height, card.width, [card.output])
    return _Question("image", "uint8", card.height, card.width, _outputs(card, heatmaps))


def _outputs(card: Card, heatmaps: bool) -> list[str]:
    """What to ask for: an output that a model does not have it would refuse, and one whose card sets no limit may know
    nothing of familiarity."""
    wanted = {
        "probabilities": True,
        "heatmap": heatmaps and card.heatmap,
        "familiarity": card.unfamiliar_below is not None,
    }
    return [name for name, asked in wanted.items() if asked]
