"""TFRecord framing and `tf.train.Example` bytes, without TensorFlow.

A TFRecord file is a sequence of frames. Each is `length (8 bytes) · masked crc of the length (4) · payload · masked
crc of the payload (4)`, all little-endian, the checksum being CRC-32C
(https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details). The offset of a
frame is enough to read one record in the middle of a file, which makes exact global shuffling possible.

    with open(path, "wb") as file:
        file.write(frame(example({"image/class/label": 3, "image/encoded": jpeg})))
    for offset, length, crc in walk(path):
        ...
"""

import contextlib
import functools
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np

from convoy.core.errors import DataError
from convoy.core.reading import check_file

HEADER_BYTES = 12
FOOTER_BYTES = 4
FRAME_OVERHEAD = HEADER_BYTES + FOOTER_BYTES

_MASK_DELTA = 0xA282EAD8
_UINT32 = 0xFFFFFFFF
_HEADER = struct.Struct("<QI")
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
HEAD_BYTES = 4096  # enough to find out what a file is
_COMPRESSIONS = {"GZIP": 31, "ZLIB": 15}  # window bits of `zlib`
_MOST_DECOMPRESSED = 2**22  # at once: a block may have a thousand times its size
_ONE_BYTE = [bytes([value]) for value in range(0x80)]
CONVERT = "convert again, or restore the file"


class RecordError(DataError):
    """A record that cannot be used.

    Attributes:
      path: the shard.
      offset: start of the frame, bytes.
      index: index of the record in its split.
      reason: what is wrong, as a predicate: "is corrupt".
    """

    def __init__(self, path: object, *, offset: int, index: int, reason: str, fix: str):
        """Builds the message; `fix` is what to do about it."""
        self.path, self.offset, self.index, self.reason = str(path), offset, index, reason
        super().__init__(f"{self.path}: record {index} at offset {offset} {reason}; {fix}")


def masked_crc(data: bytes) -> int:
    """Returns the masked CRC-32C that TFRecord files store for `data`, in [0, 2**32)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & _UINT32


def frame(payload: bytes) -> bytes:
    """Returns `payload` as one TFRecord frame, `FRAME_OVERHEAD` bytes longer."""
    length = _LENGTH.pack(len(payload))
    return b"".join((length, _CRC.pack(masked_crc(length)), payload, _CRC.pack(masked_crc(payload))))


def compression_of(head: bytes) -> str | None:
    """Returns how TFRecords are compressed, GZIP, ZLIB or "" (not); None if they are no TFRecords.

    Args:
      head: the first `HEAD_BYTES` of the file.
    """
    if frame_length(head[:HEADER_BYTES]) is not None:
        return ""
    for name, window_bits in _COMPRESSIONS.items():
        with contextlib.suppress(zlib.error):
            start = zlib.decompressobj(window_bits).decompress(head, HEADER_BYTES)
            if frame_length(start) is not None:
                return name
    return None


def decompressed(compression: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the content of a compressed file, GZIP or ZLIB, in blocks.

    Raises:
      ValueError: the file is damaged.
    """
    decompressor = zlib.decompressobj(_COMPRESSIONS[compression])
    try:
        for block in blocks:
            rest, is_more = block, False
            while rest or is_more:
                if decompressor.eof:  # a file of several parts
                    decompressor = zlib.decompressobj(_COMPRESSIONS[compression])
                content = decompressor.decompress(rest, _MOST_DECOMPRESSED)
                yield content
                rest = decompressor.unconsumed_tail or decompressor.unused_data
                is_more = len(content) == _MOST_DECOMPRESSED and not decompressor.eof
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not decompressor.eof:
        raise ValueError("it is truncated")


def walk(path: str | os.PathLike, fix: str = CONVERT) -> Iterator[tuple[int, int, int]]:
    """Walks the record headers of a shard; the payloads between them are neither read nor checked.

    Args:
      path: a TFRecord file, uncompressed.
      fix: what to do about a damaged file.

    Yields:
      (offset, length, masked_crc): start of the frame and length of its payload, in bytes, and the payload's checksum
      as stored in the file.

    Raises:
      DataError: the file cannot be read, or a frame is cut short or its header corrupt; names shard and offset.
    """
    try:
        check_file(path)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        size = os.fstat(descriptor).st_size
        offset = 0
        # One read fetches a payload's checksum and the adjacent header of the next frame.
        header = os.pread(descriptor, HEADER_BYTES, 0)
        while offset < size:
            length = _checked_length(header, path, offset, fix)
            end = offset + length + FRAME_OVERHEAD
            if end > size:
                raise DataError(
                    f"{path}: the record at offset {offset} should end at byte {end} but the file ends at {size}: "
                    f"it is truncated; {fix}"
                )
            tail = os.pread(descriptor, FOOTER_BYTES + HEADER_BYTES, end - FOOTER_BYTES)
            yield offset, length, _CRC.unpack_from(tail)[0]
            header = tail[FOOTER_BYTES:]
            offset = end
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Locations:
    """Where records of a split are, according to its index.

    Attributes:
      paths: the split's shards.
      index: [n] number of each record in the split.
      shard: [n] index into `paths`.
      offset: [n] start of the frame, bytes.
      length: [n] payload bytes.
      crc: [n] masked CRC-32C of the payload.
      fix: what to do about a damaged shard.
    """

    paths: Sequence[object]
    index: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc: np.ndarray
    fix: str = CONVERT


