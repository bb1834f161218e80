"""Ask a model at any TensorFlow Serving over REST. Pixels travel as JSON, so gRPC is faster where it can be had.

served = OverRest(HttpServer("http://localhost:8501", 30), "tires", labels=(), preprocess="")
version, card = served.describe()
"""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loupe import proto
from loupe.card import Card
from loupe.cardless import foreign_card
from loupe.client.backends.http import HttpServer, Reply
from loupe.client.backends.tensors import DESCRIBE
from loupe.errors import ModelGone, ModelUnavailable, ModelUnfit, UserError

_JSON = {"Content-Type": "application/json"}


class OverRest:
    def __init__(self, server: HttpServer, model: str, labels: tuple[str, ...], preprocess: str) -> None:
        self._server, self._model, self._labels, self._preprocess = server, model, labels, preprocess
        self._path = f"/v1/models/{urllib.parse.quote(model, safe='')}"

    def describe(self) -> tuple[int, Card]:
        # The newest version that is served.
        version = self._newest()
        # Its card, if it has one.
        body = {"signature_name": DESCRIBE, "inputs": {"request": [{"b64": ""}]}}
        reply = self._server.ask("POST", f"{self._path}/versions/{version}:predict", json.dumps(body).encode(), _JSON)
        if reply.status == 400 and DESCRIBE in _error(reply):
            return version, self._card_by_signature(version)
        [text] = self._checked(reply)["outputs"]
        return version, Card.from_json(base64.b64decode(text["b64"]) if isinstance(text, dict) else text)

    def _newest(self) -> int:
        states = self._checked(self._server.ask("GET", self._path)).get("model_version_status", [])
        served = [int(state["version"]) for state in states if state.get("state") == "AVAILABLE"]
        if not served:
            raise ModelUnavailable(f"{self._server.address} serves no version of {self._model} now; try again.")
        return max(served)

    def _card_by_signature(self, version: int) -> Card:
        reply = self._checked(self._server.ask("GET", f"{self._path}/versions/{version}/metadata"))
        described = reply.get("metadata", {}).get("signature_def", {}).get("signature_def", {})
        signatures = {name: _signature(fields) for name, fields in described.items()}
        names = ("labels", "preprocess")
        return foreign_card(self._model, signatures, self._labels, self._preprocess, names=names)

    def compute(
        self, version: int, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        body = json.dumps({"inputs": {name: array.tolist() for name, array in inputs.items()}})
        reply = self._server.ask("POST", f"{self._path}/versions/{version}:predict", body.encode(), _JSON)
        given = self._checked(reply)["outputs"]
        named = (
            given if isinstance(given, dict) else {outputs[0]: given}
        )  # a model's only output comes without its name
        try:
            return {name: np.asarray(named[name], np.float32) for name in outputs}
        except (KeyError, ValueError, TypeError) as error:
            raise ModelUnfit(f"{self._server.address} gave no {error}; export the model again.") from error

    def _checked(self, reply: Reply) -> Any:
        """Return the reply's JSON. Raise what its status says."""
        where, text = self._server.address, _error(reply)
        content = reply.json()
        if isinstance(content, dict) and "code" in content:
            raise UserError(f"{where} is a Loupe gateway, which has one model: connect without naming it.")
        if reply.status == 404:
            raise ModelGone(f"{where} serves no such model: {text}.")
        if reply.status in (429, 502, 503):
            raise ModelUnavailable(f"{where} does not answer now ({text}).")
        if reply.status != 200 or not isinstance(content, dict):
            raise ModelUnfit(f"{where} refused the question ({reply.status}): {text}")
        return content

    def close(self) -> None:
        self._server.close()


def _error(reply: Reply) -> str:
    content = reply.json()
    return str(content.get("error", "")) if isinstance(content, dict) else reply.reason


def _signature(fields: Mapping[str, Any]) -> Any:
    """Return a signature message from its JSON, in which numbers are texts and types are TensorFlow's names."""
    message = proto.Signature()
    for side in ("inputs", "outputs"):
        for alias, info in fields.get(side, {}).items():
            known = proto.BY_NAME.get(_TYPES.get(info.get("dtype", ""), ""))
            target = getattr(message, side)[alias]
            target.dtype = known.number if known else 0
            shape = info.get("tensor_shape", {})
            target.tensor_shape.unknown_rank = bool(shape.get("unknown_rank"))
            for dim in shape.get("dim", []):
                target.tensor_shape.dim.add(size=int(dim.get("size", 0)))
    return message


_TYPES = {f"DT_{dtype.tensorflow_name.upper()}": dtype.name for dtype in proto.BY_NAME.values()}
