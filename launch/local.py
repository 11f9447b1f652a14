"""Workers as processes on this machine: `convoy launch local --processes=N -- train ...`.

Training with one process on all GPUs needs no launcher, but a launcher restarts it when it dies. Several processes
form a cluster over the loopback interface, each with its share of the cores and GPUs.
"""

import json
import os
from collections.abc import Sequence

from absl import flags as absl_flags

from convoy.launch.devices import cores_by_worker, gpus_by_worker
from convoy.launch.ports import reserved_ports
from convoy.launch.processes import WorkerProcesses, WorkerProgram
from convoy.launch.run_files import AttemptFiles, RunFiles
from convoy.launch.screen import Screen
from convoy.launch.supervisor import Supervisor
from convoy.launch.trainer_command import OTHER_CLUSTERS, TRAINER, run_directory, trainer_environment, trains

REQUIRED = ("processes",)


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this engine."""
    absl_flags.DEFINE_integer(
        "processes", None, "local: number of worker processes", lower_bound=1, upper_bound=64, flag_values=flags
    )
    absl_flags.DEFINE_enum(
        "cores",
        "auto",
        ("auto", "all"),
        "local: auto pins each worker to its share of the cores, or limits it to one thread with more workers than "
        "cores; all lets every worker use every core",
        flag_values=flags,
    )


def run(flags: absl_flags.FlagValues, command: Sequence[str]) -> int:
    """Launches the trainer's `command` (`train` and its flags); returns the exit code."""
    return launch(
        command,
        processes=flags.processes,
        max_restarts=flags.max_restarts,
        grace_seconds=flags.grace_seconds,
        share_cores=flags.cores == "auto",
    )


def launch(
    command: Sequence[str],
    *,
    processes: int,
    max_restarts: int = 3,
    grace_seconds: float = 60.0,
    share_cores: bool = True,
    trainer: Sequence[str] = TRAINER,
) -> int:
    """Trains in worker processes until the run is done or given up.

    Args:
      command: `train` and its flags, with `--workdir`.
      processes: number of workers.
      max_restarts: consecutive restarts allowed without a new checkpoint.
      grace_seconds: seconds from SIGTERM to SIGKILL.
      share_cores: whether to pin each worker to its share of the cores.
      trainer: the program that runs `command`; tests replace it.

    Returns:
      The exit code.

    Raises:
      UsageError: the GPUs cannot be divided evenly, or RUN is a file.
      DataError: RUN is not writable.
    """
    run_files = RunFiles(run_directory(command))
    cores = cores_by_worker(processes) if share_cores else [frozenset[int]()] * processes
    environment = _environment(command, processes, one_thread=share_cores and processes > 1 and not cores[0])
    used_ports: set[int] = set()

    def start(files: AttemptFiles) -> WorkerProcesses:
        with reserved_ports(processes if processes > 1 else 0, avoid=used_ports) as ports:
            used_ports.update(ports)  # a worker left over from another attempt can never connect to the new ones
            programs = [
                WorkerProgram(
                    command=[*trainer, *command],
                    environment={**environment[rank], **files.variables(rank), **_cluster_variables(rank, ports)},
                    log=files.log(rank),
                    cores=cores[rank],
                )
                for rank in range(processes)
            ]
        return WorkerProcesses(programs)

    supervisor = Supervisor(
        run_files,
        start,
        max_restarts=max_restarts,
        grace_seconds=grace_seconds,
        screen=Screen.of_standard_output(),
        trains=trains(command),
        facts={"engine": "local", "processes": processes, "command": list(command)},
    )
    return supervisor.run()


def _environment(command: Sequence[str], processes: int, *, one_thread: bool) -> list[dict[str, str]]:
    """Returns the environment of each worker, as far as it is the same in all attempts."""
    common = trainer_environment()
    for name in OTHER_CLUSTERS:
        common.pop(name, None)
    if one_thread:
        common = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1", **common}
    gpus = gpus_by_worker(processes, command, os.environ)
    return [{**common, **({"CUDA_VISIBLE_DEVICES": gpus[rank]} if gpus else {})} for rank in range(processes)]


def _cluster_variables(rank: int, ports: Sequence[int]) -> dict[str, str]:
    if not ports:
        return {}
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})}
