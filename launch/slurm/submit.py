"""Workers as a job of SLURM: `convoy launch slurm --nodes=4 --gpus_per_node=8 --time=12:00:00 -- train ...`.

Writes RUN/logs/job.sbatch, submits it, and follows the job: its state, its log as it grows, its exit code. The job does
not need whoever follows it. What happens inside the job is in `convoy.launch.slurm.step`.

RUN/logs/job.sbatch            the script, as it was submitted last
RUN/logs/slurm-JOB.out         what the job's launcher says, over all starts of the job, with the chief's output
RUN/logs/attempt-K/srun.log    how the workers of an attempt were started, and what srun said
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags as absl_flags

from convoy.core.errors import ConvoyError, DataError, UsageError
from convoy.core.files import write_whole
from convoy.launch.screen import Screen
from convoy.launch.slurm.client import NoAnswerError, SlurmError, slurm
from convoy.launch.slurm.follow import follow
from convoy.launch.slurm.script import JobOptions, job_script
from convoy.launch.trainer_command import flag_value, trainer_environment, trains

REQUIRED = ("nodes",)

_PASSED_ON = ("partition", "time", "account", "qos", "constraint", "job_name")  # to sbatch, as they are
# Where the cluster is. Any other variable of SLURM's is about the job that this shell may be in.
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""

    def integer(name: str, default: int | None, text: str) -> None:
        absl_flags.DEFINE_integer(name, default, f"slurm: {text}", lower_bound=1, flag_values=flags)

    integer("nodes", None, "number of nodes")
    integer("processes_per_node", 1, "workers on each node: 1, which uses all its GPUs, or one for each GPU")
    integer("gpus_per_node", None, "GPUs of each node")
    integer("cpus_per_task", None, "cores of each worker; many clusters give one where this is left out")
    for name, text in (
        ("partition", "where to run, as in sbatch"),
        ("time", "time limit, as in sbatch: 12:00:00. The run goes on after it in the requeued job"),
        ("account", "whom to charge, as in sbatch"),
        ("qos", "quality of service, as in sbatch"),
        ("constraint", "features that nodes must have, as in sbatch"),
        ("job_name", "what squeue shows (default: convoy- and the name of the run directory)"),
        ("container", "image to run the workers in: for srun's --container-image (pyxis), or a .sif for apptainer"),
    ):
        absl_flags.DEFINE_string(name, None, f"slurm: {text}", flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "sbatch", [], "slurm: one more option of sbatch, as it is: --sbatch=--mem=0; repeatable", flag_values=flags
    )
    absl_flags.DEFINE_multi_string(
        "setup", [], "slurm: lines of shell before the start, such as `module load cuda`; repeatable", flag_values=flags
    )
    integer("warn_seconds", 120, "how long before the time limit the workers save and the job is put back")
    absl_flags.DEFINE_bool("dry_run", False, "slurm: print the batch script, and do nothing", flag_values=flags)
    absl_flags.DEFINE_bool("follow", True, "slurm: show the job's state and log until it ends", flag_values=flags)


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Submits a job for the trainer's `command` and follows it; returns the job's exit code.

    Raises:
      UsageError: an option that cannot be; sbatch refuses the job, or is not here.
      DataError: RUN cannot be written.
      ConvoyError: sbatch does not answer.
    """
    if flags.container and flags.container.endswith(".sif") and not os.path.exists(flags.container):
        raise UsageError(f"--container={flags.container} is no file. Give the path of the image.")
    options = JobOptions(
        nodes=flags.nodes,
        processes_per_node=flags.processes_per_node,
        gpus_per_node=flags.gpus_per_node,
        cpus_per_task=flags.cpus_per_task,
        sbatch=flags.sbatch,
        setup=flags.setup,
        container=flags.container,
        warn_seconds=flags.warn_seconds,
        max_restarts=flags.max_restarts,
        grace_seconds=flags.grace_seconds,
        requeue=trains(command),
        **{name: flags[name].value for name in _PASSED_ON},
    )
    if flags.gpus_per_node and flags.gpus_per_node % flags.processes_per_node:
        raise UsageError(
            f"--processes_per_node={flags.processes_per_node} does not divide --gpus_per_node={flags.gpus_per_node}. "
            "Give 1, or a number that does."
        )
    logs = Path(os.path.abspath(flag_value(command, "workdir"))) / "logs"
    safe_path = "PYTHONSAFEPATH" in trainer_environment()
    script = job_script(options, command, logs=logs, cwd=Path.cwd(), python=sys.executable, safe_path=safe_path)
    if flags.dry_run:
        print(script, end="")
        return 0
    job = _submitted(script, logs)
    log = logs / f"slurm-{job}.out"
    screen = Screen.of_standard_output()
    screen.say(f"convoy: submitted job {job}. Script: {_shown(logs / 'job.sbatch')}. Log: {_shown(log)}.")
    if not flags.follow:
        screen.say(f"convoy: `squeue --job={job}` shows how it is, `scancel {job}` ends it.")
        screen.drain()
        return 0
    return follow(job, log, screen)


def _submitted(script: str, logs: Path) -> str:
    path = logs / "job.sbatch"
    if logs.parent.exists() and not logs.parent.is_dir():
        raise UsageError(f"--workdir={logs.parent} is a file. Give a folder.")
    slurm("sbatch", "--version")  # before anything is written
    made = [folder for folder in (logs, *logs.parents) if not folder.exists()]
    try:
        logs.mkdir(parents=True, exist_ok=True)
        write_whole(path, script.encode())
    except OSError as error:
        raise DataError(
            f"--workdir={logs.parent}: cannot be written ({error.strerror}). Give a folder that can."
        ) from None
    environment = {
        name: value for name, value in os.environ.items() if name in _OF_THE_CLUSTER or not name.startswith("SLURM_")
    }
    try:
        printed = slurm("sbatch", "--parsable", str(path), environment=environment)
        return printed.split()[-1].partition(";")[0]  # a site's own words may stand above
    except NoAnswerError as error:
        raise ConvoyError(
            f"{error}. The job may be in the queue all the same: `squeue --me` shows it. Its script: {path}"
        ) from None
    except SlurmError as error:
        if made:
            path.unlink()
            for folder in made:
                folder.rmdir()
        raise UsageError(f"sbatch refused the job: {error}") from None


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
