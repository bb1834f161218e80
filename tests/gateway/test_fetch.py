"""Servers that misbehave, and what a gateway answers that fetches from them; all over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loupe.errors import FetchFailed
from loupe.gateway.request import exchange
from loupe.gateway.request import fetch as fetching
from loupe.gateway.settings import Settings
from tests.support import models
from tests.support.gateways import Gateway, gateway
from tests.support.pace import seconds
from tests.support.pictures import encoded
from tests.support.servers import model_server, until

PICTURE = encoded()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
WHOLE = OK + f"Content-Length: {len(PICTURE)}\r\n\r\n".encode() + PICTURE
DEADLINE = 1.5  # seconds, the gateway's for fetching
LEFT = 30.0  # seconds, after which a server that goes on for ever has certainly been left
MAX_BYTES = 2_000_000
CERTIFICATES = ("right", "expired", "elsewhere", "self-signed")


@contextmanager
def origin(
    site: Callable[[str, socket.socket], None],
    certificate: Path | None = None,
    note_name: Callable[[str | None], None] = lambda _: None,
) -> Iterator[int]:
    """Run a server that calls `site` with each request's head and connection. With a certificate it speaks TLS."""
    # A listener, with TLS if there is a certificate.
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
    if tls and certificate:
        tls.load_cert_chain(certificate, certificate.with_suffix(".key"))
        tls.sni_callback = lambda _, name, __: note_name(name)

    # A thread for each connection.
    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError, IndexError), connection, secured(connection) as stream:
            site(stream.recv(65536).decode(), stream)

    def secured(connection: socket.socket) -> socket.socket:
        return tls.wrap_socket(connection, server_side=True) if tls else connection

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def moved(target: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()


def endlessly(connection: socket.socket, piece: bytes, pause: float = 0) -> None:
    limit = time.monotonic() + 2 * LEFT  # its end is the gateway's leaving
    while time.monotonic() < limit:
        connection.sendall(piece)
        time.sleep(pause)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


BOMB = gzip.compress(b"\0" * 50_000_000)
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
Then = Callable[[socket.socket], None]


def without_end(piece: bytes, pause: float = 0) -> Then:
    return lambda connection: endlessly(connection, piece, pause)


SENT: dict[str, tuple[bytes, Then | None]] = {  # first this, then that, and each gives a 422
    "reset-at-once": (b"", reset),
    "reset-in-body": (OK + b"Content-Length: 100000\r\n\r\n" + PICTURE[:999], reset),
    "closes-at-once": (b"", None),
    "bomb": (OK + b"Content-Encoding: gzip\r\n\r\n" + BOMB, None),
    "bomb-unsaid": (OK + b"\r\n" + BOMB, None),
    "bomb-in-transfer": (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + BOMB, None),
    "endless": (OK + b"\r\n", without_end(b"x" * 65536)),
    "endless-chunks": (CHUNKED, without_end(b"1\r\nx\r\n")),
    "endless-extensions": (CHUNKED, without_end(b"1;" + b"x" * 60_000 + b"\r\nx\r\n")),
    "endless-hints": (b"", without_end(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1000)),
    "endless-chunk-size": (CHUNKED, without_end(b"0" * 65536)),
    "endless-trailers": (CHUNKED + b"0\r\n", without_end(b"A: b\r\n" * 1000)),
    "chunks-of-nonsense": (CHUNKED + b"zz\r\nxx\r\n", None),
    "negative-chunk": (CHUNKED + b"-5\r\nxx\r\n", None),
    "negative-length": (OK + b"Content-Length: -1\r\n\r\n", None),
    "vast-length": (OK + b"Content-Length: 99999999999999999999\r\n\r\n", None),
    "long-header": (OK + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n" + PICTURE, None),
    "many-headers": (OK + b"X: y\r\n" * 50_000 + b"\r\n" + PICTURE, None),
    "endless-headers": (OK, without_end(b"X: y\r\n" * 1000)),
    "endless-header": (OK + b"X: ", without_end(b"x" * 65536)),
    "endless-status": (b"HTTP/1.1 200 ", without_end(b"x" * 65536)),
    "endless-continue": (b"", without_end(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)),
    "picture-alone": (PICTURE, None),  # as HTTP/0.9 did
    "strange-version": (b"HTTP/9.9 200 OK\r\n\r\n" + PICTURE, None),
    "strange-status": (b"HTTP/1.1 9999 OK\r\n\r\n" + PICTURE, None),
    "switches": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + PICTURE, None),
    "part": (WHOLE.replace(b"200 OK", b"206 Partial"), None),
    "drip": (OK + b"\r\n", without_end(b"x", 0.5)),
    "drip-of-headers": (b"", without_end(b"H", 0.5)),
    "loop": (moved("/loop"), None),
    "loop-of-two": (moved("/loop-of-two?again"), None),
    "nowhere": (moved(""), None),
    "page": (OK + b"\r\n<!doctype html><title>Sign in</title>", None),
    "nothing": (OK + b"Content-Length: 0\r\n\r\n", None),
}
NO_PICTURE = ("bomb-unsaid", "endless-trailers", "page", "nothing")  # it came, and was none
MOVED = [  # each gives a 400
    "file:///etc/passwd", "ftp://example.org/x", "data:image/png;base64,aa", "gopher://127.0.0.1/", "//10.0.0.1/x",
    "//[::1]/x", "http://169.254.169.254/latest/meta-data/", "https://192.168.0.1/", "http://user:pw@127.0.0.1/",
    "http://127.0.0.1@10.0.0.1/", "//user@127.0.0.1/", "http://0x7f.1.2.3/", "http://[fe80::1%25lo]/", "https:///x",
    "http://2886729729/", "http://does-not-exist.invalid/", "http://127.0.0.1\\@10.0.0.1/", "/a b", "/\u00e9",
    "/" + "a" * 3000, "http://127.0.0.1:99999/", "javascript:alert(1)",
]  # fmt: skip


HALVES = [b"%x;name=value\r\n%s\r\n" % (len(half), half) for half in (PICTURE[:500], PICTURE[500:])]
ANSWERED: dict[str, tuple[bytes, Then | None]] = {  # a picture each, in ways that HTTP allows
    "without-length": (OK + b"\r\n" + PICTURE, None),
    "after-informational": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + WHOLE,
        None,
    ),
    "in-chunks": (CHUNKED + b"".join(HALVES) + b"0\r\n\r\n", None),
    "in-chunks-of-a-byte": (CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in PICTURE) + b"0\r\n\r\n", None),
    "with-trailers": (CHUNKED + b"".join(HALVES) + b"0\r\nA: b\r\n\r\n", None),
    "with-trailers-without-end": (CHUNKED + b"".join(HALVES) + b"0\r\n", without_end(b"A: b\r\n" * 1000)),
    "with-more-behind": (WHOLE + b"x" * 100_000, None),
    "with-another-answer-behind": (WHOLE * 2, None),
}


