"""Files from the internet, downloaded once into a cache folder that all processes of the host share.

    weights = RemoteFile("https://host/weights.h5", "weights.h5", digest="5f2a...")
    path = fetched(weights, cache_folder() / "weights", needed_by="config.model.weights='imagenet'")

A file is complete and checked before it gets its name. Without internet access, it can be put there by hand.
"""

import contextlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import DataError
from convoy.core.files import LockHeldError, acquire_lock, digest_of, written_whole
from convoy.core.text import megabytes, one_line, without_secrets

CACHE_VARIABLE = "CONVOY_CACHE"

_logger = logging.getLogger("convoy")
_CHECK_SECONDS = 10.0
_SILENCE_SECONDS = 60.0  # without a byte, after which a connection counts as lost
_LOCK_SECONDS = 6 * 3600.0  # for another process's download; the kernel frees the lock of one that was killed
_LOG_SECONDS = 15.0
_BLOCK = 2**20


@dataclass(frozen=True)
class RemoteFile:
    """A file that somebody publishes.

    Attributes:
      url: where it is.
      name: its name in a cache folder.
      digest: its SHA-256 or MD5 as hex; empty if it is not published.
    """

    url: str
    name: str
    digest: str = ""


def cache_folder() -> Path:
    """Returns the folder of downloaded files: `CONVOY_CACHE`, or `convoy` in the user's cache folder."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    users = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(users) if os.path.isabs(users) else Path("~/.cache").expanduser()) / "convoy"


def cached(file: RemoteFile, folders: Sequence[Path], is_whole: Callable[[Path], bool]) -> Path | None:
    """Returns the path of a file that is already there, or None.

    Args:
      file: the file.
      folders: where to look for it.
      is_whole: returns whether a file is complete, for those whose digest is not published.
    """
    for path in (folder / file.name for folder in folders):
        try:
            if path.is_file() and _is_right(file, path, is_whole):
                return path
        except OSError:
            continue
    return None


def fetched(
    file: RemoteFile,
    folder: Path,
    *,
    needed_by: str,
    is_whole: Callable[[Path], bool],
    also_in: Sequence[Path] = (),
) -> Path:
    """Returns the path of a file, after downloading it if it is not there yet.

    One process downloads, others of the host wait for it.

    Args:
      file: the file.
      folder: the cache folder to keep it in.
      needed_by: what needs it, to begin messages with.
      is_whole: as in `cached`.
      also_in: other folders in which it may be.

    Raises:
      DataError: it cannot be downloaded, is not the published one, or cannot be written.
    """
    folders = (folder, *also_in)
    if found := cached(file, folders, is_whole):
        return found
    path = folder / file.name
    try:
        with alone(folder, file.name):
            if found := cached(file, folders, is_whole):
                return found
            problem = _download(file, path, is_whole)
    except OSError as error:
        raise DataError(
            f"{needed_by}: {error.filename or path} cannot be written ({error.strerror or error}). Set "
            f"{CACHE_VARIABLE} to a writable folder with enough space."
        ) from None
    if problem:
        if path.exists():
            problem += f"; what is at {path} is not that file either"
        raise DataError(f"{needed_by}: {file.url} cannot be downloaded: {problem}. Put that file at {path}.")
    return path


def unreachable(file: RemoteFile) -> str:
    """Returns why a file cannot be downloaded, or "" if its server answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(file.url, method="HEAD"), timeout=_CHECK_SECONDS):
            return ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Waits until no other process of the host is in this context with the same folder and name.

    Raises:
      DataError: another process has been in it for hours.
      OSError: the folder cannot be written.
    """

    def report_wait() -> None:
        _logger.info("Waiting for another process that downloads %s.", name)

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "ab") as lock:
        try:
            acquire_lock(lock.fileno(), wait_seconds=_LOCK_SECONDS, on_wait=report_wait)
        except LockHeldError:
            raise DataError(f"{folder / name}: another process has been downloading it for hours. End it.") from None
        yield


def _download(file: RemoteFile, path: Path, is_whole: Callable[[Path], bool]) -> str:
    """Downloads a file; returns why that failed, or "". Raises OSError if it cannot be written."""
    try:
        answer = urllib.request.urlopen(file.url, timeout=_SILENCE_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)
    with answer:
        length = getattr(answer, "length", None) or 0
        size = megabytes(length) if length else "unknown size"
        _logger.info("Downloading %s (%s) to %s.", without_secrets(file.url), size, path)
        try:
            with written_whole(path) as partial:
                received, logged = 0, time.monotonic()
                while block := _read(answer):
                    partial.write(block)
                    received += len(block)
                    if time.monotonic() - logged > _LOG_SECONDS:
                        logged = time.monotonic()
                        _logger.info("%s: %s of %s", file.name, megabytes(received), size)
                if received < length:
                    raise _RefusedError(f"the connection ended after {megabytes(received)} of {size}")
                partial.flush()
                sent = Path(partial.name)
                if not _is_right(file, sent, is_whole):
                    kind = _algorithm(file)
                    is_other = f"its {kind} is {digest_of(sent, kind)} instead of {file.digest}"
                    raise _RefusedError(is_other if file.digest else "what was sent is not a complete file of its kind")
        except _RefusedError as error:
            return str(error)
    return ""


class _RefusedError(Exception):
    """What was sent cannot be used; the message says why."""


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _RefusedError(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended too early"
    reason = getattr(error, "reason", error)
    return one_line(getattr(reason, "strerror", None) or str(reason) or type(error).__name__)


def _is_right(file: RemoteFile, path: Path, is_whole: Callable[[Path], bool]) -> bool:
    return digest_of(path, _algorithm(file)) == file.digest if file.digest else is_whole(path)


def _algorithm(file: RemoteFile) -> str:
    return "md5" if len(file.digest) == 32 else "sha256"
