"""The members of a tar archive, with where their bytes are in it, so that they can be read without unpacking.

    with open("shard.tar", "rb") as file:
        for member in read_members(file):
            print(member.name, member.offset, member.size)

Formats: V7, ustar, pax, GNU with long names and large files. Python's `tarfile` takes ten times as long, and ends
without an error at the zeros between two joined archives, and where an archive is cut off after a member.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_HEADER = struct.Struct("100s24x12s12x8sc100x6s82x155s")  # name, size, checksum, kind, magic, prefix of the name
_MOST_HEADER_BYTES = 2**20  # of a long name, or of pax fields
_FILE = b"0\0" + b"7"
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"S": "a sparse file",
}
FOLDER = _KINDS[b"5"]


class TarError(ValueError):
    """An archive is damaged or cut off."""


class Member(NamedTuple):
    """A member of an archive; `kind` is "" for a file, else what it is."""

    name: str
    kind: str
    offset: int
    size: int


def read_members(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[Member]:
    """Yields the members of an uncompressed tar archive: the file, or the bytes of it from `start` to `stop`.

    Raises:
      TarError: it is not one, or is damaged or cut off; the message has the offset.
      OSError: it cannot be read.
    """
    descriptor = file.fileno()
    end = os.fstat(descriptor).st_size if stop is None else stop
    offset = start
    ended = False
    long_name = ""
    pax: dict[str, str] = {}
    while offset < end:
        header = os.pread(descriptor, _BLOCK, offset)
        if header == _ZEROS:
            ended = True
            offset += _BLOCK
            continue
        if len(header) < _BLOCK:
            raise TarError(f"is cut off in the header at byte {offset}")
        name, size_field, checksum, kind, magic, prefix = _HEADER.unpack_from(header)
        _check(header, checksum, offset)
        ended = False
        size = _number(size_field, offset)
        data = offset + _BLOCK
        offset = data
        if kind in b"xgLK":
            content = _header_content(descriptor, data, size, end)
            offset += _padded(size)
            if kind == b"x":
                pax = _pax_fields(content, data)
            elif kind == b"L":
                long_name = _text(content)
            continue
        what = "" if kind in _FILE else _KINDS.get(kind, f"of type {kind!r}")
        name = long_name or _text(name)
        if magic == b"ustar\0" and prefix[0] and not long_name:
            name = f"{_text(prefix)}/{name}"
        if kind == b"S":
            offset = data = _after_sparse_headers(descriptor, header, data)
        if pax:
            name = pax.get("path") or name
            size = _decimal(pax["size"], data) if "size" in pax else size
            what = _KINDS[b"S"] if any(key.startswith("GNU.sparse") for key in pax) else what
        if kind not in b"123456":  # those have no data, whatever their size is
            if data + size > end:
                raise TarError(f"is cut off in the member at byte {data}, which has {size:,} bytes")
            offset += _padded(size)
        yield Member(name, what or (FOLDER if name.endswith("/") else ""), data, size)  # as V7 has folders
        long_name, pax = "", {}
    if not ended:
        raise TarError("is empty" if not end else "is cut off: the zeros at its end are missing")


def _check(header: bytes, field: bytes, offset: int) -> None:
    """Raises a TarError unless `field` of a header has the sum of the bytes, with blanks in place of itself."""
    try:
        total = int(field.rstrip(b"\0 "), 8) + sum(field) - len(field) * ord(" ")
    except ValueError:
        total = -1
    # The lower half of Adler-32 is 1 plus the sum of the bytes, modulo 65521; `sum` takes ten times as long.
    if zlib.adler32(header) & 0xFFFF == (1 + total) % 65521:
        return
    signed = sum(byte - 256 if byte > 127 else byte for byte in header)  # as old programs have it
    if signed != total - sum(256 for byte in field if byte > 127):
        raise TarError("is not a tar archive" if not offset else f"is damaged at byte {offset}: this is not a header")


def _number(field: bytes, offset: int) -> int:
    """Returns a number of a header: octal digits, or base 256 if the highest bit is set."""
    try:
        number = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise TarError(f"is damaged at byte {offset}: a member without a size")
    return number


def _decimal(text: str, offset: int) -> int:
    if not (text.isascii() and text.isdigit()):
        raise TarError(f"is damaged before byte {offset}: size {text[:20]!r}")
    return int(text)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _header_content(descriptor: int, offset: int, size: int, end: int) -> bytes:
    if size > _MOST_HEADER_BYTES:
        raise TarError(f"is damaged at byte {offset}: a name or its attributes of {size:,} bytes")
    if offset + size > end:
        raise TarError(f"is cut off in the header at byte {offset}")
    return os.pread(descriptor, size, offset)


def _pax_fields(content: bytes, offset: int) -> dict[str, str]:
    """Returns the fields of a pax header: `LENGTH KEY=VALUE` and a line break each."""
    fields: dict[str, str] = {}
    start = 0
    while start < len(content) and content[start]:
        length, blank, _ = content[start : start + 20].partition(b" ")
        stop = start + (int(length) if length.isdigit() else 0)
        key, equals, value = content[start + len(length) + 1 : stop - 1].partition(b"=")
        if not blank or not equals or not start < stop <= len(content) or content[stop - 1 : stop] != b"\n":
            raise TarError(f"is damaged at byte {offset + start}: attributes that cannot be read")
        fields[os.fsdecode(key)] = os.fsdecode(value)
        start = stop
    return fields


def _after_sparse_headers(descriptor: int, header: bytes, offset: int) -> int:
    """Returns where the data of a sparse file of GNU tar begins, after the headers that list its parts."""
    more = header[482:483]
    while more not in (b"\0", b""):
        more = os.pread(descriptor, 1, offset + 504)
        offset += _BLOCK
    return offset
