"""A launcher of real worker processes, of which none is left after a test."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")

# `convoy launch local` with a small program in place of the trainer.
_LAUNCHER = """
import json, sys
from convoy.cli import entry_point
from convoy.launch import local
local.launch.__kwdefaults__["trainer"] = (sys.executable, sys.argv[1])
sys.argv = ["convoy", "launch", "local", *sys.argv[2:]]
entry_point()
"""


@dataclass
class Launch:
    """A launcher that was started, and what it and its workers left behind."""

    folder: Path
    process: subprocess.Popen

    @property
    def run(self):
        return self.folder / "run"

    @property
    def output(self):
        return (self.folder / "output").read_text()

    def wait(self, seconds=30):
        return self.process.wait(seconds)

    def worker(self, rank, attempt=1):
        """Returns what a worker wrote down of itself, or None where it has not started yet."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.folder / "pids" / f"{attempt}-{rank}.json").read_text())

    def workers(self):
        return [json.loads(path.read_text()) for path in (self.folder / "pids").glob("*.json")]

    def left(self):
        """Returns the workers that are still there; those of a killed launcher may wait for init to reap them."""
        return [worker["pid"] for worker in self.workers() if _runs(worker["pid"])]

    def events(self):
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]
        return []

    def summary(self):
        return json.loads((self.run / "launch.json").read_text())


@pytest.fixture
def launch(tmp_path):
    """Starts the launcher on the fake trainer with a plan; returns a `Launch`. Ends all of it after the test."""
    started = []

    def start(plan, *flags, processes=2, workdir=None, prefix=(), stdout=None, environment=None):
        (tmp_path / "plan.json").write_text(json.dumps({"steps": 6, "checkpoint_every": 2, **plan}))
        arguments = (f"--processes={processes}", *flags, "--", "train", f"--plan={tmp_path / 'plan.json'}")
        with open(tmp_path / "output", "wb") as output:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-c", _LAUNCHER, FAKE_TRAINER, *arguments, f"--workdir={tmp_path / 'run'}"],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=stdout or output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})},
                start_new_session=True,
            )
        started.append(Launch(tmp_path, process))
        return started[-1]

    yield start
    for launched in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launched.process.pid, signal.SIGKILL)
        launched.process.wait()
        for pid in launched.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _runs(pid):
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return (
        FAKE_TRAINER.name in Path(f"/proc/{pid}/cmdline").read_text() and content.rpartition(")")[2].split()[0] != "Z"
    )
