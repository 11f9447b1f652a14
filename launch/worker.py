"""One worker, started by a scheduler: `convoy launch worker -- train ...` in a SLURM step, a pod or a PBS task.

The scheduler starts one of these per worker; the environment determines the rank, as for the trainer itself. It keeps
the worker's output in RUN/logs, forwards signals, and exits with a code that schedulers can act on: 128 + N for signal
N, and 138 (retryable) for a start-up deadline.

When one worker fails, the others lose their peer and exit with 138. A scheduler that judges a run by the first exit
may see such a secondary failure first: `--secondary_exit_delay` holds it back until the scheduler has acted on the
cause.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence

from absl import flags as absl_flags

from convoy.core.cluster import find_cluster
from convoy.core.errors import UsageError
from convoy.core.exit_codes import RETRYABLE
from convoy.core.flags import FlagDefiner
from convoy.launch.policy import WorkerOutcome, signal_name
from convoy.launch.processes import WorkerExit, WorkerProcesses, WorkerProgram
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Follower, Screen
from convoy.launch.shutdown import TICK_SECONDS, ShutdownPolicy, Signals
from convoy.launch.trainer_command import (
    TRAINER,
    flag_value,
    integer_or_none,
    run_directory,
    trainer_environment,
    trains,
)

REQUIRED = ()

GPUS_VARIABLE = "CONVOY_GPUS_PER_TASK"  # set by `launch srun` if several workers share the GPUs of a node


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    define = FlagDefiner(flags)
    define.bool("show", True, "worker: also print the output that RUN/logs keeps")
    define.float(
        "secondary_exit_delay",
        0.0,
        "worker: how many seconds to delay exit code 138 (a peer was lost) unless a signal arrives, so that the "
        "scheduler sees the worker that caused the failure exit first",
        lower_bound=0.0,
    )


def run(flags: absl_flags.FlagValues, command: Sequence[str], *, trainer: Sequence[str] = TRAINER) -> int:
    """Runs one worker until it ends; returns its exit code, see `exit_code`.

    Args:
      command: `train` and its flags, with `--workdir`.
      trainer: the program that runs `command`; tests replace it.

    Raises:
      UsageError: the environment describes an invalid cluster, or RUN is a file.
      DataError: RUN is not writable.
    """
    run_files = RunFiles(run_directory(command))
    files = run_files.attempt(attempt_from_environment(os.environ))
    try:
        cluster = find_cluster(
            os.environ,
            hosts=list(filter(None, (flag_value(command, "worker_hosts") or "").split(","))),
            index=integer_or_none(flag_value(command, "worker_index")),
        )
    except UsageError as error:
        _record_refusal(error, files)
        raise
    rank = cluster.index if cluster else 0
    for stale in (files.error_file(rank), files.end_file(rank)):
        stale.unlink(missing_ok=True)
    variables = files.variables(rank)
    if (gpus := own_gpus(os.environ)) is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpus
    program = WorkerProgram([*trainer, *command], {**trainer_environment(), **variables}, files.log(rank))
    screen = Screen.of_standard_output() if flags.show else Screen(None)
    log = Follower(files.log(rank), prefix="", at_end=True)
    shutdown = ShutdownPolicy(flags.grace_seconds)
    with Signals() as signals:
        end = _watch(WorkerProcesses([program]), signals, shutdown, screen, log)._replace(rank=rank)
        screen.write(log.rest())
        files.write_end(end)
        code = exit_code(end, files)
        if code == RETRYABLE and not shutdown.signals:
            signals.wait(flags.secondary_exit_delay, idle=screen.pump)
    screen.drain()
    if not trains(command) and flags.show:  # with --noshow a launcher reads the files
        run_files.remove_worker_files(files, rank)
    return code


def attempt_from_environment(environment: Mapping[str, str]) -> int:
    """Returns the number of this attempt, from 1, from the restart count of the launcher or scheduler."""
    for name, first in (("CONVOY_ATTEMPT", 1), ("CONVOY_RESTARTS", 0), ("SLURM_RESTART_COUNT", 0)):
        with contextlib.suppress(KeyError, ValueError):
            return max(1, int(environment[name]) - first + 1)
    return 1


def own_gpus(environment: Mapping[str, str]) -> str | None:
    """Returns CUDA_VISIBLE_DEVICES of this worker if several share a node's GPUs in a SLURM step, otherwise None."""
    count = integer_or_none(environment.get(GPUS_VARIABLE))
    local_rank = integer_or_none(environment.get("SLURM_LOCALID"))
    if not count or local_rank is None:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(gpu) for gpu in range((local_rank + 1) * count)]
    if len(gpus) <= count:  # the site's SLURM configuration has assigned them already
        return None
    return ",".join(gpus[local_rank * count : (local_rank + 1) * count])


def exit_code(end: WorkerExit, files: AttemptFiles) -> int:
    """Returns the exit code for a worker's end.

    Exit code 1 without an error file is the start-up deadline, which ends a process from outside Python: 138.
    """
    if end.returncode == 1 and files.error(end.rank) is None:
        return RETRYABLE
    return WorkerOutcome(end.rank, end.returncode, end.time).exit_code


def _record_refusal(error: UsageError, files: AttemptFiles) -> None:
    """Records a worker that was not started, where the launcher of a SLURM step looks for it."""
    rank = integer_or_none(os.environ.get("SLURM_PROCID"))
    if rank is not None:
        with contextlib.suppress(OSError), open(files.log(rank), "a", encoding="utf-8") as log:
            log.write(f"convoy: {error}\n")
        files.write_end(WorkerExit(rank, error.exit_code, time.time()))


def _watch(
    worker: WorkerProcesses, signals: Signals, shutdown: ShutdownPolicy, screen: Screen, log: Follower
) -> WorkerExit:
    while True:
        for ended in worker.poll():
            return ended
        for number in signals.take():
            # The scheduler and the launcher of all workers may both send the same signal: it counts once.
            if number not in shutdown.signals and not shutdown.signal_received(number):
                worker.send(number)
        if shutdown.kill_is_due():
            screen.say(f"convoy: killing the worker, which did not exit after {signal_name(shutdown.signals[-1])}.")
            (ended,) = worker.kill()
            return ended
        screen.follow(log)
        time.sleep(TICK_SECONDS)
