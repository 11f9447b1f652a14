"""Folders and processes of the chaos test."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core.files import write_whole
from tests.chaos_site.sitecustomize import CLOCK_FILE, FOLDER_VARIABLE, REFUSAL_FILE, REFUSED_FILE
from tests.processes import REPOSITORY, started

_SITE = REPOSITORY / "tests" / "chaos_site"
SET_BACK_SECONDS = 3600


class ChaosError(Exception):
    """The test failed or could not be carried out."""


@dataclass(frozen=True)
class RunFolder:
    """Files of the trainer and the launcher in a run directory."""

    path: Path

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Returns a file's JSON lines, without truncated ones."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / name).read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return lines

    def num_events(self) -> int:
        """Returns the number of events so far. Their times are no order: the clock may be set back."""
        return len(self.lines("events.jsonl"))

    def events(self, name: str, since: int = 0) -> list[dict[str, Any]]:
        """Returns the events with a name, without those among the first `since` of all events."""
        return [event for event in self.lines("events.jsonl")[since:] if event["event"] == name]

    def json(self, name: str) -> Any:
        """Returns the content of a JSON file."""
        return json.loads((self.path / name).read_text())

    def checkpoint_step(self) -> int:
        """Returns the step of the latest checkpoint; 0 without one."""
        return max((int(path.stem.split("-")[1]) for path in (self.path / "checkpoints").glob("step-*.npz")), default=0)


@dataclass(frozen=True)
class ChaosFolder:
    """The temporary folder, and the commands that run in it."""

    folder: Path

    def run(self, name: str) -> RunFolder:
        """Returns a run directory."""
        return RunFolder(self.folder / name)

    def convoy(self, *arguments: object, output: str) -> None:
        """Runs a command with its output in a file.

        Raises:
          ChaosError: it failed.
        """
        with self.started(*arguments, output=output) as process:
            if process.wait() != 0:
                raise ChaosError(f"convoy {arguments[0]} failed with exit code {process.returncode}: see {output}")

    def started(
        self, *arguments: object, output: str, stdout: int | None = None
    ) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """Starts a command in a context manager that kills it on exit."""
        command = [sys.executable, "-m", "convoy", *map(str, arguments)]
        variables = {FOLDER_VARIABLE: str(self.folder), "PYTHONPATH": f"{_SITE}{os.pathsep}{REPOSITORY}"}
        return started(command, output=self.folder / output, stdout=stdout, environment=variables)

    def set_clock_back(self) -> None:
        """Sets the clock of all processes in this folder back, by as much as before and an hour."""
        path = self.folder / CLOCK_FILE
        seconds = int(path.read_text()) if path.exists() else 0
        write_whole(path, str(seconds + SET_BACK_SECONDS).encode())

    def refuse_folder_fsync(self) -> None:
        """Makes fsync of a directory fail in all processes in this folder."""
        (self.folder / REFUSED_FILE).unlink(missing_ok=True)
        (self.folder / REFUSAL_FILE).touch()

    def allow_folder_fsync(self) -> None:
        """Undoes `refuse_folder_fsync` if it has had an effect."""
        if (self.folder / REFUSED_FILE).exists():
            (self.folder / REFUSAL_FILE).unlink(missing_ok=True)

    def is_refusal_pending(self) -> bool:
        """Returns whether `refuse_folder_fsync` was called and has had no effect so far."""
        return (self.folder / REFUSAL_FILE).exists() and not (self.folder / REFUSED_FILE).exists()

    def processes_left(self) -> list[int]:
        """Returns all running processes of this test, including indirect children."""
        mark, left = f"{FOLDER_VARIABLE}={self.folder}".encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    left.append(int(entry.name))
        return left

    def kill_processes(self) -> None:
        """Kills all of them."""
        for process in self.processes_left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
