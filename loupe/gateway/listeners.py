"""Close a listening socket without resetting those who are just being let in.

    if deafen(listener, os.getppid()): ...    # it takes no new ones; a moment later accept the rest, and close it

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

SO_ATTACH_FILTER = 26
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


def deafen(listener: socket.socket, master: int) -> bool:
    """False where it cannot be done, or must not: a master that keeps the socket has other workers to listen to it."""
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


def _is_kept(listener: socket.socket, master: int) -> bool:
    try:
        mine = os.fstat(listener.fileno()).st_ino
        for link in Path(f"/proc/{master}/fd").iterdir():
            with suppress(FileNotFoundError):
                if str(link.readlink()) == f"socket:[{mine}]":
                    return True
    except FileNotFoundError:  # the master itself is gone
        return False
    except OSError:
        return True
    return False
