"""Fetch pictures from URLs that callers send, from public hosts only (or those of LOUPE_FETCH_ALLOW).

    data = fetch("https://example.org/tire.jpg", settings)
    results = fetch_all([url, url], settings)                # in parallel; bytes or a Problem for each, in order
    fetch_all(urls, settings, caller_deadline=deadline)      # stops at the caller's deadline as well (deadline.py)

A host name is looked up once. All its addresses are checked, and the connection goes to one of them, so a second
look-up cannot lead elsewhere. Redirects are checked again. One deadline and one limit of bytes hold for all URLs of a
request together. What comes beside the pictures, such as headers and the sizes of chunks, has a limit, too.
Nothing is asked through a proxy, and no netrc or cookies are used, whatever the environment says. A refused name and an
unknown one get the same answer, so that nobody can find out which names exist in the internal network.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from loupe.errors import BadRequest, FetchFailed, Problem, RefusedURL
from loupe.gateway.request.addresses import is_public, look_up
from loupe.gateway.request.deadline import NEVER, out_of_time
from loupe.gateway.request.exchange import Connection, Response
from loupe.gateway.settings import Settings

MAX_URL = 2048  # characters
MAX_REDIRECTS = 3
MAX_PARALLEL = 32  # URLs of one request at a time; as many as LOUPE_MAX_IMAGES is by default, so that none waits
TOTAL_FACTOR = 4  # times LOUPE_MAX_BYTES: the limit for all pictures of one request together
MAX_HEAD = 1 << 16  # bytes after which an answer's headers must have ended, informational answers included
OVERHEAD = 1 << 17  # bytes on the wire beside a picture: TLS's handshake, headers, those of redirects
OVERHEAD_SHARE = 8  # and one more for each 8 that the picture may have: TLS's records, the sizes of chunks
PIECE = 64  # bytes that each piece counts for beside its own: a tiny one is as much work as a large one
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
    picture = fetch_all([url], settings)[0]
    if isinstance(picture, Problem):
        raise picture
    return picture


def fetch_all(urls: Sequence[str], settings: Settings, caller_deadline: float = NEVER) -> list[bytes | Problem]:
    """Fetch URLs in parallel, within one time limit and one limit of bytes for all of them."""
    deadline = min(time.monotonic() + settings.fetch_timeout, caller_deadline)
    total = TOTAL_FACTOR * settings.max_bytes
    too_large = f"The pictures are larger than {total:,} bytes together; ask for fewer at once."
    allowance = _Allowance(total, len(urls), too_large)

    def fetch_or_problem(url: str) -> bytes | Problem:
        try:
            return _fetch(url, settings, deadline, allowance)
        except Problem as problem:  # after the caller's deadline, report that instead
            return problem if time.monotonic() < caller_deadline else out_of_time()

    if len(urls) < 2:
        return [fetch_or_problem(url) for url in urls]
    with ThreadPoolExecutor(min(MAX_PARALLEL, len(urls)), thread_name_prefix="fetch") as pool:
        return list(pool.map(fetch_or_problem, urls))


class _Allowance:
    """The bytes that may still come: those of pictures, and all that come over the wire, pictures included.

    One picture's, or a whole request's. What is taken from a picture's is taken from its request's, too.
    """

    def __init__(self, pictures: int, urls: int, too_large: str, request: _Allowance | None = None) -> None:
        self._pictures, self._wire = pictures, pictures + pictures // OVERHEAD_SHARE + urls * OVERHEAD
        self._too_large, self._request = too_large, request
        self._lock = threading.Lock()

    def check(self, size: int) -> None:
        """Raise FetchFailed if a picture of so many bytes is too large. Nothing is taken."""
        if size > self._pictures:
            raise FetchFailed(self._too_large)

    def take(self, size: int) -> None:
        """Count bytes of a picture. Raise FetchFailed if there are too many."""
        with self._lock:
            self.check(size)
            self._pictures -= size
        if self._request:
            self._request.take(size)

    def take_wire(self, size: int, pieces: int = 1) -> None:
        """Count bytes that came over the wire, and the pieces they were. Raise FetchFailed if there are too many."""
        with self._lock:
            self._wire -= size + pieces * PIECE
            if self._wire < 0:
                raise FetchFailed("The picture's server sends too much beside the picture; upload the picture instead.")
        if self._request:
            self._request.take_wire(size, pieces)


def _fetch(url: str, settings: Settings, deadline: float, request: _Allowance) -> bytes:
    """Fetch one URL and follow its redirects, each of which is checked like the first URL."""
    too_large = f"The picture is larger than {settings.max_bytes:,} bytes; send a smaller one."
    allowance = _Allowance(settings.max_bytes, 1, too_large, request)
    for _ in range(MAX_REDIRECTS + 1):
        if _is_late(deadline):
            raise _too_slow()
        answer = _get(_check_url(url, settings, deadline), deadline, allowance)
        if isinstance(answer, bytes):
            return answer
        url = _redirect_target(url, answer.location)
    raise FetchFailed(f"The picture's server redirects more than {MAX_REDIRECTS} times; give the address it ends at.")


def _is_late(deadline: float) -> bool:
    return time.monotonic() >= deadline


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
    if not allowed and (port not in PORTS.values() or host in _model_server_hosts(settings)):
        raise _refused()
    return _Destination(split, host, port, addresses, allowed)


def _model_server_hosts(settings: Settings) -> list[str]:
    return [host.rstrip(".").lower() for host, _ in settings.model_servers]


def _refused() -> RefusedURL:
    return RefusedURL("This URL is not fetched: its host is unknown or not public. Upload the picture instead.")


def _too_slow() -> FetchFailed:
    return FetchFailed("The picture's server took too long; upload the picture instead.")


def _is_allowed(host: str, address: str, settings: Settings) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(host == entry if isinstance(entry, str) else ip in entry for entry in settings.fetch_allow)


def _get(destination: _Destination, deadline: float, allowance: _Allowance) -> bytes | _Redirect:
    """Return the body of the answer, or where it redirects to."""
    try:
        with Connection(destination.addresses, destination.port, deadline, allowance.take_wire) as connection:
            # Ask.
            if not destination.allowed and connection.is_to_this_machine():
                raise _refused()  # a public address that belongs to this machine
            if destination.url.scheme == "https":
                connection.start_tls(destination.host)
            connection.send(_request(destination))
            # Read the head, and stop at a redirect.
            response = Response()
            pieces = _read_head(connection, response)
            if response.status in REDIRECTS:
                if not response.headers.get("location"):
                    raise FetchFailed("The picture's server redirects to nowhere; upload the picture instead.")
                return _Redirect(response.headers["location"])
            # Read the picture.
            _check_head(response, allowance)
            return _read_body(connection, response, pieces, allowance)
    except (OSError, ValueError) as error:
        # Turn the failure into a problem that names its cause.
        if _is_late(deadline):
            raise _too_slow() from error
        if isinstance(error, ssl.SSLCertVerificationError):
            raise FetchFailed("The picture's server has no valid certificate; upload the picture instead.") from error
        raise FetchFailed("The picture's server could not be reached, or broke off; upload it instead.") from error


def _request(destination: _Destination) -> bytes:
    path = (destination.url.path or "/") + (f"?{destination.url.query}" if destination.url.query else "")
    host = f"[{destination.host}]" if ":" in destination.host else destination.host
    if destination.port != PORTS[destination.url.scheme]:
        host += f":{destination.port}"
    return "\r\n".join((f"GET {path} HTTP/1.1", f"Host: {host}", *_HEADERS, "", "")).encode("ascii")


_HEADERS = ("Accept: image/*", "Accept-Encoding: identity", "User-Agent: Loupe", "Connection: close")


def _read_head(connection: Connection, response: Response) -> list[bytes]:
    """Read until the head has come. Return the pieces of the body that came with it."""
    pieces: list[bytes] = []
    size = 0
    while not response.status:
        if size >= MAX_HEAD:
            raise ValueError("a head without end")
        data = connection.receive()
        if not data:
            raise ConnectionError("closed before it answered")
        size += len(data)
        pieces = response.feed(data)
    return pieces


def _check_head(response: Response, allowance: _Allowance) -> None:
    """Raise FetchFailed if what follows is no picture, or a too large one."""
    if response.status != 200:
        raise FetchFailed(f"The picture's server answered {response.status} and no picture; upload it instead.")
    content, transfer = (response.headers.get(f"{part}-encoding", "").lower() for part in ("content", "transfer"))
    if content not in ("", "identity") or transfer not in ("", "identity", "chunked"):
        raise FetchFailed("The picture's server sent it compressed though asked not to; upload the picture instead.")
    allowance.check(int(response.headers.get("content-length", 0)))


def _read_body(connection: Connection, response: Response, pieces: list[bytes], allowance: _Allowance) -> bytes:
    body = bytearray()
    while True:
        # Count and keep what came, so that a body without a length is stopped at the limit.
        allowance.take_wire(0, len(pieces))
        allowance.take(sum(map(len, pieces)))
        body += b"".join(pieces)
        # Read on, up to the end.
        if response.is_complete:
            return bytes(body)
        data = connection.receive()
        if not data:
            break
        pieces = response.feed(data)
    if not response.ends_with_connection:
        raise FetchFailed("The picture's server broke off before its end; upload the picture instead.")
    return bytes(body)
