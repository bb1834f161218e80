"""Requests as no honest client sends them, and as some honest ones do: methods, addresses, heads. Over raw sockets."""

from __future__ import annotations

import gzip
import threading
import zlib

import pytest

from tests.support.gateways import Gateway
from tests.support.hostile import (
    CHUNKED,
    PICTURE,
    SMUGGLED,
    answered,
    conversation,
    in_chunks,
    post,
    raw,
    refused,
    sized,
)

# ------------------------------------------------------------------------------------------- addresses and methods


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS"])
def test_another_method_than_post_is_refused_and_told_which_is_right(here: Gateway, method: str) -> None:
    """Hostile inputs 8."""
    answer = here.ask(method, "/predict", None, {})
    if method == "OPTIONS":
        assert answer.status == 200
    elif method == "HEAD":
        assert (answer.status, answer.body) == (405, b"")
    else:
        refused(lambda: answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "target",
    [
        "/nothing", "/predict/", "/predict/x", "/PREDICT", "/predict;x=1", "/predict%00", "/%", "/%zz", "/%ff",
        "/%2e%2e/%2e%2e/etc/passwd", "/../../etc/passwd", "/samples/../../../etc/passwd", "/samples/..%2f..%2fREADME",
        "/samples/%2e%2e", "/samples/", "/samples/%00.jpg", "/samples/cracked-1.jpg/", "/page/../app.py",
        "/page/..%2froutes.py", "/page/", "/page/%5c..%5croutes.py", "/static/x", "/.env", "/.git/config", "/wp-login",
        "/actuator", "/" + "a/" * 1000, "/" + "%f0%9f%92%a9" * 100, "/metrics", "/debug",
    ],
)  # fmt: skip
def test_what_lies_at_no_address_is_not_found(here: Gateway, target: str) -> None:
    """Hostile inputs 8."""
    refused(lambda: raw(here, post(b"", line=b"GET %b HTTP/1.1" % target.encode())), 404, "not_found")
    sent = raw(here, post(b"Content-Length: 0\r\n", line=b"POST %b HTTP/1.1" % target.encode()))
    refused(lambda: sent, 405 if target.startswith(("/samples/", "/page/")) and sent.status == 405 else 404)


def test_odd_targets_lead_nowhere(here: Gateway) -> None:
    """A whole URL, as proxies are asked; a star; another host: none makes a proxy of this service."""
    for line in (b"GET http://example.org/ HTTP/1.1", b"GET http://10.0.0.1:80/nothing HTTP/1.1", b"OPTIONS * HTTP/1.1",
                 b"CONNECT example.org:443 HTTP/1.1", b"GET ? HTTP/1.1", b"GET # HTTP/1.1", b"GET //example HTTP/1.1",
                 b"GET example.org HTTP/1.1", b"GET /#fragment HTTP/1.1", b"GET http://[::1 HTTP/1.1"):  # fmt: skip
        answer = raw(here, post(b"Connection: close\r\n", line=line))
        assert answer.status in (200, 400, 404, 405), (line, answer)
        if answer.status != 200:
            refused(lambda answer=answer: answer, answer.status)  # type: ignore[misc]
        else:
            assert b"Example Domain" not in answer.body


@pytest.mark.parametrize(
    "query",
    [
        "top=abc", "top=-1", "top=0", "top=1.5", "top=", "top=1e9", "top=%EF%BC%91", "top=0x1", "top=+1", "top=%201",
        "top=1%00", "top=99999999999999999999", "top=NaN", "top=1_0", "top=null", "top", "top=" + "0" * 3000,
        "heatmap=yes", "heatmap=2", "heatmap=", "heatmap=true", "top=%ff", "top[]=1&top=x", "top=a&top=1",
        "top=1&top=2",
    ],
)  # fmt: skip
def test_a_query_that_makes_no_sense_is_a_bad_request(here: Gateway, query: str) -> None:
    """Hostile inputs 9."""
    refused(lambda: here.post(f"/predict?{query}", PICTURE), 400)


# ------------------------------------------------------------------------------------------ odd, and yet honest

