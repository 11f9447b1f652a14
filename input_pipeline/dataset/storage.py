"""Dataset storage: local directories and all other TensorFlow file systems (`gs://bucket/data`).

    directory = dataset_path("gs://bucket/data")      # pathlib.Path, or RemotePath for SCHEME://
    (directory / "manifest.json").read_text()
    shards = Shards([directory / "a.tfrecord"])
    shards.read(0, offset=4096, size=100)

Local files are read with `os.pread`, without importing TensorFlow.
"""

import contextlib
import errno
import os
import re
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

from convoy.core.errors import ConvoyError, DataError, UsageError, did_you_mean
from convoy.core.reading import check_file
from convoy.input_pipeline.tf_startup import start_tensorflow

_OTHER_FILES = 256  # reserve for TensorFlow, worker processes and the run directory
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(path: object) -> bool:
    """Returns whether a path is read through TensorFlow: it begins with `SCHEME://` (also `file://` and `ram://`)."""
    return bool(_SCHEME.match(str(path)))


def dataset_path(directory: "str | os.PathLike[str] | RemotePath") -> "Path | RemotePath":
    """Returns a dataset directory as a path, local or remote."""
    if isinstance(directory, RemotePath):
        return directory
    return RemotePath(str(directory).rstrip("/")) if is_remote(directory) else Path(directory)


def similar_folder(missing: "Path | RemotePath") -> str:
    """Returns ` (did you mean 'x'?)` for the most similar name of the folders next to `missing`, or ""."""
    parent = missing.parent
    folders = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    return did_you_mean(missing.name, folders)


@dataclass(frozen=True)
class RemotePath:
    """A path `SCHEME://...`, with the part of the `pathlib.Path` interface that opening a dataset needs.

    `pathlib` would collapse the double slash. `text` has no trailing slash. Failed reads raise OSError.
    """

    text: str

    def __truediv__(self, name: str) -> "RemotePath":
        """Returns the path of an entry."""
        return RemotePath(f"{self.text}/{name}")

    def __str__(self) -> str:
        """Returns the text."""
        return self.text

    @property
    def name(self) -> str:
        """The last component."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """The path without the last component."""
        return RemotePath(self.text.rpartition("/")[0])

    def resolve(self) -> "RemotePath":
        """Returns itself: remote paths are absolute."""
        return self

    def is_dir(self) -> bool:
        """Returns whether this is an existing directory."""
        with contextlib.suppress(FileNotFoundError), _os_errors(self) as gfile:
            return gfile.stat(self.text).is_directory  # `isdir` is also False for an unknown scheme
        return False

    def is_file(self) -> bool:
        """Returns whether this is an existing file."""
        with contextlib.suppress(FileNotFoundError), _os_errors(self) as gfile:
            return not gfile.stat(self.text).is_directory
        return False

    def iterdir(self) -> "Iterator[RemotePath]":
        """Yields the entries of the directory."""
        with _os_errors(self) as gfile:
            names = gfile.listdir(self.text)
        yield from (self / name.rstrip("/") for name in sorted(names))

    def stat(self) -> SimpleNamespace:
        """Returns an object with `st_size`, the size in bytes."""
        with _os_errors(self) as gfile:
            return SimpleNamespace(st_size=gfile.stat(self.text).length)

    def read_bytes(self) -> bytes:
        """Returns the file's content."""
        with _os_errors(self) as gfile, gfile.GFile(self.text, "rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the file's content as text."""
        return self.read_bytes().decode(encoding)


@contextlib.contextmanager
def local_copy(path: Path | RemotePath) -> Iterator[Path]:
    """Yields a local path with the same content, for code that needs a file: `path` itself if it is local.

    Raises:
      OSError: it cannot be read.
    """
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="convoy-") as folder:
        local = Path(folder) / path.name
        with _os_errors(path) as gfile:
            gfile.copy(str(path), str(local))
        yield local


class Shards:
    """The open files of a split; safe to use from several threads."""

    def __init__(self, paths: Sequence[Path | RemotePath]):
        """Opens local files; remote ones are opened for each read.

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
        """Returns `size` bytes of a shard from `offset` on, fewer at its end.

        Raises:
          ConvoyError: the file system fails. Not a DataError, since it may be temporary and no record is at fault.
        """
        try:
            if self._descriptors:
                return os.pread(self._descriptors[shard], size, offset)
            with _os_errors(self.paths[shard]) as gfile, gfile.GFile(str(self.paths[shard]), "rb") as file:
                file.seek(offset)
                return file.read(size)
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


@contextlib.contextmanager
def _os_errors(path: Path | RemotePath) -> Iterator[ModuleType]:
    """Yields `tf.io.gfile`; its errors become OSError, an unknown scheme becomes UsageError."""
    if "tensorflow" not in sys.modules:
        start_tensorflow()
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.UnimplementedError:
        scheme = str(path).partition("://")[0]
        raise UsageError(
            f"{path}: this TensorFlow has no file system for {scheme}://. Mount it, or copy the dataset to a local "
            "directory."
        ) from None
    except tf.errors.NotFoundError:
        raise FileNotFoundError(2, os.strerror(2), str(path)) from None
    except tf.errors.OpError as error:
        raise OSError(f"{path}: {error.message}") from None
