"""TFRecord files, without TensorFlow: what TensorFlow Serving's warm-up requests are kept in.

    records.write(path, [b"one", b"two"])
    for record in records.read(path): ...

A record is its length (8 bytes), that length's checksum (4), its bytes, and their checksum (4), all little-endian. Both
checksums are checked when it is read; no more than one record is held in memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from loupe import files

LARGEST = 1 << 25  # bytes of one record: its length, 8 bytes, may say anything
CHUNK = 1 << 18  # bytes whose checksum is computed at once
POLYNOMIAL = 0x82F63B78  # CRC-32C's, its bits reversed
MASK = 0xA282EAD8


class Damaged(ValueError):
    """These are no TFRecords, or no longer."""


def write(path: Path, records: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + _checksum(length) + record + _checksum(record))


def read(path: Path) -> Iterator[bytes]:
    with files.opened(path) as file:
        left = os.fstat(file.fileno()).st_size
        while start := file.read(12):
            if len(start) < 12 or _checksum(start[:8]) != start[8:]:
                raise Damaged(f"corrupted record at {file.tell() - len(start)}")
            size: int = struct.unpack("<Q", start[:8])[0]
            if size > LARGEST:
                raise Damaged(f"a record of {size} bytes; at most {LARGEST} are read")
            if size + 4 > left - file.tell():
                raise Damaged(f"truncated record at {file.tell() - 12}")
            yield _body(file, size)


def _body(file: BinaryIO, size: int) -> bytes:
    start = file.tell() - 12
    record = file.read(size)
    if file.read(4) != _checksum(record):
        raise Damaged(f"corrupted record at {start}")
    return record


def _checksum(data: bytes) -> bytes:
    """CRC-32C, turned and offset as TensorFlow stores it."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    state = 0xFFFFFFFF
    for start in range(0, len(data), CHUNK):
        state = _after(state, data[start : start + CHUNK])
    return state ^ 0xFFFFFFFF


def _after(state: int, data: bytes) -> int:
    """The state that some bytes lead to from another. Byte by byte would take seconds for a picture; instead the states
    that the bytes leave one by one are merged in pairs, the left moved on by as many bytes as the right stands for."""
    states = np.concatenate([np.array([state], np.uint32), _BYTE[np.frombuffer(data, np.uint8)]])
    moved = _ONE_ON
    while len(states) > 1:
        if len(states) % 2:
            states = np.concatenate([np.zeros(1, np.uint32), states])
        states = _move(moved, states[0::2]) ^ states[1::2]
        moved = _move(moved, moved)
    return int(states[0])


def _move(tables: Any, states: Any) -> Any:
    """A linear map of 32 bits, as four tables of what each byte of a state contributes."""
    found = tables[0][states & 255]
    for position in (1, 2, 3):
        found = found ^ tables[position][states >> np.uint32(8 * position) & 255]
    return found


def _bytes() -> Any:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


_BYTE = _bytes()  # the state that each byte leaves, from zero
_EACH = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]
_ONE_ON = _EACH >> np.uint32(8) ^ _BYTE[_EACH & 255]  # what one more byte of zero makes of each byte of a state
