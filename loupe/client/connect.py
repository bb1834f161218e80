"""Get a Model: from a folder, to compute in this process, or from an address, to ask a server.

    load("models/tires")                                     # the newest version; version=3 for another
    connect("http://localhost:9696", key="…")                # a Loupe gateway
    connect("grpc://localhost:8500/tires")                   # any TensorFlow Serving, over gRPC
    connect("http://localhost:8501", model="tires")          # or over REST

A model that Loupe did not make has no card: give `labels` in the order of its outputs and, if it takes float32,
`preprocess`, as LOUPE_LABELS and LOUPE_PREPROCESS in README.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from loupe.client.backends.gateway import GatewayBackend
from loupe.client.backends.http import HttpServer
from loupe.client.backends.over_grpc import OverGrpc
from loupe.client.backends.over_rest import OverRest
from loupe.client.backends.tensors import TensorBackend
from loupe.client.model import Model
from loupe.engines import machine
from loupe.engines.choose import CHOICES
from loupe.errors import UserError

PATIENCE = 10.0  # seconds to ask again while a server is away
IN_PROCESS_BATCH, GRPC_BATCH, REST_BATCH = 8, 8, 4


def load(
    path: str | os.PathLike[str],
    *,
    version: int | None = None,
    engine: str = "openvino",
    at_once: int = 0,
    labels: str | Sequence[str] = (),
    preprocess: str = "",
) -> Model:
    """Load a model that `train.py` or `convert.py` published, or another SavedModel.

    `at_once` is how many calls are computed side by side, each with its share of the processors; 0 gives a lone caller
    all of them. For many pictures, as many as there are processors is fastest: at_once=-1."""
    from loupe.client.backends.in_process import InProcess  # here, so that connect() needs no engine

    if "://" in str(path):
        raise UserError(f"{path} is an address, and load() takes a folder: loupe.connect({str(path)!r}).")
    if engine not in CHOICES:
        raise UserError(f"There is no engine {engine!r}; there are {', '.join(CHOICES)}.")
    streams = machine.share() if at_once < 0 else at_once
    served = InProcess.open(Path(path).expanduser(), version, engine, streams, _labels(labels), preprocess)
    return Model(TensorBackend(served, served.about, max(1, streams), IN_PROCESS_BATCH, patience=0))


def connect(
    address: str,
    *,
    model: str | None = None,
    key: str | None = None,
    labels: str | Sequence[str] = (),
    preprocess: str = "",
    timeout: float = 30,
    patience: float = PATIENCE,
) -> Model:
    """Connect to a server, and see that it answers.

    `timeout` is how many seconds a server may be silent, `patience` for how many one that went away is asked again."""
    scheme, separator, rest = address.partition("://")
    scheme = scheme.lower()
    if separator and scheme == "grpc":
        rest, _, named = rest.rstrip("/").partition("/")
        model = model or named
        if not model:
            raise UserError(f"Which model at {address}? Name it: connect({address!r}, model='tires').")
        if not re.search(r":\d+$", rest):
            raise UserError(f"{address} names no port; a model server's is usually 8500: grpc://host:8500.")
        served = OverGrpc(rest, model, _labels(labels), preprocess, timeout)
        return _ready(Model(TensorBackend(served, address, 4, GRPC_BATCH, patience)))
    if separator and scheme in ("http", "https"):
        if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise UserError("This is no key: keys are letters, digits and signs of ASCII, without a space.")
        server = HttpServer(address, timeout)
        if model is None:
            return _ready(Model(_gateway(server, key, patience)))
        rest_served = OverRest(server, model, _labels(labels), preprocess)
        return _ready(Model(TensorBackend(rest_served, address, 2, REST_BATCH, patience)))
    hint = f" To load a folder: loupe.load({address!r})." if Path(address).is_dir() else ""
    raise UserError(
        f"{address!r} is no address: http://… of a gateway, or grpc://host:port or http://host:port with model=….{hint}"
    )


def _gateway(server: HttpServer, key: str | None, patience: float) -> GatewayBackend:
    """Return the backend, if a gateway is there and not a TensorFlow Serving."""
    reply = server.ask("GET", "/v1/models/none")
    content = reply.json()
    if isinstance(content, dict) and set(content) == {"error"}:
        raise UserError(f"{server.address} is a TensorFlow Serving; name its model: connect(…, model='tires').")
    return GatewayBackend(server, key, patience)


def _ready(model: Model) -> Model:
    try:
        _ = model.card
    except BaseException:
        model.close()
        raise
    return model


def _labels(labels: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(label.strip() for label in labels.split(",")) if isinstance(labels, str) else tuple(labels)
