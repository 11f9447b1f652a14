"""Temporary copies of images that cannot be read in place: of an iterable, of compressed archives, of parquet files.

with spool(Path("data")) as copies:
    offset = copies.add(b"...")
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from convoy.core.errors import DataError, UsageError
from convoy.core.files import locked

_MARK = ".convoy-temporary"  # only a folder that has it is ever cleared; locked while a conversion uses it


@contextlib.contextmanager
def scratch_folder(output: Path, purpose: str) -> Iterator[Path]:
    """Creates the folder `OUTPUT.PURPOSE` next to a dataset, and removes it at the end.

    What a conversion that was killed left in it is removed first.

    Raises:
      UsageError: another conversion uses it, or it has files of something else.
      DataError: it cannot be created.
    """
    folder = output.absolute().with_name(f"{output.name}.{purpose}")
    missing = [parent for parent in folder.parents if not parent.exists()]
    busy = f"--output={output}: another conversion is writing it. Wait until it ends, or pass another --output"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(_remove_empty, missing)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            left = set(os.listdir(folder))
            if left and _MARK not in left:
                raise UsageError(
                    f"{folder} is for temporary copies, and has files of something else. Move it away, or pass another "
                    "--output"
                )
            cleanup.enter_context(locked(folder / _MARK, busy))
            for name in left - {_MARK}:
                path = folder / name
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise DataError(f"images cannot be copied to {folder} ({error.strerror or error})") from None
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # not empty: the dataset is in it
        for folder in folders:
            folder.rmdir()


class Spool:
    """A file of images, one after the other.

    Attributes:
      path: its path.
    """

    def __init__(self, file: FileIO):
        """Appends to a file that is open for writing, without a buffer."""
        self.path = os.fsdecode(file.name)
        self._file = file
        self._size = 0

    def add(self, *parts: bytes | memoryview) -> int:
        """Appends bytes, which can be read at once; returns their offset.

        Raises:
          DataError: they cannot be written.
        """
        offset = self._size
        try:
            for part in parts:
                rest = memoryview(part).cast("B")
                while rest:
                    written = self._file.write(rest)
                    self._size += written
                    rest = rest[written:]
        except OSError as error:
            raise DataError(
                f"images cannot be copied to {os.path.dirname(self.path)} ({error.strerror or error}). Free space "
                "there, or pass an --output on another disk"
            ) from None
        return offset


@contextlib.contextmanager
def spool(output: Path) -> Iterator[Spool]:
    """Creates a temporary file next to a dataset, and removes it at the end.

    Raises:
      UsageError, DataError: as `scratch_folder`.
    """
    with scratch_folder(output, "images") as folder, open(folder / "images", "xb", buffering=0) as file:
        yield Spool(file)
