"""Workers as a SLURM job: `convoy launch slurm --nodes=4 --gpus_per_node=8 --time=12:00:00 -- train ...`.

Writes RUN/logs/job.sbatch, submits it, and follows the job: its state, its growing log, its exit code. The job does not
depend on the process that follows it. Inside the job runs `convoy.launch.slurm.step`.

RUN/logs/job.sbatch            the script, as last submitted
RUN/logs/code-DIGEST/          the user's recipe and model as submitted: the job waits, and files may change meanwhile
RUN/logs/slurm-JOB.out         output of the job's launcher and of the chief, over all starts of the job
RUN/logs/attempt-K/srun.log    the srun command of an attempt and its output
"""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from convoy.core.errors import ConvoyError, UsageError
from convoy.core.flags import FlagDefiner
from convoy.launch.devices import gpus_per_worker
from convoy.launch.run_files import RunFiles
from convoy.launch.screen import Screen
from convoy.launch.slurm.client import NoAnswerError, SlurmError, slurm
from convoy.launch.slurm.follow import follow
from convoy.launch.slurm.script import JobOptions, job_script
from convoy.launch.slurm.step import define_worker_flags
from convoy.launch.trainer_command import run_directory, trainer_environment, trains
from convoy.launch.user_files import UserFiles, user_files
from convoy.launch.worker_variables import define_env_flag, worker_variables

REQUIRED = ("nodes",)

# Variables that locate the cluster. All other SLURM variables describe the job that this shell may be in.
_CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    define = FlagDefiner(flags)
    define_worker_flags(flags, "slurm", default_processes=1)
    define.integer("nodes", None, "slurm: number of nodes", lower_bound=1)
    define.integer("gpus_per_node", None, "slurm: GPUs per node", lower_bound=1)
    define.integer(
        "cpus_per_task", None, "slurm: cores per worker; without it many clusters give only one", lower_bound=1
    )
    define.string(
        "mem", None, "slurm: memory per node, as in sbatch: 64G; 0 is all; the cluster's default may be small"
    )
    define.string("partition", None, "slurm: partition, as in sbatch")
    define.string(
        "time",
        None,
        "slurm: time limit, as in sbatch: 12:00:00. The job is requeued at the limit and the run resumes",
    )
    define.string("account", None, "slurm: account to charge, as in sbatch")
    define.string("qos", None, "slurm: quality of service, as in sbatch")
    define.string("constraint", None, "slurm: required node features, as in sbatch")
    define.string(
        "job_name", None, "slurm: name of the job in squeue (default: convoy- and the name of the run directory)"
    )
    define.multi_string("sbatch", [], "slurm: additional option of sbatch: --sbatch=--exclusive; repeatable")
    define_env_flag(flags, "slurm", kept_in="RUN/logs/job.sbatch")
    define.multi_string(
        "setup", [], "slurm: shell line to run before the launcher, such as `module load cuda`; repeatable"
    )
    define.integer(
        "warn_seconds",
        120,
        "slurm: seconds before the time limit at which the workers save and the job is requeued",
        lower_bound=1,
    )
    define.bool("dry_run", False, "slurm: print the batch script and exit")
    define.bool("follow", True, "slurm: print the job's state and log until it ends")


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Submits a job for the trainer's `command` and follows it; returns the job's exit code.

    Raises:
      UsageError: an invalid option; sbatch refuses the job or is not installed.
      DataError: RUN is not writable.
      ConvoyError: sbatch does not answer.
    """
    if flags.container and flags.container.endswith(".sif") and not os.path.exists(flags.container):
        raise UsageError(f"--container={flags.container} does not exist. Pass the path of an image file.")
    values: dict[str, Any] = {
        field.name: flags[field.name].value for field in fields(JobOptions) if field.name in flags
    }
    options = JobOptions(**values, requeue=trains(command))
    if options.gpus_per_node:
        gpus_per_worker(
            options.gpus_per_node,
            options.processes_per_node,
            asked_as=f"--processes_per_node={options.processes_per_node}",
            available=f"--gpus_per_node={options.gpus_per_node}",
        )
    run_files = RunFiles(run_directory(command))
    script_file = run_files.log_file("job.sbatch")
    code = user_files(command)
    variables = {**worker_variables(flags.env), **run_files.code_variable(code)}
    if "PYTHONSAFEPATH" in trainer_environment():
        variables["PYTHONSAFEPATH"] = "1"
    script = job_script(options, command, logs=script_file.parent, cwd=Path.cwd(), variables=variables)
    if flags.dry_run:
        print(script, end="")
        return 0
    job_id = _submit(script, script_file, run_files, code)
    log = run_files.log_file(f"slurm-{job_id}.out")
    screen = Screen.of_standard_output()
    screen.say(f"convoy: submitted job {job_id}. Script: {_relative(script_file)}. Log: {_relative(log)}.")
    if not flags.follow:
        screen.say(f"convoy: show the job's state: `squeue --job={job_id}`; end it: `scancel {job_id}`.")
        screen.drain()
        return 0
    return follow(job_id, log, screen)


def _submit(script: str, script_file: Path, run_files: RunFiles, code: UserFiles) -> str:
    """Writes and submits the script; returns the job's number."""
    slurm("sbatch", "--version")  # fails before anything is written
    is_new = not script_file.parent.exists()
    run_files.write_log_file(script_file.name, script)
    run_files.write_code(code)
    environment = {
        name: value for name, value in os.environ.items() if name in _CLUSTER_VARIABLES or not name.startswith("SLURM_")
    }
    try:
        printed = slurm("sbatch", "--parsable", str(script_file), environment=environment)
        return printed.split()[-1].partition(";")[0]  # a site's own messages may come first
    except NoAnswerError as error:
        raise ConvoyError(
            f"{error}. The job may be queued nevertheless: check with `squeue --me`. Script: {script_file}"
        ) from None
    except SlurmError as error:
        if is_new:
            script_file.unlink()
            run_files.remove_made_folders()
        raise UsageError(f"sbatch refused the job: {error}") from None


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
