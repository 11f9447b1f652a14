"""Workers on the nodes of a SLURM job, from inside it: `convoy launch srun -- train ...` in a batch script or `salloc`.

Like the local launcher, but with one step of `srun` in place of processes: it restarts all workers when one dies and
forwards SLURM's signals. For what cannot be recovered on these nodes it requeues the job (`scontrol requeue`): after
SLURM's warning before the time limit, and when restarts inside the job did not help, as long as the run makes progress.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import flags as absl_flags

from convoy.core.cluster import HOSTS_VARIABLE, counts_by_host
from convoy.core.errors import UsageError
from convoy.core.exit_codes import RETRYABLE
from convoy.core.flags import FlagDefiner
from convoy.core.registry import is_code
from convoy.core.remote import is_remote
from convoy.core.text import counted
from convoy.launch.devices import gpus_per_worker
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.slurm.client import SlurmError, query_job, slurm, unreachable_nodes
from convoy.launch.slurm.step_workers import StepWorkers
from convoy.launch.supervisor import StartError, Supervisor
from convoy.launch.trainer_command import (
    flag_value,
    integer_or_none,
    key_variable,
    run_directory,
    trainer_environment,
    trains,
)
from convoy.launch.worker import GPUS_VARIABLE

REQUIRED = ()

# Variables that srun would take as options, or a worker as the description of another cluster.
_REMOVED_VARIABLES = ("SLURM_HOSTFILE", "SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "TF_CONFIG", "JOB_COMPLETION_INDEX")
# Variables of the step that this process is in, if any, which do not apply to the step that it starts.
_STEP_VARIABLES = ("SLURM_STEP_", "SLURM_CPU_BIND", "SLURM_MEM_BIND")


class Allocation(NamedTuple):
    """Resources of the job, and the layout of a step on them.

    Attributes:
      job: number of the job; `12_3` for task 3 of an array.
      nodes: its nodes, in SLURM's short form.
      hosts: the same, expanded.
      processes_per_node: workers per node.
      cpus_per_task: cores per worker; None if unknown.
      gpus_per_task: GPUs per worker if there are several workers per node, otherwise None.
      in_step: whether this process is itself in a step of the job, such as `srun --pty bash`.
    """

    job: str
    nodes: str
    hosts: tuple[str, ...]
    processes_per_node: int
    cpus_per_task: int | None
    gpus_per_task: int | None
    in_step: bool = False


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    define_worker_flags(flags, "srun", default_processes=None)


def define_worker_flags(flags: absl_flags.FlagValues, engine: str, *, default_processes: int | None) -> None:
    """Defines the flags that the engines inside and outside the job share; None: the job's --ntasks-per-node."""
    define = FlagDefiner(flags)
    default = "" if default_processes else " (default: the job's --ntasks-per-node, else 1)"
    define.integer(
        "processes_per_node",
        default_processes,
        f"{engine}: workers per node: 1 worker for all its GPUs, or one worker per GPU{default}",
        lower_bound=1,
    )
    define.string(
        "container",
        None,
        f"{engine}: image to run the workers in: for srun's --container-image (pyxis), or a .sif file for apptainer",
    )


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Launches the trainer's `command` on the job's nodes; returns the exit code.

    Raises:
      UsageError: not inside a SLURM job; the GPUs of a node cannot be divided evenly; RUN is a file.
      DataError: RUN is not writable.
    """
    allocation = find_allocation(os.environ, flags.processes_per_node)
    run_files = RunFiles(run_directory(command))
    screen = Screen.of_standard_output()
    hosts = [host for host in allocation.hosts for _ in range(allocation.processes_per_node)]
    environment = {**trainer_environment(), **key_variable()}
    worker = worker_command(command, flags.container, grace_seconds=flags.grace_seconds)

    def start(files: AttemptFiles) -> StepWorkers:
        try:
            unreachable = unreachable_nodes(allocation.nodes)
        except SlurmError as error:
            raise StartError(f"SLURM does not answer: {error}.") from None
        if unreachable:
            names = ", ".join(f"{host} ({state})" for host, state in unreachable.items())
            raise StartError(f"SLURM reports unusable nodes: {names}.")
        name = f"convoy-attempt-{files.number}"
        variables = {**step_environment(allocation, environment), "CONVOY_ATTEMPT": str(files.number)}
        step = step_command(allocation, name, worker, command, flags.container)
        return StepWorkers(files, step, variables, hosts=hosts, job=allocation.job, name=name, show=screen.say)

    restarts = integer_or_none(os.environ.get("SLURM_RESTART_COUNT")) or 0
    start_number = f", start {restarts + 1}" if restarts else ""
    screen.say(f"convoy: job {allocation.job}{start_number}: {counted(len(hosts), 'worker')} on {allocation.nodes}.")
    supervisor = Supervisor(
        run_files,
        start,
        max_restarts=flags.max_restarts,
        grace_seconds=flags.grace_seconds,
        screen=screen,
        trains=trains(command),
        facts={"engine": "slurm", "job": allocation.job, "nodes": allocation.nodes, "command": list(command)},
    )
    first_checkpoint = run_files.checkpoint_step()
    exit_code = supervisor.run()
    if exit_code == RETRYABLE and supervisor.ended_by in (None, signal.SIGUSR1) and trains(command):
        checkpoint = run_files.checkpoint_step()
        new = checkpoint if checkpoint is not None and checkpoint > (first_checkpoint or 0) else None
        _requeue(allocation.job, requeue_decision(new, restarts, flags.max_restarts), screen)
        screen.drain()
    return exit_code


def find_allocation(environment: Mapping[str, str], processes_per_node: int | None) -> Allocation:
    """Returns the resources of the job that this process is in.

    Args:
      environment: variables, with those that SLURM sets in a job.
      processes_per_node: value of the flag; None: the job's --ntasks-per-node.

    Raises:
      UsageError: not inside a job, or a node's GPUs cannot be divided evenly.
    """
    if not {"SLURM_JOB_ID", "SLURM_JOB_NODELIST"} <= environment.keys():
        raise UsageError(
            "not inside a SLURM job (SLURM_JOB_ID is not set). Run `convoy launch srun` in a batch script or in "
            "`salloc --nodes=2`, or submit a job with `convoy launch slurm`."
        )
    nodes = environment["SLURM_JOB_NODELIST"]
    try:
        hosts = tuple(slurm("scontrol", "show", "hostnames", nodes).split())
    except SlurmError as error:
        raise UsageError(f"SLURM_JOB_NODELIST={nodes}: {error}.") from None
    per_node = processes_per_node or integer_or_none(environment.get("SLURM_NTASKS_PER_NODE")) or 1
    cores = counts_by_host(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    share = min(cores) // per_node if cores else None
    requested = integer_or_none(environment.get("SLURM_CPUS_PER_TASK"))
    # The request may have been made for fewer workers per node.
    cpus = min(requested, share) if requested and share else requested or share
    gpus = integer_or_none(environment.get("SLURM_GPUS_ON_NODE")) if per_node > 1 else None
    gpus_per_task = gpus and gpus_per_worker(
        gpus,
        per_node,
        asked_as=f"--processes_per_node={per_node}",
        available=f"the {counted(gpus, 'GPU')} of a node (SLURM_GPUS_ON_NODE)",
    )
    job = environment["SLURM_JOB_ID"]
    if {"SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"} <= environment.keys():  # SLURM_JOB_ID may mean the whole array
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    in_step = "SLURM_STEP_ID" in environment
    return Allocation(job, nodes, hosts, per_node, cpus or None, gpus_per_task, in_step)


def step_environment(allocation: Allocation, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment for srun and its workers."""
    dropped = _REMOVED_VARIABLES + (_STEP_VARIABLES if allocation.in_step else ())
    passed = {name: value for name, value in environment.items() if not name.startswith(dropped)}
    passed[HOSTS_VARIABLE] = ",".join(allocation.hosts)
    if allocation.gpus_per_task:
        passed[GPUS_VARIABLE] = str(allocation.gpus_per_task)
    return passed


