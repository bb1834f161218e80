"""Fetch pictures from URLs that callers send, from public hosts only (or those of LOUPE_FETCH_ALLOW).

    data = fetch("https://example.org/tire.jpg", settings)
    results = fetch_all([url, url], settings)                # in parallel; bytes or a Problem for each, in order
    fetch_all(urls, settings, caller_deadline=deadline)      # stops at the caller's deadline as well (deadline.py)

A host name is looked up once. All its addresses are checked, and the connection goes to one of them, so a second
look-up cannot lead elsewhere. Redirects are checked again. One deadline and one limit of bytes hold for all URLs of a
request together.
The environment is not read: no proxies, no netrc, no cookies; only OpenSSL's own SSL_CERT_FILE, for a private
authority. A refused name and an unknown one get the same answer, so that nobody can find out which names exist in the
internal network.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, urljoin, urlsplit

from loupe.errors import BadRequest, FetchFailed, Problem, RefusedURL
from loupe.gateway.request.addresses import is_public, look_up
from loupe.gateway.request.deadline import NEVER, out_of_time
from loupe.gateway.settings import Settings

MAX_URL = 2048  # characters
MAX_REDIRECTS = 3
MAX_PARALLEL = 32  # URLs of one request at a time; as many as LOUPE_MAX_IMAGES is by default, so that none waits
TOTAL_FACTOR = 4  # times LOUPE_MAX_BYTES: the limit for all pictures of one request together
CHUNK_SIZE = 1 << 16  # bytes
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
_URL_CHARACTERS = re.compile(r"[!-\[\]-~]+")  # printable ASCII without the backslash


@dataclass(frozen=True)
class _Destination:
    """A URL that was checked, with the addresses to try in order."""

    url: SplitResult
    host: str
    port: int
    addresses: list[str]
    allowed: bool  # listed in LOUPE_FETCH_ALLOW, so it need not be public


def fetch(url: str, settings: Settings) -> bytes:
    """Fetch one URL. Raise BadRequest if the URL is refused, FetchFailed if its server fails."""
    with _FetchBudget(settings) as budget:
        return _fetch(url, settings, budget)


def fetch_all(urls: Sequence[str], settings: Settings, caller_deadline: float = NEVER) -> list[bytes | Problem]:
    """Fetch URLs in parallel, within one time limit and one limit of bytes for all of them."""

    def fetch_or_problem(url: str) -> bytes | Problem:
        try:
            return _fetch(url, settings, budget)
        except Problem as problem:  # after the caller's deadline, report that instead
            return problem if time.monotonic() < caller_deadline else out_of_time()

    if not urls:
        return []
    with _FetchBudget(settings, caller_deadline) as budget:
        if len(urls) < 2:
            return [fetch_or_problem(url) for url in urls]
        with ThreadPoolExecutor(min(MAX_PARALLEL, len(urls)), thread_name_prefix="fetch") as pool:
            return list(pool.map(fetch_or_problem, urls))


class _FetchBudget:
    """The time and bytes that one request may spend on all its URLs. Its connections are cut at the deadline."""

    def __init__(self, settings: Settings, caller_deadline: float = NEVER) -> None:
        started = time.monotonic()
        self.deadline = min(started + settings.fetch_timeout, caller_deadline)
        self._max_bytes = self._bytes_left = TOTAL_FACTOR * settings.max_bytes
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._timer = threading.Timer(max(0.0, self.deadline - started), self._cut_connections)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    @contextlib.contextmanager
    def open(self, destination: _Destination) -> Iterator[_Connection]:
        connection = _Connection(destination, self.deadline)
        with self._lock:
            self._connections.add(connection)
        try:
            yield connection
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)

    def _cut_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                connection.cut()

    def is_late(self) -> bool:
        return time.monotonic() >= self.deadline

    def spend(self, size: int) -> None:
        with self._lock:
            self._bytes_left -= size
            if self._bytes_left < 0:
                raise FetchFailed(
                    f"The pictures are larger than {self._max_bytes:,} bytes together; ask for fewer at once."
                )


def _fetch(url: str, settings: Settings, budget: _FetchBudget) -> bytes:
    """Fetch one URL and follow its redirects, each of which is checked like the first URL."""
    for _ in range(MAX_REDIRECTS + 1):
        if budget.is_late():
            raise _too_slow()
        destination = _check_url(url, settings, budget.deadline)
        answer = _send_get(destination, settings.max_bytes, budget)
        if isinstance(answer, bytes):
            return answer
        url = _redirect_target(url, answer.location)
    raise FetchFailed(f"The picture's server redirects more than {MAX_REDIRECTS} times; give the address it ends at.")


@dataclass(frozen=True)
class _Redirect:
    location: str


def _redirect_target(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        downgraded = urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http"
    except ValueError:
        raise FetchFailed("The picture's server redirects to what is no URL; upload the picture instead.") from None
    if downgraded:  # over http somebody on the way could swap the picture
        raise FetchFailed("The picture's server redirects from https to http; give the address it ends at.")
    return target


def _check_url(url: str, settings: Settings, deadline: float) -> _Destination:
    """Return where to fetch the URL from. Raise BadRequest or RefusedURL if it must not be fetched."""
    # The URL's text.
    if len(url) > MAX_URL:
        raise BadRequest(f"The URL is {len(url):,} characters long; at most {MAX_URL:,} are taken. Upload the picture.")
    if not _URL_CHARACTERS.fullmatch(url):
        raise BadRequest("The URL holds a space, a backslash or a character outside ASCII; percent-encode them.")
    # Scheme, host, user and port.
    try:
        split = urlsplit(url)
        host, port = (split.hostname or "").rstrip("."), split.port
    except ValueError:
        raise BadRequest("This is not a URL; it should look like https://example.org/picture.jpg.") from None
    if split.scheme not in PORTS or not host:
        raise BadRequest("Only http:// and https:// URLs with a host are fetched.")
    if "@" in split.netloc:
        raise BadRequest("A URL with a user name or password in it is not fetched; leave them out.")
    port = port if port is not None else PORTS[split.scheme]
    # Each address must be public, or listed in LOUPE_FETCH_ALLOW.
    addresses = look_up(host, deadline)
    allowed = all(_is_allowed(host, address, settings) for address in addresses)
    if not addresses or not allowed and not all(is_public(address) for address in addresses):
        raise _refused()
    # A host that is not listed is fetched from the usual ports only, and the model server's host never is.
    if not allowed and (port not in PORTS.values() or host in _model_server_hosts(settings.target)):
        raise _refused()
    return _Destination(split, host, port, addresses, allowed)


def _model_server_hosts(target: str) -> list[str]:
    """Return the hosts in a gRPC target, which may also be dns:///host:port or a list of addresses."""
    return [word.rpartition(":")[0].strip("[]").rstrip(".").lower() for word in re.split("[/,]", target)]


