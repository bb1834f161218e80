"""Close a listening socket without resetting those who are just being let in.

    if stop_accepting(listener, os.getppid()): ...   # no new ones; a moment later accept the rest, and close it
    listen_again(listener)                           # in a new worker: one that was killed may have left it deaf

Whoever was let in between a last accept() and close() would be told of a reset, though nobody heard what they wanted.
So first the system is told to let nobody in any more: it drops what asks for a connection, and the caller's system asks
again after a second, when it learns that nobody is there. Linux only; elsewhere that moment stays.
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


def stop_accepting(listener: socket.socket, master: int) -> bool:
    """False where it cannot be done, or must not: the socket is shared, and others may go on listening to it."""
    if sys.platform != "linux" or _is_kept(listener, master):
        return False
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _PROGRAM))
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(_PROGRAM), ctypes.addressof(code))
        )
    except OSError:
        return False
    return True


def listen_again(listener: socket.socket) -> None:
    with suppress(OSError):  # there is none
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def _is_kept(listener: socket.socket, master: int) -> bool:
    """By systemd, which gave it; by a master that goes on (this worker alone ends); by one that follows it (USR2)."""
    try:
        mine = f"socket:[{os.fstat(listener.fileno()).st_ino}]"
        return (
            _has(b"LISTEN_FDS", os.getpid())
            or _holds(mine, master)
            or any(_has(b"GUNICORN_PID", child) for child in _children(master))
        )
    except OSError:  # not to be seen from here
        return True


def _has(name: bytes, process: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return any(entry.startswith(name + b"=") for entry in _proc(process, "environ").read_bytes().split(b"\0"))
    return False


def _holds(link: str, process: int) -> bool:
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
