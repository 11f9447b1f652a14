"""Real launchers of real worker processes, all of which are killed after a test."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processes import command_line, is_running, started

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")

# `convoy launch ENGINE` with the fake trainer in place of the real one.
_LAUNCHER = """
import importlib, sys
from convoy.cli import entry_point
engine, trainer, *arguments = sys.argv[1:]
importlib.import_module(f"convoy.launch.{engine}").run.__kwdefaults__["trainer"] = (sys.executable, trainer)
sys.argv = ["convoy", "launch", engine, *arguments]
entry_point()
"""


@dataclass
class Launch:
    """A started launcher, and the files that it and its workers write."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    @property
    def output(self) -> str:
        """The launcher's standard output and error so far."""
        return (self.folder / "output").read_text()

    def wait(self, seconds: float = 30) -> int:
        """Waits for the launcher; returns its exit code."""
        return self.process.wait(seconds)

    def attempt_file(self, name: str, attempt: int = 1) -> Path:
        """Returns a file of an attempt: `worker-0.log`, `end-0.json`, `error-0.json`."""
        return self.run / "logs" / f"attempt-{attempt}" / name

    def log(self, rank: int = 0, attempt: int = 1) -> str:
        """Returns the log of a worker."""
        return self.attempt_file(f"worker-{rank}.log", attempt).read_text()

    def end(self, rank: int = 0, attempt: int = 1) -> dict[str, Any]:
        """Returns the record of a worker's end."""
        return json.loads(self.attempt_file(f"end-{rank}.json", attempt).read_text())

    def worker(self, rank: int, attempt: int = 1) -> dict[str, Any] | None:
        """Returns what a fake trainer reported about its process, or None if it has not started yet."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / "pids" / f"{attempt}-{rank}.json").read_text())
        return None

    def left(self) -> list[int]:
        """Returns the running workers."""
        pids = [json.loads(path.read_text())["pid"] for path in (self.folder / "pids").glob("*.json")]
        return [pid for pid in pids if is_running(pid) and str(FAKE_TRAINER) in command_line(pid)]

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Returns the events of the run, or those with a name."""
        events = []
        with contextlib.suppress(FileNotFoundError):
            events = [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]
        return [event for event in events if event["event"] == (name or event["event"])]

    def summary(self) -> dict[str, Any]:
        """Returns launch.json."""
        return json.loads((self.run / "launch.json").read_text())

    def attempts(self, *fields: str) -> list[Any]:
        """Returns fields of the attempts in launch.json: a value per attempt, or a tuple with several fields."""
        rows = [tuple(attempt[field] for field in fields) for attempt in self.summary()["attempts"]]
        return rows if len(fields) > 1 else [row[0] for row in rows]


@pytest.fixture
def start_launcher(tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    """Starts `convoy launch ENGINE *flags -- train` with the fake trainer and a plan; kills everything after the test.

    `prefix` is a command that runs the launcher; `stdout` is a file descriptor for its standard output.
    """
    launches: list[Launch] = []
    with contextlib.ExitStack() as stack:

        def start(
            engine: str,
            plan: Mapping[str, Any],
            *flags: str,
            prefix: Sequence[str] = (),
            stdout: int | None = None,
            environment: Mapping[str, str] | None = None,
        ) -> Launch:
            plan_file = tmp_path / "plan.json"
            plan_file.write_text(json.dumps({"steps": 6, "checkpoint_every": 2, **plan}))
            launcher = [*prefix, sys.executable, "-c", _LAUNCHER, engine, str(FAKE_TRAINER)]
            train = ["train", f"--plan={plan_file}", f"--workdir={tmp_path / 'run'}"]
            command = [*launcher, *flags, "--", *train]
            process = started(command, output=tmp_path / "output", stdout=stdout, environment=environment)
            launches.append(Launch(tmp_path, stack.enter_context(process)))
            return launches[-1]

        yield start
    for pid in {pid for launch in launches for pid in launch.left()}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def launch(start_launcher: Callable[..., Launch]) -> Callable[..., Launch]:
    """Starts `convoy launch local` with a plan of the fake trainer."""

    def start(plan: Mapping[str, Any], *flags: str, processes: int = 2, **options: Any) -> Launch:
        return start_launcher("local", plan, f"--processes={processes}", *flags, **options)

    return start


@pytest.fixture
def worker(start_launcher: Callable[..., Launch]) -> Callable[..., Launch]:
    """Starts `convoy launch worker` with a plan of the fake trainer; keyword arguments are environment variables."""

    def start(
        plan: Mapping[str, Any] | None = None, *flags: str, prefix: Sequence[str] = (), **environment: str
    ) -> Launch:
        return start_launcher("worker", plan or {}, *flags, prefix=prefix, environment=environment)

    return start


@pytest.fixture
def held(launch: Callable[..., Launch], wait_until: Callable[..., None]) -> Callable[..., Launch]:
    """Starts `convoy launch local` whose workers hold at step 3."""

    def start(*flags: str, plan: Mapping[str, Any] | None = None, **options: Any) -> Launch:
        launched = launch({"hold_at": {"1": 3}, **(plan or {})}, *flags, **options)
        wait_until(lambda: "[0] step 3\n" in launched.output, "step 3", 20)
        return launched

    return start


@pytest.fixture
def held_worker(worker: Callable[..., Launch], wait_until: Callable[..., None]) -> Callable[..., Launch]:
    """Starts `convoy launch worker` whose trainer holds at step 3."""

    def start(*flags: str, plan: Mapping[str, Any] | None = None, **options: Any) -> Launch:
        launched = worker({"hold_at": {"1": 3}, **(plan or {})}, *flags, **options)
        wait_until(lambda: "step 3\n" in launched.output, "step 3", 20)
        return launched

    return start


def failing(*workers: tuple[int, Mapping[str, Any]], attempts: Sequence[int] = (1,)) -> dict[str, Any]:
    """Returns a plan in which workers, given as (rank, action), fail in some attempts."""
    return {"attempts": {str(attempt): {str(rank): action for rank, action in workers} for attempt in attempts}}


def exit_with(code: int, at: int = 3, error: str = "bad") -> dict[str, Any]:
    """Returns the action of exiting with a code at a step, after writing `ValueError: error` to the error file."""
    return {"at": at, "do": "exit", "code": code, "error": error}
