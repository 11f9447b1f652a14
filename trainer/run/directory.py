"""The run directory, RUN: creating and locking it, and writing its files atomically."""

import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from convoy.core.errors import DataError, UsageError
from convoy.core.files import PARTIAL_SUFFIX, LockHeldError, acquire_lock, append_json_line, json_value, write_whole
from convoy.core.run_layout import RunLayout
from convoy.input_pipeline.dataset.layout import RecordFormat

# May exist before a run starts: written by a launcher or by `convoy train --find_lr`.
_FILES_BEFORE_A_RUN = ("logs", "launch.json", "find_lr.csv", "find_lr.png")


class RunDirectory(RunLayout):
    """The paths of a run, its lock and its JSON files."""

    def __init__(self, path: str | os.PathLike):
        """Sets the paths; `create` makes the folder."""
        super().__init__(path)
        self._lock: BinaryIO | None = None

    def create(self, *, wait_seconds: float = 0.0) -> None:
        """Makes the folder and locks it until this process ends.

        Args:
          wait_seconds: how long to wait for another process to release the lock.

        Raises:
          UsageError: the path is a file, or a folder that contains something else.
          DataError: the folder cannot be created, read or written, or another process is training in it.
        """
        self.check()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: cannot be created ({error.strerror}). Pass a writable folder."
            ) from None
        if not os.access(self.path, os.W_OK):
            raise DataError(f"--workdir={self.path}: not writable. Pass a writable folder.")
        if not self._lock:
            self._take_lock(wait_seconds)

    def _take_lock(self, wait_seconds: float) -> None:
        try:
            lock = open(self.lock_file, "wb")  # noqa: SIM115 (held open: the kernel frees it with the process)
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: its .lock cannot be written ({error.strerror}). Pass a writable folder."
            ) from None

        def report_wait() -> None:
            print(f"Waiting up to {wait_seconds:.0f} s for another process that trains in {self.path}.", flush=True)

        try:
            unsupported = acquire_lock(lock.fileno(), wait_seconds=wait_seconds, on_wait=report_wait)
        except LockHeldError:
            lock.close()
            raise DataError(
                f"--workdir={self.path}: another process is training in it. Wait for it, or pass another folder."
            ) from None
        except OSError as error:
            lock.close()
            raise DataError(
                f"--workdir={self.path} cannot be locked ({error.strerror}). Fix the file system, or pass another "
                "folder."
            ) from None
        if unsupported:
            print(f"warning: --workdir={self.path} cannot be locked ({unsupported.strerror}): train in it only once.")
        self._lock = lock

    def check(self) -> None:
        """Checks that the path can be used as a run directory. Creates nothing.

        Raises:
          UsageError: the path is a file, or a folder that contains something else.
          DataError: the path cannot be read.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UsageError(f"--workdir={self.path}: is a file. Pass a folder.")
            if self.path.is_dir() and not self.checkpoints.is_dir() and self._has_foreign_files():
                raise UsageError(f"--workdir={self.path}: not empty and not a run directory. Pass a new folder.")
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: cannot be read ({error.strerror}). Pass a readable folder."
            ) from None

    def _has_foreign_files(self) -> bool:
        return any(path.name.removesuffix(PARTIAL_SUFFIX) not in _FILES_BEFORE_A_RUN for path in self.path.iterdir())

    def record_format(self, given: RecordFormat) -> RecordFormat:
        """Returns how the run reads records of other tools: as `given`, and else as when it began."""
        try:
            has_begun = any(name.startswith("step-") for name in os.listdir(self.checkpoints))
            known = self.read_json(self.dataset).get("record_format", {}) if has_begun else None
        except (OSError, DataError):  # what needs these files reports it
            known = None
        return given if known is None else given.over(RecordFormat.from_dict(known))

    def write_json(self, path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Writes a JSON file atomically. Raises OSError if it cannot be written."""
        write_whole(path, (json.dumps(json_value(value), indent=2, allow_nan=False) + "\n").encode())

    def read_json(self, path: Path) -> Any:  # noqa: ANN401 (any JSON value)
        """Reads a JSON file of the run.

        Raises:
          DataError: the file is missing or damaged.
        """
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, so {self.path} is not a run directory of `convoy train`.") from None
        except ValueError as error:
            raise DataError(f"{path}: damaged ({error}). Restore it, or train in another --workdir.") from None

    def append_event(self, name: str, **details: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Appends to events.jsonl: the event's name, the time in seconds since 1970, and details."""
        append_json_line(self.events, {"event": name, "time": time.time(), **details})


def truncate_json_lines(path: Path, last_step: int) -> None:
    """Drops the lines of a JSON-lines file whose `step` is after `last_step`, and damaged lines."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_whole(path, b"".join(line + b"\n" for line in kept))
