"""Reads features of a serialized `tf.train.Example` without TensorFlow; treats the bytes as untrusted.

    features = read_features(from_bytes(payload), len(payload), {"image/class/label"})
    features["image/class/label"]     # [3]

Only the parts that lead to the wanted features are read: with `from_file`, an image that is not wanted is skipped on
disk. The wire format is that of example.proto
(https://protobuf.dev/programming-guides/encoding/).
"""

import os
import struct
from collections.abc import Callable, Iterator, Set

Values = list[int] | list[float] | list[bytes]
# (start, count) -> `count` bytes of the payload; callers stay within its bounds.
Source = Callable[[int, int], bytes]

_BLOCK_BYTES = 2048  # enough for all of a typical record but its image
_LARGEST_NAME = 1024
_LARGEST_HEAD = 2 * 11  # a tag and a length
_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def from_bytes(payload: bytes) -> Source:
    """Returns the source of a payload in memory."""
    return lambda start, count: payload[start : start + count]


def from_file(descriptor: int, offset: int, length: int) -> Source:
    """Returns the source of a payload in an open file, read in blocks on demand."""
    block_start, block = 0, b""

    def read(start: int, count: int) -> bytes:
        nonlocal block_start, block
        if start < block_start or start + count > block_start + len(block):
            block_start = start
            block = os.pread(descriptor, min(max(count, _BLOCK_BYTES), length - start), offset + start)
        return block[start - block_start : start - block_start + count]

    return read


def read_features(source: Source, length: int, wanted: Set[str] | None = None) -> dict[str, Values]:
    """Returns the values of the features that exist, by name.

    Args:
      source: of the payload.
      length: of the payload, bytes.
      wanted: names; None for all. Reading stops once all of them are found.

    Raises:
      ValueError: the bytes are not an Example.
    """
    features: dict[str, Values] = {}
    for name, start, end in _entries(source, length):
        if wanted is None or name in wanted:
            features[name] = _values(source, start, end)
            if wanted is not None and len(features) == len(wanted):
                break
    return features


def feature_names(source: Source, length: int) -> list[str]:
    """Returns the names of the features of an Example, sorted, without reading their values.

    Raises:
      ValueError: the bytes are not an Example.
    """
    return sorted(name for name, _, _ in _entries(source, length))


def locate_bytes(source: Source, length: int, name: str) -> tuple[int, int]:
    """Returns start and end in the payload of the only value of a bytes feature.

    Raises:
      ValueError: there is none or more than one, or the bytes are not an Example.
    """
    items = []
    for found, start, end in _entries(source, length):
        for kind, _, list_start, list_end in _fields(source, start, end) if found == name else ():
            for item, item_type, item_start, item_end in _fields(source, list_start, list_end):
                if kind == _BYTES_LIST and (item, item_type) == (1, _DELIMITED):
                    items.append((item_start, item_end))
    if len(items) != 1:
        raise ValueError(f"there is no bytes feature {name!r}" if not items else f"{name!r} has {len(items)} values")
    return items[0]


def _entries(source: Source, length: int) -> Iterator[tuple[str, int, int]]:
    """Yields (name, start and end of the value) of the features of an Example."""
    for number, wire_type, start, end in _fields(source, 0, length):
        if (number, wire_type) == (1, _DELIMITED):
            for entry_number, entry_type, entry_start, entry_end in _fields(source, start, end):
                if (entry_number, entry_type) == (1, _DELIMITED):
                    yield _entry(source, entry_start, entry_end)


def _entry(source: Source, start: int, end: int) -> tuple[str, int, int]:
    """Returns the name in a map entry, and the start and end of its value."""
    name, value = "", (end, end)
    for number, wire_type, field_start, field_end in _fields(source, start, end):
        if wire_type == _DELIMITED and number == 1:
            if field_end - field_start > _LARGEST_NAME:
                raise ValueError(f"a feature's name is {field_end - field_start:,} bytes long")
            name = source(field_start, field_end - field_start).decode("utf-8")
        elif wire_type == _DELIMITED and number == 2:
            value = (field_start, field_end)
    return name, *value


def _values(source: Source, start: int, end: int) -> Values:
    values: list = []
    for kind, wire_type, list_start, list_end in _fields(source, start, end):
        if wire_type != _DELIMITED or kind not in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST):
            continue
        values = []  # the field is a oneof: the last one counts
        for number, item_type, item_start, item_end in _fields(source, list_start, list_end):
            if number != 1:
                continue
            item = source(item_start, item_end - item_start)
            if kind == _BYTES_LIST and item_type == _DELIMITED:
                values.append(item)
            elif kind == _INT64_LIST and item_type in (_DELIMITED, _VARINT):
                values += _int64s(item)
            elif kind == _FLOAT_LIST and item_type in (_DELIMITED, _FOUR_BYTES) and len(item) % 4 == 0:
                values += struct.unpack(f"<{len(item) // 4}f", item)
            else:
                raise ValueError(f"a value of wire type {item_type} in a list of kind {kind}")
    return values


def _int64s(packed: bytes) -> list[int]:
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value - (1 << 64) if value >= 1 << 63 else value)
    return values


def _fields(source: Source, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (number, wire type, start and end of the content) of the fields of a message in [start, end)."""
    at = start
    while at < end:
        head = source(at, min(_LARGEST_HEAD, end - at))
        tag, used = _varint(head, 0)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _DELIMITED:
            size, used = _varint(head, used)
            content = at + used
        elif wire_type == _VARINT:
            content, size = at + used, _varint(head, used)[1] - used
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            content, size = at + used, 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if not number or content + size > end:
            raise ValueError(f"a field at byte {at} does not fit ({size:,} bytes)")
        yield number, wire_type, content, content + size
        at = content + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the varint at `data[at]`, below 2**64, and the position after it."""
    if at < len(data) and data[at] < 0x80:  # the common case
        return data[at], at + 1
    value = shift = 0
    for position in range(at, min(at + 10, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + 1
        shift += 7
    raise ValueError("a varint is truncated")
