"""Files in object stores (`s3://`, `gs://`, `az://`), and in all other file systems that fsspec knows.

    path = RemotePath("s3://bucket/data")
    (path / "manifest.json").read_text()
    (path / "a.tfrecord").read_range(4096, 100)
    download(path / "index-train.npz", Path("index.npz"))
    upload(Path("index.npz"), path / "index-train.npz")

Failures that may pass (5xx, 429, lost connections, timeouts, answers that are cut short) are retried with growing
pauses of random length. What remains is raised as an error that names the URL, the server's words and the fix
(`remote_errors`). Credentials and endpoints are those of the libraries: environment, profiles, roles of the machine.

fsspec's file systems belong to one process: they are looked up for every call, so that a forked process gets its own.
"""

import contextlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from convoy.core.errors import UsageError
from convoy.core.files import PARTIAL_SUFFIX
from convoy.core.remote_errors import EXTRAS, TruncatedError, judged, scheme_of

Result = TypeVar("Result")

PARALLEL_REQUESTS = 32  # that hide the latency of a store
PARALLEL_UPLOADS = 8  # of files, which the libraries hold in memory, or parts of them
_PART_BYTES = 8 * 2**20  # of a file that is downloaded
_ATTEMPTS = 6  # of a request; the libraries repeat some by themselves
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 16.0
_LOGGED_ATTEMPT = 3  # that single failures, which are normal in a large store, remain unmentioned
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# A listing that is kept would hide what another process has written meanwhile.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"use_listings_cache": False, "config_kwargs": {"max_pool_connections": 2 * PARALLEL_REQUESTS}},
    "file": {"auto_mkdir": True},
}

_logger = logging.getLogger("convoy")


def is_remote(path: object) -> bool:
    """Returns whether a path begins with `SCHEME://` (also `file://` and `memory://`)."""
    return bool(_SCHEME.match(str(path)))


