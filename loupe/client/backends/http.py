"""Ask an HTTP server over connections that stay open. Many threads may ask at once.

    server = HttpServer("http://localhost:9696", timeout=30)
    reply = server.ask("POST", "/predict", body, {"Content-Type": "image/jpeg"})
    reply.status, reply.json()

No proxy of the environment is used: whoever names an address here means that server.
"""

from __future__ import annotations

import http.client
import json
import queue
import urllib.parse
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from loupe.errors import ModelTooSlow, ModelUnavailable, UserError

MAX_ANSWER = 1 << 30  # bytes
KEPT = 64  # connections


@dataclass(frozen=True)
class Reply:
    status: int
    reason: str
    headers: Any
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class HttpServer:
    def __init__(self, address: str, timeout: float) -> None:
        parts = urllib.parse.urlsplit(address)
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UserError(f"{address} is no address: {error}.") from error
        if not self._host or parts.username or parts.query or parts.fragment:
            raise UserError(f"{address} is no server's address: give http://host:port, without more.")
        self.address = address.rstrip("/")
        self._prefix = parts.path.rstrip("/")
        self._timeout = timeout
        self._class = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue(KEPT)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Return the reply, whatever its status. Raise ModelUnavailable if none comes, ModelTooSlow if it is late."""
        try:
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                return self._ask(self._connect(), method, path, body, headers or {})
            # A connection that was kept may have been closed by the server meanwhile: ask once more on a new one.
            try:
                return self._ask(connection, method, path, body, headers or {})
            except (ConnectionError, http.client.BadStatusLine):
                return self._ask(self._connect(), method, path, body, headers or {})
        except TimeoutError as error:
            raise ModelTooSlow(
                f"{self.address} did not answer within {self._timeout:g} s; give timeout= more."
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelUnavailable(f"{self.address} does not answer ({reason}); is it running?") from error

    def _connect(self) -> http.client.HTTPConnection:
        return self._class(self._host, self._port, timeout=self._timeout)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> Reply:
        try:
            connection.request(method, self._prefix + path, body, dict(headers))
            with closing(connection.getresponse()) as response:
                content = response.read(MAX_ANSWER)
                reply = Reply(response.status, response.reason, response.headers, content)
                will_close = response.will_close
        except BaseException:
            connection.close()
            raise
        try:
            if will_close:
                raise queue.Full
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()
        return reply

    def close(self) -> None:
        while True:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return
