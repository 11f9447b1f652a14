"""Check of RUN's file system: tries each operation that a run needs, and reports the consequence of each refusal."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from convoy.core.files import replace
from convoy.core.finding import Severity
from convoy.trainer.doctor.findings import DoctorFinding, ok

_ELSEWHERE = "Pass a --workdir on another file system."
_LONGEST_NAME = 128  # characters of the longest name in RUN, an event file with the name of its host


class _Operation(NamedTuple):
    """An operation, what is tried in an empty folder, and the finding if that raises OSError."""

    name: str
    attempt: Callable[[Path], None]
    severity: Severity
    consequence: str
    fix: str


def check_file_system(folder: Path) -> list[DoctorFinding]:
    """Returns a finding for each operation that the file system of a folder refuses, or one that it supports all.

    Args:
      folder: RUN, or the folder in which it will be made. What is tried there is removed.
    """
    findings = []
    for operation in _OPERATIONS:
        own = Path(tempfile.mkdtemp(prefix=".convoy-doctor-", dir=folder))
        try:
            operation.attempt(own)
        except OSError as error:
            text = f"{folder} does not support {operation.name} ({error.strerror}): {operation.consequence}."
            code = f"no-{operation.name.replace(' ', '-')}"
            findings.append(
                DoctorFinding(operation.severity, code, text, operation.fix, section="file system", of_all=True)
            )
        finally:
            shutil.rmtree(own, ignore_errors=True)
    names = ", ".join(operation.name for operation in _OPERATIONS)
    return findings or [ok("file system", "file-system-suffices", f"supports {names}", of_all=True)]


def _append(folder: Path) -> None:
    for _ in range(2):
        with open(folder / "file", "ab+", buffering=0) as file:
            file.write(b"line\n")


def _rename_over_a_file(folder: Path) -> None:
    for name in ("new", "old"):
        (folder / name).touch()
    replace(folder / "new", folder / "old")


def _rename_over_an_open_file(folder: Path) -> None:
    for name in ("new", "old"):
        (folder / name).touch()
    with open(folder / "old", "rb"):
        os.replace(folder / "new", folder / "old")


def _remove_an_open_file(folder: Path) -> None:
    (folder / "file").touch()
    with open(folder / "file", "rb"):
        (folder / "file").unlink()


def _use_a_long_name(folder: Path) -> None:
    (folder / ("x" * _LONGEST_NAME)).touch()


def _lock(folder: Path) -> None:
    with open(folder / "lock", "wb") as first, open(folder / "lock", "wb") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise OSError(0, "a second process gets the lock too")


def _sync_a_file(folder: Path) -> None:
    with open(folder / "file", "wb") as file:
        os.fsync(file.fileno())


def _sync_a_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_KEPT = "a checkpoint that was just saved may be lost if the machine loses power"
_CLOSE = "Close TensorBoard and other readers of RUN before you resume it, or pass a --workdir on another file system."
_OPERATIONS = (
    _Operation("appending", _append, Severity.ERROR, "metrics and events cannot be written", _ELSEWHERE),
    _Operation("renaming over a file", _rename_over_a_file, Severity.ERROR, "no file can be replaced", _ELSEWHERE),
    _Operation("long names", _use_a_long_name, Severity.ERROR, "event files cannot be made", _ELSEWHERE),
    _Operation(
        "renaming over an open file",
        _rename_over_an_open_file,
        Severity.WARNING,
        "a program that reads a file of RUN may keep it from being replaced",
        _CLOSE,
    ),
    _Operation(
        "removing an open file",
        _remove_an_open_file,
        Severity.WARNING,
        "old checkpoints stay while a program reads them",
        _CLOSE,
    ),
    _Operation(
        "locks",
        _lock,
        Severity.WARNING,
        "two processes that train in RUN at once are not noticed",
        f"Start RUN only once. {_ELSEWHERE}",
    ),
    _Operation("fsync of files", _sync_a_file, Severity.WARNING, _KEPT, _ELSEWHERE),
    _Operation("fsync of folders", _sync_a_folder, Severity.WARNING, _KEPT, _ELSEWHERE),
)
