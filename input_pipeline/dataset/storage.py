"""Where a dataset lies: a folder of this machine, or whatever else TensorFlow's file systems know (`gs://bucket/data`).

    directory = dataset_path("gs://bucket/data")      # pathlib.Path for a folder, RemotePath for SCHEME://
    (directory / "manifest.json").read_text()
    shards = Shards([directory / "a.tfrecord"])
    shards.read(0, offset=4096, size=100)

A folder is read with `os.pread`, and TensorFlow is not imported for it.
"""

import contextlib
import errno
import os
import re
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.input_pipeline.tf_startup import start_tensorflow

_OTHER_FILES = 256  # that TensorFlow, other workers and the run directory may want to open later
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(path: object) -> bool:
    """Whether a path begins with `SCHEME://` and so is TensorFlow's to read; `file://` and `ram://` are too."""
    return bool(_SCHEME.match(str(path)))


def dataset_path(directory: "str | os.PathLike | RemotePath") -> "Path | RemotePath":
    """Returns a dataset directory as a path, local or remote."""
    return RemotePath(str(directory)) if is_remote(directory) else Path(directory)


class RemotePath:
    """A path `SCHEME://...` with as much of `pathlib.Path` as opening a dataset takes.

    `pathlib` itself would make one slash of two. What TensorFlow cannot read raises OSError.
    """

    def __init__(self, text: str):
        """Looks for nothing yet."""
        self._text = text.rstrip("/")

    def __truediv__(self, name: str) -> "RemotePath":
        """Returns the path of an entry."""
        return RemotePath(f"{self._text}/{name}")

    def __str__(self) -> str:
        """Returns it as it was typed."""
        return self._text

    def __repr__(self) -> str:
        """Returns what makes the same path."""
        return f"RemotePath({self._text!r})"

    def __eq__(self, other: object) -> bool:
        """Whether both are the same text."""
        return isinstance(other, RemotePath) and str(other) == self._text

    def __hash__(self) -> int:
        """Fits `==`."""
        return hash(self._text)

    @property
    def name(self) -> str:
        """The last part."""
        return self._text.rpartition("/")[2]

    @property
    def parent(self) -> "RemotePath":
        """All but the last part."""
        return RemotePath(self._text.rpartition("/")[0])

    def resolve(self) -> "RemotePath":
        """Returns itself: it is absolute."""
        return self

    def is_dir(self) -> bool:
        """Whether there is such a folder."""
        with contextlib.suppress(FileNotFoundError), _os_errors(self) as gfile:
            return gfile.stat(self._text).is_directory  # `isdir` says no to an unknown scheme too
        return False

    def is_file(self) -> bool:
        """Whether there is such a file."""
        with contextlib.suppress(FileNotFoundError), _os_errors(self) as gfile:
            return not gfile.stat(self._text).is_directory
        return False

    def iterdir(self) -> "Iterator[RemotePath]":
        """Yields the entries of a folder."""
        with _os_errors(self) as gfile:
            names = gfile.listdir(self._text)
        yield from (self / name.rstrip("/") for name in sorted(names))

    def stat(self) -> SimpleNamespace:
        """Returns what has `st_size`, the size in bytes."""
        with _os_errors(self) as gfile:
            return SimpleNamespace(st_size=gfile.stat(self._text).length)

    def read_bytes(self) -> bytes:
        """Returns the file's content."""
        with _os_errors(self) as gfile, gfile.GFile(self._text, "rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the file's content as text."""
        return self.read_bytes().decode(encoding)


@contextlib.contextmanager
def local_copy(path: Path | RemotePath) -> Iterator[Path]:
    """Gives a local path with the same content, for what can only read files: `path` itself where it is local.

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
    """The files of a split, open; safe to use from several threads."""

    def __init__(self, paths: Sequence[Path | RemotePath]):
        """Opens the local ones.

        Raises:
          DataError: one cannot be opened.
        """
        self.paths = tuple(paths)
        self.are_remote = any(is_remote(path) for path in paths)
        self._descriptors: list[int] = []
        if self.are_remote:
            return
        make_room_for_files(len(self.paths))
        for path in paths:
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY))
            except OSError as error:
                self.close()
                raise DataError(f"{path}: cannot be opened ({error.strerror}).{self._mend_of(error)}") from None

    def _mend_of(self, error: OSError) -> str:
        if error.errno != errno.EMFILE:
            return ""
        limit, number = resource.getrlimit(resource.RLIMIT_NOFILE)[0], len(self.paths)
        return (
            f" All {number:,} shards are read at a time, and this process may open no more than {limit:,} files: "
            f"allow it more, `ulimit -n {2 * (number + _OTHER_FILES)}`, or have fewer shards."
        )

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Returns `size` bytes of a shard from `offset` on, fewer where it ends before.

        Raises:
          ConvoyError: the file system fails. That is no record's fault and may pass, so it is no DataError.
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
        """Closes them."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []


def make_room_for_files(number: int) -> None:
    """Raises this process's limit of open files, where it must be and may be, so that so many more can be opened."""
    with contextlib.suppress(OSError, ValueError):  # what is not granted shows when files are opened
        wanted = len(os.listdir("/dev/fd")) + number + _OTHER_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def _os_errors(path: Path | RemotePath) -> Iterator[ModuleType]:
    """Gives `tf.io.gfile`; what it raises inside comes out as an OSError, an unknown scheme as a UsageError."""
    if "tensorflow" not in sys.modules:
        start_tensorflow()
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.UnimplementedError:
        scheme = str(path).partition("://")[0]
        raise UsageError(
            f"{path}: TensorFlow here has no file system {scheme}://. Mount it, or copy the dataset to a folder."
        ) from None
    except tf.errors.NotFoundError:
        raise FileNotFoundError(2, os.strerror(2), str(path)) from None
    except tf.errors.OpError as error:
        raise OSError(f"{path}: {error.message}") from None
