"""Answer REST calls for a model's status and metadata, in TensorFlow Serving's JSON.

    server = rest.start(Answers(versions), flags)      # None where --rest_api_port is 0
    curl localhost:8501/v1/models/tires

Not covered: POST …:predict, :classify and :regress (501; use gRPC), and the monitoring page.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import proto
from loupe.engines.refused import BY_NUMBER, HTTP_STATUS, Refused, invalid
from loupe.errors import UserError
from loupe.modelserver.answers import METADATA_FIELD, Answers
from loupe.modelserver.flags import Flags

MODEL_PATH = r"(?i:/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
READ_PATH = re.compile(MODEL_PATH.replace("models/([^/:]+)", "models(?:/([^/:]+))?") + r"(/metadata)?)")
CALL_PATH = re.compile(MODEL_PATH + r":(predict|classify|regress))")
MAX_VERSION = (1 << 63) - 1


def start(answers: Answers, flags: Flags, monitoring_path: Any = None, page: Any = None) -> Any:
    """Start the server in a thread. Return None if --rest_api_port is 0."""
    if not flags.rest_api_port:
        return None

    # A handler that has the timeout and the answers.
    class Handler(_Handler):
        timeout = flags.rest_api_timeout_in_ms / 1000

        def reply(self, method: str) -> tuple[int, dict[str, Any]]:
            try:
                path = urlsplit(self.path).path
            except ValueError:
                path = self.path
            return reply(answers, method, path)

    # Listen.
    try:
        server = ThreadingHTTPServer((flags.address, flags.rest_api_port), Handler)
    except OSError as error:
        raise UserError(
            f"port {flags.rest_api_port} is taken ({error.strerror}); choose another with --rest_api_port"
        ) from error
    threading.Thread(target=server.serve_forever, name="rest", daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "loupe", ""

    def reply(self, method: str) -> tuple[int, dict[str, Any]]:
        raise NotImplementedError

    def _send(self) -> None:
        status, answer = self.reply(self.command)
        body = json.dumps(answer, indent=1).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.command != "GET":  # the request's body was not read
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _send

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a call is no event."""


def reply(answers: Answers, method: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        if method == "GET" and (match := READ_PATH.fullmatch(path)):
            name, number, label, metadata = match.groups()
            if not name:
                raise invalid("Missing model name in request.")
            spec = _spec(name, number, label)
            return 200, _metadata(answers, spec) if metadata else _status(answers, spec)
        if method == "POST" and CALL_PATH.fullmatch(path):
            return 501, {"error": "Predictions over REST are not answered by this server; use gRPC"}
        raise invalid(f"Malformed request: {method} {path}")
    except Refused as error:
        return HTTP_STATUS.get(error.code, 500), {"error": str(error)}


def _spec(name: str, number: str | None, label: str | None) -> Any:
    if number and (len(number) > 19 or int(number) > MAX_VERSION):
        raise invalid(f"Failed to convert version: {number} to numeric.")
    spec = proto.model_spec(name, int(number) if number else None)
    spec.version_label = label or ""
    return spec


def _status(answers: Answers, spec: Any) -> dict[str, Any]:
    response = answers.status(proto.GetModelStatusRequest(model_spec=spec))
    return {
        "model_version_status": [
            {
                "version": str(entry.version),
                "state": proto.STATES[entry.state],
                "status": {
                    "error_code": BY_NUMBER[entry.status.error_code].name,
                    "error_message": entry.status.error_message,
                },
            }
            for entry in response.model_version_status
        ]
    }


def _metadata(answers: Answers, spec: Any) -> dict[str, Any]:
    request = proto.GetModelMetadataRequest(model_spec=spec, metadata_field=[METADATA_FIELD])
    response = answers.metadata(request)
    signatures = {
        name: {
            "inputs": {alias: _info(info) for alias, info in signature.inputs.items()},
            "outputs": {alias: _info(info) for alias, info in signature.outputs.items()},
            "method_name": signature.method_name,
        }
        for name, signature in proto.signatures(response).items()
    }
    model = response.model_spec
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": str(model.version.value)},
        "metadata": {METADATA_FIELD: {METADATA_FIELD: signatures}},
    }


def _info(info: Any) -> dict[str, Any]:
    dtype, shape = proto.BY_NUMBER.get(info.dtype), info.tensor_shape
    return {
        "dtype": f"DT_{dtype.tensorflow_name.upper()}" if dtype else info.dtype,
        "tensor_shape": {
            "dim": [{"size": str(dim.size), "name": dim.name} for dim in shape.dim],
            "unknown_rank": shape.unknown_rank,
        },
        "name": info.name,
    }
