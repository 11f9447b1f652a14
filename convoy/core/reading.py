"""Reads files that somebody else may have made, to do harm perhaps.

    read_json(run.config)                 # OSError or ValueError, and nothing else
    with open_file(shard) as file: ...

A named pipe or a device in place of a file would block, or never end. JSON that is nested deeply would overflow the
stack of whatever walks through it.
"""

import csv
import errno
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

_MOST_BYTES = 2**30  # read at once
_NOT_A_FILE = "it is not a regular file"
_MOST_LEVELS = 100
_TOO_DEEP = "it is nested too deeply"


def check_file(path: str | os.PathLike[str]) -> int:
    """Returns a file's size. Raises an OSError if it is missing, a folder, a pipe or a device."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, _NOT_A_FILE, os.fspath(path))
    return status.st_size


def open_file(path: str | os.PathLike[str], mode: str = "rb", **options: Any) -> IO[Any]:  # noqa: ANN401 (`open`'s)
    """Opens a file as `open` does. Raises an OSError if it is missing, a folder, a pipe or a device."""
    check_file(path)
    return open(path, mode, **options)


def read_file(path: str | os.PathLike[str], last_bytes: int | None = None) -> bytes:
    """Returns a file's content, or only so many bytes at its end.

    Raises:
      OSError: it cannot be read, or would be more than `_MOST_BYTES`.
    """
    with open_file(path, buffering=0) as file:
        start = max(0, file.seek(0, os.SEEK_END) - (_MOST_BYTES + 1 if last_bytes is None else last_bytes))
        if start and last_bytes is None:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
        file.seek(start)
        return file.read()


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file with a header. Raises OSError if it cannot be read, csv.Error if it is no CSV."""
    text = read_file(path).decode("utf-8-sig", "replace")
    yield from csv.DictReader(io.StringIO(text, newline=""))


def read_json(path: Path) -> Any:  # noqa: ANN401 (any JSON value)
    """Returns the value in a JSON file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON.
    """
    return parsed_json(read_file(path))


def parsed_json(data: bytes | str) -> Any:  # noqa: ANN401 (any JSON value)
    """Returns a JSON value. Raises a ValueError if it is damaged, nested deeply, or has an integer beyond 64 bits."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    within = [value]
    for _ in range(_MOST_LEVELS + 1):
        for each in within:
            if type(each) is int and not -(2**63) <= each < 2**63:
                raise ValueError("it has an integer beyond 64 bits")
        within = [inner for each in within if isinstance(each, dict | list) for inner in _inside(each)]
        if not within:
            return value
    raise ValueError(_TOO_DEEP)


def _inside(container: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
