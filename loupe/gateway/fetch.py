"""Fetch a picture from a stranger's URL without being led anywhere else.

    data = fetch("https://example.org/tire.jpg", settings)

The name is looked up once, every address found is judged, and the connection goes to a judged address: a second lookup
cannot give another. Each redirect is judged anew. One deadline covers everything, however slowly the bytes drip.
Nothing is taken from the environment: no proxies, no netrc, no cookies. A refused name and an unknown one get the same
answer, so that nobody can ask this gateway which names exist inside.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as LookupTimeout
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from loupe.errors import BadRequest, FetchFailed, RefusedURL
from loupe.gateway.settings import Settings

MAX_URL = 2048  # characters
MAX_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
_VISIBLE = re.compile(r"[!-\[\]-~]+")  # ASCII that shows, but for the backslash

# Not ipaddress's is_global: Python 3.11 finds several of these global.
_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
]  # fmt: skip
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = [  # within it: what carries a v4 address inside, and what is for documentation
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]

_lookups = ThreadPoolExecutor(8, thread_name_prefix="lookup")  # getaddrinfo knows no deadline of its own


@dataclass(frozen=True)
class _Place:
    """Where one request goes: the URL's parts, and the judged addresses to connect to, the first that answers."""

    url: SplitResult
    host: str
    port: int
    addresses: list[str]


def fetch(url: str, settings: Settings) -> bytes:
    """The bytes behind `url`. BadRequest for the URL itself, FetchFailed for what its server does."""
    deadline = time.monotonic() + settings.fetch_timeout
    for _ in range(MAX_REDIRECTS + 1):
        place = _judge(url, settings, deadline)
        answer = _get(place, settings.max_bytes, deadline)
        if isinstance(answer, bytes):
            return answer
        try:
            url = urljoin(url, answer.location)
        except ValueError:
            raise FetchFailed("The picture's server redirects to what is no URL.") from None
    raise FetchFailed(f"The picture's server redirects more than {MAX_REDIRECTS} times; give the address it ends at.")


@dataclass(frozen=True)
class _Redirect:
    location: str


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
    addresses = _look_up(host, port, deadline)
    allowed = all(_is_allowed(host, address, settings) for address in addresses)
    if not addresses or not allowed and not all(is_public(address) for address in addresses):
        raise _refused()
    if not allowed and (port not in PORTS.values() or host == settings.target.rpartition(":")[0].lower()):
        raise _refused()
    return _Place(parts, host, port, addresses)


def _refused() -> RefusedURL:
    return RefusedURL("This URL is not fetched: its host is unknown or not public. Upload the picture instead.")


def _look_up(host: str, port: int, deadline: float) -> list[str]:
    lookup = _lookups.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = lookup.result(max(0.0, deadline - time.monotonic()))
    except (OSError, UnicodeError):
        return []
    except LookupTimeout:
        lookup.cancel()
        return []
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _NOT_PUBLIC_V4)
    return ip in _PUBLIC_V6 and not any(ip in network for network in _NOT_PUBLIC_V6)


def _is_allowed(host: str, address: str, settings: Settings) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(host == entry if isinstance(entry, str) else ip in entry for entry in settings.fetch_allow)


def _get(place: _Place, max_bytes: int, deadline: float) -> bytes | _Redirect:
    connection = _Connection(place, deadline)
    watch = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    watch.daemon = True
    watch.start()
    try:
        path = (place.url.path or "/") + (f"?{place.url.query}" if place.url.query else "")
        connection.request("GET", path, headers=_HEADERS)
        response = connection.getresponse()
        if response.status in REDIRECTS:
            location = response.getheader("Location")
            if not location:
                raise FetchFailed("The picture's server redirects to nowhere.")
            return _Redirect(location)
        data = _body(response, max_bytes)
        if time.monotonic() >= deadline:  # a connection that was cut can look like one that has ended
            raise TimeoutError
        return data
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise FetchFailed("The picture's server took too long; upload the picture instead.") from error
        raise FetchFailed("The picture's server could not be reached, or broke off.") from error
    finally:
        watch.cancel()
        connection.close()


_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "Loupe", "Connection": "close"}


def _body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if response.status != 200:
        raise FetchFailed(f"The picture's server answered {response.status} instead of a picture.")
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise FetchFailed("The picture's server sent it compressed though asked not to; upload the picture instead.")
    data = response.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FetchFailed(f"The picture is larger than {max_bytes:,} bytes; send a smaller one.")
    if response.length:  # bytes that were promised and never came
        raise FetchFailed("The picture's server broke off before its end.")
    return data


class _Connection(http.client.HTTPConnection):
    """To the judged address, under the URL's own name in the Host header and in TLS."""

    def __init__(self, place: _Place, deadline: float) -> None:
        super().__init__(place.host, place.port)
        self.default_port = PORTS[place.url.scheme]  # decides whether the Host header names the port
        self._place, self._deadline = place, deadline
        self._open: socket.socket | None = None  # self.sock is forgotten as soon as the headers are read

    def connect(self) -> None:
        self.sock = self._open = self._dial()
        if self._place.url.scheme == "https":
            context = ssl.create_default_context()
            secure = context.wrap_socket(self.sock, server_hostname=self._place.host, do_handshake_on_connect=False)
            self.sock = self._open = secure
            secure.do_handshake()

    def _dial(self) -> socket.socket:
        """Each address gets a share of the time that is left, the last one all of it."""
        addresses = self._place.addresses
        for tried, address in enumerate(addresses, 1):
            remaining = max(0.001, self._deadline - time.monotonic())
            try:
                dialled = socket.create_connection(
                    (address, self._place.port), remaining / (len(addresses) - tried + 1)
                )
            except OSError:
                if tried == len(addresses):
                    raise
            else:
                dialled.settimeout(max(0.001, self._deadline - time.monotonic()))
                return dialled
        raise OSError("no address")

    def cut(self) -> None:
        """At the deadline, from another thread: whatever waits for this socket stops waiting."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)  # TLS's own would wait for the other side