@dataclass(frozen=True)
class RemotePath:
    """A path `SCHEME://...`, with the part of the `pathlib.Path` interface that datasets and backups need.

    `pathlib` would collapse the double slash. `text` has no trailing slash.

    All methods that read or write raise:
      FileNotFoundError: there is no such object.
      UsageError: the library for the scheme is not installed, or credentials or the region are wrong.
      DataError: there is no such bucket.
      ConvoyError: the store still fails after several attempts.
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

    absolute = resolve

    def is_dir(self) -> bool:
        """Returns whether this is an existing directory, or the beginning of the names of objects."""
        with contextlib.suppress(FileNotFoundError):
            return self._info()["type"] == "directory"
        return False

    def is_file(self) -> bool:
        """Returns whether this is an existing file."""
        with contextlib.suppress(FileNotFoundError):
            return self._info()["type"] == "file"
        return False

    def iterdir(self) -> "Iterator[RemotePath]":
        """Yields the entries of the directory."""

        def listed(fs: Any) -> set[str]:  # noqa: ANN401 (fsspec may not be installed)
            names = {name.rstrip("/") for name in fs.ls(self.text, detail=False)}
            return names - {fs._strip_protocol(self.text).rstrip("/")}  # a store may list an object for the directory

        yield from (self / name for name in sorted(name.rpartition("/")[2] for name in self._retried(listed)))

    def files(self) -> dict[str, int]:
        """Returns the size in bytes of every file in the directory and below it, by relative path; {} if missing."""

        def find(fs: Any) -> dict[str, int]:  # noqa: ANN401
            root = fs._strip_protocol(self.text).rstrip("/") + "/"
            try:
                found = fs.find(self.text, detail=True)
            except FileNotFoundError as error:
                if judged(error, self.text).is_missing:
                    return {}
                raise
            return {
                name[len(root) :]: info["size"]
                for name, info in found.items()
                if info["type"] == "file" and name.startswith(root)
            }

        return dict(sorted(self._retried(find).items()))

    def stat(self) -> SimpleNamespace:
        """Returns an object with `st_size`, the size in bytes."""
        return SimpleNamespace(st_size=self._info()["size"])

    def read_range(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes from `offset` on, all of which must be in the file."""

        def read(fs: Any) -> bytes:  # noqa: ANN401
            content: bytes = fs.cat_file(self.text, start=offset, end=offset + size)
            if len(content) != size:
                raise TruncatedError(f"{len(content):,} of {size:,} bytes from byte {offset:,} on were sent")
            return content

        return self._retried(read) if size else b""

    def read_bytes(self) -> bytes:
        """Returns the file's content, that of one moment if it is replaced meanwhile."""

        def read(fs: Any) -> bytes:  # noqa: ANN401
            content: bytes = fs.cat_file(self.text)
            if len(content) != (size := fs.info(self.text)["size"]):
                raise TruncatedError(f"{len(content):,} of {size:,} bytes were sent")
            return content

        return self._retried(read)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the file's content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Writes the file whole: a reader sees the earlier content or this."""
        self._retried(lambda fs: fs.pipe_file(self.text, content))

    def unlink(self) -> None:
        """Deletes the file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._retried(lambda fs: fs.rm_file(self.text))

    def _info(self) -> dict[str, Any]:
        return self._retried(lambda fs: fs.info(self.text))

    def _retried(self, request: Callable[[Any], Result]) -> Result:
        """Returns the result of a request to the file system, which is repeated after failures that may pass."""
        fs = _file_system(self.text)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return request(fs)
            except Exception as error:  # each library has its own
                failure = judged(error, self.text)
                if not failure.is_transient or attempt == _ATTEMPTS:
                    raise failure.error(self.text) from error
                if attempt >= _LOGGED_ATTEMPT:
                    _logger.warning(
                        "%s: %s. Attempt %d of %d follows.", self.text, failure.reason, attempt + 1, _ATTEMPTS
                    )
                # Random, so that the readers of a cluster do not come back all at once.
                pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
                time.sleep(pause * random.uniform(0.5, 1.0))
        raise AssertionError


def download(source: RemotePath, target: Path) -> None:
    """Copies a remote file to a local one, which appears when it is complete.

    Raises:
      OSError: `target` cannot be written, or `source` is missing.
      ConvoyError: as the methods of `RemotePath`.
    """
    _download([(source, target, source.stat().st_size)])


def download_folder(source: RemotePath, target: Path, files: Mapping[str, int]) -> None:
    """Copies files of a remote directory, sizes by relative path, into a local folder. Raises as `download`."""
    for folder in {(target / name).parent for name in files}:
        folder.mkdir(parents=True, exist_ok=True)
    _download([(source / name, target / name, size) for name, size in files.items()])


def _download(files: Sequence[tuple[RemotePath, Path, int]]) -> None:
    """Copies files, each (source, target, size), in parts of all of them in parallel."""
    partial = {target: target.with_name(target.name + PARTIAL_SUFFIX) for _, target, _ in files}

    def copy(part: tuple[RemotePath, Path, int, int]) -> None:
        source, target, offset, size = part
        content = source.read_range(offset, size)
        with open(partial[target], "rb+") as file:
            file.seek(offset)
            file.write(content)

    try:
        for path in partial.values():
            path.write_bytes(b"")
        parts = [
            (source, target, offset, min(_PART_BYTES, size - offset))
            for source, target, size in files
            for offset in range(0, size, _PART_BYTES)
        ]
        in_parallel(copy, parts)
        for target, path in partial.items():
            os.replace(path, target)
    except BaseException:
        for path in partial.values():
            path.unlink(missing_ok=True)
        raise


def upload(source: Path, target: RemotePath) -> None:
    """Copies a local file to a remote one, which appears when it is complete.

    Raises:
      OSError: `source` cannot be read.
      ConvoyError: as the methods of `RemotePath`.
    """
    with open(source, "rb"):  # a missing file would look like a missing bucket
        pass
    target._retried(lambda fs: fs.put_file(str(source), target.text))


def in_parallel(do: Callable[[Any], object], items: Iterable[Any], threads: int = PARALLEL_REQUESTS) -> None:
    """Calls a function, which mostly waits for a store, with each item. The first error stops it and is raised."""
    todo = list(items)
    if len(todo) < 2:
        for item in todo:
            do(item)
        return
    pool = ThreadPoolExecutor(min(threads, len(todo)), thread_name_prefix="object-store")
    try:
        for _ in pool.map(do, todo):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _file_system(url: str) -> Any:  # noqa: ANN401 (fsspec may not be installed)
    scheme = scheme_of(url)
    extra = EXTRAS.get(scheme, "")
    install = f"`pip install 'convoy-train[{extra}]'`" if extra else "the library for it"
    if extra == "gcs":
        # Plain requests, without a search for each bucket's type over gRPC.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        if not logging.getLogger("gcsfs").handlers:  # it would print the traceback of each failed request
            logging.getLogger("gcsfs").addHandler(logging.NullHandler())
    try:
        import fsspec

        return fsspec.filesystem(scheme, **_OPTIONS.get(extra or scheme, {"use_listings_cache": False}))
    except ImportError as error:
        raise UsageError(
            f"{url}: {scheme}:// needs a library that is not installed ({error}). Install {install}"
        ) from None
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise judged(error, url).error(url) from error
        raise UsageError(
            f"{url}: no file system for {scheme}:// is known. Pass s3://, gs:// or az://, or a local directory"
        ) from None
