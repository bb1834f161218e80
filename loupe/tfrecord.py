"""Read and write TFRecord files without TensorFlow: the format of TensorFlow Serving's warm-up requests.

    tfrecord.write(path, [b"one", b"two"])
    for record in tfrecord.read(path): ...

A record is its length (8 bytes), that length's checksum (4), its bytes, and their checksum (4), all little-endian. Both
checksums are checked on reading; no more than one record is held in memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from loupe import files

MAX_RECORD = 1 << 25  # bytes of one record; a damaged length could be any number
CHUNK = 1 << 18  # bytes that are checksummed at once
POLYNOMIAL = 0x82F63B78  # of CRC-32C, its bits reversed
MASK = 0xA282EAD8


class Damaged(ValueError):
    """The file holds no TFRecords, or damaged ones."""


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
            if size > MAX_RECORD:
                raise Damaged(f"a record of {size} bytes; at most {MAX_RECORD} are read")
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
    """Return the CRC-32C, rotated and offset as TensorFlow stores it."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    state = 0xFFFFFFFF
    for start in range(0, len(data), CHUNK):
        state = _next_state(state, data[start : start + CHUNK])
    return state ^ 0xFFFFFFFF


def _next_state(state: int, data: bytes) -> int:
    """Return the checksum's state after some bytes. Byte by byte would take seconds for a picture. Instead each byte's
    own state is computed, and states are merged in pairs: the left one is moved on by as many bytes as the right one
    stands for."""
    states = np.concatenate([np.array([state], np.uint32), _BYTE_STATES[np.frombuffer(data, np.uint8)]])
    shift = _ONE_BYTE_ON
    while len(states) > 1:
        if len(states) % 2:
            states = np.concatenate([np.zeros(1, np.uint32), states])
        states = _apply(shift, states[0::2]) ^ states[1::2]
        shift = _apply(shift, shift)
    return int(states[0])


def _apply(tables: Any, states: Any) -> Any:
    """Apply a linear map of 32 bits, given as four tables of what each byte of a state contributes."""
    result = tables[0][states & 255]
    for position in (1, 2, 3):
        result = result ^ tables[position][states >> np.uint32(8 * position) & 255]
    return result


def _byte_states() -> Any:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


_BYTE_STATES = _byte_states()  # the state after each byte, from zero
_EACH_BYTE = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]
_ONE_BYTE_ON = _EACH_BYTE >> np.uint32(8) ^ _BYTE_STATES[_EACH_BYTE & 255]  # the map of one more zero byte
