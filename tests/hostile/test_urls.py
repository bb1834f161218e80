"""URLs that lead where no picture is, or inside, and servers that misbehave: each is the caller's problem, in time.

More of both over raw sockets in tests/gateway/test_fetch.py, tests/gateway/test_addresses.py and
tests/api/test_urls.py.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loupe.errors import RefusedURL
from loupe.gateway.request.fetch import fetch
from loupe.gateway.settings import Settings
from tests.support.gateways import Gateway, internet
from tests.support.hostile import PICTURE, answered, defended, refused, unharmed

FETCH_SECONDS = 1.5  # the gateway's deadline for fetching in these tests
LATEST = FETCH_SECONDS + 60.0
UNKNOWN = "This URL is not fetched: its host is unknown or not public. Upload the picture instead."


def site(path: str, write: Callable[[bytes], None]) -> None:
    """All there is on the internet of these tests."""
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    whole = ok + f"Content-Length: {len(PICTURE)}\r\n\r\n".encode() + PICTURE
    moved = "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n"
    if path in ("/tire.jpg", "//twice?really"):
        write(whole)
    elif path.startswith("/moved/"):
        left = int(path.rsplit("/", 1)[1])
        write(moved.format(f"/moved/{left - 1}" if left else "/tire.jpg").encode())
    elif path.startswith("/to/"):
        write(moved.format(path[4:]).encode())
    elif path == "/to-no-url":
        write(moved.format("http://[/").encode())
    elif path == "/nowhere":
        write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n")
    elif path == "/silent":
        time.sleep(FETCH_SECONDS + 2)
    elif path == "/drip":
        write(ok + b"\r\n")
        for byte in PICTURE[:100]:
            write(bytes([byte]))
            time.sleep(0.3)
    elif path == "/drip-header":
        for byte in ok * 2:
            write(bytes([byte]))
            time.sleep(0.3)
    elif path == "/endless":
        write(ok + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(400):
            write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    elif path == "/gzip":
        write(ok + b"Content-Encoding: gzip\r\n\r\n" + PICTURE)
    elif path == "/short":
        write(ok + b"Content-Length: 100000\r\n\r\n" + PICTURE)
    elif path == "/html":
        write(ok.replace(b"text/plain", b"image/png") + b"\r\n<html>hello</html>")
    elif path == "/garbage":
        write(b"\0\1\2\3 this is not HTTP\r\n\r\n")
    elif path.startswith("/labelled/"):
        write(whole.replace(b"text/plain", path[10:].encode()))
    else:
        write(f"HTTP/1.1 {path[1:]} Because\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with internet(site) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def loose(sample_models: Path) -> Iterator[Gateway]:
    """It may fetch from this machine, and nothing else about it is loosened."""
    with defended(sample_models, LOUPE_FETCH_ALLOW="127.0.0.1", LOUPE_FETCH_TIMEOUT=str(FETCH_SECONDS)) as running:
        yield running


@pytest.fixture(scope="module")
def strict(sample_models: Path) -> Iterator[Gateway]:
    with defended(sample_models, LOUPE_FETCH_TIMEOUT=str(FETCH_SECONDS)) as running:
        yield running


@pytest.fixture
def here(loose: Gateway) -> Iterator[Gateway]:
    with unharmed(loose):
        yield loose


REFUSED = [
    "http://localhost/x", "http://127.0.0.1/", "http://[::1]/", "http://0.0.0.0/", "http://[::]/", "http://0177.0.0.1/",
    "http://2130706433/", "http://127.1/", "http://0x7f.1/", "http://0x7f000001/", "http://017700000001/", "http://0/",
    "http://169.254.169.254/latest", "http://[fd00:ec2::254]/", "http://100.100.100.200/", "http://168.63.129.16/x",
    "http://metadata.google.internal/", "http://metadata/", "http://instance-data/", "http://kubernetes.default.svc/",
    "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/", "http://100.64.0.1/", "http://192.0.0.8/",
    "http://198.18.0.1/", "http://203.0.113.1/", "http://240.0.0.1/", "http://255.255.255.255/", "http://224.0.0.1/",
    "http://[ff02::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/",
    "http://[64:ff9b::a00:1]/", "http://[64:ff9b:1::a00:1]/", "http://[2002:7f00:1::]/", "http://[2001::1]/",
    "http://[fec0::1]/", "http://[fe80::1]/", "http://[fd00::1]/", "http://[100::1]/", "http://[2001:db8::1]/",
    "http://8.8.8.8:8501/", "https://8.8.8.8:22/", "http://localhost./", "http://LOCALHOST/", "http://localhost.localdomain/",
    "http://does-not-exist.invalid/", "http://127.0.0.1.nip.invalid/",
]  # fmt: skip
MALFORMED = [
    "file:///etc/passwd", "file:/etc/passwd", "FILE:///etc/passwd", "ftp://example.org/x", "gopher://x/", "dict://x:11211/",
    "data:image/png;base64,aa", "ldap://x/", "jar:http://x!/", "netdoc:///etc/passwd", "blob:http://x/",
    "javascript:alert(1)",
    "http://", "http:///x", "//x/y", "nonsense", "http:/x", "http:x", "://x", "http://user:pw@example.org/",
    "http://user@example.org/", "http://:@example.org/", "http://@example.org/", "http://example.org\\@127.0.0.1/",
    "http://[::1", "http://::1]/", "http://[::1]x/", "http://[v1.x]/", "http://x:99999/", "http://x:-1/", "http://x:80:80/",
    "http://x:８０/", "http://x:1e2/", "http://example.org:abc/", "http://" + "a" * 64 + ".org/",
    "http://" + "a." * 200 + "org/",
    "http://x/" + "a" * 100_000, "http://x/" + "a" * 2048, "http://..org/", "http://%31%32%37.0.0.1/", "http://１２７.0.0.1/",
    "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://loc\u00adalhost/", "http://example.org%00.evil/",
    "http://*/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_not_public_gets_the_same_answer_as_what_does_not_exist(strict: Gateway, url: str) -> None:
    """Hostile inputs 12, 13, 14 and 15."""
    with unharmed(strict):
        body = refused(lambda: strict.post_json("/predict", {"url": url}), 400, "refused_url", LATEST)
    assert body["detail"] == UNKNOWN


@pytest.mark.parametrize("url", MALFORMED, ids=range(len(MALFORMED)))
def test_a_url_that_is_none_is_a_bad_request(strict: Gateway, url: str) -> None:
    """Hostile inputs 4, 10, 11 and 13."""
    with unharmed(strict):
        refused(lambda: strict.post_json("/predict", {"url": url}), 400, within=LATEST)


def test_the_model_servers_own_name_is_refused(strict: Gateway) -> None:
    """Hostile inputs 16, and any port; also where that name is public in tests/gateway/test_addresses.py."""
    words = Path(f"/proc/{strict.process.pid}/environ").read_text().split("\0")
    server = next(word.partition("=")[2] for word in words if word.startswith("TF_SERVING_HOST="))
    for url in (f"http://{server}/", f"http://{server.replace('localhost', 'LocalHost.')}/v1/models/tires"):
        with unharmed(strict):
            body = refused(lambda url=url: strict.post_json("/predict", {"url": url}), 400, "refused_url", LATEST)  # type: ignore[misc]
        assert body["detail"] == UNKNOWN


@pytest.mark.parametrize("target", [*REFUSED[12:42], "file:///etc/passwd", "ftp://x/", "http://u:p@127.0.0.1/"])
def test_a_redirect_is_judged_like_the_first_address(here: Gateway, origin: str, target: str) -> None:
    """Hostile inputs 18; more in tests/gateway/test_fetch.py."""
    refused(lambda: here.post_json("/predict", {"url": f"{origin}/to/{target}"}), 400, within=LATEST)


@pytest.mark.parametrize(
    "path",
    [
        "/404", "/500", "/204", "/403", "/304", "/nowhere", "/to-no-url", "/moved/9", "/garbage", "/gzip", "/short",
        "/html",
        "/silent", "/drip", "/drip-header", "/endless",
    ],
)  # fmt: skip
def test_what_the_pictures_server_does_is_the_callers_problem(here: Gateway, origin: str, path: str) -> None:
    """Hostile inputs 18, 19, 20, 21, 23 and 24."""
    code = "broken_image" if path == "/html" else "fetch_failed"
    refused(lambda: here.post_json("/predict", {"url": origin + path}), 422, code, within=LATEST)


@pytest.mark.parametrize("label", ["text/plain", "text/html", "application/octet-stream", "x", "image/svg+xml"])
def test_a_picture_under_any_label_is_answered(here: Gateway, origin: str, label: str) -> None:
    """Hostile inputs 24: bytes decide."""
    answered(lambda: here.post_json("/predict", {"url": f"{origin}/labelled/{label}"}))


@pytest.mark.parametrize("path", ["/tire.jpg", "/moved/2", "//twice?really#not", "/tire.jpg#" + "x" * 1900])
def test_a_url_that_is_odd_and_honest_is_fetched(here: Gateway, origin: str, path: str) -> None:
    answered(lambda: here.post_json("/predict", {"url": origin + path}))


def test_many_silent_servers_hold_up_nobody(here: Gateway, origin: str) -> None:
    """Hostile inputs 21: as many as there are threads wait for their deadline; probes are answered meanwhile."""
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(here.post_json, "/predict", {"url": f"{origin}/silent"}) for _ in range(8)]
        time.sleep(0.3)
        assert here.get("/healthz").status == here.get("/readyz").status == 200
        for one in waiting:
            refused(one.result, 422, "fetch_failed", within=LATEST)


def test_when_a_host_has_several_addresses_each_is_tried(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    port = int(origin.rsplit(":", 1)[1])
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    settings = Settings.from_environment({"LOUPE_FETCH_ALLOW": "127.0.0.0/8"})
    assert fetch(f"http://two.example:{port}/tire.jpg", settings) == PICTURE


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(RefusedURL):
        fetch("http://both.example/", Settings.from_environment({}))
