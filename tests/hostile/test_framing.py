"""What is no HTTP, or none that every proxy reads alike; and senders that never come to an end. Over raw sockets."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import pytest

from tests.support.gateways import Answer, Gateway
from tests.support.hostile import (
    CHUNKED,
    PICTURE,
    READ_TIMEOUT,
    SMUGGLED,
    answered,
    conversation,
    post,
    raw,
    refused,
    sized,
)
from tests.support.pace import seconds

NO_HTTP = {
    "two lengths": post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello" + SMUGGLED),
    "one length twice": post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello" + SMUGGLED),
    "a list of lengths": post(b"Content-Length: 5, 5\r\n", b"hello" + SMUGGLED),
    "a length and chunks": post(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED),
    "chunks and a length": post(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED),
    "chunked twice": post(CHUNKED * 2, b"0\r\n\r\n" + SMUGGLED),
    "chunked, chunked": post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "chunked not last": post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n" + SMUGGLED),
    "a coding unknown": post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "a coding and chunked": post(b"Transfer-Encoding: cow, chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "no coding": post(b"Transfer-Encoding: \r\n", b"0\r\n\r\n" + SMUGGLED),
    "identity": post(b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n" + SMUGGLED),
    "a tab before chunked": post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "a quoted chunked": post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n" + SMUGGLED),
    "a space before the colon": post(b"Content-Length : 5\r\n", b"hello" + SMUGGLED),
    "a space before a coding's colon": post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "a folded header": post(b"X: a\r\n Content-Length: 5\r\n", b"hello" + SMUGGLED),
    "a folded coding": post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "a length of +5": post(b"Content-Length: +5\r\n", b"hello" + SMUGGLED),
    "a length of -1": post(b"Content-Length: -1\r\n"),
    "a length of 0x5": post(b"Content-Length: 0x5\r\n", b"hello"),
    "a length of 5_0": post(b"Content-Length: 5_0\r\n", b"hello"),
    "a length of 1e1": post(b"Content-Length: 1e1\r\n", b"hello"),
    "a length beyond all numbers": post(b"Content-Length: " + b"9" * 30 + b"\r\n"),
    "a length in superscript": post("Content-Length: ²\r\n".encode("latin-1"), b"hello"),
    "an empty length": post(b"Content-Length:\r\n", b"hello"),
    "chunks in HTTP/1.0": post(CHUNKED, b"0\r\n\r\n" + SMUGGLED, b"POST /predict HTTP/1.0"),
    "bare line feeds": b"POST /predict HTTP/1.1\nHost: here\nContent-Length: 5\n\nhello",
    "one bare line feed": b"POST /predict HTTP/1.1\r\nHost: here\nContent-Length: 5\r\n\r\nhello",
    "a bare end of the head": b"GET /healthz HTTP/1.1\r\nHost: here\n\r\n",
    "a bare carriage return": post(b"X: a\rContent-Length: 5\r\n", b"hello"),
    "a NUL in a header": post(b"X: a\0b\r\n"),
    "a NUL in a name": post(b"X\0: a\r\n"),
    "a NUL in the address": post(b"", line=b"GET /\0 HTTP/1.1"),
    "a control in the address": post(b"", line=b"GET /\x7f HTTP/1.1"),
    "bare bytes in the address": post(b"", line=b"GET /\xff\xfe HTTP/1.1"),
    "a space in the address": post(b"", line=b"GET /a b HTTP/1.1"),
    "no name": post(b": a\r\n"),
    "no colon": post(b"nonsense\r\n"),
    "two hosts": post(b"Host: there\r\n"),
    "two types": post(b"Content-Type: image/png\r\nContent-Type: application/json\r\n"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "HTTP/1.2 in small letters": post(b"", line=b"GET / http/1.1"),
    "HTTP/3.7": post(b"", line=b"GET / HTTP/3.7"),
    "HTTP/11.1": post(b"", line=b"GET / HTTP/11.1"),
    "no version": post(b"", line=b"GET /"),
    "a small method": post(b"", line=b"get /healthz HTTP/1.1"),
    "an endless method": b"G" * 200_000,
    "a method unknown": post(b"", line=b"BREW / HTTP/1.1"),
    "a method with a colon": post(b"", line=b"GE:T / HTTP/1.1"),
    "a method without end": post(b"", line=b"G" * 300 + b" / HTTP/1.1"),
    "a tab for a space": post(b"", line=b"GET\t/\tHTTP/1.1"),
    "an expectation unknown": sized(more=b"Expect: 200-ok\r\n"),
    "TLS": bytes.fromhex("16030102000100 01fc0303") + b"\x5a" * 500,
    "TLS of old": bytes.fromhex("802e0100020015000000100100800200800300800400800600400700c0"),
    "SOCKS": b"\x05\x01\0",
    "RDP": bytes.fromhex("0300002f2ae00000000000436f6f6b69653a206d737473686173683d"),
    "random bytes": bytes(range(128, 256)),
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "SMTP": b"EHLO here\r\n\r\n",
    "a proxy's greeting": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "a proxy's binary greeting": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
    + bytes(12)
    + b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "gRPC": b"PRI * HTTP/2.0\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_is_refused_once_and_nothing_behind_it_is_read(here: Gateway, name: str) -> None:
    """Also what would smuggle a second request past a proxy that reads the first one otherwise."""
    answers: list[Answer] = []

    def ask() -> Answer:
        answers.extend(conversation(here, NO_HTTP[name]))
        return answers[0]

    refused(ask, 400, "bad_request")
    assert len(answers) == 1


TOO_LONG = {
    "address": (post(b"", line=b"GET /" + b"a" * 9000 + b" HTTP/1.1"), 431),
    "query": (post(b"", line=b"POST /predict?top=" + b"1" * 9000 + b" HTTP/1.1"), 431),
    "header": (post(b"X: " + b"a" * 64_000 + b"\r\n"), 431),
    "name of a header": (post(b"X" * 9000 + b": a\r\n"), 431),
    "cookies": (post(b"Cookie: " + b"a=b; " * 3000 + b"\r\n"), 431),
    "ten thousand headers": (post(b"A: b\r\n" * 10_000), 431),
    "ten thousand names": (post(b"".join(b"A%d: b\r\n" % n for n in range(10_000))), 431),
    "a hundred and one headers": (post(b"A: b\r\n" * 101), 431),
    "head without an end": (b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000, 431),
    "length of a terabyte": (post(b"Content-Length: 1000000000000\r\n"), 413),
    "length one beyond": (post(b"Content-Length: 10000001\r\n"), 413),
    "a million chunks": (post(CHUNKED, b"1\r\nx\r\n" * 3_600_000), 413),
    "extensions of chunks": (post(CHUNKED, (b"1;" + b"e" * 250 + b"\r\nx\r\n") * 90_000), 413),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_what_is_too_long_is_refused_before_it_is_taken(here: Gateway, name: str) -> None:
    """Hostile inputs 5 and 9b."""
    data, status = TOO_LONG[name]
    code = {413: "too_large", 431: "head_too_large"}[status]
    refused(lambda: raw(here, data), status, code)


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n", b"-5\r\nabcde\r\n", b"+5\r\nabcde\r\n0\r\n\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n", b"\r\n\r\n", b" \r\n",
        b"f" * 40 + b"\r\nabc",
        b"5 5\r\nabcde\r\n0\r\n\r\n", b"5\r\nabcdefg\r\n0\r\n\r\n", b"5\nabcde\n0\n\n", b"5\rabcde", b"f" * 9000,
        b"5;\x00\r\nabcde\r\n0\r\n\r\n", b"5;a=\"\r\nabcde\r\n0\r\n\r\n", b"5\r\nabcde0\r\n\r\n", b"5;" + b"a" * 9000,
        b"5\r\nabcde\r\n0\r\nContent-Length: 5\r\n\r\n", b"5\r\nabcde\r\n0\r\nno trailer\r\n\r\n",
        b"5\r\nabcde\r\n0\r\nHost: other\r\n\r\n", b"5\r\nabcde\r\n0\r\nX: a\0b\r\n\r\n",
        b"5\r\nabcde\r\n0\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"5\r\nabcde\r\n0\r\nConnection: close\r\n\r\n", b"5\r\nabcde\r\n0\r\nUpgrade: h2c\r\n\r\n",
    ],
)  # fmt: skip
def test_chunks_that_are_none_are_refused_at_once(here: Gateway, chunks: bytes) -> None:
    """The client neither closes nor sends more: no thread waits for it."""
    refused(lambda: raw(here, post(CHUNKED, chunks + SMUGGLED)), 400, "bad_request")


@pytest.mark.parametrize(
    "part", [b"", b"5", b"5\r\n", b"5\r\nabc", b"5\r\nabcde", b"5\r\nabcde\r\n", b"5\r\nabcde\r\n0", b"5\r\na\r\n0\r\n"]
)
def test_chunks_that_break_off_are_refused(here: Gateway, part: bytes) -> None:
    refused(lambda: raw(here, post(CHUNKED, part), then_close=True), 400, "bad_request")


@pytest.mark.parametrize("kept", [1, 10, 40, 60, -1, -100])
def test_a_request_that_breaks_off_is_refused(here: Gateway, kept: int) -> None:
    refused(lambda: raw(here, sized()[:kept], then_close=True), 400, "bad_request")


@pytest.mark.timing
def test_odd_framing_byte_by_byte_holds_no_thread_either(here: Gateway) -> None:
    """Hostile inputs 9a, for bodies that only the parser can refuse: many more of them than threads."""
    odd = [
        post(b"Transfer-Encoding: gzip, chunked\r\n", b"5"),
        post(b"Transfer-Encoding: Chunked\r\n", b"5\r\nab"),
        post(b"Transfer-Encoding: chunked \r\n", b"1"),
        post(CHUNKED, b"5;" + b"x" * 300),
        post(CHUNKED, b"zz"),
    ]
    with ExitStack() as stack:
        for n in range(60):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", here.port), timeout=60))
            connection.send(odd[n % len(odd)])
        started = time.monotonic()
        while time.monotonic() - started < 1:
            answered(lambda: here.post("/predict", PICTURE), within=seconds(1))


@pytest.mark.parametrize(
    "start",
    [
        *(b"P", post(CHUNKED, b"5\r\nab"), post(CHUNKED, b"ffffffff\r\nabc")),
        *(pytest.param(start, marks=pytest.mark.slow) for start in (b"POST /predict HTTP/1.1\r\n", sized()[:-1])),
    ],
)
def test_who_sends_the_start_alone_is_cut_at_the_deadline(here: Gateway, start: bytes) -> None:
    """Hostile inputs 9a; many of them at once in tests/gateway/test_load.py."""
    started = time.monotonic()
    refused(lambda: raw(here, start), 408, "request_timeout")
    assert time.monotonic() - started > READ_TIMEOUT - 0.5
