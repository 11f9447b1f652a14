"""The run directory, RUN: creating and locking it, and writing its files atomically."""

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from convoy.core.errors import DataError, UsageError
from convoy.core.files import (
    PARTIAL_SUFFIX,
    LockHeldError,
    acquire_lock,
    append_json_line,
    json_value,
    open_own,
    write_whole,
)
from convoy.core.reading import parsed_json, read_file, read_json
from convoy.core.remote import is_remote
from convoy.core.run_layout import MOST_FOLDS, RunLayout
from convoy.input_pipeline.dataset.layout import RecordFormat
from convoy.trainer.config.renamed import modernized
from convoy.trainer.config.schema import wrong_type
from convoy.trainer.run.records import read_json_object

# May exist before a run starts: written by a launcher or by `convoy train` with `--find_lr` or `--config=auto`.
_FILES_BEFORE_A_RUN = ("logs", "launch.json", "find_lr.csv", "find_lr.png", "recipe.py")

_logger = logging.getLogger("convoy")


class RunDirectory(RunLayout):
    """The paths of a run, its lock and its JSON files."""

    def __init__(self, path: str | os.PathLike):
        """Sets the paths; `create` makes the folder.

        Raises:
          UsageError: the path is in an object store.
        """
        if is_remote(path):
            raise UsageError(
                f"--workdir={path}: a run directory must be on a file system. Pass a local folder, and "
                f"--backup={path} to keep a copy there."
            )
        super().__init__(path)
        self._lock: BinaryIO | None = None
        self._made: list[Path] = []  # folders that `create` made, innermost first

    def create(self, *, wait_seconds: float = 0.0) -> None:
        """Makes the folder, and locks it until `release` or the end of this process. Call it before reading in it.

        Args:
          wait_seconds: how long to wait for another process to release the lock.

        Raises:
          UsageError: the path is a file, or a folder that contains something else.
          DataError: the folder cannot be created, read or written, or another process is training in it.
        """
        self.check()
        while not self._lock:  # again if another process has removed the folder with `removed_on_refusal`
            try:
                missing = [folder for folder in (self.checkpoints, *self.checkpoints.parents) if not folder.exists()]
                self.checkpoints.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(
                    f"--workdir={self.path}: cannot be created ({error.strerror}). Pass a writable folder."
                ) from None
            if not os.access(self.path, os.W_OK):
                raise DataError(f"--workdir={self.path}: not writable. Pass a writable folder.")
            if link := self._link():
                raise DataError(
                    f"{link} is a symbolic link: nothing is written outside of the run directory. Move there what it "
                    "leads to, or link the run directory itself."
                )
            self._take_lock(wait_seconds)
            self._made = missing

    def _link(self) -> Path | None:
        """Returns a link through which a run would write or delete, which others may have put there; None without.

        This user's links to folders, such as `checkpoints` on a larger disk, are none.
        """
        own = [path for path in vars(RunLayout(self.path)).values() if path != self.path]
        inside = (Path(folder, name) for path in own for folder, names, _ in os.walk(path) for name in names)
        links = (path for path in (*own, *inside) if path.is_symlink())
        return next((link for link in links if not link.is_dir() or link.lstat().st_uid != os.getuid()), None)

    def write_error(self) -> OSError | None:
        """Returns why nothing can be written here, found by trying; None if it can."""
        try:
            with tempfile.TemporaryFile(dir=self.path):
                pass
            if self.results_table.exists():
                with open(self.results_table, "ab", opener=open_own):
                    pass
        except OSError as error:
            return error
        return None

    @contextlib.contextmanager
    def removed_on_refusal(self) -> Iterator[None]:
        """Removes what `create` made if the block raises an exception before anything else was written."""
        try:
            yield
        except BaseException:
            if self._lock and self._made:
                own = {self.checkpoints.name, self.lock_file.name}
                with contextlib.suppress(OSError):
                    if not os.listdir(self.checkpoints) and not self._has_foreign_files(except_for=own):
                        self.checkpoints.rmdir()
                        self.lock_file.unlink()
                        self._lock.close()  # NFS keeps a folder until what was open in it is closed
                        for folder in self._made[1:]:
                            folder.rmdir()
            self.release()
            raise

    def release(self) -> None:
        """Releases the lock, if this process has it: another run may then train here, also in this process."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def _take_lock(self, wait_seconds: float) -> None:
        """Sets `_lock`, unless the folder is removed meanwhile."""

        try:
            lock = open(self.lock_file, "ab", opener=open_own)  # noqa: SIM115 (held open: the kernel frees it with the process)
        except FileNotFoundError:  # so was the folder
            return
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: its .lock cannot be written ({error.strerror}). Pass a writable folder."
            ) from None

        def report_wait() -> None:
            _logger.info("Waiting up to %.0f s for another process that trains in %s.", wait_seconds, self.path)

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
        if self._was_removed(lock):
            lock.close()
            return
        if unsupported:
            _logger.warning("%s cannot be locked (%s): train in it only once.", self.path, unsupported.strerror)
        self._lock = lock

    def _was_removed(self, lock: BinaryIO) -> bool:
        """Returns whether another process has removed the lock file while this one waited for it."""
        held = os.fstat(lock.fileno())
        try:
            return not os.path.samestat(held, self.lock_file.stat()) and not held.st_nlink
        except FileNotFoundError:
            return True

    def check(self, *, folds: int = 0) -> None:
        """Checks that the path can be used as a run directory. Creates nothing.

        Args:
          folds: number of folds of the cross-validation to run in it; 0 for a single run.

        Raises:
          UsageError: the path is a file, or a folder that contains something else.
          DataError: the path cannot be read.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise UsageError(f"--workdir={self.path}: is a file. Pass a folder.")
            if (known := self.folds) and known != folds:
                raise UsageError(
                    f"--workdir={self.path}: has a cross-validation of {known} folds. Pass --folds={known} to resume "
                    "it, or another --workdir."
                )
            if folds and self.checkpoints.is_dir():
                raise UsageError(
                    f"--workdir={self.path}: has a run without folds. Pass another --workdir, or no --folds."
                )
            begun = self.fold(1) if folds else self.checkpoints
            if self.path.is_dir() and not begun.is_dir() and self._has_foreign_files():
                raise UsageError(f"--workdir={self.path}: not empty and not a run directory. Pass a new folder.")
        except OSError as error:
            raise DataError(
                f"--workdir={self.path}: cannot be read ({error.strerror}). Pass a readable folder."
            ) from None

    def _has_foreign_files(self, except_for: Collection[str] = ()) -> bool:
        known = {*_FILES_BEFORE_A_RUN, *except_for}
        return any(path.name.removesuffix(PARTIAL_SUFFIX) not in known for path in self.path.iterdir())

    @property
    def folds(self) -> int:
        """Number of folds of the cross-validation in this folder; 0 for a single run or none."""
        if not os.path.isdir(self.fold(1)):
            return 0
        found = (read_json_object(file).get("folds") for file in (self.dataset, RunLayout(self.fold(1)).dataset))
        return next((number for number in found if isinstance(number, int) and 2 <= number <= MOST_FOLDS), 0)

    def record_format(self, given: RecordFormat) -> RecordFormat:
        """Returns how the run reads records of other tools: as `given`, and else as when it began."""
        try:
            has_begun = any(name.startswith("step-") for name in os.listdir(self.checkpoints))
            known = self.read_json(self.dataset).get("record_format", {}) if has_begun else None
        except (OSError, DataError):  # what needs these files reports it
            known = None
        return given if known is None else given.over(RecordFormat.from_dict(known))

    def read_config(self) -> dict[str, Any]:
        """Returns the run's config, under the current names of its fields.

        Raises:
          DataError: config.json is missing or damaged.
        """
        config = self.read_json(self.config)
        if field := wrong_type(config):
            raise DataError(f"{self.config}: damaged ({field}). Restore it, or train in another --workdir.")
        return modernized(config)

    def read_dataset(self) -> dict[str, Any]:
        """Returns the description of the run's dataset. Raises a DataError if dataset.json is missing or damaged."""
        dataset = self.read_json(self.dataset)
        names = dataset.get("class_names")
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise DataError(f"{self.dataset}: damaged (class_names). Restore it, or train in another --workdir.")
        fold, folds = dataset.get("fold", 0), dataset.get("folds", 0)
        if not (isinstance(fold, int) and isinstance(folds, int) and 0 <= fold <= folds <= MOST_FOLDS and folds != 1):
            raise DataError(f"{self.dataset}: damaged (folds). Restore it, or train in another --workdir.")
        fraction = dataset.get("fraction", 0)
        if not (isinstance(fraction, int | float) and 0 <= fraction < 1):
            raise DataError(f"{self.dataset}: damaged (fraction). Restore it, or train in another --workdir.")
        return dataset

    def write_json(self, path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Writes a JSON file atomically. Raises OSError if it cannot be written."""
        write_whole(path, (json.dumps(json_value(value), indent=2, allow_nan=False) + "\n").encode())

    def read_json(self, path: Path) -> dict[str, Any]:
        """Returns the object in a JSON file of the run.

        Raises:
          DataError: the file is missing or damaged.
        """
        try:
            content = read_json(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, so {self.path} is not a run directory of `convoy train`.") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"{path}: damaged ({reason}). Restore it, or train in another --workdir.") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: damaged (not a JSON object). Restore it, or train in another --workdir.")
        return content

    def append_event(self, name: str, **details: Any) -> None:  # noqa: ANN401 (any JSON value)
        """Appends to events.jsonl: the event's name, the time in seconds since 1970, and details."""
        append_json_line(self.events, {"event": name, "time": time.time(), **details})


def truncate_json_lines(path: Path, last_step: int) -> None:
    """Drops the lines of a JSON-lines file whose `step` is after `last_step`, and damaged lines."""
    if not path.exists():
        return
    kept = []
    for line in read_file(path).splitlines():
        try:
            if parsed_json(line)["step"] <= last_step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_whole(path, b"".join(line + b"\n" for line in kept))
