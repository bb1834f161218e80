"""Keys of those who may ask, in a file that holds only their hashes; it is read again when it changes.

    python -m loupe.gateway.keys NAME >> keys.txt          # the key itself goes to the screen, once

    keys = Keys(Path("keys.txt"))                          # UserError if the file cannot be read or is malformed
    keys.name_of("loupe_…")                                # the name that stands with it, or None

A line is `name:hash`, the hash a SHA-256 in hex; # starts a comment. A plain SHA-256, and not scrypt: it need only not
be turned back, and a key of 256 random bits cannot be guessed however fast guesses are; a slow hash would be paid for
at every request. Passwords that people think of do not belong here. Two lines may have one name: a new key beside the
old one, until that is taken out.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import sys
import threading
import time
from pathlib import Path

from loupe.cli import Parser
from loupe.errors import UserError

MOST_BYTES = 1 << 20  # of the file
CHECK_SECONDS = 1.0  # at most so often the file is looked at
PREFIX = "loupe_"  # so that a key that got into a repository is found there

_LINE = re.compile(r"([\w.-]{1,64}):([0-9a-fA-F]{64})", re.ASCII)
_log = logging.getLogger(__name__)

Mark = tuple[int, int, int]
Entries = list[tuple[bytes, str]]


class Keys:
    """`locked`: where the file cannot be read, nobody has a key, instead of an error. For a worker that takes another's
    place: the gateway as a whole was told at its start."""

    def __init__(self, path: Path, *, locked: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries: Entries = []
        self._mark: Mark | None = None
        self._looked = time.monotonic()
        self._told = ""
        try:
            self._mark, self._entries = _read(path)
        except UserError as error:
            if not locked:
                raise
            self._tell(error)

    def name_of(self, key: str) -> str | None:
        self._look_again()
        digest = digest_of(key).encode()
        found = None
        for known, name in self._entries:  # to the end, so that the time says nothing of where it stood
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _look_again(self) -> None:
        """A file that broke changes nothing: the keys stay that were read last."""
        now = time.monotonic()
        if now - self._looked < CHECK_SECONDS or not self._lock.acquire(blocking=False):
            return
        try:
            self._looked = now
            if _mark_of(self._path) != self._mark:
                self._mark, self._entries = _read(self._path)
                self._told = ""
                _log.info("The keys of LOUPE_API_KEYS were read again: %d of them.", len(self._entries))
        except UserError as error:
            self._tell(error)
        finally:
            self._lock.release()

    def _tell(self, error: UserError) -> None:
        if str(error) != self._told:
            self._told = str(error)
            known = "The keys that were known stay." if self._mark else "Nobody is let in until it is whole."
            _log.error("%s %s", error, known)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def check(path: str) -> None:
    """UserError where LOUPE_API_KEYS names a file that is none. For whoever starts the gateway."""
    if path:
        _read(Path(path))


def _mark_of(path: Path) -> Mark:
    """A secret of Kubernetes changes by its link, and the file behind may be older than the last one."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"LOUPE_API_KEYS: {path} cannot be read ({error.strerror}).") from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> tuple[Mark, Entries]:
    mark = _mark_of(path)
    if mark[1] > MOST_BYTES:
        raise UserError(f"LOUPE_API_KEYS: {path} has {mark[1]:,} bytes; a file of keys has at most {MOST_BYTES:,}.")
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"LOUPE_API_KEYS: {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"LOUPE_API_KEYS: {path} is no text.") from error
    return mark, _parse(text, path)


def _parse(text: str, path: Path) -> Entries:
    """Lines are not quoted: who put a key there in clear would find it in the log. Comments alone lock everybody out;
    a file of nothing is one that somebody is just writing."""
    if not text.strip():
        raise UserError(f"LOUPE_API_KEYS: {path} is empty; make a key with python -m loupe.gateway.keys NAME.")
    entries: Entries = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if not found:
            raise UserError(f"LOUPE_API_KEYS: line {number} of {path} is not name:hash, the hash a SHA-256 in hex.")
        entries.append((found[2].lower().encode(), found[1]))
    return entries


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("name", help="whose key it is; letters, digits, dots, dashes and underscores")
    name = parser.read().name
    if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
        raise UserError(f"A key's name is 1 to 64 letters, digits, dots, dashes and underscores: not {name!r}.")
    key = PREFIX + secrets.token_urlsafe(32)
    print(f"the key, shown this once: {key}\nthe line for the file:", file=sys.stderr, flush=True)
    print(f"{name}:{digest_of(key)}")
