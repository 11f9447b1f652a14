"""Files that are there as a whole or, after a crash, as before; JSON lines, of which a crash costs one; locks."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from convoy.core.errors import UsageError

PARTIAL_SUFFIX = ".tmp"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to write beside `path`; on leaving it is flushed to disk and takes that name.

    An exception takes it away again. A kill leaves `path` with `PARTIAL_SUFFIX`, which the next writing replaces.

    Raises:
      OSError: it cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with open(partial, "wb", buffering=2**20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file with that content. Raises OSError where it cannot."""
    with written_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Holds the lock of a folder, or of a file that is made where it is not there; the kernel frees a dead holder's.

    A file system without locks is taken as it is.

    Raises:
      UsageError: with the text `refusal`: another process holds it.
      OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(refusal) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content, as hex. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def json_value(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """Returns `value` with null for every number that is not finite: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Adds one JSON object as a line to a file, after a newline where a crash cut the last line short.

    Raises:
      OSError: it cannot be written; no part of it is there then.
    """
    append_whole(path, json.dumps(json_value(value), allow_nan=False).encode() + b"\n")


def append_whole(path: Path, lines: bytes) -> None:
    """Adds lines to a file, after a newline where a crash cut the last one short.

    Raises:
      OSError: they cannot be written; no part of them is there then.
    """
    with open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                lines = b"\n" + lines
        if file.write(lines) < len(lines):  # the disk has become full within them
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
