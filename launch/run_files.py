"""The launcher's view of RUN, the run directory. Beyond exit codes it is all that a launcher learns about the trainer.

RUN/logs/attempt-K/worker-R.log    output of worker R in attempt K, counted from 1 over the life of RUN
RUN/logs/attempt-K/error-R.json    its exception, if it ended with one
RUN/logs/attempt-K/end-R.json      how it ended, if `launch worker` ran it
RUN/logs/code-DIGEST/              the user's recipe and model, for workers on other hosts
RUN/launch.json                    the attempts of the last launch
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convoy.core.errors import DataError, UsageError
from convoy.core.files import append_json_line, json_value, write_whole
from convoy.core.reading import open_file, parsed_json, read_file, read_json
from convoy.core.run_layout import RunLayout, attempt_number, checkpoint_step
from convoy.core.user_code import SENT_CODE_VARIABLE
from convoy.launch.history import Event
from convoy.launch.policy import WorkerError
from convoy.launch.processes import WorkerExit
from convoy.launch.user_files import UserFiles

_TAIL_BYTES = 2**16  # of metrics.jsonl: many times its longest line


@dataclass(frozen=True)
class AttemptFiles:
    """The folder of one attempt. `number` counts from 1 over the life of RUN."""

    number: int
    folder: Path

    def log(self, rank: int) -> Path:
        """Returns the file for a worker's output."""
        return self.folder / f"worker-{rank}.log"

    def error_file(self, rank: int) -> Path:
        """Returns the file in which a worker reports its exception."""
        return self.folder / f"error-{rank}.json"

    def end_file(self, rank: int) -> Path:
        """Returns the file in which `launch worker` records how its worker ended."""
        return self.folder / f"end-{rank}.json"

    def variables(self, rank: int) -> dict[str, str]:
        """Returns the environment variables that tell a worker its attempt and its error file."""
        return {"CONVOY_ATTEMPT": str(self.number), "CONVOY_ERROR_FILE": str(self.error_file(rank))}

    def write_end(self, end: WorkerExit) -> None:
        """Records how a worker ended."""
        content = {"rank": end.rank, "returncode": end.returncode, "time": end.time}
        with contextlib.suppress(OSError):  # the exit code is still there
            write_whole(self.end_file(end.rank), (json.dumps(content) + "\n").encode())

    def end(self, rank: int) -> WorkerExit | None:
        """Returns how a worker ended, or None if that was not recorded."""
        try:
            content = read_json(self.end_file(rank))
            return WorkerExit(int(content["rank"]), int(content["returncode"]), float(content["time"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None

    def write_error(self, rank: int, error: WorkerError) -> None:
        """Writes the error file of a worker that could not write it itself."""
        with contextlib.suppress(OSError):
            write_whole(self.error_file(rank), (json.dumps({"rank": rank, **asdict(error)}) + "\n").encode())

    def error(self, rank: int) -> WorkerError | None:
        """Returns the exception that a worker reported, or None."""
        path = self.error_file(rank)
        try:
            content = read_json(path)
            step = None if content.get("step") is None else int(content["step"])
            error = str(content.get("error") or "unknown error")
            exit_code, is_final = int(content.get("exit_code", 1)), bool(content.get("is_final"))
            return WorkerError(float(content["time"]), step, exit_code, error, is_final)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return WorkerError(time.time(), None, 1, f"unknown error ({path.name} is damaged)")

    def last_lines(self, rank: int, count: int) -> list[str]:
        """Returns the last lines of a worker's output."""
        try:
            return read_file(self.log(rank), _TAIL_BYTES).decode(errors="replace").splitlines()[-count:]
        except OSError:
            return []


class RunFiles:
    """The files in RUN that a launcher reads and writes."""

    def __init__(self, workdir: str | os.PathLike[str]):
        """Reads nothing yet. Args: workdir: RUN."""
        self._layout = RunLayout(os.path.abspath(workdir))
        self.path = self._layout.path
        self._workdir = workdir
        self._made: list[Path] = []  # folders that this launch made, outermost first

    def new_attempt(self) -> AttemptFiles:
        """Makes the folder of the next attempt.

        Raises:
          UsageError: RUN is a file.
          DataError: the folder cannot be made.
        """
        with self._write_errors():
            self._make(self._layout.logs)
            numbers = [attempt_number(path.name) or 0 for path in self._layout.logs.iterdir()]
            number = max(numbers, default=0) + 1
            while not self._make(self._layout.attempt(number)):  # taken by a concurrent launch
                number += 1
        return AttemptFiles(number, self._layout.attempt(number))

    def attempt(self, number: int) -> AttemptFiles:
        """Returns the files of an attempt that another process started; makes its folder if needed.

        Raises:
          UsageError: RUN is a file.
          DataError: the folder cannot be made.
        """
        folder = self._layout.attempt(number)
        with self._write_errors():
            self._make(folder)
        return AttemptFiles(number, folder)

    def log_file(self, name: str) -> Path:
        """Returns the path of a file in RUN/logs."""
        return self._layout.logs / name

    def write_log_file(self, name: str, content: str) -> None:
        """Writes a file in RUN/logs.

        Raises:
          UsageError: RUN is a file.
          DataError: the file cannot be written.
        """
        with self._write_errors():
            self._make(self._layout.logs)
            write_whole(self.log_file(name), content.encode())

    def write_code(self, files: UserFiles) -> None:
        """Writes the user's files where `code_variable` says.

        Raises:
          UsageError: RUN is a file.
          DataError: they cannot be written.
        """
        folder = self._code_folder(files)
        with self._write_errors():
            if files.content:
                self._make(folder)
            for name, content in files.content.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_whole(folder / name, content)

    def code_variable(self, files: UserFiles) -> dict[str, str]:
        """Returns the variable that names the folder of the user's files to workers; empty if there are no files."""
        return {SENT_CODE_VARIABLE: str(self._code_folder(files))} if files.content else {}

    def _code_folder(self, files: UserFiles) -> Path:
        return self._layout.logs / f"code-{files.digest}"

    def remove_worker_files(self, files: AttemptFiles, rank: int) -> None:
        """Removes the files of a worker that only inspected, and the folders that are empty then."""
        for path in (files.log(rank), files.end_file(rank), files.error_file(rank)):
            path.unlink(missing_ok=True)
        for folder in (files.folder, self._layout.logs, *reversed(self._made)):
            with contextlib.suppress(OSError):  # in use by another worker, or already removed by it
                folder.rmdir()

    def checkpoint_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None; of a cross-validation the sum over its folds."""
        steps = []
        for folder in (self._layout.checkpoints, *self.path.glob("fold-*/checkpoints")):
            with contextlib.suppress(OSError):
                found = [step for name in os.listdir(folder) if (step := checkpoint_step(name)) is not None]
                steps += [max(found)] if found else []
        return sum(steps) if steps else None

    def logged_step(self) -> int | None:
        """Returns the step of the last line in metrics.jsonl, or None."""
        with contextlib.suppress(OSError):
            for line in reversed(read_file(self._layout.metrics, _TAIL_BYTES).splitlines()):
                with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
                    return int(parsed_json(line)["step"])
        return None

    def events_end(self) -> int:
        """Returns the current size of events.jsonl: the `start` at which `events` returns only later events."""
        try:
            return self._layout.events.stat().st_size
        except OSError:
            return 0

    def events(self, start: int) -> list[Event]:
        """Returns the trainer's events from a byte offset in events.jsonl on, without damaged lines."""
        try:
            with open_file(self._layout.events) as file:
                file.seek(start)
                lines = file.read().splitlines()
        except OSError:
            return []
        events = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
                event = parsed_json(line)
                event["event"], float(event["time"])
                events.append(event)
        return events

    def append_restart(self, attempt: int, cause: str) -> None:
        """Appends a restart to events.jsonl. Call it only while no worker is running."""
        if not self._is_accepted:  # not a run directory yet: the trainer would refuse the folder
            return
        event = {"event": "restart", "time": time.time(), "attempt": attempt, "cause": cause}
        with contextlib.suppress(OSError):  # a full disk is reported by the trainer
            append_json_line(self._layout.events, event)

    def write_summary(self, value: Mapping[str, Any]) -> None:
        """Writes RUN/launch.json."""
        with contextlib.suppress(OSError):
            write_whole(self._layout.launch, (json.dumps(json_value(value), indent=2) + "\n").encode())

    def remove_traces(self) -> None:
        """Removes what this launch made, if the trainer never accepted RUN."""
        if self._made and not self._is_accepted:
            self._layout.launch.unlink(missing_ok=True)
            self.remove_made_folders()

    @property
    def _is_accepted(self) -> bool:
        """Whether the trainer has begun a run in RUN."""
        return any(RunLayout(path).checkpoints.is_dir() for path in (self.path, self._layout.fold(1)))

    def remove_made_folders(self) -> None:
        """Removes the folders that this launch made, with the files of its attempts and the code that it sent."""
        for folder in reversed(self._made):
            if folder.parent == self._layout.logs:
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # removed, or it contains files of another program
                folder.rmdir()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--workdir={self._workdir} is a file. Pass a directory.")
        try:
            yield
        except OSError as error:
            raise DataError(
                f"--workdir={self._workdir} is not writable ({error.strerror}). Pass a writable directory."
            ) from None

    def _make(self, folder: Path) -> bool:
        """Makes a folder with its parents; returns whether it did not exist."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            try:
                path.mkdir()
            except FileExistsError:
                if path == folder:
                    return False
            else:
                self._made.append(path)
        return bool(missing)
