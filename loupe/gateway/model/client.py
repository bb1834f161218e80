"""Send pictures to the model server over gRPC, prepared as the card of the answering version wants them.

    model = ModelClient(settings)
    answer = model.predict(prepare)                     # prepare: card → uint8 or float32 [N, height, width, 3]
    model.versions()                                    # [(3, "AVAILABLE"), …]
    model.predict(prepare, caller_deadline=deadline)    # stops at the caller's deadline as well (request/deadline.py)

The card comes from the model itself (its signature `describe`) and is asked for again each second. For a model that
Loupe did not make it comes from the model's signature and the settings. Predictions wait for a place at the model
server (limit.py), the card never does: where it is refused, the last one is used for some seconds more.

If another version answers than the one the pictures were prepared for, they are prepared again for that version and
sent once more: its input size or its outputs may differ, and TensorFlow Serving does not check shapes.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from loupe import proto
from loupe.card import Card
from loupe.cardless import ForeignCard, foreign_card, interface, is_distribution, softmax
from loupe.errors import ModelError, ModelFull, ModelGone, ModelTooSlow, ModelUnavailable, ModelUnfit, UserError
from loupe.gateway.model.limit import Limit
from loupe.gateway.model.reason import public_reason
from loupe.gateway.model.replicas import FULL, NO_ANSWER, Replicas, Route, is_missing_signature, is_too_large
from loupe.gateway.observe import record
from loupe.gateway.request.deadline import NEVER, check_caller
from loupe.gateway.settings import Settings

Prepare = Callable[[Card], np.ndarray[Any, Any]]

DESCRIBE = "describe"  # the signature that gives the card
CARD_SECONDS = 1.0  # for which a card is used: a restarted server may have another model under the same number
OLD_CARD_SECONDS = 30.0  # for which it is used where the model server has no thread for the question
CARD_PAUSE, MOST_CARD_PAUSE = 0.02, 0.5  # seconds, before it is asked for again where there is none yet
PROBE_SECONDS = 2.0
LIKELY_THREADS = 8  # of a model server: TensorFlow Serving has four for each processor, and seldom one alone
GREY = {"uint8": 128, "float32": 0.5}  # of the picture that a new version is tried with
CHANGING = "The model is changing versions just now; try again in a second."
CLOCK_DIFFERENCE = 0.005  # seconds; gRPC's clock may be ahead by so much
MAX_TRIES = 3  # times that one request is prepared, if versions change meanwhile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    version: int
    card: Card
    probabilities: np.ndarray[Any, Any]  # [N, classes]
    heatmaps: np.ndarray[Any, Any] | None  # [N, h, w], 0 to 1
    familiarity: np.ndarray[Any, Any] | None  # [N], 0 to 1
    prepare_seconds: float
    model_seconds: float


class _NoCard(ModelUnfit):
    pass


class ModelClient:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._replicas: Replicas | None = None
        self._process = 0  # the one that made them: neither channels nor threads outlive a fork
        self._last_card: tuple[int, Card, float] | None = None  # version, its card, and when it was asked
        self._logits_model: tuple[int, Card] | None = None  # the model without a card that last answered in logits
        self.answered_at = -math.inf  # in time.monotonic(), the model server's last answer
        self.failing_since: float | None = None  # since when every prediction failed
        self._warned = False  # that LOUPE_LABELS and LOUPE_PREPROCESS are not used

    def card(self) -> tuple[int, Card]:
        """Ask the model server for the version served now and its card."""
        return self._ask_card(time.monotonic() + min(PROBE_SECONDS, self._settings.model_timeout), Route())

    def try_out(self) -> tuple[int, Card]:
        """Have the model compute a grey picture, with all outputs that may be asked for. Return version and card of
        what has computed it."""
        deadline, route = time.monotonic() + self._settings.model_timeout, Route()
        version, card = self._ask_card(deadline, route)
        wanted = interface(card, heatmaps=True)
        picture = np.full((1, card.height, card.width, 3), GREY[wanted.dtype], wanted.dtype)
        request = proto.packed_request(self._settings.model, {wanted.image: picture}, outputs=wanted.outputs)
        response = self._call_model(proto.PREDICT, request, deadline, route, place=True)
        if response.model_spec.version.value != version:
            raise ModelUnavailable(CHANGING)
        self._read_answer(version, card, response, 1, 0, 0)
        self.failing_since = None
        return version, card

    def versions(self) -> list[tuple[int, str]]:
        """Ask the model server which versions it has and in which state each is (proto.STATES), the newest first."""
        request = proto.GetModelStatusRequest(model_spec=proto.model_spec(self._settings.model))
        deadline = time.monotonic() + min(PROBE_SECONDS, self._settings.model_timeout)
        told = self._call_model(proto.GET_MODEL_STATUS, request, deadline, Route()).model_version_status
        return sorted(((each.version, proto.STATES.get(each.state, "UNKNOWN")) for each in told), reverse=True)

    def predict(self, prepare: Prepare, *, heatmaps: bool = False, caller_deadline: float = NEVER) -> Answer:
        try:
            answer = self._predict(prepare, heatmaps, caller_deadline)
        except ModelError as problem:
            self.failing_since = self.failing_since or time.monotonic()
            if isinstance(problem, ModelTooSlow | ModelFull):  # was it the caller's limit, or ours?
                check_caller(caller_deadline - CLOCK_DIFFERENCE)
            raise
        self.failing_since = None
        return answer

    def _predict(self, prepare: Prepare, heatmaps: bool, caller_deadline: float) -> Answer:
        deadline = time.monotonic() + self._settings.model_timeout
        prepare_seconds = model_seconds = 0.0
        route = Route()
        told: tuple[int, Card] | None = None  # version and card of the replica that was asked before
        for _ in range(MAX_TRIES):
            # Prepare the pictures for the version that is probably served.
            version, card = told or self._current_card(min(deadline, caller_deadline))
            started = time.monotonic()
            try:
                pixels, wanted = prepare(card), interface(card, heatmaps)
            finally:
                prepared = time.monotonic()
                record.add_stage("decode", started, prepared - started)
            prepare_seconds += prepared - started
            deadline += prepared - started  # the deadline limits the model's time only
            check_caller(caller_deadline)
            # Send them.
            limit = min(deadline, caller_deadline)
            request = proto.packed_request(self._settings.model, {wanted.image: pixels}, outputs=wanted.outputs)
            try:
                response = self._call_model(proto.PREDICT, request, limit, route, place=True)
            except ModelUnfit:  # perhaps a new version with another input size
                told = self._ask_card(limit, route)
                if told == (version, card):
                    raise
                continue
            model_seconds += time.monotonic() - prepared
            # If another version answered, its interface must be the same; else prepare again.
            answering_version = response.model_spec.version.value
            if answering_version != version:
                try:
                    version, card = told = self._ask_card(limit, route, answering_version)
                except ModelGone:  # it was replaced just now
                    self._last_card = told = None
                    continue
                if wanted != interface(card, heatmaps):
                    continue
            return self._read_answer(version, card, response, len(pixels), prepare_seconds, model_seconds)
        raise ModelUnavailable(CHANGING)

    def _current_card(self, deadline: float) -> tuple[int, Card]:
        """Return version and card, as they were within the last CARD_SECONDS, else as the model server says now."""
        last = self._last_card
        if last and time.monotonic() - last[2] < CARD_SECONDS:
            return last[:2]
        return self._ask_card(deadline, Route())

    def _read_answer(
        self, version: int, card: Card, response: Any, count: int, prepare_seconds: float, model_seconds: float
    ) -> Answer:
        # The arrays, each of the expected shape.
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
        # The numbers: finite, and probabilities.
        if not np.isfinite(probabilities).all():
            raise ModelUnfit("The model's answer is no number at all; train it again with a lower rate.")
        if isinstance(card, ForeignCard):
            probabilities = self._as_probabilities(version, card, probabilities)
        return Answer(version, card, probabilities, heatmaps, familiarity, prepare_seconds, model_seconds)

    def _as_probabilities(self, version: int, card: Card, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Apply softmax to logits. A model that gave logits once always does, even if rows sum to 1 by chance."""
        if self._logits_model != (version, card):
            if is_distribution(rows):
                return rows
            self._logits_model = (version, card)
        return softmax(rows)

    def _ask_card(self, deadline: float, route: Route, version: int | None = None) -> tuple[int, Card]:
        """Ask for the card of a version, or of the one served now. Where the model server is full return the last one,
        if it is not too old; else ask again."""
        pause = CARD_PAUSE
        while True:
            try:
                return self._ask_describe(deadline, route, version)
            except ModelFull:
                now, last = time.monotonic(), self._last_card
                if last and version in (None, last[0]) and now - last[2] < OLD_CARD_SECONDS:
                    return last[:2]
                if now + pause >= deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, MOST_CARD_PAUSE)

    def _ask_describe(self, deadline: float, route: Route, version: int | None) -> tuple[int, Card]:
        request = proto.predict_request(
            self._settings.model, {"request": np.array([b""], object)}, signature=DESCRIBE, version=version
        )
        try:
            response = self._call_model(proto.PREDICT, request, deadline, route)
        except _NoCard:
            return self._ask_signatures(deadline, route, version)
        try:
            card = Card.from_json(proto.to_array(response.outputs["card"])[0])
        except (ValueError, IndexError) as error:
            raise ModelUnfit("The model's card could not be read; export it again.") from error
        except UserError as error:
            raise ModelUnfit(str(error)) from error
        if (self._settings.labels or self._settings.preprocess) and not self._warned:
            self._warned = True
            _log.warning("The model has a card: LOUPE_LABELS and LOUPE_PREPROCESS are not used.")
        return self._remember_card(response, card)

    def _ask_signatures(self, deadline: float, route: Route, version: int | None) -> tuple[int, Card]:
        settings = self._settings
        request = proto.GetModelMetadataRequest(
            model_spec=proto.model_spec(settings.model, version), metadata_field=["signature_def"]
        )
        response = self._call_model(proto.GET_MODEL_METADATA, request, deadline, route)
        try:
            signatures = proto.signatures(response)
        except proto.WireError as error:
            raise ModelUnfit("The model's signatures could not be read; export it again.") from error
        if DESCRIBE in signatures:  # a version with a card was loaded between the two calls
            if version is not None:
                raise ModelUnavailable(CHANGING)
            return self._ask_describe(deadline, route, response.model_spec.version.value)
        return self._remember_card(
            response, foreign_card(settings.model, signatures, settings.labels, settings.preprocess)
        )

    def _remember_card(self, response: Any, card: Card) -> tuple[int, Card]:
        version: int = response.model_spec.version.value
        self._last_card = (version, card, time.monotonic())
        return version, card

    def _call_model(
        self, method: proto.Method, request: Any, deadline: float, route: Route, *, place: bool = False
    ) -> Any:
        began, metadata = time.monotonic(), record.grpc_metadata()
        try:
            response = self._connected().call(
                lambda replica, seconds: replica.stubs[method.name](request, timeout=seconds, metadata=metadata),
                deadline,
                route,
                place=place,
            )
        except grpc.RpcError as error:
            problem = self._to_problem(error)
            if isinstance(problem, ModelUnavailable) and not isinstance(problem, ModelFull):
                self._last_card = None
            raise problem from error
        finally:
            record.add_stage("model" if place else "card", began)
        self.answered_at = time.monotonic()
        return response

    def _to_problem(self, error: Any) -> ModelError:
        code, name = error.code(), self._settings.model
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return ModelTooSlow("The model did not answer in time; try again, or send fewer pictures at once.")
        if is_too_large(error):
            return ModelUnavailable("The model server has no room for so many pictures at once; send fewer.")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ModelFull(FULL)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return ModelUnavailable(NO_ANSWER)
        if code == grpc.StatusCode.NOT_FOUND:
            return ModelGone(f"The model server serves no model {name!r} now; is MODEL_NAME right?")
        if is_missing_signature(error):
            return _NoCard(f"The model {name!r} lacks a signature; export it with convert.py.")
        reason = public_reason(error.details())
        if code == grpc.StatusCode.FAILED_PRECONDITION:
            return ModelUnfit(f"The model {name!r} is loaded and cannot compute ({reason}); export it with convert.py.")
        return ModelUnfit(
            f"The model server refused the question ({code.name}: {reason}); export the model again, or see its log."
        )

    def _connected(self) -> Replicas:
        settings = self._settings
        with self._lock:
            if self._replicas is None or self._process != os.getpid():
                probe = proto.GetModelStatusRequest(model_spec=proto.model_spec(settings.model))
                share = max(1, LIKELY_THREADS // settings.workers)
                self._replicas = Replicas(settings.model_servers, probe, lambda: Limit(share, settings.model_calls))
                self._process = os.getpid()
            return self._replicas
