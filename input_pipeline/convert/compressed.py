"""Decompression of TFRecords of other tools: single records of compressed files cannot be read in place."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convoy.core.errors import DataError
from convoy.core.text import counted
from convoy.input_pipeline.convert.scratch import scratch_folder
from convoy.input_pipeline.dataset.folder_layout import compression_by_file
from convoy.input_pipeline.dataset.records import decompressed

_BLOCK_BYTES = 2**22


@contextmanager
def uncompressed(folder: Path, output: Path, log: Callable[[str], None]) -> Iterator[Path]:
    """Yields a folder of TFRecords, or a temporary copy next to `output` if any of them are compressed.

    The copy has links to the other shards. Names and modification times are the same, so that a conversion resumes.

    Raises:
      DataError: the folder cannot be read, a shard is damaged, or the copy cannot be written.
    """
    try:
        compressions = compression_by_file(folder)
    except OSError as error:
        raise DataError(f"--tfrecords={folder} cannot be read ({error.strerror})") from None
    number = sum(map(bool, compressions.values()))
    if not number:
        yield folder
        return
    log(f"{folder}: decompressing {counted(number, 'shard')}.")
    with scratch_folder(output, "images") as temporary:
        copy = temporary / folder.absolute().name
        for path, compression in compressions.items():
            target = copy / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            if compression:
                _decompress(path, compression, target.with_suffix("") if target.suffix == ".gz" else target)
            else:
                target.symlink_to(path.absolute())
        yield copy


def _decompress(path: Path, compression: str, target: Path) -> None:
    try:
        with open(path, "rb") as file, open(target, "xb") as copy:
            copy.writelines(decompressed(compression, iter(lambda: file.read(_BLOCK_BYTES), b"")))
        status = path.stat()
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    except FileExistsError:
        raise DataError(f"{path} is also there without compression. Move one of the two elsewhere") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({compression}: {error}); copy it again from where it came from") from None
    except OSError as error:
        raise DataError(f"{path} cannot be decompressed to {target.parent}: {error.strerror}") from None
