"""Download a file, resuming where an earlier try broke off. Standard library alone.

    download("https://…/flower_photos.tgz", Path("data/flowers.tgz"), size=228_813_984)

A partial file is kept as .part, with the server's mark of the file's version, so that two versions are never joined.
The file has its name only once it is complete.
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
TRIES = 5  # in a row that bring no more bytes
PAUSE = 0.5  # seconds before the second try; each further one waits twice as long


class BrokenDownload(Exception):
    """A try that ended early; another may resume it."""


def download(url: str, target: Path, size: int = 0, authorization: str = "") -> None:
    """Download `url` to `target`. `size` is the number of bytes if it is known. `authorization` is sent to the first
    address only."""
    # Try until the file is complete, or until several tries in a row bring nothing.
    partial = partial_of(target)
    idle_tries, most_received = 0, -1
    while True:
        try:
            _receive(url, partial, authorization)
            break
        except BrokenDownload as error:
            received = _size(partial)
            idle_tries, most_received = (0, received) if received > most_received else (idle_tries + 1, most_received)
            if idle_tries >= TRIES:
                raise UserError(
                    f"The download broke off at {received / 1e6:.1f} MB ({error}): run it again later."
                ) from error
            time.sleep(PAUSE * 2**idle_tries)
    # Refuse another file than the known one.
    if size and _size(partial) != size:
        received_in_all = _size(partial)
        _discard(partial)
        raise UserError(f"{url} gave {received_in_all} bytes where {size} were known: something else lies there now.")
    # Put the file into place.
    _version_file(partial).unlink(missing_ok=True)
    partial.replace(target)


def partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _receive(url: str, partial: Path, authorization: str) -> None:
    """Send one request. The bytes are appended if the server says that it is still the same file."""
    # Ask for the rest of the same version only.
    received, version = _size(partial), _read_version(partial)
    request = urllib.request.Request(url, headers={"User-Agent": "loupe"})
    if received and version:
        request.add_header("Range", f"bytes={received}-")
        request.add_header("If-Range", version)
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    # Append the bytes, and turn network errors into BrokenDownload.
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            _append(response, partial, received if response.status == 206 else 0)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{received}":
            return  # it was complete already
        _raise_http_error(url, partial, error)
    except urllib.error.URLError as error:
        reason = (
            f"{urlsplit(url).hostname} cannot be reached ({getattr(error.reason, 'strerror', None) or error.reason})"
        )
        if received:
            raise BrokenDownload(reason) from error
        raise UserError(f"{reason}.") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise BrokenDownload(str(error) or type(error).__name__) from error


def _append(response: http.client.HTTPResponse, partial: Path, start: int) -> None:
    """Write the bytes of a response to the partial file, from `start` on."""
    # Refuse responses that are not the file asked for.
    if response.headers.get_content_type() == "text/html":
        raise UserError(f"{urlsplit(response.url).hostname} answered with a web page instead of a file.")
    if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        _discard(partial)
        raise BrokenDownload("another part came than was asked for")
    # Refuse what the disk has no room for.
    length = int(response.headers.get("Content-Length") or 0)
    free = shutil.disk_usage(partial.parent).free
    if length > free:
        raise UserError(f"{partial.parent} has {free / 1e6:.0f} MB free, and {length / 1e6:.0f} MB are to come.")
    # Note the version, to resume this one only.
    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    _version_file(partial).write_text(
        json.dumps({"version": "" if version.startswith("W/") else version})
    )  # weak marks are not exact
    # Write the bytes.
    bar = Bar(partial.name.removesuffix(".part"), start, start + length if length else 0)
    with partial.open("r+b" if start else "wb") as file:
        file.seek(start)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.add(len(chunk))
    bar.end()
    if length and bar.received != bar.total:
        raise BrokenDownload(f"{bar.received} of {bar.total} bytes came")


def _raise_http_error(url: str, partial: Path, error: urllib.error.HTTPError) -> None:
    """Raise BrokenDownload if a later try may succeed, otherwise a UserError."""
    if error.code == 416:
        _discard(partial)
        raise BrokenDownload("the file has changed there") from error
    if error.code in (429, 500, 502, 503, 504):
        raise BrokenDownload(f"the server answers {error.code}") from error
    raise UserError(f"{url} answers {error.code} {error.reason}.") from error


class Bar:
    """A progress bar of a download: bytes, speed and time left on a terminal, otherwise one line at the end."""

    def __init__(self, title: str, received: int, total: int) -> None:
        self.title, self.received, self.total, self.resumed_from = title, received, total, received
        self.started = self.shown_at = time.monotonic()

    def add(self, count: int) -> None:
        self.received += count
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.shown_at < 0.2:
            return
        self.shown_at = now
        speed = (self.received - self.resumed_from) / (now - self.started)
        line = f"{self.title}  {self.received / 1e6:.0f} MB  {speed / 1e6:.1f} MB/s"
        if self.total:
            line += f"  {self.received / self.total:.0%}  {_duration((self.total - self.received) / speed)} left"
        print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        clear = "\r\033[K" if sys.stderr.isatty() else ""
        megabytes, seconds = (self.received - self.resumed_from) / 1e6, time.monotonic() - self.started
        print(f"{clear}{self.title}  {megabytes:.1f} MB in {_duration(seconds)}", file=sys.stderr)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _size(partial: Path) -> int:
    return partial.stat().st_size if partial.exists() else 0


def _version_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _read_version(partial: Path) -> str:
    try:
        return str(json.loads(_version_file(partial).read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _version_file(partial).unlink(missing_ok=True)
