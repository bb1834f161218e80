"""Check API keys against a file of their hashes. The file is read again when it changes.

    python -m loupe.gateway.keys NAME >> keys.txt          # the key itself goes to the screen, once

    keys = Keys(Path("keys.txt"))                          # UserError if the file cannot be read or is malformed
    keys.name_of("loupe_…")                                # the name of its line, or None

A line is `name:hash`, the hash a SHA-256 in hex; # starts a comment. Plain SHA-256 is enough, and scrypt is not needed:
a key of 256 random bits cannot be guessed, and a slow hash would cost time at every request. Do not use passwords that
people made up. Two lines may have the same name: a new key beside the old one, until the old one is removed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time
from pathlib import Path

from loupe.errors import UserError

MAX_BYTES = 1 << 20  # of the file
CHECK_SECONDS = 1.0  # between two looks at the file, at least

_LINE = re.compile(r"([\w.-]{1,64}):([0-9a-fA-F]{64})", re.ASCII)
_log = logging.getLogger(__name__)

FileState = tuple[int, int, int]
Entries = list[tuple[bytes, str]]


class Keys:
    """The keys in a file.

    With `lock_on_error` an unreadable file means that no key is valid, instead of a UserError. This is for workers that
    are started later: the file was checked when the gateway started.
    """

    def __init__(self, path: Path, *, lock_on_error: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries: Entries = []
        self._file_state: FileState | None = None
        self._checked_at = time.monotonic()
        self._logged_error = ""
        try:
            self._file_state, self._entries = _read(path)
        except UserError as error:
            if not lock_on_error:
                raise
            self._log_once(error)

    def name_of(self, key: str) -> str | None:
        self._reload_if_changed()
        digest = digest_of(key).encode()
        match = None
        for known, name in self._entries:  # always to the end, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                match = name
        return match

    def _reload_if_changed(self) -> None:
        """Read the file again if it changed. If it cannot be read, keep the keys read last."""
        now = time.monotonic()
        if now - self._checked_at < CHECK_SECONDS or not self._lock.acquire(blocking=False):
            return
        try:
            self._checked_at = now
            if _read_file_state(self._path) != self._file_state:
                self._file_state, self._entries = _read(self._path)
                self._logged_error = ""
                _log.info("The keys of LOUPE_API_KEYS were read again: %d of them.", len(self._entries))
        except UserError as error:
            self._log_once(error)
        finally:
            self._lock.release()

    def _log_once(self, error: UserError) -> None:
        if str(error) != self._logged_error:
            self._logged_error = str(error)
            consequence = (
                "The keys that were known stay." if self._file_state else "Nobody is let in until it is whole."
            )
            _log.error("%s %s", error, consequence)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def check(path: str) -> None:
    """Raise UserError if the file of LOUPE_API_KEYS is unreadable or malformed. Called when the gateway starts."""
    if path:
        _read(Path(path))


def _read_file_state(path: Path) -> FileState:
    """Return what tells a changed file. Not the time alone: Kubernetes swaps a link, and the new file may be older."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"LOUPE_API_KEYS: {path} cannot be read ({error.strerror}).") from error
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path) -> tuple[FileState, Entries]:
    file_state = _read_file_state(path)
    if file_state[1] > MAX_BYTES:
        raise UserError(
            f"LOUPE_API_KEYS: {path} has {file_state[1]:,} bytes; a file of keys has at most {MAX_BYTES:,}."
        )
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"LOUPE_API_KEYS: {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"LOUPE_API_KEYS: {path} is no text.") from error
    return file_state, _parse(text, path)


def _parse(text: str, path: Path) -> Entries:
    """Read the lines of the file. Errors do not quote a line: it may hold a key in clear text.

    A file with only comments is valid and has no keys. An empty file is an error: it may be half written.
    """
    if not text.strip():
        raise UserError(f"LOUPE_API_KEYS: {path} is empty; make a key with python -m loupe.gateway.keys NAME.")
    entries: Entries = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if not match:
            raise UserError(f"LOUPE_API_KEYS: line {number} of {path} is not name:hash, the hash a SHA-256 in hex.")
        entries.append((match[2].lower().encode(), match[1]))
    return entries