def checked_payloads(frames: Iterable[bytes], locations: Locations) -> list[bytes]:
    """Returns the payloads of frames, [n], after verifying their checksums.

    Raises:
      RecordError: a frame is truncated, or its header or checksum differs from the index.
    """
    # Unmask the index's checksums as arrays, instead of masking each record's checksum in Python.
    rotated = (locations.crc.astype(np.int64) - _MASK_DELTA) & _UINT32
    expected_crcs = (((rotated >> 17) | (rotated << 15)) & _UINT32).tolist()
    unpack_header, crc32c = _HEADER.unpack_from, google_crc32c.value
    payloads: list[bytes] = []
    for record, length, expected in zip(frames, locations.length.tolist(), expected_crcs, strict=True):
        payload = record[HEADER_BYTES : HEADER_BYTES + length]
        if len(record) != length + FRAME_OVERHEAD or unpack_header(record)[0] != length or crc32c(payload) != expected:
            position = len(payloads)
            raise RecordError(
                locations.paths[locations.shard[position]],
                offset=int(locations.offset[position]),
                index=int(locations.index[position]),
                reason=_corruption(record, length),
                fix=locations.fix,
            )
        payloads.append(payload)
    return payloads


def example(features: Mapping[str, int | float | bytes | str | tuple[int, ...] | tuple[str, ...]]) -> bytes:
    """Returns a serialized `tf.train.Example`; the same features give the same bytes.

    Args:
      features: values by name. An int becomes an int64 list of length one, a float a float list, bytes and str (as
        UTF-8) a bytes list. A tuple becomes the list of its values, all int or all str; an empty one a feature without
        values.

    Raises:
      TypeError: a value of another type.

    The wire format is that of example.proto and feature.proto
    (https://protobuf.dev/programming-guides/encoding/); map entries are sorted by name, because
    protobuf's own map order may change between runs.
    """
    entries = []
    for name in sorted(features):
        value = features[name]
        if isinstance(value, bytes):
            entries += [_start_of_bytes(name, len(value)), value]  # joined below: the image is copied only once
        elif isinstance(value, int | str | tuple):
            entries.append(_entry(name, value))
        elif isinstance(value, float):
            entries.append(_map_entry(name, _delimited(2, _delimited(1, struct.pack("<f", value)))))
        else:
            raise TypeError(f"feature {name!r} is {type(value).__name__}: must be int, float, bytes or str")
    return b"".join((_start(1, sum(map(len, entries))), *entries))


# Most features of a dataset take only a few values.
@functools.lru_cache(4096)
def _entry(name: str, value: int | str | tuple[int, ...] | tuple[str, ...]) -> bytes:
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        return _map_entry(name, b"")
    texts = [_delimited(1, text.encode("utf-8")) for text in values if isinstance(text, str)]
    if texts:
        return _map_entry(name, _delimited(1, b"".join(texts)))
    integers = [_varint(number & 0xFFFFFFFFFFFFFFFF) for number in values if isinstance(number, int)]
    return _map_entry(name, _delimited(3, _delimited(1, b"".join(integers))))


def _map_entry(name: str, feature: bytes) -> bytes:
    return _delimited(1, _delimited(1, name.encode("utf-8")) + _delimited(2, feature))


@functools.lru_cache(4096)
def _start_of_bytes(name: str, length: int) -> bytes:
    """Returns the map entry of a bytes list of length one, without the trailing bytes."""
    values = _start(1, length)
    feature = _start(1, len(values) + length) + values
    entry = _delimited(1, name.encode("utf-8")) + _start(2, len(feature) + length) + feature
    return _start(1, len(entry) + length) + entry


def _delimited(field: int, data: bytes) -> bytes:
    return _start(field, len(data)) + data


def _start(field: int, length: int) -> bytes:
    return _ONE_BYTE[field << 3 | 2] + _varint(length)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _ONE_BYTE[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def frame_length(header: bytes) -> int | None:
    """Returns the payload length from a frame header, or None if the header is truncated or damaged."""
    if len(header) < HEADER_BYTES:
        return None
    length, length_crc = _HEADER.unpack(header)
    return length if masked_crc(header[:8]) == length_crc else None


def _checked_length(header: bytes, path: str | os.PathLike, offset: int, fix: str) -> int:
    if len(header) < HEADER_BYTES:
        raise DataError(
            f"{path}: the record header at offset {offset} is truncated ({len(header)} of {HEADER_BYTES} bytes); {fix}"
        )
    length = frame_length(header)
    if length is None:
        raise DataError(f"{path}: corrupt record header at offset {offset} (wrong checksum); {fix}")
    return length


def _corruption(record: bytes, length: int) -> str:
    if len(record) < length + FRAME_OVERHEAD:
        return f"is truncated ({len(record)} of {length + FRAME_OVERHEAD} bytes)"
    stated = _HEADER.unpack_from(record)[0]
    if stated != length:
        return f"has {stated} bytes according to its header but {length} according to the index"
    crc = masked_crc(record[HEADER_BYTES:-FOOTER_BYTES])
    return f"is corrupt (its checksum is {crc:#010x}, not that of the index)"
