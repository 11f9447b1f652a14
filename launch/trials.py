"""The trials of a sweep as processes on this machine, some at a time, each a run of its own.

    code = run_trials(source, command, parallel=2, grace_seconds=60.0, screen=screen)

A trial's process is in its own session and ends with the process that started it. Its output, error and attempt are
kept in its run directory, as those of a worker: RUN/logs/attempt-K/worker-0.log and error-0.json.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from convoy.core.exit_codes import INTERRUPTED, RETRYABLE
from convoy.launch.devices import cores_by_worker, gpus_by_worker, worker_environments
from convoy.launch.policy import WorkerOutcome, signal_name
from convoy.launch.processes import WorkerProcesses, WorkerProgram
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.shutdown import ShutdownPolicy, Signals
from convoy.launch.trainer_command import TRAINER, trainer_environment
from convoy.launch.worker import exit_code

_TICK_SECONDS = 0.1


@dataclass(frozen=True)
class Trial:
    """A trial to run.

    Attributes:
      number: its number in the sweep.
      workdir: its run directory.
      flags: what follows the command, without `--workdir`.
      variables: environment variables for it.
    """

    number: int
    workdir: Path
    flags: Sequence[str]
    variables: Mapping[str, str]


class TrialEnd(NamedTuple):
    """How the process of a trial ended.

    Attributes:
      exit_code: in shell convention: 128 + N for signal N.
      error: what it reported, or how it was killed; empty if it ended as it should.
      checkpoint: step of the newest checkpoint; None if there is none.
    """

    exit_code: int
    error: str
    checkpoint: int | None


class TrialSource(Protocol):
    """Where trials come from."""

    def take(self) -> Trial | None:
        """Returns the next trial; None if there is none now."""

    def ended(self, trial: Trial, end: TrialEnd) -> None:
        """Takes note of an end. `take` may return the trial again."""


class _Running(NamedTuple):
    trial: Trial
    run_files: RunFiles
    files: AttemptFiles
    process: WorkerProcesses


def run_trials(
    source: TrialSource,
    command: Sequence[str],
    *,
    parallel: int,
    grace_seconds: float,
    screen: Screen,
    trainer: Sequence[str] = TRAINER,
) -> int:
    """Runs trials until the source has no more, or a signal arrives.

    After a signal the trials get SIGTERM, upon which they save, and SIGKILL `grace_seconds` later or with a second
    signal. They can be run again, and the source does not hear of them.

    Args:
      source: where trials come from.
      command: what each runs: `train` and flags.
      parallel: number of trials at a time, which share the machine's cores and GPUs.
      grace_seconds: see above.
      screen: where to print.
      trainer: the program that runs `command`; tests replace it.

    Returns:
      0, 130 after Ctrl-C, or 138 after another signal.

    Raises:
      UsageError: the GPUs cannot be divided evenly, or a run directory is a file.
      DataError: a run directory is not writable.
    """
    cores = cores_by_worker(parallel)
    environments = worker_environments(
        trainer_environment(),
        parallel,
        gpus=gpus_by_worker(parallel, command, os.environ, asked_as=f"--parallel={parallel}"),
        one_thread=parallel > 1 and not cores[0],
    )
    running: dict[int, _Running] = {}  # by slot
    shutdown = ShutdownPolicy(grace_seconds)
    has_free_slots = True
    try:
        with Signals() as signals:
            while True:
                while has_free_slots and not shutdown.signals and not signals.pending and len(running) < parallel:
                    trial = source.take()
                    if trial is None:
                        break
                    slot = min(set(range(parallel)) - running.keys())
                    running[slot] = _start([*trainer, *command], trial, environments[slot], cores[slot])
                has_free_slots = False
                for number in signals.take():
                    if not shutdown.signal_received(number):
                        screen.say(f"convoy: {signal_name(number)}: the running trials save and stop.")
                        for active in running.values():
                            active.process.send(signal.SIGTERM)
                if shutdown.kill_is_due():
                    for active in running.values():
                        active.process.send(signal.SIGKILL)
                for slot, active in list(running.items()):
                    for exited in active.process.poll():
                        del running[slot]
                        has_free_slots = True
                        code = exit_code(exited, active.files)
                        if code == 0 or not shutdown.signals:
                            source.ended(active.trial, _end(active, code))
                if not running and (shutdown.signals or not has_free_slots):
                    break
                screen.pump()
                time.sleep(_TICK_SECONDS)
    finally:
        for active in running.values():
            active.process.kill()
    if not shutdown.signals:
        return 0
    return INTERRUPTED if shutdown.signals[0] == signal.SIGINT else RETRYABLE


def _start(command: Sequence[str], trial: Trial, environment: Mapping[str, str], cores: frozenset[int]) -> _Running:
    run_files = RunFiles(trial.workdir)
    files = run_files.new_attempt()
    words = [*command, *trial.flags, f"--workdir={trial.workdir}"]
    variables = {**environment, **files.variables(0), **trial.variables}
    process = WorkerProcesses([WorkerProgram(words, variables, files.log(0), cores)])
    run_files.write_summary({"engine": "sweep", "trial": trial.number, "command": words[len(command) :]})
    return _Running(trial, run_files, files, process)


def _end(running: _Running, code: int) -> TrialEnd:
    error = running.files.error(0)
    text = error.error.splitlines()[0] if error else ""
    if code and not text:
        killed_by = WorkerOutcome(0, code, 0.0).killed_by
        text = f"killed by {signal_name(killed_by)}" if killed_by else f"exit code {code}"
    return TrialEnd(code, text, running.run_files.checkpoint_step())
