"""Where a request ends: told from the bytes that came so far, without waiting for more.

    request = Arriving(max_bytes)
    request.take(data)                    # as often as the socket gives some
    request.state                         # "head", "body", "whole", "long_head", "too_large", "no_http" or "odd"

`odd` is whatever is not plain HTTP/1.1 framing, such as two lengths or a chunk without a size: gunicorn's own parser
judges what came of it, and refuses it in its words. `no_http` will never be a head. `whole` bytes are
request.parts_of_it(); what follows stays for the next one.
"""

from __future__ import annotations

import re

from loupe.gateway.observe.record import Head

MAX_HEAD = 1 << 16
MAX_CHUNK_LINE = 256
OVERHEAD = 2  # times the limit, for the lines of chunks
MAX_CHUNKS = 100_000  # a body in chunks of a byte or two is no picture, and costs as much time as a large one

_BEGINS = re.compile(rb"[\r\n]*(?:[!#$%&'*+.^_`|~0-9A-Za-z-]|$)")  # as a method does; TLS does not
_BARE_END = re.compile(rb"\n\n|\n\r\n(?<!\r\n\r\n)")  # of a head whose lines do not end as HTTP's do
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([^\r\n]*)", re.IGNORECASE)
_CODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*([^\r\n]*)", re.IGNORECASE)
_LINE = re.compile(rb"[\r\n]*([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([^ ?\r\n]{1,300})")  # its query may hold secrets
_NAMES_IT = re.compile(rb"\r\n(x-request-id|traceparent|tracestate):[ \t]*([^\r\n]*)", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)


def head_of(data: bytes) -> Head:
    """`data` may be any bytes, and less than a head: its headers are read when all of them are there."""
    line = _LINE.match(data)
    if not line:
        return Head("", "", {})
    headers: dict[str, str] = {}
    end = data.find(b"\r\n\r\n", line.end(), MAX_HEAD)
    for name, value in _NAMES_IT.findall(data, line.end(), end + 2) if end >= 0 else ():
        key, text = name.decode().lower(), value.decode("latin-1").strip(" \t")
        headers[key] = f"{headers[key]},{text}" if key in headers else text  # as gunicorn has it
    return Head(line[1].decode(), line[2].decode("utf-8", "replace"), headers)


class Arriving:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._restart()

    def _restart(self) -> None:
        self.state = "head"
        self.expects_word = False  # the client waits for "100 Continue" before it sends the body
        self._end = self._head_end = 0  # of the request, as far as it is known, and of its head
        self._searched = 0
        self._chunked = False
        self._body = 0  # bytes of body announced so far
        self._chunks = 0
        if self._buffer:
            self._look()

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def target(self) -> bytes:
        """What the request line asks for, without its query."""
        words = bytes(self._buffer[:2048]).split(b"\r\n", 1)[0].split(b" ")
        return words[1].partition(b"?")[0] if len(words) == 3 else b""

    @property
    def head(self) -> Head:
        return head_of(bytes(self._buffer[: self._head_end or MAX_HEAD]))

    def take(self, data: bytes | memoryview) -> None:
        self._buffer += data
        self._look()

    def parts_of_it(self) -> tuple[bytes, bytes | None]:
        """The request's head and body; None for a body that is in the first part still, in chunks or odd. What is left
        belongs to the next."""
        whole = self.state == "whole"
        end = self._end if whole else len(self._buffer)
        body = self._head_end if whole and not self._chunked else end
        with memoryview(self._buffer) as view:
            parts = bytes(view[:body]), bytes(view[body:end]) if body < end else None
        del self._buffer[:end]
        self._restart()
        return parts

    def _look(self) -> None:
        if self.state == "head":
            self._look_for_head()
        if self.state == "body":
            if self._chunked:
                self._follow_chunks()
            elif len(self._buffer) >= self._end:
                self.state = "whole"

    def _look_for_head(self) -> None:
        start = max(0, self._searched - 3)
        end = self._buffer.find(b"\r\n\r\n", start, MAX_HEAD)
        self._searched = len(self._buffer)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD:
                self.state = "long_head"
            elif not _BEGINS.match(self._buffer) or _BARE_END.search(self._buffer, start):
                self.state = "no_http"
            return
        self._end = end + 4
        head = bytes(self._buffer[: end + 2])
        if _EXPECT.search(head):
            self.expects_word = True
            shorter = _EXPECT.sub(b"", head) + b"\r\n"
            self._buffer[: self._end] = shorter
            self._end = len(shorter)
        self._head_end = self._end
        lengths, codings = _LENGTH.findall(head), _CODING.findall(head)
        if codings:
            last = codings[-1].lower().rpartition(b",")[2].strip(b" \t")
            self._chunked = len(codings) == 1 and last == b"chunked" and not lengths
            self.state = "body" if self._chunked else "odd"
        elif len(lengths) > 1 or (lengths and not re.fullmatch(rb"[0-9]+[ \t]*", lengths[0])):
            self.state = "odd"
        else:
            length = _whole(lengths[0], 10) if lengths else 0
            self._end += length
            self.state = "too_large" if length > self._max_bytes else "body"

    def _follow_chunks(self) -> None:
        """`_end` is where the next chunk's line starts; it moves on for each that has come whole."""
        while self.state == "body" and self._end < len(self._buffer):
            line = self._buffer.find(b"\r\n", self._end, self._end + MAX_CHUNK_LINE)
            if line < 0:
                if len(self._buffer) - self._end > MAX_CHUNK_LINE:
                    self.state = "odd"
                return
            size = bytes(self._buffer[self._end : line]).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]+", size):
                self.state = "odd"
            elif not (length := _whole(size, 16)):
                self._end_trailer(line)
                return
            else:
                self._next_chunk(line + 2, length)
        if self.state == "body" and len(self._buffer) > OVERHEAD * self._max_bytes + MAX_HEAD:
            self.state = "too_large"

    def _next_chunk(self, start: int, size: int) -> None:
        self._chunks += 1
        if self._body + size > self._max_bytes or self._chunks > MAX_CHUNKS:
            self.state = "too_large"
            return
        after = start + size
        if bytes(self._buffer[after : after + 2]) not in (b"", b"\r", b"\r\n"):
            self.state = "odd"
            return
        self._body += size
        self._end = after + 2

    def _end_trailer(self, line: int) -> None:
        if self._buffer[line + 2 : line + 4] == b"\r\n":
            end = line
        else:
            end = self._buffer.find(b"\r\n\r\n", line + 2, line + MAX_HEAD)
        if end >= 0:
            self._end, self.state = end + 4, "whole"
        elif len(self._buffer) - line > MAX_HEAD:
            self.state = "odd"


def _whole(digits: bytes, base: int) -> int:
    """Beyond 18 digits any number will do: it is over every limit."""
    return int(digits.strip().lstrip(b"0")[:18] or b"0", base)
