"""Download a file, and go on where an earlier try broke off. Standard library alone.

    download("https://…/flower_photos.tgz", Path("data/flowers.tgz"), size=228_813_984)

What arrived so far waits beside it as .part, with the server's mark of the file's version, so that two versions are
never joined. The file has its name only once it is whole.
"""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from loupe.errors import UserError

CHUNK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without a byte
TRIES = 5  # in a row that bring nothing more
PAUSE = 0.5  # seconds before the second try; each further one waits twice as long


class Broken(Exception):
    """A try ended early; another may go on from there."""


def download(url: str, target: Path, size: int = 0, authorization: str = "") -> None:
    """`size`: the bytes that are known to come, if they are. `authorization` is for the first address alone."""
    part = target.with_name(target.name + ".part")
    idle, most = 0, -1
    while True:
        try:
            _receive(url, part, authorization)
            break
        except Broken as error:
            have = _size(part)
            idle, most = (0, have) if have > most else (idle + 1, most)
            if idle >= TRIES:
                raise UserError(
                    f"The download broke off at {have / 1e6:.1f} MB ({error}): run it again later."
                ) from error
            time.sleep(PAUSE * 2**idle)
    if size and _size(part) != size:
        came = _size(part)
        _forget(part)
        raise UserError(f"{url} gave {came} bytes where {size} were known: something else lies there now.")
    _note(part).unlink(missing_ok=True)
    part.replace(target)


def _receive(url: str, part: Path, authorization: str) -> None:
    """One request; what comes is appended if the server says that it is the same file still."""
    have, version = _size(part), _version(part)
    request = urllib.request.Request(url, headers={"User-Agent": "loupe"})
    if have and version:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            _append(answer, part, have if answer.status == 206 else 0)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it had come
        _refused(url, part, error)
    except urllib.error.URLError as error:
        why = f"{urlsplit(url).hostname} cannot be reached ({getattr(error.reason, 'strerror', None) or error.reason})"
        if have:
            raise Broken(why) from error
        raise UserError(f"{why}.") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise Broken(str(error) or type(error).__name__) from error


def _append(answer: http.client.HTTPResponse, part: Path, start: int) -> None:
    if answer.headers.get_content_type() == "text/html":
        raise UserError(f"{urlsplit(answer.url).hostname} answered with a web page instead of a file.")
    if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        _forget(part)
        raise Broken("another part came than was asked for")
    length = int(answer.headers.get("Content-Length") or 0)
    free = shutil.disk_usage(part.parent).free
    if length > free:
        raise UserError(f"{part.parent} has {free / 1e6:.0f} MB free, and {length / 1e6:.0f} MB are to come.")
    version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    _note(part).write_text(json.dumps({"version": "" if version.startswith("W/") else version}))  # weak: not exact
    bar = Bar(part.name.removesuffix(".part"), start, start + length if length else 0)
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            bar.add(len(chunk))
    bar.end()
    if length and bar.done != bar.total:
        raise Broken(f"{bar.done} of {bar.total} bytes came")


def _refused(url: str, part: Path, error: urllib.error.HTTPError) -> None:
    if error.code == 416:
        _forget(part)
        raise Broken("the file has changed there") from error
    if error.code in (429, 500, 502, 503, 504):
        raise Broken(f"the server answers {error.code}") from error
    raise UserError(f"{url} answers {error.code} {error.reason}.") from error


class Bar:
    """How far, how fast, how long still: on a terminal as it goes, elsewhere a line at the end."""

    def __init__(self, what: str, done: int, total: int) -> None:
        self.what, self.done, self.total, self.start = what, done, total, done
        self.began = self.shown = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.shown < 0.2:
            return
        self.shown = now
        speed = (self.done - self.start) / (now - self.began)
        line = f"{self.what}  {self.done / 1e6:.0f} MB  {speed / 1e6:.1f} MB/s"
        if self.total:
            line += f"  {self.done / self.total:.0%}  {_time((self.total - self.done) / speed)} left"
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        came, took = (self.done - self.start) / 1e6, time.monotonic() - self.began
        print(f"{clear}{self.what}  {came:.1f} MB in {_time(took)}", file=sys.stderr)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _version(part: Path) -> str:
    try:
        return str(json.loads(_note(part).read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)