HONEST = {
    "HTTP/1.0": post(b"Content-Length: %d\r\n" % len(PICTURE), PICTURE, b"POST /predict HTTP/1.0"),
    "no host in HTTP/1.0": b"POST /predict HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE,
    "an empty line first": b"\r\n" + sized(),
    "chunks of one byte": post(CHUNKED, in_chunks(size=1)),
    "chunks with extensions": post(CHUNKED, in_chunks(extension=b";a=b;c=\"d e\"")),
    "chunks with a trailer": post(CHUNKED, in_chunks(trailer=b"X-Checksum: abc\r\n")),
    "chunks in capital letters": post(b"TRANSFER-ENCODING: CHUNKED\r\n", in_chunks()),
    "a space behind chunked": post(b"Transfer-Encoding: chunked \r\n", in_chunks()),
    "one chunk of leading zeros": post(CHUNKED, b"%08x\r\n%s\r\n000\r\n\r\n" % (len(PICTURE), PICTURE)),
    "a length with zeros": post(b"Content-Length: %012d\r\n" % len(PICTURE), PICTURE),
    "no space behind a colon": post(b"content-length:%d\r\n" % len(PICTURE), PICTURE),
    "tabs about a length": post(b"Content-Length:\t %d \t\r\n" % len(PICTURE), PICTURE),
    "an underscore in a name": sized(more=b"X_Y: z\r\nContent_Length: 3\r\n"),
    "old letters in a header": sized(more="X: grüße\r\n".encode("latin-1")),
    "an empty header": sized(more=b"X:\r\n"),
    "ninety headers": sized(more=b"".join(b"X-%d: y\r\n" % n for n in range(90))),
    "eight kilobytes of a cookie": sized(more=b"Cookie: " + b"a=b; " * 1600 + b"\r\n"),
    "keys in a query that it does not know": sized().replace(b"/predict", b"/predict?utm_source=x&a[]=1&%00=%ff", 1),
    "zeros before a number": sized().replace(b"/predict", b"/predict?top=0003&heatmap=0", 1),
    "more labels than there are": sized().replace(b"/predict", b"/predict?top=9999", 1),
    "a percent-encoded address": sized().replace(b"/predict", b"/%70redict", 1),
    "two slashes": sized().replace(b"/predict", b"//predict", 1),
    "a whole URL as address": sized().replace(b"/predict", b"http://here/predict", 1),
    "an upgrade to HTTP/2": sized(
        more=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    ),
    "headers of a proxy": sized(
        more=b"X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=x\r\nVia: 1.1 x\r\n"
    ),
    "a range, as for a file": sized(more=b"Range: bytes=0-1\r\nIf-None-Match: *\r\n"),
    "a wish for another form": sized(more=b"Accept: text/html\r\nAccept-Encoding: br\r\nAccept-Charset: utf-7\r\n"),
    "a request id of its own": sized(more=b"X-Request-ID: my-own.id_1\r\n"),
    "a request id that is none": sized(more=b"X-Request-ID: <script>alert(1)</script>\r\n"),
    "an expectation in HTTP/1.0": sized(more=b"Expect: 100-continue\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "an expectation it does not wait for": sized(more=b"expect: 100-Continue\r\n"),
    "an override of the method": sized(more=b"X-HTTP-Method-Override: DELETE\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_what_is_odd_and_honest_is_answered(here: Gateway, name: str) -> None:
    body = answered(lambda: raw(here, HONEST[name]))
    assert "<" not in body["request_id"]


def test_requests_of_all_kinds_one_behind_another_are_answered_in_order(here: Gateway) -> None:
    """A body may look like a request, and is none."""
    inside = sized(SMUGGLED + PICTURE)
    last = b"GET /nothing HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    sent = [
        sized(),
        post(CHUNKED, in_chunks()),
        inside,
        b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
        sized(b""),
        sized(),
        last,
    ]
    answers = conversation(here, b"".join(sent))
    assert [answer.status for answer in answers] == [200, 200, 422, 200, 422, 200, 404]


def test_hundreds_of_requests_in_one_piece_hold_up_nobody(here: Gateway) -> None:
    """Half of them probes, whose threads are few."""
    many = (sized() + b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n") * 200
    got: list[int] = []
    sender = threading.Thread(
        target=lambda: got.extend(one.status for one in conversation(here, many + b"GET / HTTP/1.0\r\n\r\n"))
    )
    sender.start()
    answered(lambda: here.post("/predict", PICTURE))
    sender.join(60)
    assert got == [200] * 401


@pytest.mark.parametrize("coding", ["gzip", "deflate", "x-gzip, chunked", "br", "zstd"])
def test_a_body_that_is_packed_is_never_unpacked(here: Gateway, coding: str) -> None:
    """Ten megabytes of zeros in ten kilobytes; and a picture, which is none in this form."""
    for data in (bytes(10_000_000), PICTURE):
        packed = gzip.compress(data) if "gzip" in coding else zlib.compress(data)
        for kind, status in (("image/jpeg", 422), ("application/json", 400)):
            header = {"Content-Encoding": coding, "Content-Type": kind}
            refused(lambda header=header, packed=packed: here.ask("POST", "/predict", packed, header), status)  # type: ignore[misc]


def test_a_coding_over_the_chunks_is_not_taken(here: Gateway) -> None:
    sent = post(b"Transfer-Encoding: gzip, chunked\r\n", in_chunks(gzip.compress(PICTURE)))
    refused(lambda: raw(here, sent), 400, "bad_request")


def test_a_web_socket_is_not_opened(here: Gateway) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    assert raw(here, post(upgrade, line=b"GET /healthz HTTP/1.1")).json() == {"status": "ok"}
