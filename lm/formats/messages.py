"""Messages of Protocol Buffers, as a tokenizer.model of SentencePiece is one.

https://protobuf.dev/programming-guides/encoding. A message is a list of numbered fields. The
package `protobuf` would do, but SentencePiece's own module for it runs with its newest version
alone.
"""

import struct
from collections.abc import Iterator
from typing import Any


def field(number: int, value: bytes | int | float) -> bytes:
    """Returns a field: a length and bytes, an integer >= 0, or a float32.

    Raises:
      OverflowError: for a number that float32 does not hold.
    """
    match value:
        case bytes():
            return _varint(number << 3 | 2) + _varint(len(value)) + value
        case int():
            return _varint(number << 3) + _varint(value)
        case _:
            return _varint(number << 3 | 5) + struct.pack("<f", value)


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields number and value of each field: bytes, an integer, or a float32.

    Args:
      data: of a message that a library has read, hence a sound one.
    """
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, at = _read_varint(data, at)
        part, at = data[at : at + size], at + size
        yield number, struct.unpack("<f", part)[0] if kind == 5 else part


def _varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number, and where what follows begins."""
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return number | data[at] << shift, at + 1
