"""Reads `.npz` files that may be damaged, or made by somebody else to do harm.

with opened(path) as archive:
    steps = read_array(archive, "steps", np.int64, dimensions=1)

No code in a file is run, and no more memory is taken than the file has bytes: members must be stored uncompressed, as
`numpy.savez` writes them, and their stated sizes are checked before anything is allocated.
"""

import math
import os
import zipfile

import numpy as np
from numpy.typing import DTypeLike

from convoy.core.reading import check_file

_COPIED_BYTES = 2**22


def opened(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    """Opens an `.npz` file.

    Raises:
      OSError: it cannot be opened.
      Exception: of any kind, if it is damaged, or its members would take more memory than the file has bytes.
    """
    size = check_file(path)
    archive = zipfile.ZipFile(path)
    try:
        for info in archive.infolist():
            size -= info.file_size  # members may overlap in the file
            if info.compress_type != zipfile.ZIP_STORED or size < 0:
                raise ValueError(f"{info.filename} is compressed, or larger than its file")
    except BaseException:
        archive.close()
        raise
    return archive


def read_array(
    archive: zipfile.ZipFile, name: str, dtype: DTypeLike | None = None, dimensions: int | None = None
) -> np.ndarray:
    """Returns an array of an `.npz` file, with its checksum verified.

    Args:
      archive: the file, `opened`.
      name: the array's name, without `.npy`.
      dtype: the expected dtype; None for any.
      dimensions: the expected number of dimensions; None for any.

    Raises:
      Exception: of any kind, if the array is missing, damaged, or another one than expected.
    """
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"{name} has format version {version}")
        shape, by_columns, found = np.lib.format.read_array_header_1_0(member)
        if found.hasobject or (dtype is not None and found != dtype) or dimensions not in (None, len(shape)):
            raise ValueError(f"{name} is {found} of shape {shape}")
        size = math.prod(shape) * found.itemsize
        if min(shape, default=0) < 0 or size + member.tell() != info.file_size:
            raise ValueError(f"{name} has {info.file_size:,} bytes, expected {size:,} and a header")
        values = np.empty(shape[::-1] if by_columns else shape, found)
        content, done = values.reshape(-1).view(np.uint8).data if size else memoryview(b""), 0
        while chunk := member.read(_COPIED_BYTES):
            content[done : done + len(chunk)] = chunk
            done += len(chunk)
        if done != size:
            raise ValueError(f"{name} is truncated")
    return values.T if by_columns else values