def step_command(
    allocation: Allocation, name: str, worker: Sequence[str], command: Sequence[str], container: str | None
) -> list[str]:
    """Returns the srun command that starts all workers, one per task.

    Args:
      allocation: resources of the job.
      name: name of the step.
      worker: the command of each task.
      command: the trainer's; its paths are mounted in the container.
      container: image for pyxis; None or a .sif file needs no option of srun.
    """
    number = len(allocation.hosts)
    tasks = number * allocation.processes_per_node
    step = ["srun", f"--job-name={name}", f"--nodes={number}", f"--ntasks={tasks}"]
    step += [f"--ntasks-per-node={allocation.processes_per_node}", "--distribution=block"]
    # When a task fails, the other workers exit by themselves or are ended by the launcher, not by srun.
    step += ["--kill-on-bad-exit=0", "--wait=0", "--export=ALL", "--mpi=none", "--label"]
    step += ["--overlap"] if allocation.in_step else []  # otherwise srun waits until that step frees its cores
    step += [f"--cpus-per-task={allocation.cpus_per_task}"] if allocation.cpus_per_task else []
    # NCCL uses its fastest transports only between GPUs visible to both processes: `launch worker` selects its own.
    step += ["--gpu-bind=none"] if allocation.gpus_per_task else []
    if container and not container.endswith(".sif"):
        mounts = ",".join(f"{path}:{path}" for path in _paths_of(command))
        step += [f"--container-image={container}", f"--container-mounts={mounts}", f"--container-workdir={os.getcwd()}"]
    return [*step, *worker]


