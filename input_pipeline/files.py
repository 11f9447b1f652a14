"""Files that are there as a whole or, after a crash, as they were before."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

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
