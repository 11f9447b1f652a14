"""Decoded images in a file on a local disk, shared by the processes of a host and by later runs.

    store = PixelStore(DiskSpace(Path("/local/nvme"), limit_bytes=2**36), key, num_images=50_000)
    store.add(np.array([3]), image[None])
    store.read(3)                              # the image; None if it is missing or damaged

A key has two files. `decoded-KEY.pixels` has the images one after another, in the order in which they were decoded.
`decoded-KEY.index` has an entry per image: where it is, its sides, and CRC-32C checksums of its pixels and of the entry
itself. `lock` is held while a process opens a key, reserves space or removes a key.

Nothing is written twice: a process reserves space at the end of the file, writes the pixels there, then the entry. So a
process may be killed at any time, and after a power failure an entry may be on the disk and its pixels not: each read
compares the checksums, and what differs is missing, as if it had never been added. No write is flushed for that reason.

Files are read into memory by `preadv`, which copies as much as a memory map would, since the images are collected into
a batch. But the end of a truncated file, or a bad sector, is an error that Python sees; in a map it ends the process.
"""

import contextlib
import fcntl
import logging
import math
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

from convoy.core.downloads import cache_folder
from convoy.core.errors import UsageError
from convoy.core.files import open_own
from convoy.core.text import megabytes

_logger = logging.getLogger("convoy")
_PREFIX, _INDEX, _PIXELS = "decoded-", ".index", ".pixels"
_FIELDS = struct.Struct("<QIII")  # offset, height, width, checksum of the pixels
_CHECKSUM = struct.Struct("<I")  # of the entry
_ENTRY_BYTES = _FIELDS.size + _CHECKSUM.size
_USUAL_SHARE = 0.5  # of the free space
# Left free for checkpoints, which may be on the same disk: a share of it, and at most so many bytes.
_SPARED_SHARE, _MOST_SPARED_BYTES = 0.05, 4 * 2**30


@dataclass(frozen=True)
class DiskSpace:
    """Where decoded images may be kept.

    Attributes:
      folder: a folder on a local disk; it is created if missing.
      limit_bytes: most bytes of all files there together; 0 for half of what is free when they are opened.
    """

    folder: Path
    limit_bytes: int = 0


def chosen_space(cache: str, folder: str = "", gib: float = 0.0) -> DiskSpace:
    """Returns the space of `--cache_dir` and `--cache_gib`.

    Args:
      cache: `config.cache`.
      folder: `--cache_dir`; empty for `decoded` in the cache folder.
      gib: `--cache_gib`; 0 for the default of `DiskSpace`.

    Raises:
      UsageError: one of them is given without `config.cache=disk`, the folder is none, or the number cannot be.
    """
    given = f"--cache_dir={folder}" if folder else f"--cache_gib={gib}" if gib else ""
    if not isinstance(gib, int | float) or not 0 <= gib < math.inf:
        raise UsageError(f"--cache_gib={gib}: pass a number of GiB from 0 on; 0 is half of the free space.")
    if given and cache != "disk":
        raise UsageError(f"{given}: is for config.cache=disk, and config.cache={cache}. Pass --config.cache=disk.")
    path = Path(folder).expanduser().absolute() if folder else cache_folder() / "decoded"
    if folder and ("://" in folder or (path.exists() and not path.is_dir())):
        raise UsageError(f"--cache_dir={folder}: is not a folder. Pass a folder on a local disk.")
    return DiskSpace(path, int(gib * 2**30))