def site(head: str, connection: socket.socket) -> None:
    name = head.split(" ")[1][1:].partition("?")[0]
    if name.startswith("moved-"):
        connection.sendall(moved(MOVED[int(name[6:])]))
    elif name in SENT or name in ANSWERED:
        first, then = (SENT | ANSWERED)[name]
        connection.sendall(first)
        if then:
            then(connection)
    else:
        connection.sendall(WHOLE)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority, and certificates that it signed, one of them for localhost."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    # The authority, and a certificate that signs itself.
    for name in ("ca", "self-signed"):
        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key")
        openssl("req", "-x509", *new, "-out", f"{name}.crt", "-days", "2", "-subj", f"/CN={name}",
                "-addext", "subjectAltName=DNS:localhost")  # fmt: skip
    # Certificates signed by the authority.
    for name, host, days in (
        ("right", "localhost", 2),
        ("expired", "localhost", -1),
        ("elsewhere", "elsewhere.test", 2),
    ):
        (folder / "names").write_text(f"subjectAltName=DNS:{host}\n")
        openssl("req", "-new", *new[:5], "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={host}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", str(days), "-extfile", "names", "-out", f"{name}.crt")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, authority: Path) -> Iterator[Gateway]:
    models.write(tmp_path_factory.getbasetemp() / "fetched" / "tires" / "1", seed=1)
    settings = {
        "LOUPE_FETCH_ALLOW": "127.0.0.1", "LOUPE_FETCH_TIMEOUT": str(DEADLINE), "LOUPE_MAX_BYTES": str(MAX_BYTES),
        "SSL_CERT_FILE": str(authority / "ca.crt"),
    }  # fmt: skip
    with (
        model_server(tmp_path_factory.getbasetemp() / "fetched", "tires") as server,
        gateway(f"localhost:{server.port}", **settings) as running,
    ):
        yield running


@pytest.fixture
def here(started: Gateway) -> Iterator[Gateway]:
    """The running gateway. After the test its worker must be the same, and its memory must not have grown."""
    workers = started.workers()
    yield started
    assert started.get("/healthz").status == 200
    assert started.workers() == workers
    resident = Path(f"/proc/{workers[0]}/status").read_text().split("VmRSS:")[1].split()[0]
    assert int(resident) < 200_000, f"{resident} kB"


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    with origin(site) as port:
        yield f"http://127.0.0.1:{port}"