def _refused() -> RefusedURL:
    return RefusedURL("This URL is not fetched: its host is unknown or not public. Upload the picture instead.")


def _too_slow() -> FetchFailed:
    return FetchFailed("The picture's server took too long; upload the picture instead.")


def _is_allowed(host: str, address: str, settings: Settings) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(host == entry if isinstance(entry, str) else ip in entry for entry in settings.fetch_allow)


def _send_get(destination: _Destination, max_bytes: int, budget: _FetchBudget) -> bytes | _Redirect:
    """Return the body of the answer, or where it redirects to."""
    path = (destination.url.path or "/") + (f"?{destination.url.query}" if destination.url.query else "")
    try:
        with budget.open(destination) as connection:
            # Ask, and stop at a redirect.
            connection.request("GET", path, headers=_HEADERS)
            response = connection.getresponse()
            if response.status in REDIRECTS:
                location = response.getheader("Location")
                if not location:
                    raise FetchFailed("The picture's server redirects to nowhere; upload the picture instead.")
                return _Redirect(location)
            # Read the picture, within the budget.
            data = _read_body(response, max_bytes, budget)
            if budget.is_late():  # a connection that was cut at the deadline looks like one that has ended
                raise TimeoutError
            return data
    except (OSError, http.client.HTTPException, ValueError) as error:
        # Turn the failure into a problem that names its cause.
        if budget.is_late():
            raise _too_slow() from error
        if isinstance(error, ssl.SSLCertVerificationError):
            raise FetchFailed("The picture's server has no valid certificate; upload the picture instead.") from error
        raise FetchFailed("The picture's server could not be reached, or broke off; upload it instead.") from error


