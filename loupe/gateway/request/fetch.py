"""Fetch pictures from strangers' URLs without being led anywhere else.

    data = fetch("https://example.org/tire.jpg", settings)
    several = fetch_all([one, two], settings)                # side by side; bytes or a Problem for each, in order
    fetch_all([one, two], settings, until=deadline)          # nor longer than the caller waits (deadline.py)

A name is looked up once, every address found is judged, and the connection goes to a judged address: a second lookup
cannot give another. Each redirect is judged anew. One deadline and one number of bytes cover everything that a request
asks for, however many its URLs and however slowly the bytes drip.
Nothing is taken from the environment: no proxies, no netrc, no cookies; only OpenSSL's own SSL_CERT_FILE, for a private
authority. A refused name and an unknown one get the same answer, so that nobody can ask this gateway which names exist
inside.
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
SIDE_BY_SIDE = 32  # URLs of one request: all of them by default, so that silent ones keep no other waiting
TOTAL = 4  # times LOUPE_MAX_BYTES: what is fetched for one request in all
PIECE = 1 << 16  # bytes
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
_VISIBLE = re.compile(r"[!-\[\]-~]+")  # ASCII that shows, but for the backslash


@dataclass(frozen=True)
class _Place:
    """Where one request goes: the URL's parts, and the judged addresses to connect to, the first that answers."""

    url: SplitResult
    host: str
    port: int
    addresses: list[str]
    allowed: bool  # by name or network, public or not


def fetch(url: str, settings: Settings) -> bytes:
    """The bytes behind `url`. BadRequest for the URL itself, FetchFailed for what its server does."""
    with _Purse(settings) as purse:
        return _fetch(url, settings, purse)


def fetch_all(urls: Sequence[str], settings: Settings, until: float = NEVER) -> list[bytes | Problem]:
    """One after the other they could take as many times the deadline as there are URLs."""

    def attempt(url: str) -> bytes | Problem:
        try:
            return _fetch(url, settings, purse)
        except Problem as problem:  # once the caller's time is over, that is the reason for whatever ended
            return problem if time.monotonic() < until else out_of_time()

    if not urls:
        return []
    with _Purse(settings, until) as purse:
        if len(urls) < 2:
            return [attempt(url) for url in urls]
        with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(urls)), thread_name_prefix="fetch") as pool:
            return list(pool.map(attempt, urls))


class _Purse:
    """What one request has to spend on all that it fetches: time and bytes. At the deadline its connections are cut."""

    def __init__(self, settings: Settings, until: float = NEVER) -> None:
        now = time.monotonic()
        self.deadline = min(now + settings.fetch_timeout, until)
        self._limit = self._left = TOTAL * settings.max_bytes
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._watch = threading.Timer(max(0.0, self.deadline - now), self._cut)
        self._watch.daemon = True

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()

    @contextlib.contextmanager
    def open(self, place: _Place) -> Iterator[_Connection]:
        connection = _Connection(place, self.deadline)
        with self._lock:
            self._connections.add(connection)
        try:
            yield connection
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)

    def _cut(self) -> None:
        with self._lock:
            for connection in self._connections:
                connection.cut()

    def is_late(self) -> bool:
        return time.monotonic() >= self.deadline

    def take(self, size: int) -> None:
        with self._lock:
            self._left -= size
            if self._left < 0:
                raise FetchFailed(
                    f"The pictures are larger than {self._limit:,} bytes together; ask for fewer at once."
                )


def _fetch(url: str, settings: Settings, purse: _Purse) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        if purse.is_late():
            raise _too_slow()
        place = _judge(url, settings, purse.deadline)
        answer = _get(place, settings.max_bytes, purse)
        if isinstance(answer, bytes):
            return answer
        url = _follow(url, answer.location)
    raise FetchFailed(f"The picture's server redirects more than {MAX_REDIRECTS} times; give the address it ends at.")


@dataclass(frozen=True)
class _Redirect:
    location: str


