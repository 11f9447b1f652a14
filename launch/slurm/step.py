"""Workers on the nodes of a SLURM job, from inside it: `convoy launch srun -- train ...` in a batch script or `salloc`.

It is the launcher of one machine, with a step of `srun` in place of processes: it starts the gang again when a worker
dies, and passes SLURM's signals on. What it cannot mend on these nodes it leaves to the queue: after SLURM's warning
before the time limit, and where restarts in the job have not helped, it puts the job back (`scontrol requeue`), as long
as that gets the run further.
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
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.slurm.client import SlurmError, job_facts, nodes_that_do_not_answer, slurm
from convoy.launch.slurm.step_workers import StepWorkers
from convoy.launch.supervisor import StartError, Supervisor
from convoy.launch.trainer_command import flag_value, trainer_environment, trains
from convoy.launch.worker import GPUS_VARIABLE

REQUIRED = ()

# What srun would take for orders of the user, and a worker for the description of another cluster.
_NOT_PASSED_ON = ("SLURM_HOSTFILE", "SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "TF_CONFIG", "JOB_COMPLETION_INDEX")
# The same where this process is itself in a step: what holds for that one alone.
_OF_THE_STEP = ("SLURM_STEP_", "SLURM_CPU_BIND", "SLURM_MEM_BIND")


class Allocation(NamedTuple):
    """What the job has, and how a step is laid out on it.

    Attributes:
      job: SLURM's number of it; `12_3` for the third of an array.
      nodes: in SLURM's short form.
      hosts: the same, one by one.
      processes_per_node: workers on each.
      cpus_per_task: cores of each worker; None where SLURM does not tell.
      gpus_per_task: GPUs of each worker where a node has several workers, otherwise None.
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
    absl_flags.DEFINE_integer(
        "processes_per_node",
        None,
        "srun: workers on each node: 1, which uses all its GPUs, or one for each GPU "
        "(default: the job's --ntasks-per-node, else 1)",
        lower_bound=1,
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "container",
        None,
        "srun: image to run the workers in: for srun's --container-image (pyxis), or a .sif for apptainer",
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Launches the trainer's `command` on the job's nodes; returns the exit code.

    Raises:
      UsageError: this is no job of SLURM's; the GPUs of a node cannot be shared out; RUN is a file.
      DataError: RUN cannot be written.
    """
    allocation = find_allocation(os.environ, flags.processes_per_node)
    run_files = RunFiles(flag_value(command, "workdir"))
    screen = Screen.of_standard_output()
    hosts = [host for host in allocation.hosts for _ in range(allocation.processes_per_node)]
    worker = worker_command(command, flags.container, grace_seconds=flags.grace_seconds)

    def start(files: AttemptFiles) -> StepWorkers:
        try:
            unreachable = nodes_that_do_not_answer(allocation.nodes)
        except SlurmError as error:
            raise StartError(f"SLURM does not answer: {error}.") from None
        if unreachable:
            names = " and ".join(f"{host} ({state})" for host, state in unreachable.items())
            raise StartError(f"SLURM says that {names} cannot be used.")
        name = f"convoy-attempt-{files.number}"
        environment = step_environment(allocation, trainer_environment())
        environment["CONVOY_ATTEMPT"] = str(files.number)
        step = step_command(allocation, name, worker, command, flags.container)
        return StepWorkers(files, step, environment, hosts=hosts, job=allocation.job, name=name, say=screen.say)

    restarts = _restarts(os.environ)
    again = f", start {restarts + 1}" if restarts else ""
    screen.say(f"convoy: job {allocation.job}{again}: {len(hosts)} workers on {allocation.nodes}.")
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
    """Returns what the job that this process is in has.

    Args:
      environment: with SLURM's variables of the job.
      processes_per_node: from the flag; None for the job's own.

    Raises:
      UsageError: it is in no job, or a node's GPUs cannot be shared out.
    """
    if not {"SLURM_JOB_ID", "SLURM_JOB_NODELIST"} <= environment.keys():
        raise UsageError(
            "this is no job of SLURM's (no SLURM_JOB_ID): `convoy launch srun` belongs into a batch script or a "
            "shell of `salloc --nodes=2`. `convoy launch slurm` writes and submits one."
        )
    nodes = environment["SLURM_JOB_NODELIST"]
    try:
        hosts = tuple(slurm("scontrol", "show", "hostnames", nodes).split())
    except SlurmError as error:
        raise UsageError(f"SLURM_JOB_NODELIST={nodes}: {error}.") from None
    per_node = processes_per_node or _number(environment, "SLURM_NTASKS_PER_NODE") or 1
    cores = counts_by_host(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    share = min(cores) // per_node if cores else None
    asked = _number(environment, "SLURM_CPUS_PER_TASK")
    cpus = min(asked, share) if asked and share else asked or share  # asked for fewer workers than there are now
    gpus = _number(environment, "SLURM_GPUS_ON_NODE") if per_node > 1 else None
    if gpus and gpus % per_node:
        raise UsageError(
            f"--processes_per_node={per_node} does not divide the {gpus} GPUs of a node (SLURM_GPUS_ON_NODE). "
            "Give 1, or a number that does."
        )
    job = environment["SLURM_JOB_ID"]
    if {"SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"} <= environment.keys():  # the array's own number means all of it
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    in_step = "SLURM_STEP_ID" in environment
    return Allocation(job, nodes, hosts, per_node, cpus or None, gpus and gpus // per_node, in_step)


def step_environment(allocation: Allocation, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns what srun gets of an environment, and so the workers, with what they need to know."""
    dropped = _NOT_PASSED_ON + (_OF_THE_STEP if allocation.in_step else ())
    passed = {name: value for name, value in environment.items() if not name.startswith(dropped)}
    passed[HOSTS_VARIABLE] = ",".join(allocation.hosts)
    if allocation.gpus_per_task:
        passed[GPUS_VARIABLE] = str(allocation.gpus_per_task)
    return passed


def step_command(
    allocation: Allocation, name: str, worker: Sequence[str], command: Sequence[str], container: str | None
) -> list[str]:
    """Returns the srun that starts the whole gang, a worker a task.

    Args:
      allocation: what the job has.
      name: of the step.
      worker: the command of each task.
      command: the trainer's, whose paths a container must show.
      container: image of pyxis; None, or a .sif, which is no affair of srun's.
    """
    number = len(allocation.hosts)
    tasks = number * allocation.processes_per_node
    step = ["srun", f"--job-name={name}", f"--nodes={number}", f"--ntasks={tasks}"]
    step += [f"--ntasks-per-node={allocation.processes_per_node}", "--distribution=block"]
    # The others save or notice by themselves, and the launcher sees to the rest.
    step += ["--kill-on-bad-exit=0", "--wait=0", "--export=ALL", "--mpi=none", "--label"]
    step += ["--overlap"] if allocation.in_step else []  # that step has cores, and would be waited for
    step += [f"--cpus-per-task={allocation.cpus_per_task}"] if allocation.cpus_per_task else []
    # NCCL's fastest ways lead only to GPUs that a process could see: `launch worker` picks its own among the node's.
    step += ["--gpu-bind=none"] if allocation.gpus_per_task else []
    if container and not container.endswith(".sif"):
        mounts = ",".join(f"{path}:{path}" for path in _paths_of(command))
        step += [f"--container-image={container}", f"--container-mounts={mounts}", f"--container-workdir={os.getcwd()}"]
    return [*step, *worker]


def worker_command(command: Sequence[str], container: str | None, *, grace_seconds: float) -> list[str]:
    """Returns what each task runs: `launch worker`, with this Python, or with the container's own Convoy."""
    worker = ["launch", "worker", "--noshow", f"--grace_seconds={grace_seconds:g}", "--", *command]
    if not container:
        return [sys.executable, "-m", "convoy", *worker]
    if not container.endswith(".sif"):
        return ["convoy", *worker]
    binds = ",".join(_paths_of(command))
    return ["apptainer", "exec", "--nv", f"--bind={binds}", f"--pwd={os.getcwd()}", container, "convoy", *worker]


def requeue_decision(new_checkpoint: int | None, restarts: int, max_restarts: int) -> tuple[bool, str]:
    """Returns whether to put a job back into the queue that ended although its run could go on, and why.

    Args:
      new_checkpoint: step of one that this start of the job has written, or None.
      restarts: how often the job was put back so far, by anybody.
      max_restarts: how many starts without a new checkpoint are tried after the first.
    """
    if new_checkpoint is not None:
        return True, f"this start of it got as far as the checkpoint of step {new_checkpoint}"
    if restarts < max_restarts:
        return True, f"start {restarts + 1} brought no new checkpoint, and up to {max_restarts + 1} are tried"
    return False, f"start {restarts + 1} brought no new checkpoint (--max_restarts={max_restarts})"


def _requeue(job: str, decision: tuple[bool, str], screen: Screen) -> None:
    wanted, reason = decision
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the warning may still come; what it asks for is being done
    try:
        facts = job_facts(job)
        if facts is None or not facts.is_batch:
            return  # a shell of salloc: the person in it decides
        if not wanted:
            screen.say(f"convoy: job {job} is not put back into the queue: {reason}.")
            return
        screen.say(f"convoy: putting job {job} back into the queue (scontrol requeue): {reason}.")
        screen.drain()  # SLURM ends this process now
        slurm("scontrol", "requeue", job)
    except SlurmError as error:
        screen.say(f"convoy: job {job} could not be put back into the queue: {error}. Submit it again.")


def _paths_of(command: Sequence[str]) -> list[str]:
    """Returns the folders that workers must see: the current one, RUN and DATA."""
    named = [flag_value(command, name) for name in ("workdir", "data")]
    return list(dict.fromkeys([os.getcwd(), *(os.path.abspath(path) for path in named if path)]))


def _restarts(environment: Mapping[str, str]) -> int:
    return _number(environment, "SLURM_RESTART_COUNT") or 0


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else None
