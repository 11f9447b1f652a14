"""The batch script of a training job, written to be read.

    print(job_script(JobOptions(nodes=2), command, logs=..., cwd=...))

Its `#SBATCH` lines request the resources. Its last line runs `convoy launch srun` with `exec`, which starts and watches
the workers and receives SLURM's signals to the batch script.
"""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from convoy.core.errors import UsageError

# From the end of the grace time to the requeue: time for SLURM's commands and for killed processes to go away.
_REQUEUE_SECONDS = 45


@dataclass(frozen=True)
class JobOptions:
    """What to request from SLURM: the flags of the same names, explained in `submit.define_flags`.

    None or empty: the cluster's default. `requeue`: whether the job may be requeued.
    """

    nodes: int
    processes_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
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
    variables: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Returns the script.

    Args:
      options: what to request from SLURM.
      command: the trainer's: `train` and its flags.
      logs: absolute path of the folder for the job's log.
      cwd: directory to which relative paths in `command` refer.
      python: the interpreter, at the same path on every node.
      variables: environment variables to set.

    Raises:
      UsageError: an option is not valid in a batch script.
    """
    sbatch_options = [
        ("job-name", options.job_name or f"convoy-{logs.parent.name}"),
        ("nodes", options.nodes),
        ("ntasks-per-node", options.processes_per_node),
        ("gpus-per-node", options.gpus_per_node),
        ("cpus-per-task", options.cpus_per_task),
        ("mem", _checked_memory(options.mem)),
        ("partition", options.partition),
        ("time", options.time),
        ("account", options.account),
        ("qos", options.qos),
        ("constraint", options.constraint),
        ("chdir", cwd),
        ("output", str(logs).replace("%", "%%") + "/slurm-%j.out"),
        ("open-mode", "append"),
    ]
    lines = [f"#SBATCH --{name}={_quoted(name, value)}" for name, value in sbatch_options if value is not None]
    if options.requeue:
        # B: sends the signal to the batch script only, which forwards it.
        lines += ["#SBATCH --requeue", f"#SBATCH --signal=B:USR1@{options.warn_seconds}"]
        needed_seconds = options.grace_seconds + _REQUEUE_SECONDS
        if options.warn_seconds < needed_seconds:
            raise UsageError(
                f"--warn_seconds={options.warn_seconds} is too short for --grace_seconds={options.grace_seconds:g} "
                f"and the requeue. Give {needed_seconds:g} or more, or a shorter grace time."
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
            "# Written by `convoy launch slurm`. Submitted again, it resumes from the newest checkpoint.",
            *lines,
            "",
            # Otherwise a warning that arrives before the launcher is running would end the script.
            *(["trap '' USR1"] if options.requeue else []),
            *[f"export {name}={shlex.quote(value)}" for name, value in variables.items()],
            *[line for text in options.setup for line in text.splitlines()],
            "# `exec`: the launcher replaces this script's process, so it receives SLURM's signals.",
            "exec " + " \\\n    ".join(words),
            "",
        ]
    )


def _checked_memory(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"\d+[KMGT]?", text):
        raise UsageError(f"--mem={text} is not a size for sbatch. Example: --mem=64G; --mem=0 is all memory of a node.")
    return text


def _quoted(name: str, value: object) -> str:
    text = str(value)
    if "\n" in text:
        raise UsageError(f"--{name}={text!r}: a line break is not allowed in a batch script's option.")
    return shlex.quote(text)


def _checked_option(option: str) -> str:
    if not option.startswith("-") or "\n" in option:
        raise UsageError(f"--sbatch={option!r} is not an option of sbatch. Example: --sbatch=--mail-type=END")
    if re.match(r"--output([= ]|$)|-o", option):
        raise UsageError(f"--sbatch={option}: the job's log must be RUN/logs/slurm-JOB.out. Remove this option.")
    return option