class PixelStore:
    """The decoded images of one key; safe to use from several threads and processes.

    Attributes:
      path: the file of the pixels.
      takes_more: whether images are still being added: until the limit is reached, or writing fails.
    """

    def __init__(self, space: DiskSpace, key: str, num_images: int):
        """Opens the files of a key, or creates them.

        Args:
          space: where they are.
          key: what identifies the images and how they were decoded, as part of a file name.
          num_images: images are numbered from 0 to below this.

        Raises:
          OSError: the files cannot be opened or created, or the file system has no locks.
        """
        space.folder.mkdir(parents=True, exist_ok=True)
        self._folder = space.folder
        self._threads = threading.Lock()
        self._lock = _open(space.folder / "lock")
        self.path = space.folder / f"{_PREFIX}{key}{_PIXELS}"
        self.takes_more = True
        index_path, index_bytes = self.path.with_suffix(_INDEX), num_images * _ENTRY_BYTES
        with self._alone():
            self._index = _open(index_path)
            if os.fstat(self._index.fileno()).st_size != index_bytes:  # new, or cut short
                index_path.unlink()
                self.path.unlink(missing_ok=True)
                self._index = _open(index_path)
                os.ftruncate(self._index.fileno(), index_bytes)
            self._pixels = _open(self.path)
            os.utime(index_path)  # for `_remove_oldest`
            fcntl.flock(self._index, fcntl.LOCK_SH)  # while it is open, nobody removes it
            self._limit_bytes = space.limit_bytes or int(self._used() + _USUAL_SHARE * self._free())

    def has(self, number: int) -> bool:
        """Returns whether there is an image of this number; `read` may still find it damaged."""
        return self._entry(number) is not None

    def read(self, number: int, out: np.ndarray | None = None) -> np.ndarray | None:
        """Returns an image, [height, width, 3] uint8; None if it is missing or damaged, and missing from now on.

        Args:
          number: number of the image.
          out: where to put it, C-contiguous uint8 of its shape; a new array by default.
        """
        entry = self._entry(number)
        if not entry:
            return None
        offset, height, width, checksum = entry
        image = np.empty([height, width, 3], np.uint8) if out is None else out
        with contextlib.suppress(OSError):
            count = os.preadv(self._pixels.fileno(), [image.data], offset) if image.shape == (height, width, 3) else 0
            if count == image.nbytes and google_crc32c.value(image) == checksum:
                return image
        with contextlib.suppress(OSError):
            _write(self._index, bytes(_ENTRY_BYTES), number * _ENTRY_BYTES)
        return None

    def add(self, numbers: np.ndarray, images: np.ndarray) -> None:
        """Adds the images that are missing, if there is space. Logs once if there is none, or if writing fails.

        Args:
          numbers: [n] integers.
          images: [n, height, width, 3] uint8.
        """
        added = [place for place, number in enumerate(numbers.tolist()) if not self.has(number)]
        if not added or not self.takes_more:
            return
        images, (height, width) = np.ascontiguousarray(images[added]), images.shape[1:3]
        try:
            offset = self._reserve(images.nbytes)
            if offset is None:
                limits = (
                    f"--cache_gib is {self._limit_bytes / 2**30:.4g}, and the disk has {megabytes(self._free())} free"
                )
                self._stop(f"{self._folder} is full ({limits})")
                return
            for number, image in zip(numbers[added].tolist(), images, strict=True):
                _write(self._pixels, image.data, offset)
                entry = _packed(number, (offset, height, width, google_crc32c.value(image)))
                _write(self._index, entry, number * _ENTRY_BYTES)
                offset += image.nbytes
        except OSError as error:
            self._stop(f"{self.path} cannot be written ({error.strerror})")

    def _stop(self, reason: str) -> None:
        if self.takes_more:
            self.takes_more = False
            _logger.warning("config.cache=disk: %s. Other images are decoded in each epoch.", reason)

    def _entry(self, number: int) -> tuple[int, int, int, int] | None:
        """Returns offset, height, width and checksum of an image, or None."""
        try:
            content = os.pread(self._index.fileno(), _ENTRY_BYTES, number * _ENTRY_BYTES)
        except OSError:
            return None
        if len(content) < _ENTRY_BYTES or not any(content):
            return None
        offset, height, width, checksum = entry = _FIELDS.unpack_from(content)
        return (offset, height, width, checksum) if content == _packed(number, entry) else None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self._threads:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _reserve(self, size: int) -> int | None:
        """Returns the offset of `size` new bytes at the end of the file; None if there is no space for them."""
        with self._alone():
            while not self._fits(size):
                if not self._remove_oldest():
                    return None
            end = os.fstat(self._pixels.fileno()).st_size
            os.ftruncate(self._pixels.fileno(), end + size)
            return end

    def _fits(self, size: int) -> bool:
        disk = os.fstatvfs(self._lock.fileno())
        spared = min(_SPARED_SHARE * disk.f_blocks * disk.f_frsize, _MOST_SPARED_BYTES)
        return self._used() + size <= self._limit_bytes and self._free() - size >= spared

    def _used(self) -> int:
        return sum(path.stat().st_size for path in self._files())

    def _free(self) -> int:
        disk = os.fstatvfs(self._lock.fileno())
        return disk.f_bavail * disk.f_frsize

    def _files(self) -> list[Path]:
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries]
        return [self._folder / name for name in names if name.startswith(_PREFIX) and name.endswith((_INDEX, _PIXELS))]

    def _remove_oldest(self) -> bool:
        """Removes the key that has not been opened and written for the longest time, of those that no process uses.

        Returns:
          Whether there is one.
        """
        keys = {path.with_suffix(_INDEX): path.stat().st_mtime for path in self._files()}
        for index in sorted(keys, key=keys.__getitem__):
            with _open(index) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                index.with_suffix(_PIXELS).unlink(missing_ok=True)
                index.unlink()
                return True
        return False


def _open(path: Path) -> BinaryIO:
    """Opens a file for reading and writing at any place, creating it if missing. Raises OSError."""
    return os.fdopen(open_own(str(path), os.O_RDWR | os.O_CREAT), "rb+", buffering=0)


def _write(file: BinaryIO, content: bytes | memoryview, offset: int) -> None:
    """Writes all of it. Raises OSError: the disk is full, for one."""
    left = memoryview(content).cast("B")
    while left:
        written = os.pwrite(file.fileno(), left, offset)
        left, offset = left[written:], offset + written


def _packed(number: int, entry: Sequence[int]) -> bytes:
    """Returns the entry of an image with its checksum, which also covers the number: entries cannot be confused."""
    packed = _FIELDS.pack(*entry)
    return packed + _CHECKSUM.pack(google_crc32c.extend(number % 2**32, packed))
