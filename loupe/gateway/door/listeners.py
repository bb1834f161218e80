"""Stop listening without resetting those who are just being let in.

    if stop_accepting(listener, os.getppid()): ...   # no new ones; a moment later accept the rest, and close it
    listen_again(listener)                           # in a new worker: one that was killed may have left it deaf

Whoever was let in between a last accept() and close() would be reset, and nobody heard what they wanted. So first the
system is told to let nobody in any more: it drops what asks for a connection, and the caller's system asks again after
a second, when it learns that nobody is there. No library does this. Linux only; elsewhere that moment stays.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
FLAGS, SYN, ACK = 13, 0x02, 0x10  # of a TCP header: the byte they are in, and two of its bits
_LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x30, 0x54, 0x15, 0x06  # of the kernel's packet filter language
DROP, PASS = 0, 0xFFFFFFFF
_PROGRAM = (
    (_LOAD_BYTE, 0, 0, FLAGS),
    (_AND, 0, 0, SYN | ACK),
    (_JUMP_IF_EQUAL, 0, 1, SYN),
    (_RETURN, 0, 0, DROP),
    (_RETURN, 0, 0, PASS),
)
GIVEN = (b"LISTEN_FDS", b"GUNICORN_FD")  # by systemd; by the gunicorn before this one (SIGUSR2)


def stop_accepting(listener: socket.socket, master: int) -> bool:
    """Return False where it cannot be done, or must not: others go on listening to this socket."""
    if sys.platform != "linux" or _is_shared(listener, master):
        return False
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _PROGRAM))
    program = struct.pack("HL", len(_PROGRAM), ctypes.addressof(code))
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True


def listen_again(listener: socket.socket) -> None:
    with suppress(OSError):  # there is no filter
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _is_shared(listener: socket.socket, master: int) -> bool:
    """Tell if it was given to gunicorn by another process, is held by a master that goes on, or was given to one that
    takes over."""
    try:
        return (
            _has(os.getpid(), *GIVEN)
            or _holds(master, f"socket:[{os.fstat(listener.fileno()).st_ino}]")
            or any(_has(child, *GIVEN) for child in _children(master))
        )
    except OSError:  # not to be seen from here
        return True


def _has(process: int, *names: bytes) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        entries = _proc(process, "environ").read_bytes().split(b"\0")
        return any(entry.partition(b"=")[0] in names for entry in entries)
    return False


def _holds(process: int, link: str) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        for file in _proc(process, "fd").iterdir():
            with suppress(FileNotFoundError):
                if str(file.readlink()) == link:
                    return True
    return False


def _children(process: int) -> list[int]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in _proc(process, f"task/{process}/children").read_text().split()]
    return []


def _proc(process: int, name: str) -> Path:
    return Path(f"/proc/{process}/{name}")