def problem(answer: Any, status: int, code: str) -> str:
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    body = answer.json()
    assert (body["status"], body["code"], body["request_id"]) == (status, code, answer.headers["X-Request-ID"])
    detail: str = body["detail"]
    assert not any(word in detail for word in ("/tmp", "Traceback", "127.0.0.1", "0x", "Error"))
    return detail


@contextmanager
def within(limit: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < limit


# ------------------------------------------------------------------------------------------------- one picture


@pytest.mark.parametrize("name", SENT)
def test_whatever_a_pictures_server_sends_is_answered_in_time(here: Gateway, base: str, name: str) -> None:
    with within(LEFT):
        code = "broken_image" if name in NO_PICTURE else "fetch_failed"
        problem(here.post_json("/predict", {"url": f"{base}/{name}"}), 422, code)


@pytest.mark.parametrize("name", ANSWERED)
def test_a_picture_is_a_picture_however_http_brings_it(here: Gateway, base: str, authority: Path, name: str) -> None:
    answer = here.post_json("/predict", {"url": f"{base}/{name}"})
    assert answer.status == 200, answer.body
    with origin(site, authority / "right.crt") as port:  # which ends without a word of TLS, as many servers do
        answer = here.post_json("/predict", {"url": f"https://localhost:{port}/{name}"})
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("number", range(len(MOVED)), ids=MOVED)
def test_a_redirect_leads_nowhere_that_a_url_may_not(here: Gateway, base: str, number: int) -> None:
    with within(LEFT):
        answer = here.post_json("/predict", {"url": f"{base}/moved-{number}"})
    code = "refused_url" if answer.json().get("code") == "refused_url" else "bad_request"
    problem(answer, 400, code)


@pytest.mark.parametrize("certificate", CERTIFICATES)
def test_only_a_valid_certificate_for_its_name_is_believed(here: Gateway, authority: Path, certificate: str) -> None:
    """Hostile inputs 22; resets are among what SENT sends."""
    with origin(site, authority / f"{certificate}.crt") as port, within(LEFT):
        answer = here.post_json("/predict", {"url": f"https://localhost:{port}/tire.jpg"})
        if certificate == "right":
            assert answer.status == 200
            problem(here.post_json("/predict", {"url": f"https://localhost:{port}/drip"}), 422, "fetch_failed")
        else:
            assert "certificate" in problem(answer, 422, "fetch_failed")


def test_a_server_that_never_shakes_hands_is_left_at_the_deadline(here: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, within(LEFT):
        url = f"https://localhost:{mute.getsockname()[1]}/"
        assert "too long" in problem(here.post_json("/predict", {"url": url}), 422, "fetch_failed")


def test_a_handshake_that_drips_is_left_at_the_deadline(here: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool, within(LEFT):
        url = f"https://localhost:{listener.getsockname()[1]}/"
        asked = pool.submit(here.post_json, "/predict", {"url": url})
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of TLS that is to have 16 KiB
            endlessly(connection, b"\2", 0.2)
        assert "too long" in problem(asked.result(), 422, "fetch_failed")


def test_a_redirect_may_lead_from_http_to_https_and_not_back(here: Gateway, base: str, authority: Path) -> None:
    with origin(lambda _, to: to.sendall(moved(f"{base}/tire.jpg")), authority / "right.crt") as port:
        said = problem(here.post_json("/predict", {"url": f"https://localhost:{port}/"}), 422, "fetch_failed")
        assert "https to http" in said
    with (
        origin(site, authority / "right.crt") as safe,
        origin(lambda _, to: to.sendall(moved(f"https://localhost:{safe}/tire.jpg"))) as port,
    ):
        assert here.post_json("/predict", {"url": f"http://127.0.0.1:{port}/"}).status == 200


def test_a_second_look_up_that_leads_inside_is_never_made_and_tls_and_host_bear_the_urls_name(
    authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hostile inputs 17."""
    lookups: list[str] = []
    heads: list[str] = []
    names: list[str | None] = []

    # The second look-up of the name would lead to the internal network.
    def rebinding(host: str, *_: Any, **__: Any) -> list[Any]:
        lookups.append(host)
        address = "127.0.0.1" if len(lookups) == 1 else "10.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    def note(head: str, connection: socket.socket) -> None:
        heads.append(head)
        connection.sendall(WHOLE)

    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.crt"))
    exchange.tls_context.cache_clear()
    try:
        with origin(note, authority / "elsewhere.crt", names.append) as port:
            monkeypatch.setattr(socket, "getaddrinfo", rebinding)
            settings = Settings.from_environment({"LOUPE_FETCH_ALLOW": "127.0.0.1"})
            assert fetching.fetch(f"https://Elsewhere.test.:{port}/a?b#c", settings) == PICTURE
    finally:
        exchange.tls_context.cache_clear()
    # One look-up, and the URL's own name in the Host header and in TLS.
    assert lookups == ["elsewhere.test"]
    assert heads[0].startswith("GET /a?b HTTP/1.1\r\n")
    assert f"\r\nHost: elsewhere.test:{port}\r\n" in heads[0]
    assert "\r\nAccept-Encoding: identity\r\n" in heads[0]
    assert "cookie" not in heads[0].lower()
    assert names == ["elsewhere.test"], "in TLS"


# ------------------------------------------------------------------------------------------------ bytes and work


def buffered() -> int:
    """Bytes of one connection that the system may hold, sent and not read."""
    return sum(int(Path(f"/proc/sys/net/ipv4/tcp_{side}mem").read_text().split()[2]) for side in "rw")


@contextmanager
def counted(piece: bytes) -> Iterator[tuple[str, list[int]]]:
    """A source that begins a chunked answer and sends the piece without end, and a list of what each send took."""
    sent: list[int] = []

    def pour(_: str, connection: socket.socket) -> None:
        connection.sendall(CHUNKED)
        limit = time.monotonic() + LEFT
        while time.monotonic() < limit:
            sent.append(connection.send(piece))

    with origin(pour) as port:
        yield f"http://127.0.0.1:{port}/", sent


def allowing(max_bytes: int, timeout: float) -> Settings:
    return Settings.from_environment(
        {"LOUPE_FETCH_ALLOW": "127.0.0.1", "LOUPE_MAX_BYTES": str(max_bytes), "LOUPE_FETCH_TIMEOUT": str(timeout)}
    )


EXTENSION = b"1;" + b"x" * 60_000 + b"\r\nx\r\n"


def test_every_byte_on_the_wire_counts_for_one_picture() -> None:
    """Hostile inputs 41: a byte in each chunk, and an extension of 60,000 beside it."""
    with counted(EXTENSION) as (url, sent), pytest.raises(FetchFailed, match="too much beside the picture"):
        fetching.fetch(url, allowing(MAX_BYTES, 20))
    assert sum(sent) < 1.25 * MAX_BYTES + fetching.OVERHEAD + buffered()


def test_every_byte_on_the_wire_counts_for_all_pictures_of_a_request() -> None:
    """Hostile inputs 41."""
    most = 40_000_000
    with counted(EXTENSION) as (url, sent):
        results = fetching.fetch_all([url] * 16, allowing(most, 20))
    assert {str(result) for result in results} == {
        "The picture's server sends too much beside the picture; upload the picture instead."
    }
    assert sum(sent) < fetching.TOTAL_FACTOR * 1.25 * most + 16 * (fetching.OVERHEAD + buffered())


@pytest.mark.timing
def test_chunks_of_a_byte_cost_little_work() -> None:
    """Hostile inputs 41."""
    with counted(b"1\r\nx\r\n" * 10_000) as (url, _):
        started = time.thread_time()
        with pytest.raises(FetchFailed, match="too much beside the picture"):
            fetching.fetch(url, allowing(10_000_000, 20))
        assert time.thread_time() - started < seconds(0.5)


# ---------------------------------------------------------------------------------------------- the environment


@contextmanager
def proxies(folder: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """What the environment says of a proxy and of a file for keys, and a list of all that came to the proxy."""
    came: list[str] = []
    with origin(lambda head, _: came.append(head)) as port:
        names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
        variables = {spelling: f"http://127.0.0.1:{port}" for name in names for spelling in (name, name.upper())}
        yield {**variables, "no_proxy": "", "NO_PROXY": "", "SSLKEYLOGFILE": str(folder / "keys")}, came


def test_the_environments_proxies_and_key_log_are_not_used(
    sample_models: Path, authority: Path, tmp_path: Path
) -> None:
    """Hostile inputs 45; serve.py and test.py in tests/project/test_serve.py."""
    with (
        proxies(tmp_path) as (environment, came),
        origin(site) as plain,
        origin(site, authority / "right.crt") as secure,
        model_server(sample_models, "tires") as server,
        gateway(
            f"localhost:{server.port}",
            LOUPE_FETCH_ALLOW="127.0.0.1",
            SSL_CERT_FILE=str(authority / "ca.crt"),
            **environment,
        ) as running,
    ):
        until(lambda: running.get("/readyz").status == 200, "the model")
        for url in (f"http://127.0.0.1:{plain}/tire.jpg", f"https://localhost:{secure}/tire.jpg"):
            assert running.post_json("/predict", {"url": url}).status == 200
        assert came == []
    assert not (tmp_path / "keys").exists()