def _follow(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        downgraded = urlsplit(url).scheme == "https" and urlsplit(target).scheme == "http"
    except ValueError:
        raise FetchFailed("The picture's server redirects to what is no URL; upload the picture instead.") from None
    if downgraded:  # whoever asked for https asked that nobody on the way can swap the picture
        raise FetchFailed("The picture's server redirects from https to http; give the address it ends at.")
    return target


def _judge(url: str, settings: Settings, deadline: float) -> _Place:
    if len(url) > MAX_URL:
        raise BadRequest(f"The URL is {len(url):,} characters long; at most {MAX_URL:,} are taken. Upload the picture.")
    if not _VISIBLE.fullmatch(url):
        raise BadRequest("The URL holds a space, a backslash or a character outside ASCII; percent-encode them.")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise BadRequest("This is not a URL; it should look like https://example.org/picture.jpg.") from None
    if parts.scheme not in PORTS or not host:
        raise BadRequest("Only http:// and https:// URLs with a host are fetched.")
    if "@" in parts.netloc:
        raise BadRequest("A URL with a user name or password in it is not fetched; leave them out.")
    port = port if port is not None else PORTS[parts.scheme]
    addresses = look_up(host, deadline)
    allowed = all(_is_allowed(host, address, settings) for address in addresses)
    if not addresses or not allowed and not all(is_public(address) for address in addresses):
        raise _refused()
    if not allowed and (port not in PORTS.values() or host in _hosts(settings.target)):
        raise _refused()
    return _Place(parts, host, port, addresses, allowed)


def _hosts(target: str) -> list[str]:
    """Of the model server; gRPC also takes dns:///host:port, and lists of addresses."""
    return [word.rpartition(":")[0].strip("[]").rstrip(".").lower() for word in re.split("[/,]", target)]


def _refused() -> RefusedURL:
    return RefusedURL("This URL is not fetched: its host is unknown or not public. Upload the picture instead.")


def _too_slow() -> FetchFailed:
    return FetchFailed("The picture's server took too long; upload the picture instead.")


def _is_allowed(host: str, address: str, settings: Settings) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(host == entry if isinstance(entry, str) else ip in entry for entry in settings.fetch_allow)


def _get(place: _Place, max_bytes: int, purse: _Purse) -> bytes | _Redirect:
    path = (place.url.path or "/") + (f"?{place.url.query}" if place.url.query else "")
    try:
        with purse.open(place) as connection:
            connection.request("GET", path, headers=_HEADERS)
            response = connection.getresponse()
            if response.status in REDIRECTS:
                location = response.getheader("Location")
                if not location:
                    raise FetchFailed("The picture's server redirects to nowhere; upload the picture instead.")
                return _Redirect(location)
            data = _body(response, max_bytes, purse)
            if purse.is_late():  # a connection that was cut can look like one that has ended
                raise TimeoutError
            return data
    except (OSError, http.client.HTTPException, ValueError) as error:
        if purse.is_late():
            raise _too_slow() from error
        if isinstance(error, ssl.SSLCertVerificationError):
            raise FetchFailed("The picture's server has no valid certificate; upload the picture instead.") from error
        raise FetchFailed("The picture's server could not be reached, or broke off; upload it instead.") from error


_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "Loupe", "Connection": "close"}


def _body(response: http.client.HTTPResponse, max_bytes: int, purse: _Purse) -> bytes:
    if response.status != 200:
        raise FetchFailed(f"The picture's server answered {response.status} and no picture; upload it instead.")
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise FetchFailed("The picture's server sent it compressed though asked not to; upload the picture instead.")
    too_large = FetchFailed(f"The picture is larger than {max_bytes:,} bytes; send a smaller one.")
    if (response.length or 0) > max_bytes:  # takes nothing from the others
        raise too_large
    data = bytearray()
    while piece := response.read(min(PIECE, max_bytes + 1 - len(data))):
        purse.take(len(piece))
        data += piece
        if len(data) > max_bytes:
            raise too_large
    if response.length:  # bytes that were promised and never came
        raise FetchFailed("The picture's server broke off before its end; upload the picture instead.")
    return bytes(data)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Made once: it reads every authority that this machine trusts."""
    return ssl.create_default_context()


class _Connection(http.client.HTTPConnection):
    """To the judged address, under the URL's own name in the Host header and in TLS."""

    def __init__(self, place: _Place, deadline: float) -> None:
        super().__init__(place.host, place.port)
        self.default_port = PORTS[place.url.scheme]  # decides whether the Host header names the port
        self._place, self._deadline = place, deadline
        self._open: socket.socket | None = None  # self.sock is forgotten as soon as the headers are read

    def connect(self) -> None:
        dialled = self._dial()
        self._hold(dialled)
        if not self._place.allowed and dialled.getsockname()[0] == dialled.getpeername()[0]:
            raise _refused()  # a public address, and this machine's own
        if self._place.url.scheme == "https":
            secure = _tls().wrap_socket(dialled, server_hostname=self._place.host, do_handshake_on_connect=False)
            self._hold(secure)
            secure.do_handshake()

    def _hold(self, open_socket: socket.socket) -> None:
        self.sock = self._open = open_socket
        if time.monotonic() >= self._deadline:  # the cut may have come before there was anything to cut
            raise TimeoutError

    def _dial(self) -> socket.socket:
        """Each address gets a share of the time that is left, the last one all of it. No name is looked up here."""
        addresses = self._place.addresses
        for tried, address in enumerate(addresses, 1):
            dialled = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            try:
                dialled.settimeout(self._remaining() / (len(addresses) - tried + 1))
                dialled.connect((address, self._place.port))
            except OSError:
                dialled.close()
                if tried == len(addresses):
                    raise
            else:
                dialled.settimeout(self._remaining())
                return dialled
        raise OSError("no address")

    def _remaining(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    def cut(self) -> None:
        """At the deadline, from another thread: whatever waits for this socket stops waiting."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)  # TLS's own would wait for the other side
