"""Crash-safe files: atomic replacement, appended JSON lines, locks, checksums.

Network file systems, FUSE and folders of another operating system (CIFS, 9p, WSL) lack some of the operations that
these need. They then skip it or do it in another way: the result is the same, unless the machine crashes meanwhile.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from convoy.core.errors import UsageError
from convoy.core.text import without_secrets

PARTIAL_SUFFIX = ".tmp"

_LOCK_POLL_SECONDS = 0.2
_UNSUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_NO_LOCKS = (errno.ENOLCK, *_UNSUPPORTED)
# From a file system that does not rename over what exists, or over what a program has open.
_IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.ETXTBSY, errno.EEXIST, errno.ENOTEMPTY)
_LONGEST_NAME = 255  # bytes


def current_folder() -> str:
    """Returns the current folder as the shell names it, with links: they may resolve differently on other hosts."""
    name = os.environ.get("PWD", "")
    return name if os.path.isabs(name) and os.path.exists(name) and os.path.samefile(name, ".") else os.getcwd()


def logical_path(path: str) -> str:
    """Returns an absolute path in `current_folder`, without resolving links."""
    return os.path.normpath(os.path.join(current_folder(), path))


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file next to `path` for writing; on exit it is flushed to disk and renamed to `path`.

    An exception removes it. A killed process leaves `path` + `PARTIAL_SUFFIX`, which the next write replaces.

    Raises:
      OSError: the file cannot be written.
    """
    name = os.fsencode(path.name)
    is_long = len(name) + len(PARTIAL_SUFFIX) > _LONGEST_NAME
    partial = path.with_name((hashlib.sha256(name).hexdigest() if is_long else path.name) + PARTIAL_SUFFIX)
    try:
        with open(partial, "wb", buffering=2**20) as file:
            yield file
            file.flush()
            sync(file.fileno())
        replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file's content atomically. Raises OSError if it cannot be written."""
    with written_whole(path) as file:
        file.write(content)


def sync(descriptor: int) -> None:
    """Flushes an open file to disk, where the file system can. Raises OSError if writing fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk, where the file system can. Raises OSError if writing fails."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Renames a file over another one, or a folder over an empty one.

    That is atomic, except where the file system refuses it: there the target is removed first.

    Raises:
      OSError: it cannot be renamed.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in _IN_THE_WAY or not os.path.lexists(target):
            raise
        if source.is_dir():
            target.rmdir()
        else:
            target.unlink()
        os.replace(source, target)


def open_own(path: str, flags: int) -> int:
    """Opens a file to write to it, as an `opener` for `open`: not a pipe or device, and not through a link."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return descriptor


class LockHeldError(Exception):
    """Another process holds the lock."""


def acquire_lock(
    descriptor: int, *, wait_seconds: float = 0.0, on_wait: Callable[[], None] = lambda: None
) -> OSError | None:
    """Locks an open file exclusively. The kernel releases the lock when the file is closed or the process ends.

    Args:
      descriptor: the file's descriptor.
      wait_seconds: how long to wait for another process that holds the lock.
      on_wait: called once, before the first wait.

    Returns:
      None, or the error of a file system that has no locks: the caller goes on without one.

    Raises:
      LockHeldError: another process still holds it.
      OSError: locking failed for another reason.
    """
    deadline, is_waiting = time.monotonic() + wait_seconds, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except (BlockingIOError, PermissionError):  # PermissionError: CIFS
            if time.monotonic() >= deadline:
                raise LockHeldError from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return error
        if not is_waiting:
            is_waiting = True
            on_wait()
        time.sleep(_LOCK_POLL_SECONDS)


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Locks a folder, or a file that is created if missing. Goes on without a lock where locking fails.

    Raises:
      UsageError: another process holds the lock; its message is `refusal`.
      OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            acquire_lock(descriptor)
        except LockHeldError:
            raise UsageError(refusal) from None
        except OSError:  # NFS, for one, cannot lock what is open for reading only
            pass
        yield
    finally:
        os.close(descriptor)


def check_output_file(path: Path, *, flag: str = "output") -> None:
    """Raises a UsageError unless `path`, the value of `--FLAG`, may become a file."""
    if not path.parent.is_dir():
        raise UsageError(f"--{flag}={path}: the folder {path.parent} does not exist. Create it.")
    if path.is_dir():
        raise UsageError(f"--{flag}={path} is a folder. Pass the path of the file to write.")


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content as hex. Raises OSError if it cannot be read."""
    return digest_of(path, "sha256")


def digest_of(path: Path, algorithm: str) -> str:
    """Returns a digest of a file's content as hex, by hashlib's name. Raises OSError if it cannot be read."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def json_value(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """Returns `value` with None for every number that is not finite, as JSON has no NaN, and without secrets."""
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, str):
        return without_secrets(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Appends one JSON object as a line; see `append_whole`. Raises OSError if it cannot be written."""
    append_whole(path, json.dumps(json_value(value), allow_nan=False).encode() + b"\n")


def append_whole(path: Path, lines: bytes) -> None:
    """Appends lines to a file; starts with a newline if a crash cut the last line short.

    Raises:
      OSError: they cannot be written; the file is unchanged then.
    """
    with open(path, "ab+", buffering=0, opener=open_own) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                lines = b"\n" + lines
        if file.write(lines) < len(lines):  # the disk filled up halfway
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
