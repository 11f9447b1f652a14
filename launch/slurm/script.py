"""The batch script of a training job, for people to read.

    print(job_script(JobOptions(nodes=2), command, workdir=..., cwd=...))

Its `#SBATCH` lines ask for the machines; its last line becomes `convoy launch srun`, which starts the workers and
watches them, so that SLURM's signals to the batch script reach it.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convoy.core.errors import UsageError

# From the end of the grace to the requeue: SLURM's commands take their time, and what was killed is waited for.
_REQUEUE_SECONDS = 45


@dataclass(frozen=True)
class JobOptions:
    """What the job is to be like; what is None or empty is left to the cluster's defaults.

    Attributes:
      nodes: how many.
      processes_per_node: workers on each.
      gpus_per_node: of each.
      cpus_per_task: cores of each worker.
      partition, time, account, qos, constraint: as in sbatch.
      job_name: that squeue shows.
      sbatch: more of sbatch's options, as they are.
      setup: lines of shell before the start.
      container: image that the workers run in.
      warn_seconds: how long before the time limit the workers save and the job is put back.
      max_restarts, grace_seconds: of the launch inside the job.
      requeue: whether the job may be put back into the queue.
    """

    nodes: int
    processes_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    partition: str | None = None
    time: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    job_name: str | None = None
    sbatch: Sequence[str] = ()
    setup: Sequence[str] = ()
    container: str | None = None
    warn_seconds: int = 120
    max_restarts: int = 3
    grace_seconds: float = 60.0
    requeue: bool = True


def job_script(
    options: JobOptions,
    command: Sequence[str],
    *,
    logs: Path,
    cwd: Path,
    python: str = sys.executable,
    safe_path: bool = False,
) -> str:
    """Returns the script.

    Args:
      options: of the job.
      command: the trainer's: `train` and its flags.
      logs: absolute; the job's log goes there.
      cwd: where relative paths of `command` begin.
      python: the interpreter, the same on every node.
      safe_path: whether Python must not look for packages in `cwd`.

    Raises:
      UsageError: an option that cannot stand in a script.
    """
    options_of_sbatch = [
        ("job-name", options.job_name or f"convoy-{logs.parent.name}"),
        ("nodes", options.nodes),
        ("ntasks-per-node", options.processes_per_node),
        ("gpus-per-node", options.gpus_per_node),
        ("cpus-per-task", options.cpus_per_task),
        ("partition", options.partition),
        ("time", options.time),
        ("account", options.account),
        ("qos", options.qos),
        ("constraint", options.constraint),
        ("chdir", cwd),
        ("output", str(logs).replace("%", "%%") + "/slurm-%j.out"),
        ("open-mode", "append"),
    ]
    lines = [f"#SBATCH --{name}={_quoted(name, value)}" for name, value in options_of_sbatch if value is not None]
    if options.requeue:
        # B: to this script alone, which passes it on.
        lines += ["#SBATCH --requeue", f"#SBATCH --signal=B:USR1@{options.warn_seconds}"]
        if options.warn_seconds < options.grace_seconds + _REQUEUE_SECONDS:
            raise UsageError(
                f"--warn_seconds={options.warn_seconds} leaves no time for --grace_seconds={options.grace_seconds:g} "
                f"and putting the job back: give {options.grace_seconds + _REQUEUE_SECONDS:g} or more, or less grace."
            )
    else:
        lines += ["#SBATCH --no-requeue"]
    lines += [f"#SBATCH {_checked_option(option)}" for option in options.sbatch]
    launcher = [python, "-m", "convoy", "launch", "srun"]
    launcher += [f"--processes_per_node={options.processes_per_node}"]
    launcher += [f"--max_restarts={options.max_restarts}", f"--grace_seconds={options.grace_seconds:g}"]
    launcher += [f"--container={options.container}"] if options.container else []
    first, *rest = command
    words = [shlex.join(launcher), f"-- {shlex.quote(first)}", *map(shlex.quote, rest)]
    return "\n".join(
        [
            "#!/bin/bash",
            "# Written by `convoy launch slurm`. Submitted again, it goes on from the newest checkpoint.",
            *lines,
            "",
            # The warning must not end this script before the launcher is there.
            *(["trap '' USR1"] if options.requeue else []),
            *[line for text in options.setup for line in text.splitlines()],
            *(["export PYTHONSAFEPATH=1"] if safe_path else []),
            "# `exec`: SLURM's signals go to the process of this script, which then is the one that watches.",
            "exec " + " \\\n    ".join(words),
            "",
        ]
    )


def _quoted(name: str, value: object) -> str:
    text = str(value)
    if "\n" in text:
        raise UsageError(f"--{name}={text!r} has more than one line, which a line of a batch script cannot hold.")
    return shlex.quote(text)


def _checked_option(option: str) -> str:
    if not option.startswith("-") or "\n" in option:
        raise UsageError(f"--sbatch={option!r} is no option of sbatch. Example: --sbatch=--mail-type=END")
    if re.match(r"--output([= ]|$)|-o", option):
        raise UsageError(f"--sbatch={option}: the job's log is RUN/logs/slurm-JOB.out, where it is followed.")
    return option