def worker_command(command: Sequence[str], container: str | None, *, grace_seconds: float) -> list[str]:
    """Returns the command of each task: `launch worker`, with this Python or with the container's Convoy."""
    worker = ["launch", "worker", "--noshow", f"--grace_seconds={grace_seconds:g}", "--", *command]
    if not container:
        return [sys.executable, "-m", "convoy", *worker]
    if not container.endswith(".sif"):
        return ["convoy", *worker]
    binds = ",".join(_paths_of(command))
    return ["apptainer", "exec", "--nv", f"--bind={binds}", f"--pwd={os.getcwd()}", container, "convoy", *worker]


def requeue_decision(new_checkpoint: int | None, restarts: int, max_restarts: int) -> tuple[bool, str]:
    """Returns whether to requeue a job whose run could continue, and why.

    Args:
      new_checkpoint: step of the newest checkpoint, if this start of the job wrote it, otherwise None.
      restarts: how often the job has been requeued so far, for any reason.
      max_restarts: requeues up to which a start without a new checkpoint is followed by another.
    """
    if new_checkpoint is not None:
        return True, f"this start reached a new checkpoint at step {new_checkpoint}"
    if restarts < max_restarts:
        return True, f"no new checkpoint in start {restarts + 1} (at most {max_restarts + 1} are tried)"
    return False, f"no new checkpoint in start {restarts + 1} (--max_restarts={max_restarts})"


def _requeue(job: str, decision: tuple[bool, str], screen: Screen) -> None:
    wanted, reason = decision
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a late warning asks for what is already being done
    try:
        state = query_job(job)
        if state is None or not state.is_batch:
            return  # an interactive salloc: its user decides
        if not wanted:
            screen.say(f"convoy: job {job} is not requeued: {reason}.")
            return
        screen.say(f"convoy: requeueing job {job}: {reason}.")
        screen.drain()  # the requeue ends this process
        slurm("scontrol", "requeue", job)
    except SlurmError as error:
        screen.say(f"convoy: job {job} cannot be requeued: {error}. Submit it again.")


def _paths_of(command: Sequence[str]) -> list[str]:
    """Returns the directories that workers need: the current one, RUN, DATA and that of the disk cache."""
    named = [flag_value(command, name) for name in ("workdir", "data", "cache_dir")]
    paths = [os.path.abspath(path) for path in named if path and not is_code(path) and not is_remote(path)]
    return list(dict.fromkeys([os.getcwd(), *paths]))
