"""Ask a model at any TensorFlow Serving over gRPC.

served = OverGrpc("localhost:8500", "tires", labels=(), preprocess="", timeout=30)
version, card = served.describe()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from loupe import proto
from loupe.card import Card
from loupe.cardless import foreign_card
from loupe.client.backends.tensors import DESCRIBE
from loupe.errors import ModelGone, ModelTooSlow, ModelUnavailable, ModelUnfit

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),  # a model server is not asked through a proxy that the environment names
]
_UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED)


class OverGrpc:
    def __init__(self, target: str, model: str, labels: tuple[str, ...], preprocess: str, timeout: float) -> None:
        self._target, self._model, self._timeout = target, model, timeout
        self._labels, self._preprocess = labels, preprocess
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._predict = proto.call(self._channel, proto.PREDICT)
        self._metadata = proto.call(self._channel, proto.GET_MODEL_METADATA)

    def describe(self) -> tuple[int, Card]:
        request = proto.predict_request(self._model, {"request": np.array([b""], object)}, signature=DESCRIBE)
        try:
            response = self._ask(self._predict, request)
        except _NoSignature:
            return self._describe_by_signature()
        version: int = response.model_spec.version.value
        return version, Card.from_json(proto.to_array(response.outputs["card"])[0])

    def _describe_by_signature(self) -> tuple[int, Card]:
        spec = proto.model_spec(self._model)
        response = self._ask(
            self._metadata, proto.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        )
        names = ("labels", "preprocess")
        card = foreign_card(self._model, proto.signatures(response), self._labels, self._preprocess, names=names)
        return response.model_spec.version.value, card

    def compute(
        self, version: int, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        response = self._ask(
            self._predict, proto.predict_request(self._model, inputs, version=version, outputs=outputs)
        )
        return {name: proto.to_array(response.outputs[name]) for name in outputs}

    def _ask(self, call: Any, request: Any) -> Any:
        try:
            return call(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._problem(error) from error

    def _problem(self, error: Any) -> Exception:
        code, details = error.code(), error.details() or ""
        if code in _UNAVAILABLE:
            return ModelUnavailable(f"{self._target} does not answer over gRPC ({details}); is a model server there?")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return ModelTooSlow(f"{self._target} did not answer within {self._timeout:g} s; give timeout= more.")
        if code == grpc.StatusCode.NOT_FOUND:
            return ModelGone(f"{self._target} serves no such model: {details}.")
        if code == grpc.StatusCode.FAILED_PRECONDITION and DESCRIBE in details:
            return _NoSignature(details)
        return ModelUnfit(f"{self._target} refused the question ({code.name}): {details}")

    def close(self) -> None:
        self._channel.close()


class _NoSignature(ModelUnfit):
    pass
