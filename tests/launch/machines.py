"""Hosts of a simulated network with a shared folder, and launchers on one of them: for engines with agents."""

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.processes import environment_of, is_gone, started

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")

# `convoy launch ENGINE` with a small program in place of the trainer and a shorter silence timeout.
_LAUNCHER = """
import importlib, sys
from convoy.cli import entry_point
engine, trainer, *arguments = sys.argv[1:]
module = importlib.import_module(f"convoy.launch.{engine}.engine")
module.run.__kwdefaults__ |= {"trainer": (sys.executable, trainer), "silent_seconds": 8.0}
sys.argv = ["convoy", "launch", engine, *arguments]
entry_point()
"""


@dataclass
class Launch:
    """A launcher; `run` is its run directory."""

    process: subprocess.Popen
    output_file: Path
    run: Path

    @property
    def output(self):
        return self.output_file.read_text()

    def wait(self, seconds=60):
        """Waits for the launcher to exit; returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher did not exit within {seconds} s:\n{self.output}") from None

    def worker(self, rank, attempt=1):
        """Returns what a fake trainer's worker wrote about itself, or None if it has not started yet."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.run.parent / "pids" / f"{attempt}-{rank}.json").read_text())

    def events(self):
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]
        return []

    def summary(self):
        return json.loads((self.run / "launch.json").read_text())


class Machines:
    """Hosts with daemons, a host for launchers, and a shared folder. Subclasses start the daemons."""

    def __init__(self, network, folder, wait_until, *, engine, launcher_host):
        self.network = network
        self.folder = folder
        self.run = folder / "run"
        self.wait_until = wait_until
        self._engine = engine
        self._launcher_host = launcher_host
        self._launches: list[Launch] = []
        self._launchers = contextlib.ExitStack()

    def is_daemon(self, pid):
        """Returns whether a process is one of the daemons that were there before any launch."""
        raise NotImplementedError

    def processes(self, host):
        """Returns the processes on a host, without its daemons."""
        return [pid for pid in self.network.processes(host) if not self.is_daemon(pid) and not is_gone(pid)]

    def everything(self):
        """Returns the processes of the launches on all hosts."""
        return [pid for host in self.network.hosts for pid in self.processes(host)]

    def worker_pid(self, host, rank, attempt):
        """Returns the process of a worker on a host, or None."""
        for pid in self.processes(host):
            variables = environment_of(pid)
            task = json.loads(variables.get("TF_CONFIG", "{}")).get("task", {"index": 0})
            if variables.get("CONVOY_ATTEMPT") == str(attempt) and task["index"] == rank:
                return pid
        return None

    def launch(self, *flags, verb="train", command=(), fake=True, plan=None, environment=None):
        """Starts `convoy launch ENGINE`; with the fake trainer and a plan unless `fake` is False."""
        if fake:
            (self.folder / "plan.json").write_text(json.dumps({"steps": 6, "checkpoint_every": 2, **(plan or {})}))
            command = (f"--plan={self.folder / 'plan.json'}", *command)
            program = [sys.executable, "-c", _LAUNCHER, self._engine, FAKE_TRAINER]
        else:
            program = [sys.executable, "-m", "convoy", "launch", self._engine]
        output = self.folder / f"output-{len(self._launches)}"
        words = [*program, *flags, "--", verb, *command, f"--workdir={self.run}"]
        on_host = self.network.command(self._launcher_host, *words)
        process = self._launchers.enter_context(started(on_host, output=output, environment=environment))
        self._launches.append(Launch(process, output, self.run))
        return self._launches[-1]

    def reaches(self, launch, text, seconds=60):
        """Waits until a launcher has printed a text; fails if it exits before."""
        self.wait_until(lambda: text in launch.output or launch.process.poll() is not None, repr(text), seconds)
        assert text in launch.output, launch.output

    def kill_launchers(self):
        """Kills every launcher that still runs."""
        self._launchers.close()
