"""Dataset storage: local directories, and object stores (`s3://bucket/data`).

    directory = dataset_path("s3://bucket/data")      # pathlib.Path, or RemotePath for SCHEME://
    (directory / "manifest.json").read_text()
    shards = Shards([directory / "a.tfrecord"])
    shards.read(0, offset=4096, size=100)

Local files are read with `os.pread`, remote ones by ranged requests (`core.remote`).
"""

import contextlib
import errno
import hashlib
import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from convoy.core.downloads import cache_folder
from convoy.core.errors import ConvoyError, DataError, did_you_mean
from convoy.core.reading import check_file, read_file
from convoy.core.remote import RemotePath, download, is_remote

_OTHER_FILES = 256  # reserve for TensorFlow, worker processes and the run directory


def dataset_path(directory: "str | os.PathLike[str] | RemotePath") -> "Path | RemotePath":
    """Returns a dataset directory as a path, local or remote."""
    if isinstance(directory, RemotePath):
        return directory
    return RemotePath(str(directory).rstrip("/")) if is_remote(directory) else Path(directory)


def local_place(directory: Path | RemotePath) -> Path:
    """Returns a local directory itself; of a remote one, the path in the cache folder at which it is built."""
    if not isinstance(directory, RemotePath):
        return directory
    digest = hashlib.sha256(directory.text.encode()).hexdigest()[:8]
    return cache_folder() / "uploads" / f"{directory.name}-{digest}"


def content_of(path: Path | RemotePath) -> bytes:
    """Returns a file's content. Raises OSError if it cannot be read, and as the methods of `RemotePath`."""
    return path.read_bytes() if isinstance(path, RemotePath) else read_file(path)


def similar_folder(missing: "Path | RemotePath") -> str:
    """Returns ` (did you mean 'x'?)` for the most similar name of the folders next to `missing`, or ""."""
    parent = missing.parent
    if isinstance(parent, RemotePath):  # without a request per entry, and not of all buckets
        names = (entry.name for entry in parent.iterdir()) if is_remote(parent) and parent.is_dir() else ()
        return did_you_mean(missing.name, names)
    folders = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    return did_you_mean(missing.name, folders)


@contextlib.contextmanager
def local_copy(path: Path | RemotePath) -> Iterator[Path]:
    """Yields a local path with the same content, for code that needs a file: `path` itself if it is local.

    Raises:
      OSError: it is missing, or there is no space for the copy.
      ConvoyError: as the methods of `RemotePath`.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="convoy-") as folder:
        local = Path(folder) / path.name
        download(path, local)
        yield local


class Shards:
    """The open files of a split; safe to use from several threads."""

    def __init__(self, paths: Sequence[Path | RemotePath]):
        """Opens local files; of remote ones each read is a request.

        Raises:
          DataError: a file cannot be opened.
        """
        self.paths = tuple(paths)
        self.are_remote = any(is_remote(path) for path in paths)
        self._descriptors: list[int] = []
        if self.are_remote:
            return
        _make_room_for_files(len(self.paths))
        for path in self.paths:
            try:
                check_file(str(path))
                self._descriptors.append(os.open(str(path), os.O_RDONLY))
            except OSError as error:
                self.close()
                raise DataError(f"{path}: cannot be opened ({error.strerror}).{self._file_limit_fix(error)}") from None

    def _file_limit_fix(self, error: OSError) -> str:
        if error.errno != errno.EMFILE:
            return ""
        limit, number = resource.getrlimit(resource.RLIMIT_NOFILE)[0], len(self.paths)
        return (
            f" All {number:,} shards must be open at once, and the limit of this process is {limit:,} open files. "
            f"Raise it with `ulimit -n {2 * (number + _OTHER_FILES)}`, or convert to fewer shards."
        )

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Returns `size` bytes of a shard from `offset` on, of a local one fewer at its end.

        Raises:
          ConvoyError: the file system fails. Not a DataError, since it may be temporary and no record is at fault.
        """
        try:
            if self._descriptors:
                return os.pread(self._descriptors[shard], size, offset)
            path = self.paths[shard]
            assert isinstance(path, RemotePath)
            return path.read_range(offset, size)
        except OSError as error:
            raise ConvoyError(
                f"{self.paths[shard]}: bytes {offset} to {offset + size} cannot be read ({error.strerror or error})"
            ) from None

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []


def _make_room_for_files(number: int) -> None:
    """Raises this process's limit of open files, if needed and allowed, so that `number` more can be opened."""
    with contextlib.suppress(OSError, ValueError):  # opening the files reports the error
        wanted = len(os.listdir("/dev/fd")) + number + _OTHER_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
