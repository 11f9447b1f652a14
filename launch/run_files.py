"""What a launcher reads and writes in RUN, the run directory: all it knows of the trainer besides its exit codes.

RUN/logs/attempt-K/worker-R.log    what worker R wrote in the launcher's K-th start, counted over the life of RUN
RUN/logs/attempt-K/error-R.json    its own exception, where it had one
RUN/logs/attempt-K/end-R.json      how it ended, where a `launch worker` beside it has noted that
RUN/launch.json                    the attempts of the last launch
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convoy.core.errors import DataError, UsageError
from convoy.core.files import append_json_line, json_value, write_whole
from convoy.core.run_layout import RunLayout, attempt_number, checkpoint_step
from convoy.launch.policy import WorkerError
from convoy.launch.processes import WorkerExit

_LAST_BYTES = 2**16  # of metrics.jsonl: many times its longest line

Event = Mapping[str, Any]


@dataclass(frozen=True)
class AttemptFiles:
    """The folder of one attempt. `number` counts from 1 over the life of RUN."""

    number: int
    folder: Path

    def log(self, rank: int) -> Path:
        """Returns the file that holds all a worker writes."""
        return self.folder / f"worker-{rank}.log"

    def error_file(self, rank: int) -> Path:
        """Returns the file in which a worker leaves its own exception."""
        return self.folder / f"error-{rank}.json"

    def end_file(self, rank: int) -> Path:
        """Returns the file in which `launch worker` leaves how its worker ended."""
        return self.folder / f"end-{rank}.json"

    def write_end(self, end: WorkerExit) -> None:
        """Notes how a worker ended."""
        content = {"rank": end.rank, "returncode": end.returncode, "time": end.time}
        with contextlib.suppress(OSError):  # the exit code still tells
            write_whole(self.end_file(end.rank), (json.dumps(content) + "\n").encode())

    def end(self, rank: int) -> WorkerExit | None:
        """Returns how a worker ended, or None where that was not noted."""
        try:
            content = json.loads(self.end_file(rank).read_bytes())
            return WorkerExit(int(content["rank"]), int(content["returncode"]), float(content["time"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_error(self, rank: int, error: WorkerError) -> None:
        """Leaves the word of a worker that could not leave it itself."""
        with contextlib.suppress(OSError):
            write_whole(self.error_file(rank), (json.dumps({"rank": rank, **asdict(error)}) + "\n").encode())

    def error(self, rank: int) -> WorkerError | None:
        """Returns a worker's own exception, or None where it had none."""
        path = self.error_file(rank)
        try:
            content = json.loads(path.read_bytes())
            step = None if content.get("step") is None else int(content["step"])
            error = str(content.get("error") or "unknown error")
            return WorkerError(float(content["time"]), step, int(content.get("exit_code", 1)), error)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return WorkerError(time.time(), None, 1, f"an error that {path.name} does not tell: it is damaged")

    def last_lines(self, rank: int, count: int) -> list[str]:
        """Returns the last lines that a worker wrote."""
        try:
            return _last_bytes(self.log(rank)).decode(errors="replace").splitlines()[-count:]
        except OSError:
            return []


class RunFiles:
    """The launcher's side of RUN."""

    def __init__(self, workdir: str | os.PathLike):
        """Reads nothing yet. Args: workdir: RUN."""
        self._layout = RunLayout(os.path.abspath(workdir))
        self.path = self._layout.path
        self._workdir = workdir
        self._made: list[Path] = []  # folders, the outermost first

    def new_attempt(self) -> AttemptFiles:
        """Makes the folder of the next attempt.

        Raises:
          UsageError: RUN is a file.
          DataError: the folder cannot be made.
        """
        with self._refusals():
            self._make(self._layout.logs)
            numbers = [attempt_number(path.name) or 0 for path in self._layout.logs.iterdir()]
            number = max(numbers, default=0) + 1
            while not self._make(self._layout.attempt(number)):  # another launch was faster
                number += 1
        return AttemptFiles(number, self._layout.attempt(number))

    def attempt(self, number: int) -> AttemptFiles:
        """Returns the files of an attempt that somebody else began, and makes its folder where that is not there yet.

        Raises:
          UsageError: RUN is a file.
          DataError: the folder cannot be made.
        """
        folder = self._layout.attempt(number)
        with self._refusals():
            self._make(folder)
        return AttemptFiles(number, folder)

    def drop(self, files: AttemptFiles, rank: int) -> None:
        """Takes away what a worker that only looked has left in an attempt, and folders that hold nothing then."""
        for path in (files.log(rank), files.end_file(rank), files.error_file(rank)):
            path.unlink(missing_ok=True)
        for folder in (files.folder, self._layout.logs, *reversed(self._made)):
            with contextlib.suppress(OSError):  # another worker's files lie in it, or that one was faster
                folder.rmdir()

    def checkpoint_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        try:
            names = os.listdir(self._layout.checkpoints)
        except OSError:
            return None
        return max((step for name in names if (step := checkpoint_step(name)) is not None), default=None)

    def logged_step(self) -> int | None:
        """Returns the step of the newest line in metrics.jsonl, or None."""
        with contextlib.suppress(OSError):
            for line in reversed(_last_bytes(self._layout.metrics).splitlines()):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    return int(json.loads(line)["step"])
        return None

    def events_end(self) -> int:
        """Returns where events.jsonl ends: `events` from there are those of what comes now."""
        try:
            return self._layout.events.stat().st_size
        except OSError:
            return 0

    def events(self, start: int) -> list[Event]:
        """Returns the trainer's events from a place in events.jsonl on, without lines that a crash cut short."""
        try:
            with open(self._layout.events, "rb") as file:
                file.seek(start)
                lines = file.read().splitlines()
        except OSError:
            return []
        events = []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                event["event"], float(event["time"])
                events.append(event)
        return events

    def append_restart(self, attempt: int, cause: str) -> None:
        """Notes a restart in events.jsonl. Only while no worker runs."""
        if (
            self._layout.checkpoints.is_dir()
        ):  # before that RUN is not the trainer's yet, and it would refuse the folder
            with contextlib.suppress(OSError):  # a full disk is for the trainer to report
                append_json_line(
                    self._layout.events, {"event": "restart", "time": time.time(), "attempt": attempt, "cause": cause}
                )

    def write_summary(self, value: Mapping[str, Any]) -> None:
        """Writes RUN/launch.json."""
        with contextlib.suppress(OSError):
            write_whole(self._layout.launch, (json.dumps(json_value(value), indent=2) + "\n").encode())

    def remove_traces(self) -> bool:
        """Takes away what the launcher made, where the trainer never accepted RUN. Returns whether it did."""
        if self._layout.checkpoints.is_dir() or not self._made:
            return False
        self._layout.launch.unlink(missing_ok=True)
        self.remove_attempts()
        return True

    def remove_attempts(self) -> None:
        """Takes away the folders that this launch made, with what lies in those of its attempts."""
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # it holds something of somebody else
                if folder.parent == self._layout.logs:
                    for path in folder.iterdir():
                        path.unlink()
                folder.rmdir()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--workdir={self._workdir} is a file. Give a folder.")
        try:
            yield
        except OSError as error:
            raise DataError(
                f"--workdir={self._workdir}: cannot be written ({error.strerror}). Give a folder that can."
            ) from None

    def _make(self, folder: Path) -> bool:
        """Makes a folder with its parents; returns whether it was not there."""
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


def _last_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _LAST_BYTES))
        return file.read()
