"""One worker where somebody else starts it: `convoy launch worker -- train ...` in a SLURM step, a pod, a PBS task.

The scheduler starts one of these for each worker, and the environment says which it is, as for the trainer itself. It
keeps the worker's output in RUN/logs, passes signals on, and ends with an exit code that a scheduler can act upon:
128 + N for signal N, and 138, which is worth another try, for a start-up deadline.

When one worker ends, the others lose it and end with 138. A scheduler that judges a run by the first end it sees may
see one of these echoes first: `--secondary_exit_delay` has them wait until it has acted on the cause.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence

from absl import flags as absl_flags

from convoy.core.cluster import find_cluster
from convoy.core.errors import UsageError
from convoy.core.exit_codes import RETRYABLE
from convoy.launch.policy import WorkerOutcome, signal_name
from convoy.launch.processes import WorkerExit, WorkerProcesses, WorkerProgram
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Follower, Screen
from convoy.launch.shutdown import ShutdownPolicy, Signals
from convoy.launch.trainer_command import TRAINER, flag_value, trainer_environment, trains

REQUIRED = ()

GPUS_VARIABLE = "CONVOY_GPUS_PER_TASK"  # of each worker where several share a node's, from `launch srun`
_TICK_SECONDS = 0.05


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    absl_flags.DEFINE_bool(
        "show", True, "worker: show what the worker writes, besides keeping it in RUN/logs", flag_values=flags
    )
    absl_flags.DEFINE_float(
        "secondary_exit_delay",
        0.0,
        "worker: how long to wait for a signal before ending with 138 where none came: so that a scheduler sees the "
        "end of the worker that caused it first",
        lower_bound=0.0,
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Runs the trainer's `command` (`train` and its flags); returns the exit code."""
    return launch(
        command, grace_seconds=flags.grace_seconds, secondary_exit_delay=flags.secondary_exit_delay, show=flags.show
    )


def launch(
    command: Sequence[str],
    *,
    grace_seconds: float = 60.0,
    secondary_exit_delay: float = 0.0,
    show: bool = True,
    trainer: Sequence[str] = TRAINER,
) -> int:
    """Runs one worker to its end.

    Args:
      command: `train` and its flags, with `--workdir`.
      grace_seconds: between a signal and SIGKILL.
      secondary_exit_delay: for how long an end with 138 that no signal asked for is held back, at most.
      show: whether its output is shown as well as kept.
      trainer: the program that understands `command`; tests put a small one in its place.

    Returns:
      The worker's exit code, as `exit_code` makes it.

    Raises:
      UsageError: the environment describes a cluster that cannot be; RUN is a file.
      DataError: RUN cannot be written.
    """
    run_files = RunFiles(flag_value(command, "workdir"))
    files = run_files.attempt(attempt_number(os.environ))
    try:
        cluster = find_cluster(
            os.environ,
            hosts=list(filter(None, (flag_value(command, "worker_hosts") or "").split(","))),
            index=_number(flag_value(command, "worker_index")),
        )
    except UsageError as error:
        _note_refusal(error, files)
        raise
    rank = cluster.index if cluster else 0
    for stale in (files.error_file(rank), files.end_file(rank)):
        stale.unlink(missing_ok=True)
    variables = {"CONVOY_ATTEMPT": str(files.number), "CONVOY_ERROR_FILE": str(files.error_file(rank))}
    if (gpus := own_gpus(os.environ)) is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpus
    program = WorkerProgram([*trainer, *command], {**trainer_environment(), **variables}, files.log(rank))
    screen = Screen.of_standard_output() if show else Screen(None)
    log = Follower(files.log(rank), prefix="", at_end=True)
    ending = ShutdownPolicy(grace_seconds)
    with Signals() as signals:
        end = _watch(WorkerProcesses([program]), signals, ending, screen, log)._replace(rank=rank)
        screen.write(log.rest())
        files.write_end(end)
        code = exit_code(end, files)
        if code == RETRYABLE and not ending.signals:
            _wait_for_signal(signals, secondary_exit_delay, screen)
    screen.drain()
    if not trains(command) and show:  # otherwise a launcher reads what lies there
        run_files.drop(files, rank)
    return code


def attempt_number(environment: Mapping[str, str]) -> int:
    """Returns which start of the gang this is, from 1, as the scheduler counts them."""
    for name, first in (("CONVOY_ATTEMPT", 1), ("CONVOY_RESTARTS", 0), ("SLURM_RESTART_COUNT", 0)):
        with contextlib.suppress(KeyError, ValueError):
            return max(1, int(environment[name]) - first + 1)
    return 1


def own_gpus(environment: Mapping[str, str]) -> str | None:
    """Returns CUDA_VISIBLE_DEVICES of this worker where several share a node's GPUs in a SLURM step, or None."""
    number, place = _number(environment.get(GPUS_VARIABLE)), _number(environment.get("SLURM_LOCALID"))
    if not number or place is None:
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(gpu) for gpu in range((place + 1) * number)]
    if len(gpus) <= number:  # the site's own settings have shared them out
        return None
    return ",".join(gpus[place * number : (place + 1) * number])


def exit_code(end: WorkerExit, files: AttemptFiles) -> int:
    """Returns what to end with after a worker.

    Exit code 1 without an error file is the start-up deadline, which ends a process from outside Python: 138.
    """
    if end.returncode == 1 and files.error(end.rank) is None:
        return RETRYABLE
    return WorkerOutcome(end.rank, end.returncode, end.time).exit_code


def _note_refusal(error: UsageError, files: AttemptFiles) -> None:
    """Leaves word of a worker that was not started, where whoever started the gang looks for it."""
    rank = _number(os.environ.get("SLURM_PROCID"))
    if rank is not None:
        with contextlib.suppress(OSError), open(files.log(rank), "a", encoding="utf-8") as log:
            log.write(f"convoy: {error}\n")
        files.write_end(WorkerExit(rank, error.exit_code, time.time()))


def _watch(
    gang: WorkerProcesses, signals: Signals, ending: ShutdownPolicy, screen: Screen, log: Follower
) -> WorkerExit:
    while True:
        for ended in gang.poll():
            return ended
        for number in signals.take():
            # A scheduler's order may come by two ways, from itself and from the launcher of the gang: it is one order.
            if number not in ending.signals and not ending.signal_received(number):
                gang.send(number)
        if ending.kill_is_due():
            screen.say(f"convoy: killing the worker, which did not end after {signal_name(ending.signals[-1])}.")
            (ended,) = gang.kill()
            return ended
        screen.follow(log)
        time.sleep(_TICK_SECONDS)


def _wait_for_signal(signals: Signals, seconds: float, screen: Screen) -> None:
    deadline = time.monotonic() + seconds
    while not signals.are_waiting and time.monotonic() < deadline:
        screen.pump()
        time.sleep(_TICK_SECONDS)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