_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "Loupe", "Connection": "close"}


def _read_body(response: http.client.HTTPResponse, max_bytes: int, budget: _FetchBudget) -> bytes:
    # Refuse by the headers.
    if response.status != 200:
        raise FetchFailed(f"The picture's server answered {response.status} and no picture; upload it instead.")
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise FetchFailed("The picture's server sent it compressed though asked not to; upload the picture instead.")
    too_large = FetchFailed(f"The picture is larger than {max_bytes:,} bytes; send a smaller one.")
    if (response.length or 0) > max_bytes:  # refused before it spends anything of the budget
        raise too_large
    # Read piece by piece, so that a body without a length is stopped at the limit.
    data = bytearray()
    while chunk := response.read(min(CHUNK_SIZE, max_bytes + 1 - len(data))):
        budget.spend(len(chunk))
        data += chunk
        if len(data) > max_bytes:
            raise too_large
    if response.length:  # fewer bytes came than Content-Length says
        raise FetchFailed("The picture's server broke off before its end; upload the picture instead.")
    return bytes(data)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return the one TLS context. Making it is slow: it reads all trusted authorities of this machine."""
    return ssl.create_default_context()


class _Connection(http.client.HTTPConnection):
    """A connection to a checked address, with the URL's host name in the Host header and in TLS."""

    def __init__(self, destination: _Destination, deadline: float) -> None:
        super().__init__(destination.host, destination.port)
        self.default_port = PORTS[destination.url.scheme]  # decides whether the Host header names the port
        self._destination, self._deadline = destination, deadline
        self._open_socket: socket.socket | None = None  # http.client clears self.sock once the headers are read

    def connect(self) -> None:
        """Connect to a checked address, and begin TLS for https."""
        sock = self._connect_to_first()
        self._use_socket(sock)
        if not self._destination.allowed and sock.getsockname()[0] == sock.getpeername()[0]:
            raise _refused()  # a public address that belongs to this machine
        if self._destination.url.scheme == "https":
            secure = _tls_context().wrap_socket(
                sock, server_hostname=self._destination.host, do_handshake_on_connect=False
            )
            self._use_socket(secure)
            secure.do_handshake()

    def _use_socket(self, open_socket: socket.socket) -> None:
        self.sock = self._open_socket = open_socket
        if time.monotonic() >= self._deadline:  # the deadline may have passed before there was a socket to cut
            raise TimeoutError

    def _connect_to_first(self) -> socket.socket:
        """Connect to the first address that answers. Each gets a share of the time that is left."""
        addresses = self._destination.addresses
        for tried, address in enumerate(addresses, 1):
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            try:
                sock.settimeout(self._remaining() / (len(addresses) - tried + 1))
                sock.connect((address, self._destination.port))
            except OSError:
                sock.close()
                if tried == len(addresses):
                    raise
            else:
                sock.settimeout(self._remaining())
                return sock
        raise OSError("no address")

    def _remaining(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    def cut(self) -> None:
        """Shut the socket down, so that a thread waiting for it wakes up. Called from the timer's thread."""
        if self._open_socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._open_socket, socket.SHUT_RDWR)  # SSLSocket.shutdown would wait
