"""Ask a picture's server one thing: a connection with a deadline, and a parser for the answer.

    with Connection(["93.184.215.14"], 443, deadline, count) as connection:      # count(size) of all that comes
        connection.start_tls("example.org")
        connection.send(b"GET /tire.jpg HTTP/1.1\\r\\nHost: example.org\\r\\n\\r\\n")
        response = Response()
        while not response.is_complete and (data := connection.receive()):
            pieces = response.feed(data)                                         # of the body

`count` is called with the size of whatever is read from the socket, and may raise. Nothing comes in beside it: TLS
works in memory (ssl.MemoryBIO), so that its handshake and its records are counted as well. Each wait ends at the
deadline, with a TimeoutError.

Of the environment, SSL_CERT_FILE and SSL_CERT_DIR are read, for a private authority. SSLKEYLOGFILE is not:
ssl.create_default_context() would write the keys of every connection there.
"""

from __future__ import annotations

import functools
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import httptools

READ_SIZE = 1 << 16  # bytes
_Result = TypeVar("_Result")


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the one TLS context. Making it is slow: it reads all trusted authorities of this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which checks certificate and host name
    context.load_default_certs()
    return context


class Connection:
    """A connection to the first address that answers, plain or with TLS."""

    def __init__(self, addresses: Sequence[str], port: int, deadline: float, count: Callable[[int], None]) -> None:
        self._deadline, self._count = deadline, count
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()  # between TLS and the socket
        self._socket = self._connect_to_first(addresses, port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _connect_to_first(self, addresses: Sequence[str], port: int) -> socket.socket:
        """Connect to the first address that answers. Each gets a share of the time that is left."""
        for tried, address in enumerate(addresses, 1):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            try:
                sock.settimeout(self._remaining() / (len(addresses) - tried + 1))
                sock.connect((address, port))
            except OSError:
                sock.close()
                if tried == len(addresses):
                    raise
            else:
                return sock
        raise OSError("no address")

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    def is_to_this_machine(self) -> bool:
        own, other = self._socket.getsockname()[0], self._socket.getpeername()[0]
        return bool(own == other)

    def start_tls(self, host: str) -> None:
        self._tls = tls_context().wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._run_tls(self._tls.do_handshake)

    def send(self, data: bytes) -> None:
        if self._tls:
            self._run_tls(functools.partial(self._tls.write, data))
        else:
            self._write(data)

    def receive(self) -> bytes:
        """Return what came, or nothing at the end."""
        if not self._tls:
            return self._read()
        try:
            return self._run_tls(functools.partial(self._tls.read, READ_SIZE))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # many servers end without a word of TLS
            return b""

    def _run_tls(self, operation: Callable[[], _Result]) -> _Result:
        """Run an operation of TLS. Whatever it wants to send or to read goes over the socket."""
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                self._write(self._outgoing.read())
                if data := self._read():
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                self._write(self._outgoing.read())
                return result

    def _write(self, data: bytes) -> None:
        if data:
            self._socket.settimeout(self._remaining())
            self._socket.sendall(data)

    def _read(self) -> bytes:
        self._socket.settimeout(self._remaining())
        data = self._socket.recv(READ_SIZE)
        self._count(len(data))
        return data


class Response:
    """The answer to one request, as httptools reads it. Informational ones (1xx) before it are skipped."""

    def __init__(self) -> None:
        self.status = 0  # until the head has come
        self.headers: dict[str, str] = {}  # their names in lower case
        self.is_complete = False  # stays False for a body that the end of the connection ends
        self._pieces: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    @property
    def ends_with_connection(self) -> bool:
        return "content-length" not in self.headers and self.headers.get("transfer-encoding", "").lower() != "chunked"

    def feed(self, data: bytes) -> list[bytes]:
        """Parse what came. Return the pieces of the body in it; of a chunked one each chunk is a piece.

        Raise ValueError if it is no answer of HTTP/1.
        """
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.is_complete:
                raise ValueError(f"no answer of HTTP/1: {error}") from error
        pieces, self._pieces = self._pieces, []  # parser and response hold each other, and so must not hold a picture
        return pieces

    # httptools calls these.

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise ValueError("more than one answer")  # so that the parser ends here; feed() does not mind
        self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            self.is_complete = True  # a trailer: all of the body has come, and the rest is not waited for
        else:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self.is_complete = self.status > 0
