"""RUN, the run directory: where everything of a run lies, and how it is written so that a crash leaves no half file."""

import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from convoy.core.errors import DataError, UsageError
from convoy.core.files import PARTIAL_SUFFIX, LockHeldError, acquire_lock, append_json_line, json_value, write_whole
from convoy.core.run_layout import RunLayout

# There before a run starts: what a launcher writes, and what `convoy train --find_lr` does.
_FILES_BEFORE_A_RUN = ("logs", "launch.json", "find_lr.csv", "find_lr.png")


class RunDirectory(RunLayout):
    """The paths of a run, and its small files."""

    def __init__(self, path: str | os.PathLike):
        """Names the run directory; `create` makes it."""
        super().__init__(path)
        self._lock: BinaryIO | None = None

    def create(self, *, wait_seconds: float = 0.0) -> None:
        """Makes the folder and keeps it for this process until that ends, however it ends.

        Args:
          wait_seconds: for how long to wait for another process that keeps it.

        Raises:
          UsageError: it is a file, or a folder that holds something else.
          DataError: it cannot be made, read or written, or another process trains in it.
        """
        self.check()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: cannot be made ({error.strerror}). Give a folder that can be written."
            ) from None
        if not os.access(self.path, os.W_OK):
            raise DataError(f"--workdir={self.path}: cannot be written. Give a folder that can.")
        if not self._lock:
            self._keep(wait_seconds)

    def _keep(self, wait_seconds: float) -> None:
        try:
            lock = open(self.lock_file, "wb")  # noqa: SIM115 (held open: the kernel frees it with the process)
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: its .lock cannot be written ({error.strerror}). Give a folder that can."
            ) from None

        def report_wait() -> None:
            print(f"Waiting up to {wait_seconds:.0f} s for another process that trains in {self.path}.", flush=True)

        try:
            unsupported = acquire_lock(lock.fileno(), wait_seconds=wait_seconds, on_wait=report_wait)
        except LockHeldError:
            lock.close()
            raise DataError(
                f"--workdir={self.path}: another process is training in it. Wait for it, or give another folder."
            ) from None
        except OSError as error:
            lock.close()
            raise DataError(
                f"--workdir={self.path} cannot be locked ({error.strerror}). Fix the file system, or give another "
                "folder."
            ) from None
        if unsupported:
            print(f"warning: --workdir={self.path} cannot be locked ({unsupported.strerror}): train in it only once.")
        self._lock = lock

    def check(self) -> None:
        """Looks whether a run may lie here, and makes nothing.

        Raises:
          UsageError: it is a file, or a folder that holds something else.
          DataError: it cannot be looked at.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UsageError(f"--workdir={self.path} is a file. Give a folder.")
            if self.path.is_dir() and not self.checkpoints.is_dir() and self._holds_something_else():
                raise UsageError(f"--workdir={self.path} is not empty and holds no run. Give a new folder.")
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: cannot be read ({error.strerror}). Give a folder that can be."
            ) from None

    def _holds_something_else(self) -> bool:
        return any(path.name.removesuffix(PARTIAL_SUFFIX) not in _FILES_BEFORE_A_RUN for path in self.path.iterdir())

    def write_json(self, path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Writes a JSON file as a whole or not at all."""
        write_whole(path, (json.dumps(json_value(value), indent=2, allow_nan=False) + "\n").encode())

    def read_json(self, path: Path) -> Any:  # noqa: ANN401 (any JSON value)
        """Reads a JSON file of the run.

        Raises:
          DataError: missing or damaged.
        """
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path} is missing: {self.path} is no run directory of `convoy train`.") from None
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}). Restore it, or train into another --workdir.") from None

    def append_event(self, name: str, **details: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Adds a line to events.jsonl: what happened, when (seconds since 1970), and details."""
        append_json_line(self.events, {"event": name, "time": time.time(), **details})


def truncate_json_lines(path: Path, last_step: int) -> None:
    """Drops the lines of a JSON-lines file whose `step` lies after `last_step`, and lines that a crash cut short."""
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
